"""Elastic depth: a scaled network at any depth between its source's and its own, by skipping instances. torch only.

A skipped instance returns its input. Instances keep their indices, so that what a host counts by them (outputs, window
shifts, places in a key-value cache) keeps its meaning, and no tensor, key or tie is touched.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from .positions import period
from .tying import TiedLayers

Active = dict[str, tuple[int, ...]]  # container of tied layers -> its instances that run


def set_depth(model: nn.Module, depth: int | Mapping[str, int] | None = None, zero_gradients: bool = False) -> Active:
    """Runs ``model`` at another depth from now on, until the next call.

    >>> from scalenet_mm import scale
    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> set_depth(scale(encoder, times=2), 4)
    {'layers': (0, 2, 3, 4)}

    Args:
        model: any network with tied layers.
        depth: instances that run, of all containers together, from one for each source layer (where the order of the
            instances allows it, the pretrained network's function and the adjustments on it) up to all of them; or
            ``{container: instances}``, containers left out run whole; None is the full depth.
        zero_gradients: in training, gives what a skipped instance has of its own (norms, adjustments) a gradient of
            zero in place of none, as DistributedDataParallel needs it.

    Returns:
        The instances that run, by container.

    Raises:
        ValueError: before anything is changed, for a network without tied layers or a depth outside its range.
    """
    active = instances_at(model, depth)
    skip_others(model, active, zero_gradients)
    return active


def depth_range(model: nn.Module) -> tuple[int, int]:
    """The smallest and the largest depth, see ``set_depth``."""
    containers = tied_containers(model).values()
    return sum(len(_least(c)) for c in containers), sum(map(len, containers))


def active_instances(model: nn.Module) -> Active:
    """The instances that run now, by container."""
    return {
        name: tuple(i for i, block in enumerate(layers) if not _is_skipped(block))
        for name, layers in tied_containers(model).items()
    }


def tied_containers(model: nn.Module) -> dict[str, TiedLayers]:
    """The containers of tied layers, by name.

    Raises:
        ValueError: if there is none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, TiedLayers)}
    if not found:
        raise ValueError(
            f'{type(model).__name__} has no tied layers, so there are none to skip; scale it first: '
            'scalenet_mm.scale(model, times=2).'
        )
    return found


def instances_at(model: nn.Module, depth: int | Mapping[str, int] | None = None) -> Active:
    """The instances that ``set_depth`` lets run, see there.

    One of each source layer comes first (``LayerMap.live``). Where those are the first ones, as in the stacked order,
    the others are added one after the other, so that a shallower network is the beginning of a deeper one; elsewhere
    they are spread evenly over the network.
    """
    containers = tied_containers(model)
    first = {name: _least(layers) for name, layers in containers.items()}
    others = {n: [i for i in range(len(c)) if i not in first[n]] for n, c in containers.items()}
    low, high = depth_range(model)
    if isinstance(depth, Mapping):
        ranges = {n: (len(first[n]), len(c)) for n, c in containers.items()}
        wrong = {n: d for n, d in depth.items() if n not in ranges or not _within(d, *ranges[n])}
        if wrong:
            raise ValueError(f'depth names instances by container, within these ranges: {ranges}; got {wrong}.')
        more = {n: depth.get(n, top) - least for n, (least, top) in ranges.items()}
    else:
        depth = high if depth is None else depth
        if not _within(depth, low, high):
            raise ValueError(
                f'depth must be a whole number from {low} (one instance of every source layer) to {high} (all '
                f'instances of {list(containers)}), got {depth!r}.'
            )
        more = Counter(_spread([n for n in others for _ in others[n]], depth - low))
    active = {}
    for name, least in first.items():
        ahead = least == tuple(range(len(least)))
        added = others[name][: more[name]] if ahead else _spread(others[name], more[name])
        active[name] = tuple(sorted((*least, *added)))
    return active


def _within(depth: object, low: int, high: int) -> bool:
    return isinstance(depth, Integral) and not isinstance(depth, bool) and low <= int(depth) <= high


def _least(layers: TiedLayers) -> tuple[int, ...]:
    """One instance of each source layer: the pretrained function where the order of the instances holds it.

    Instance 0 runs in any case: hosts ask it how long a key-value cache is, and ``Skipping`` what a block returns.
    """
    try:
        found = layers.layer_map.live(period(layers))
    except ValueError:
        found = layers.layer_map.owners
    return tuple(sorted({0, *found}))


