"""What is proved of a scaled config before it is written: the same function at times=1, weights for all that is frozen,
gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..backbones.scaled import UNSCALED
from ..checkpoint.loading import build_model, fill, for_model
from ..checkpoint.reading import read_checkpoint, strip_prefix, unwrap
from ..checkpoint.strict import CheckpointError
from ..compat import quiet
from ..core.roles import TrainPolicy, matches
from .made_up import SIZES, made_up

ROUNDING = 1e-4
ROUNDING_OF_DOUBLE = 1e-6  # mmpretrain resizes the position embedding in fp32; an epsilon of 1e-5 for 1e-6 gives 5e-6
ODD = ((11, 37), (3, 1))  # pixels more than the size: no whole patches, no whole windows


@dataclass(frozen=True)
class Proofs:
    """What was shown.

    Attributes:
        same_code: our class at ``times=1`` gave the library's outputs bit for bit, not only up to rounding.
        whole: the checkpoint holds all that stays frozen; otherwise it holds the backbone, and all else is trained.
        also: what is trained besides the increments.
        trained: names of the parameters that are trained; these and no others got a gradient, but for the unused.
        unused: those of them on which the losses do not depend, such as the norm of an output that no neck reads.
        model: the scaled model with the checkpoint's weights and the policy.
    """

    same_code: bool
    whole: bool
    also: tuple[str, ...]
    trained: tuple[str, ...]
    unused: tuple[str, ...]
    model: nn.Module


def prove(cfg: Config, wanted: Config, where: str, checkpoint: str, also: Sequence[str], same_code: bool) -> Proofs:
    """Builds both configs' models and compares them.

    Args:
        cfg: the user's config.
        wanted: the same with its backbone scaled.
        where: the backbone's path in both.
        checkpoint: of the whole model or of its backbone.
        also: patterns that are trained besides.
        same_code: our class computes in the order of the library's.

    Raises:
        ValueError: with the first thing that does not hold.
    """
    cfg, wanted = copy.deepcopy(cfg), copy.deepcopy(wanted)  # a detector writes into its config
    with quiet(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        size = at(cfg, where).get('img_size') or SIZES[cfg.default_scope]
        size = size if isinstance(size, int) and cfg.default_scope == 'mmpretrain' else SIZES[cfg.default_scope]
        same_function_unscaled(cfg, wanted, where, size, same_code)
        model = _built(wanted)
        images, samples = made_up(cfg, size)
        try:
            last, unused = final_layers(model, images, samples, where)
        except Exception as error:
            raise ValueError(_why_no_step(cfg, where, images, samples, error)) from error
        if unused:
            _unused_in_both(cfg, where, images, samples, unused)
        state = unwrap(read_checkpoint(checkpoint))
        whole, policy = _loaded(model, state, checkpoint, where, (*last, *also), also)
        trained = policy.trainable(model)
        _same_gradients(model, images, samples, set(trained) - unused)
        if wanted_start(wanted, where) == 'function':
            named = strip_prefix(for_model(state, model), f'{where.partition(".")[2]}.') if whole else None
            _same_function_scaled(cfg, model, where, size, checkpoint, named)
    return Proofs(same_code, whole, policy.also, tuple(trained), tuple(sorted(unused & set(trained))), model)


def at(node: Any, where: str) -> Any:
    """What a path such as ``'model.backbone'`` names below a config."""
    for key in where.split('.'):
        node = node[int(key) if isinstance(node, (list, tuple)) else key]
    return node


def module_at(model: nn.Module, where: str) -> nn.Module:
    """The module that a path in the config, which begins with ``model.``, became."""
    return model.get_submodule(where.partition('.')[2])


def wanted_start(wanted: Config, where: str) -> str:
    return at(wanted, where)['scale'].get('start', 'paper')


# --- the same function


def same_function_unscaled(cfg: Config, wanted: Config, where: str, size: int, same_code: bool) -> None:
    """At ``times=1`` our class gives the library's outputs with the library's weights: bit for bit where it computes in
    the library's order, else in double precision up to its rounding.

    Raises:
        ValueError: with the largest difference.
    """
    torch.manual_seed(0)
    theirs = MODELS.build(without_weights(at(cfg, where)))
    node = {**without_weights(at(wanted, where)), 'scale': UNSCALED, 'ops': 'plain'}
    if 'out_indices' in node:  # of the scaled layers there
        node['out_indices'] = at(cfg, where)['out_indices']
    ours = MODELS.build(node)
    if hasattr(theirs, 'init_weights'):
        theirs.init_weights()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.02)  # nothing is zero or one
    ours.load_state_dict(theirs.state_dict())
    if same_code:
        compare_outputs(theirs, ours, size, 0.0)
    else:
        compare_outputs(theirs.double(), ours.double(), size, ROUNDING_OF_DOUBLE)


def compare_outputs(theirs: nn.Module, ours: nn.Module, size: int, close: float) -> None:
    """On random images of odd sizes; ``close`` is the largest difference allowed, relative to the largest output.

    Raises:
        ValueError: with sizes and the largest difference.
    """
    for net in (theirs, ours):
        net.eval()  # mmdet's returns nothing
    channels = next((p.shape[1] for p in theirs.parameters() if p.ndim == 4), 3)  # the first kernel reads the image
    for height, width in ((size + h, size + w) for h, w in ODD):
        images = torch.randn(1, channels, height, width, dtype=next(theirs.parameters()).dtype)
        with torch.no_grad():
            pairs = list(zip(_tensors(theirs(images)), _tensors(ours(images)), strict=True))
        worst = float(torch.stack([(a - b).abs().max() for a, b in pairs]).max())  # NaN stays, unlike in Python's max
        if not worst <= close * max(float(a.abs().max()) for a, _ in pairs):
            raise ValueError(
                f'{type(ours).__name__} differs from {type(theirs).__name__} by up to {worst:.2g} on images of '
                f'{height} x {width}: an argument means something else there. Nothing was written.'
            )


def _same_function_scaled(
    cfg: Config, model: nn.Module, where: str, size: int, checkpoint: str, named: dict | None
) -> None:
    """With ``start='function'`` the scaled backbone is the source with the checkpoint's weights."""
    ours = module_at(model, where)
    node = without_weights(at(cfg, where))
    node.pop('frozen_stages', None)  # of training
    theirs = MODELS.build({**node, 'type': type(ours).__name__, 'scale': UNSCALED})
    theirs.load_pretrained(checkpoint) if named is None else theirs.load_state_dict(named)
    compare_outputs(theirs, ours, size, ROUNDING)


