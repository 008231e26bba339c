"""Fast paths, each a switch with its plain reference beside it (docs/performance.md tells what each bought).

``set_ops(model, ops)`` turns them on or off in any built network; the backbones call it with their argument ``ops``.
The modules keep their place, their parameters and their key names: a switch changes a class or an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any

from torch import nn

from ..core import scale as live
from ..core.adapters import AdaptedLinear
from .gemm import LIBRARIES
from .linear import Deployable, FastAdaptedLinear, FastLinear
from .window import METHODS


@dataclass(frozen=True)
class Switch:
    """One optimisation: value by default, what it may be (the last choice is the plain path), what it does."""

    default: Any
    choices: tuple
    text: str


SWITCHES = {
    'linear': Switch('auto', LIBRARIES, 'library of the products; adapters accumulate; frozen weights save nothing'),
    'window': Switch('auto', METHODS, 'window attention by index with cached bias'),
    'mlp': Switch('auto', ('auto', 'plain'), 'on the CPU, wide MLPs go through the cache in pieces of rows'),
    'drop_path': Switch('sparse', ('sparse', 'dense'), 'branches run on the kept samples only'),
    'recompute': Switch(
        'auto',
        ('auto', True, 'attention', False),
        "outputs of norms and activations computed again in backward (auto: on the CPU); 'attention': attention too",
    ),
    'weights': Switch(None, ('bfloat16', None), 'dtype in which the big frozen weights of the blocks are stored'),
    'compile': Switch(False, (True, False), 'torch.compile of one block a stage'),
}


@dataclass(frozen=True)
class Ops:
    """Values of ``SWITCHES``."""

    linear: str
    window: str
    mlp: str
    drop_path: str
    recompute: bool | str
    weights: str | None
    compile: bool

    @classmethod
    def read(cls, ops: str | Mapping | Ops | None = None) -> Ops:
        """Reads ``ops=None`` (defaults), ``'plain'`` (every reference) or a dict of switches.

        Raises:
            ValueError: naming the switch, its value and its choices.
        """
        if isinstance(ops, Ops):
            return ops
        if ops == 'plain':
            return cls(**{name: s.choices[-1] for name, s in SWITCHES.items()})
        if not isinstance(ops, (Mapping, type(None))):
            raise ValueError(f"ops must be None, 'plain' or a dict of switches, got {ops!r}.")
        given = dict(ops or {})
        unknown = sorted(set(given) - set(SWITCHES))
        if unknown:
            raise ValueError(f'ops has no switch {unknown}; the switches are {sorted(SWITCHES)}.')
        for name, value in given.items():
            choices = SWITCHES[name].choices
            if not any(type(value) is type(c) and value == c for c in choices):
                raise ValueError(f'ops.{name} must be one of {list(choices)}, got {value!r}.')
        read = cls(**{**{name: s.default for name, s in SWITCHES.items()}, **given})
        if read.weights and read.linear == 'plain':
            raise ValueError(
                f"ops.weights={read.weights!r} needs a linear layer that casts, got ops.linear='plain'; leave it out."
            )
        if read.compile and read.window == 'plain':
            raise ValueError(
                "ops.compile compiles window attention by index, got ops.window='plain'; leave one of the two out."
            )
        return read

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# Host class -> its fast class: a subclass with ``wanted(ops) -> bool`` and ``use_ops(ops)``. blocks.py adds
# mmpretrain's.
FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, AdaptedLinear: FastAdaptedLinear}


def set_ops(model: nn.Module, ops: str | Mapping | Ops | None = None, only: type[nn.Module] = nn.Module) -> nn.Module:
    """Turns the fast paths of a built network on or off, in place; idempotent.

    Args:
        model: a backbone, a detector, or a live network with adjusted layers.
        ops: see ``Ops.read``. With ``'plain'`` every module computes as its host's class does, and all but blocks have
            it back.
        only: modules of this class alone.

    Returns:
        ``model``.
    """
    ops = Ops.read(ops)
    modules = [m for m in model.modules() if isinstance(m, only)]
    for module in modules:
        host = vars(module).get('host_class', type(module))
        fast = FAST.get(host)
        if type(module) in (host, fast):  # else its class was changed since: parametrized
            vars(module).pop('host_class', None)
            if fast is not None and fast.wanted(ops):
                module.__class__, module.host_class = fast, host
            elif fast is not None:
                module.__class__ = host
    for module in modules:  # a block asks which of its layers are fast
        if hasattr(module, 'use_ops'):
            module.use_ops(ops)
    return model


def deploy(model: nn.Module) -> nn.Module:
    """Says that the weights of a network change no more: on a CPU they are laid out once for inference. In place.

    Costs the memory of a copy of them. Changes by ``load_state_dict`` and torch's own operations are seen all the same;
    those through ``.data`` (peft merges so, averages of weights are kept so) and by an optimizer with ``fused=True``
    are not. ``train()`` and ``set_ops`` take it back.

    Returns:
        ``model``.
    """
    for module in model.modules():
        if isinstance(module, Deployable):
            module.deployed = True
    return model


def _fast(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``make`` of a live network, whose adapted linears are then the fast ones; the host's own modules stay."""

    @wraps(make)
    def made(*args, **kwargs) -> nn.Module:
        return set_ops(make(*args, **kwargs), only=AdaptedLinear)

    return made


scale, rescale, scale_layers = map(_fast, (live.scale, live.rescale, live.scale_layers))
