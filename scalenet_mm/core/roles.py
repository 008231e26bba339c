"""One rule gives every parameter its role; freezing, optimizer groups, deltas and counts all ask it. torch only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from fnmatch import fnmatchcase

import torch
from torch import nn

from .adapters import Adjustment
from .growth import GrownLayers
from .kept import declare_constant
from .tying import TiedLayers, is_norm


class Role(str, Enum):
    """What a parameter is to the method."""

    SHARED = 'shared'  # held by two or more layer instances
    NORM = 'norm'  # of a normalisation layer of the scaled network
    ADJUSTMENT = 'adjustment'  # of an adapter, LoRA or gate
    GROWN = 'grown'  # of a new layer with tensors of its own (growth.py)
    OUTER = 'outer'  # everything else: embeddings, layers used once, heads

    def __str__(self) -> str:
        return self.value


BY_POLICY = '_frozen_by_policy'  # on a module: names of its own parameters that a policy froze

# What a policy trains. 'increments' is what the paper trains of all models but DeiT-T and DeiT-S (Sec. IV-A1).
TRAINED = {'increments': {Role.ADJUSTMENT, Role.NORM, Role.GROWN}, 'adjustments': {Role.ADJUSTMENT}, 'all': set(Role)}


def scaled_hosts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The scaled networks in ``model``: modules marked ``scaled_host``, else ``model`` itself."""
    marked = [(name, m) for name, m in model.named_modules() if getattr(m, 'scaled_host', False)]
    return marked or [('', model)]


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter by its name; a shared one appears once, under its owner's name."""
    uses = Counter(
        id(p)
        for layers in model.modules()
        if isinstance(layers, TiedLayers)
        for module in layers.modules()
        for p in module.parameters(recurse=False)
    )
    in_host = {id(m) for _, host in scaled_hosts(model) for m in host.modules()}
    grown = {
        id(m)
        for layers in model.modules()
        if isinstance(layers, GrownLayers)
        for i in layers.new
        for m in layers[i].modules()
    }
    found: dict[int, Role] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if isinstance(module, Adjustment):
                role = Role.ADJUSTMENT
            elif is_norm(module) and id(module) in in_host:
                role = Role.NORM
            elif id(module) in grown:
                role = Role.GROWN
            else:
                role = Role.SHARED if uses[id(p)] > 1 else Role.OUTER
            found.setdefault(id(p), role)
    return {name: found[id(p)] for name, p in model.named_parameters()}


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` names the parameter ``name`` or a module around it.

    Whole path components are compared, each with the wildcards of ``fnmatch``.

    >>> matches('roi_head.bbox_head.fc_cls.weight', 'roi_head.bbox_head.fc_cls')
    True
    >>> matches('backbone.stages.3.blocks.0.norm1.weight', 'backbone.stages.*.blocks.*.norm1')
    True
    >>> matches('head.fc2.weight', 'head.fc')
    False
    """
    parts, wanted = name.split('.'), pattern.split('.')
    return len(wanted) <= len(parts) and all(map(fnmatchcase, parts, wanted))


def nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """Up to five modules or parameters that ``pattern`` may have meant: those that end like it, then those spelt alike.

    Without any, the outermost modules.

    >>> nearest('bbox_head.fc_clss', ['roi_head.bbox_head.fc_cls.weight', 'neck.weight'])[0]
    'roi_head.bbox_head.fc_cls'
    """
    paths = {'.'.join(n.split('.')[:i]): None for n in names for i in range(1, n.count('.') + 2)}
    ending = [p for p in paths if p.endswith('.' + pattern)]
    alike = get_close_matches(pattern, paths, n=5)
    return list(dict.fromkeys([*ending, *alike]))[:5] or sorted(p for p in paths if '.' not in p)


@dataclass(frozen=True)
class TrainPolicy:
    """Which parameters are trained.

    What the model itself froze stays frozen unless it is named: ``'increments'`` and ``'adjustments'`` name what they
    say, ``'all'`` names nothing, and a pattern names what it matches, or of a part that is frozen here and there the
    rest.

    Attributes:
        train: ``'increments'`` (adjustments and norms of the scaled network, and new layers of a grown one),
            ``'adjustments'`` alone, or ``'all'`` that the model itself would train.
        also: patterns (see ``matches``) of parameters trained besides, such as a new head: ``['head.fc']``.
    """

    train: str = 'increments'
    also: tuple[str, ...] = ()

    def __post_init__(self):
        if self.train not in TRAINED:
            raise ValueError(
                f"train must be 'increments' (adapters + norms), 'adjustments' or 'all', got {self.train!r}."
            )
        also = (self.also,) if isinstance(self.also, str) else tuple(self.also or ())
        object.__setattr__(self, 'also', also)

    @classmethod
    def from_cfg(cls, cfg: Mapping | None) -> TrainPolicy:
        """Reads ``policy=dict(train=..., also=[...])``; None is the default."""
        if not isinstance(cfg or {}, Mapping):
            raise ValueError(f"policy is a dict such as dict(train='increments', also=['head']), got {cfg!r}.")
        unknown = sorted(set(cfg or {}) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f'policy has no key {unknown}; it takes {sorted(cls.__dataclass_fields__)}.')
        return cls(**(cfg or {}))

    def trainable(self, model: nn.Module) -> list[str]:
        """Names of the parameters to train.

        Raises:
            ValueError: if a pattern matches nothing.
        """
        return self._split(model)[0]

    def _split(self, model: nn.Module) -> tuple[list[str], set[str]]:
        """The parameters to train, and those that would be, had the model not frozen them itself."""
        found, own = roles(model), frozen_by_model(model)
        chosen = {name for name, role in found.items() if role in TRAINED[self.train]} - _frozen_twins(model, own)
        trained = chosen - own if self.train == 'all' else set(chosen)
        for pattern in self.also:
            named = {name for name in found if matches(name, pattern)}
            if not named:
                raise ValueError(
                    f'The pattern {pattern!r} of parameters to train matches none; patterns are whole path components. '
                    f'Nearest in this model: {nearest(pattern, found)}.'
                )
            trained |= named - own or named
            chosen |= named
        return [name for name in found if name in trained], chosen - trained

    def apply(self, model: nn.Module) -> list[str]:
        """Freezes everything else, for good: frozen BatchNorm and drop-out leaves stay in eval mode.

        Drop path and drop-out inside a scaled network stay active: its increments are being trained. A later policy
        replaces this one whole.

        Returns:
            Names of the trainable parameters.
        """
        trained, spared = self._split(model)
        trainable, own = set(trained), frozen_by_model(model)
        _require_full_precision(model, trainable)
        for module in model.modules():  # what an earlier policy held in eval mode
            for key, hook in list(module._forward_pre_hooks.items()):
                if hook is _stay_in_eval:
                    del module._forward_pre_hooks[key]
        by_policy = {id(p) for name, p in model.named_parameters() if name not in trainable | own}
        for module in model.modules():
            module.__dict__.pop(BY_POLICY, None)
            names = {name for name, p in module._parameters.items() if id(p) in by_policy}
            if names:
                setattr(module, BY_POLICY, names)
        for name, p in model.named_parameters():
            p.requires_grad_(name in trainable)
        declare_frozen(model)
        for leaf in _frozen_leaves(model, spared):
            leaf.register_forward_pre_hook(_stay_in_eval)
            leaf.eval()
        return sorted(trainable)


def frozen_by_policy(model: nn.Module) -> set[str]:
    """Names of the parameters that a policy froze."""
    held = {id(m._parameters[name]) for m in model.modules() for name in getattr(m, BY_POLICY, ())}
    return {name for name, p in model.named_parameters() if id(p) in held and not p.requires_grad}


def declare_frozen(model: nn.Module) -> None:
    """Declares constant what a policy froze, so that its casts may be kept; a copy of a network is asked for anew."""
    names = frozen_by_policy(model)
    for name, p in model.named_parameters():
        declare_constant(p, name in names)


def _frozen_twins(model: nn.Module, frozen: set[str]) -> set[str]:
    """Parameters of scaled networks that the model froze whole beside others that it did not, as a teacher."""
    every = [name for name, _ in model.named_parameters()]
    twins = [{n for n in every if n.startswith(f'{host}.')} for host, _ in scaled_hosts(model) if host]
    still = [names for names in twins if names and names <= frozen]
    return set().union(*still) if len(still) < len(twins) else set()


def frozen_by_model(model: nn.Module) -> set[str]:
    """Names of the frozen parameters that no policy froze: the model or its user did."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return frozen - frozen_by_policy(model)


def _require_full_precision(model: nn.Module, trainable: set[str]) -> None:
    dtypes, known = {n: p.dtype for n, p in model.named_parameters()}, roles(model)
    half = [n for n in sorted(trainable) if dtypes[n].itemsize < 4]
    increments = {dtypes[n] for n, role in known.items() if role in (Role.NORM, Role.ADJUSTMENT)}
    stored = any(known[n] == Role.SHARED for n in half) and any(d.itemsize > 2 for d in increments)
    if stored:  # the big weights alone were put into half precision
        raise ValueError(
            f'{half[0]} and {len(half) - 1} more parameters are to be trained, but are stored in {dtypes[half[0]]}, '
            "whose steps are too coarse for updates; leave weights='bfloat16' out of ops, or train the increments."
        )


def _stay_in_eval(module: nn.Module, args) -> None:
    module.training = False


def _frozen_leaves(model: nn.Module, spared: Collection[str]) -> Iterator[nn.Module]:
    """BatchNorms without a trainable parameter, and drop-outs next to frozen parameters only, outside scaled hosts.

    Args:
        model: frozen by a policy.
        spared: parameters that the model froze and the policy did not: what stands beside them is the model's business.
    """
    in_host = {id(m) for _, host in scaled_hosts(model) for m in host.modules()}
    own = {id(p) for name, p in model.named_parameters() if name in spared}

    def frozen(params: list[nn.Parameter]) -> bool:
        return not any(p.requires_grad for p in params) and any(id(p) not in own for p in params)

    for parent in model.modules():
        beside = list(parent.parameters())
        for leaf in parent.children():
            params = list(leaf.parameters())
            if isinstance(leaf, nn.modules.batchnorm._NormBase):
                if frozen(params):
                    yield leaf
            elif id(leaf) not in in_host and not params and _is_dropout(leaf) and frozen(beside):
                yield leaf


def _is_dropout(module: nn.Module) -> bool:
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return isinstance(module, nn.modules.dropout._DropoutNd) or 'DropPath' in kinds


@dataclass(frozen=True)
class Count:
    """Tensors and parameters of one role, each shared tensor counted once."""

    tensors: int = 0
    params: int = 0
    trainable: int = 0
    uses: int = 0  # parameters as the unshared network would have them

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))


def count_by_use(model: nn.Module) -> dict[tuple[Role, int], Count]:
    """Unique parameters by role and number of modules that hold them."""
    found = roles(model)
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    counts: dict[tuple[Role, int], Count] = {}
    for name, p in model.named_parameters():
        key, n = (found[name], uses[id(p)]), p.numel()
        counts[key] = counts.get(key, Count()) + Count(1, n, n if p.requires_grad else 0, n * uses[id(p)])
    return {k: counts[k] for k in sorted(counts, key=lambda k: (list(Role).index(k[0]), k[1]))}


def count(model: nn.Module) -> dict[Role, Count]:
    """Unique parameters by role."""
    counts = count_by_use(model)
    return {role: total(c for (of, _), c in counts.items() if of is role) for role in Role}


def role_rows(model: nn.Module) -> list[tuple[str, int, int, int]]:
    """Of each role that the model has, and in total: name, tensors, parameters, trained parameters."""
    counts = {str(role): c for role, c in count(model).items() if c.tensors}
    counts['total'] = total(counts.values())
    return [(name, c.tensors, c.params, c.trainable) for name, c in counts.items()]


def total(counts: Iterable[Count]) -> Count:
    return sum(counts, Count())


def unique_bytes(model: nn.Module) -> int:
    """Bytes of a checkpoint's tensors: every entry of ``state_dict()`` once."""
    return sum(t.nbytes for t in model.state_dict().values() if torch.is_tensor(t))