def without_weights(node: dict) -> dict:
    """A copy of a backbone's config that names no file."""
    node = copy.deepcopy(dict(node))
    for key in ('init_cfg', 'pretrained'):
        if node.get(key) is not None:
            node[key] = None
    return node


def _tensors(node: Any) -> list[Tensor]:
    """All tensors in lists, tuples and dicts."""
    if isinstance(node, Tensor):
        return [node]
    if isinstance(node, dict):
        node = list(node.values())
    return [t for item in node for t in _tensors(item)] if isinstance(node, (list, tuple)) else []


# --- the whole model


def _why_no_step(cfg: Config, where: str, images: list[Tensor], samples: list, error: Exception) -> str:
    """Whether the user's own model can be trained, where the scaled one cannot."""
    said = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
    try:
        losses(_own_model(cfg, where), images, samples)
    except Exception as theirs:
        if type(theirs) is type(error):
            return f'The model of {cfg.filename} itself takes no training step on two made-up images: {said}'
    return f'The scaled model takes no training step on two made-up images: {said}. Nothing was written.'


def _own_model(cfg: Config, where: str) -> nn.Module:
    own = copy.deepcopy(cfg)
    parent, _, key = where.rpartition('.')
    at(own, parent)[key] = without_weights(at(own, where))
    return _built(own)