def _spread(items: Sequence, number: int) -> list:
    """So many of the items, evenly spaced.

    >>> _spread('abcdef', 2)
    ['b', 'e']
    """
    return [items[(2 * j + 1) * len(items) // (2 * number)] for j in range(number)]


class Skipping:
    """What the skipped blocks of one container share.

    Attributes:
        outputs: how many values a block of this host returns where it returns a tuple; None where it returns a tensor.
            Learnt from instance 0, which always runs, or ran before.
        last: what the last block that ran returned, where that is a tuple, until the last instance has been called.
        zero_gradients: see ``set_depth``.
    """

    outputs: int | None = None
    last: tuple = ()
    zero_gradients = False

    def learn(self, block: nn.Module, args: tuple, output: Any) -> None:
        """A forward hook of every block that runs."""
        self.outputs = len(output) if isinstance(output, tuple) else None
        self.last = output if isinstance(output, tuple) else ()

    def forget(self, block: nn.Module, args: tuple, output: Any) -> None:
        """A forward hook of the last instance."""
        self.last = ()

    def result(self, x: Tensor, state: Any = None, given: Sequence[Any] = ()) -> Any:
        """What a skipped block returns: its state, and what is handed from block to block beside it (T5's position
        bias, TNT's second stream) as it was handed to this one.

        Args:
            x: the state to return.
            state, given: the first argument and the others of the skipped block.
        """
        if self.outputs is None:
            return x

        def handed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(handed, value))
            if value is state:
                return x
            return value if any(value is one for one in given) else None

        first, *rest = self.last or (None,)
        first = handed(first) if isinstance(first, tuple) else x
        returned = (first, *map(handed, rest), *[None] * (self.outputs - 1 - len(rest)))
        self.last = returned if self.last else ()  # the next one may be skipped too
        return returned


def skip_others(model: nn.Module, active: Active, zero_gradients: bool = False) -> None:
    """Skips every instance that ``active`` does not name, and lets those run that it does.

    Raises:
        ValueError: before anything is changed, if a block's ``forward`` was replaced by somebody else.
    """
    containers = tied_containers(model)
    for name, layers in containers.items():
        for i, block in enumerate(layers):
            if 'forward' in vars(block) and not (_is_own(block) or _is_skipped(block)):
                raise ValueError(
                    f'The forward of {name}.{i} was replaced on the instance (by hooks of accelerate), so it cannot '
                    'be skipped; take those off first: accelerate.hooks.remove_hook_from_module(model, recurse=True).'
                )
    partly = any(len(active[name]) < len(layers) for name, layers in containers.items())
    for name, layers in containers.items():
        shared = vars(layers).setdefault('skipping', Skipping())
        shared.zero_gradients = zero_gradients
        for i, block in enumerate(layers):
            vars(block).pop('forward', None)
            for key, hook in list(block._forward_hooks.items()):
                if isinstance(getattr(hook, '__self__', None), Skipping):
                    del block._forward_hooks[key]
            if i not in active[name]:
                block.forward = partial(_skip, block, shared)
        if partly:  # `replayed` skips blocks of containers that run whole now
            for i in active[name]:
                layers[i].register_forward_hook(shared.learn)
            layers[-1].register_forward_hook(shared.forget)


def _is_own(block: nn.Module) -> bool:
    """Whether the ``forward`` on the instance is the class's own, as transformers 4 leaves it there."""
    forward = vars(block)['forward']
    own = getattr(forward, '__func__', None) is type(block).forward
    return own and forward.__self__ is block


def _is_skipped(block: nn.Module) -> bool:
    return getattr(vars(block).get('forward'), 'func', None) in (_skip, _replay)


def _skip(block: nn.Module, shared: Skipping, *args, **kwargs) -> Any:
    """The forward of a skipped block; a partial, which deepcopy and pickle carry over to the copy of the block."""
    state, *given = (*args, *kwargs.values())
    x = state
    if shared.zero_gradients and block.training:
        for p in (p for p in block.parameters() if p.requires_grad):
            x = x + p.flatten()[:0].sum().to(x.dtype)  # 0, whatever p is
    return shared.result(x, state, given)


def _replay(block: nn.Module, shared: Skipping, state: Tensor, *args, **kwargs) -> Any:
    """The forward of a block whose output is known."""
    return shared.result(state)


@contextmanager
def replayed(model: nn.Module, active: Active, done: Active, state: Tensor) -> Iterator[None]:
    """Inside, ``model`` runs the instances ``active`` from the output of the last one of ``done`` on.

    Args:
        done: the first of the active instances in the order of the network, see ``early_exit.passes``.
        state: what the last of them put out.
    """
    before = active_instances(model)
    skip_others(model, {n: tuple(i for i in a if i not in done[n]) for n, a in active.items()})
    name = [n for n, instances in done.items() if instances][-1]
    layers = model.get_submodule(name)
    layers[done[name][-1]].forward = partial(_replay, layers[done[name][-1]], layers.skipping, state)
    try:
        yield
    finally:
        skip_others(model, before)


class RandomDepth:
    """Draws a depth a training step, so that every depth gets trained.

    >>> from scalenet_mm import scale
    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> draw = RandomDepth(scale(encoder, times=2), full=0.5)
    >>> [draw(step) for step in range(6)]
    [6, 6, 6, 3, 5, 6]
    >>> _ = set_depth(encoder)  # after training

    What a skipped instance has of its own gets a zero gradient, so that this works under DistributedDataParallel as it
    is (``find_unused_parameters`` stays False), and every number of processes takes the same steps. The depth depends
    on seed and step alone: all processes draw the same one, and a resumed run goes on as the uninterrupted one.

    Args:
        model: any network with tied layers.
        full: the probability of the full depth; else it is uniform between the smallest and the full one.
        seed: of the draws.

    Raises:
        ValueError: for a probability outside 0..1, or a network without tied layers.
    """

    def __init__(self, model: nn.Module, full: float = 0.5, seed: int = 0):
        if not 0 <= full <= 1:
            raise ValueError(f'full is a probability, from 0 to 1, got {full!r}.')
        self.model, self.full, self.seed = model, full, seed
        self.low, self.high = depth_range(model)

    def __call__(self, step: int) -> int:
        draws = random.Random(f'{self.seed} {step}')
        whole = draws.random() < self.full
        depth = self.high if whole else draws.randint(self.low, self.high)
        set_depth(self.model, depth, zero_gradients=True)
        return depth