def _built(cfg: Config) -> nn.Module:
    """The model of a config, on one process. What a library leaves unfilled until its ``init_weights`` (embeddings of
    mmdet's DETRs), which may ask for files, is drawn.
    """
    model = revert_sync_batchnorm(build_model(cfg))
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() and not p.abs().max() < 1e3:  # nor if it is no number
                p.normal_(std=0.02)
    return model


def _unused_in_both(cfg: Config, where: str, images: list[Tensor], samples: list, unused: set[str]) -> None:
    """What the losses do not depend on, they do not depend on in the user's own model: the same parameter, or for a
    new layer one of the layers beside it.

    Raises:
        ValueError: with the parameters of which this is not so.
    """
    model = _own_model(cfg, where)
    losses(model, images, samples).backward()
    theirs = {name for name, p in model.named_parameters() if p.grad is None}
    beside = {name.partition('blocks.')[0] for name in theirs if 'blocks.' in name}
    if more := sorted(n for n in unused - theirs if not n.startswith(tuple(beside) or ' ')):
        raise ValueError(
            f'The losses depend on no part of {len(more)} tensors, such as {more[:3]}, though those of the model of '
            f'{cfg.filename} depend on all of its own: an output of the backbone is read too early. Nothing was '
            'written.'
        )


def losses(model: nn.Module, images: list[Tensor], samples: list) -> Tensor:
    """The sum of the model's losses of a batch, in training mode."""
    model.train()
    torch.manual_seed(0)
    data = model.data_preprocessor(dict(inputs=images, data_samples=copy.deepcopy(samples)), training=True)
    return model.parse_losses(model(**data, mode='loss'))[0]


def _same_gradients(model: nn.Module, images: list[Tensor], samples: list, trained: set[str]) -> None:
    """Gradients are where the policy says, and nowhere else.

    Raises:
        ValueError: with the parameters that are trained without one, or the other way round.
    """
    model.zero_grad()
    losses(model, images, samples).backward()
    given = {name for name, p in model.named_parameters() if p.grad is not None}
    if without := sorted(trained - given):
        raise ValueError(
            f'{len(without)} trained parameters get no gradient, such as {without[:3]}: something before the loss '
            'stops it. Nothing was written.'
        )
    if more := sorted(given - trained):
        raise ValueError(f'Gradients reach what is frozen, {more[:3]}. Nothing was written.')
    model.zero_grad()


# --- what is trained


@contextmanager
def leaves_that_ran(model: nn.Module, outside: str):
    """Modules with parameters of their own, by name, with the nodes of the graph behind their inputs and outputs."""
    ran: dict[str, tuple[list, list]] = {}
    handles = []
    for name, module in model.named_modules():
        if not name or name.startswith(outside) or not any(True for _ in module.parameters(recurse=False)):
            continue

        def keep(module, inputs, options, output, name=name):
            before, after = ran.setdefault(name, ([], []))
            before += [t.grad_fn for t in _tensors((inputs, options)) if t.grad_fn is not None]
            after += [node for t in _tensors(output) for node in _nodes(t)]

        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _nodes(output: Tensor) -> Iterator:
    """What made a tensor in the graph; behind a view too, since an operation in place on it would replace the view."""
    node = output.grad_fn
    while node is not None:
        yield node
        node = node.next_functions[0][0] if 'View' in node.name() else None


def final_layers(model: nn.Module, images: list[Tensor], samples: list, where: str) -> tuple[tuple[str, ...], set[str]]:
    """The last classification and regression layers of the heads, found by what their outputs go into, and the
    parameters that the losses do not depend on.

    A layer is last if no other layer with parameters computes on its output. Of a two-stage detector those of the box
    heads are meant (Sec. IV-E1), of a classifier none (Sec. IV-A1).
    """
    with leaves_that_ran(model, where.partition('.')[2] + '.') as ran:
        losses(model, images, samples).backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    model.zero_grad()
    if hasattr(model, 'head'):
        return (), unused
    outputs = {node: name for name, (_, after) in ran.items() for node in after}
    before_another = {other for name, (before, _) in ran.items() for other in _behind(before, outputs) if other != name}
    inside = 'roi_head.bbox_head' if hasattr(model, 'roi_head') else ''
    last = [
        name
        for name in ran
        if name not in before_another and name.startswith(inside) and _is_linear(model, name, unused)
    ]
    return tuple(_shortened(last, ran)), unused


def _is_linear(model: nn.Module, name: str, unused: set[str]) -> bool:
    own = dict(model.get_submodule(name).named_parameters(recurse=False))
    return any(p.ndim > 1 and f'{name}.{key}' not in unused for key, p in own.items())


def _behind(nodes: list, outputs: dict[Any, str]) -> set[str]:
    """The layers whose outputs are on the way back from nodes of the graph, the first one of each way."""
    todo, seen, found = list(nodes), set(), set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in outputs:
            found.add(outputs[node])
            continue
        todo += [n for n, _ in node.next_functions if n is not None]
    return found


def _shortened(names: list[str], ran: Iterable[str]) -> list[str]:
    """Patterns instead of names where only numbers differ and the pattern means these alone.

    >>> _shortened(['a.0.4', 'a.1.4', 'b'], ['a.0.0', 'a.0.4', 'a.1.0', 'a.1.4', 'b'])
    ['a.*.4', 'b']
    """
    alike: dict[str, list[list[str]]] = {}
    for name in names:
        parts = name.split('.')
        alike.setdefault('.'.join('*' if part.isdigit() else part for part in parts), []).append(parts)
    found = []
    for group in alike.values():
        pattern = '.'.join(part[0] if len(set(part)) == 1 else '*' for part in zip(*group))
        meant = ['.'.join(parts) for parts in group]
        found += [pattern] if sum(matches(name, pattern) for name in ran) == len(meant) else meant
    return found


# --- weights


def _beside(model: nn.Module, path: str) -> Iterator[str]:
    """The modules with parameters that lie beside a module, or beside one that holds it."""
    name, _, deeper = path.partition('.')
    for other, child in model.named_children():
        if other != name and any(True for _ in child.parameters()):
            yield other
    if deeper:
        yield from (f'{name}.{other}' for other in _beside(getattr(model, name), deeper))


def _loaded(
    model: nn.Module, state: dict, checkpoint: str, where: str, also: Sequence[str], asked: Sequence[str]
) -> tuple[bool, TrainPolicy]:
    """Loads the checkpoint as a run would: whole, or into the backbone, and then everything else is trained.

    Raises:
        CheckpointError: if neither fits; the message has both reasons.
    """
    policy = TrainPolicy('increments', tuple(dict.fromkeys(also)))
    policy.apply(model)
    named = for_model(state, model)
    outside = where.partition('.')[2]
    meant_whole = any(not key.startswith(f'{outside}.') for key in model.state_dict().keys() & named.keys())
    try:
        fill(model, state, training=True)
        return True, policy
    except (CheckpointError, RuntimeError) as error:
        if meant_whole:
            raise CheckpointError(
                f'{checkpoint}: {error}\nWhat shall be trained from scratch is named with --also.',
                getattr(error, 'differences', None),
            ) from error
        first = error
    backbone = module_at(model, where)
    try:
        backbone.load_pretrained(checkpoint)
    except CheckpointError as second:
        raise CheckpointError(
            f'{checkpoint} holds neither the whole model nor its backbone.\nAs the whole model: {first}\n'
            f'As its backbone: {second}',
            getattr(second, 'differences', None),
        ) from second
    rest = list(_beside(model, outside))
    policy = TrainPolicy('increments', tuple(dict.fromkeys((*rest, *asked))))
    policy.apply(model)
    return False, policy
