"""The adjustment of a layer instance (Sec. III-C): what lets tied layers differ. torch only."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# An adjustment as fast paths see it: A, B and the non-linearity between them (None: LoRA).
LowRank = tuple[Tensor, Tensor, Callable[[Tensor], Tensor] | None]

ADAPTER_RANK = 16  # Sec. IV-A1
LORA_RANK = 8  # Table II, Swin rows

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    'GELU': F.gelu,
    'ReLU': F.relu,
    'SiLU': F.silu,
    'Tanh': torch.tanh,
    'Identity': lambda x: x,
}


class Adjustment(nn.Module):
    """A trainable addition to a linear layer, zero at the start.

    Raw Parameters, never an ``nn.Linear``: frameworks refill every ``nn.Linear`` when they initialise a model.

    Args:
        in_features: d_in of the linear layer.
        out_features: d_out of the linear layer.
        rank: r, the width of the bottleneck.
        init_std: standard deviation of A; by default d_in ** -0.5, which keeps the variance of x.
    """

    targets: tuple[str, ...] = ()  # the linears of a block that get one, unless the config says otherwise
    rank: int
    init_std: float
    down: nn.Parameter  # A
    up: nn.Parameter  # B

    def __init__(self, in_features: int, out_features: int, rank: int, init_std: float | None = None):
        super().__init__()
        if not isinstance(rank, Integral) or rank < 1:
            raise ValueError(f'rank must be a whole number >= 1, got {rank!r}; adjust=None leaves the adjustment out.')
        self.rank = int(rank)
        self.init_std = in_features**-0.5 if init_std is None else float(init_std)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Gaussian, B zero."""
        nn.init.normal_(self.down, std=self.init_std)
        nn.init.zeros_(self.up)

    def _apply(self, fn, recurse=True):
        was_meta = any(p.is_meta for p in self.parameters())
        super()._apply(fn, recurse)
        if was_meta and not any(p.is_meta for p in self.parameters()):  # .to_empty(): what lies in memory is no start
            self.reset_parameters()
        return self

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        if 'forward' in vars(cls) and 'low_rank' not in vars(cls):  # it computes something else than its base
            cls.low_rank = Adjustment.low_rank

    def low_rank(self) -> LowRank | None:
        """A, B and the non-linearity between them, of an adjustment that is B σ(A x) and nothing else."""
        return None

    def extra_repr(self) -> str:
        return f'rank={self.rank}'


class ParallelAdapter(Adjustment):
    """B σ(A x), beside the linear layer (Eq. 9).

    The non-linearity is not named in the paper; ours is GELU.
    """

    targets = ('fc1', 'fc2')

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = ADAPTER_RANK,
        act: str = 'GELU',
        init_std: float | None = None,
    ):
        super().__init__(in_features, out_features, rank, init_std)
        if act not in ACTIVATIONS:
            raise ValueError(f'act must be one of {sorted(ACTIVATIONS)}, got {act!r}.')
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        return F.linear(ACTIVATIONS[self.act](F.linear(x, self.down)), self.up)

    def low_rank(self) -> LowRank:
        return self.down, self.up, ACTIVATIONS[self.act]

    def extra_repr(self) -> str:
        return f'rank={self.rank}, act={self.act}'


class LoRA(Adjustment):
    """B A x (Eq. 8). Never merged into the weight: one weight serves several instances with different B A."""

    targets = ('qkv', 'proj', 'fc1', 'fc2')  # Table VI's counts

    def __init__(self, in_features: int, out_features: int, rank: int = LORA_RANK, init_std: float | None = None):
        super().__init__(in_features, out_features, rank, init_std)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        return F.linear(F.linear(x, self.down), self.up)

    def low_rank(self) -> LowRank:
        return self.down, self.up, None


class Gate(Adjustment):
    """One scalar on a linear layer's output, zero at the start (the function-preserving start)."""

    def __init__(self):
        nn.Module.__init__(self)
        self.scale = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.scale)

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * y

    def extra_repr(self) -> str:
        return ''


ADJUSTMENTS: dict[str, type[Adjustment]] = {'ParallelAdapter': ParallelAdapter, 'LoRA': LoRA}


def refuse_scripting(module: nn.Module) -> nn.Module:
    """A module's ``__prepare_scriptable__``, which ``torch.jit.script`` calls before it reads anything."""
    raise TypeError(
        f'torch.jit.script cannot read {type(module).__name__} of a scaled network, made at run time; '
        'use torch.jit.trace, torch.export or torch.compile, which read what it computes.'
    )


# Linear classes whose forward is exactly x W^T + b, so that AdaptedLinear may stand in for them.
PLAIN_LINEARS = {('torch.nn.modules.linear', 'Linear'), ('mmcv.cnn.bricks.wrappers', 'Linear')}


class AdaptedLinear(nn.Linear):
    """``gate · (W x + b) + adapter(x)``: a linear layer that owns its weight and carries an adjustment.

    ``weight`` and ``bias`` keep the host's key names; only ``adapter.*`` and ``gate.*`` are new.
    """

    adapter: Adjustment | None
    gate: Gate | None
    __prepare_scriptable__ = refuse_scripting

    @classmethod
    def wrap(cls, linear: nn.Linear, adapter: Adjustment | None = None, gated: bool = False) -> AdaptedLinear:
        """Stands in for ``linear``: same Parameter objects, hooks and flags.

        Raises:
            TypeError: if ``linear`` computes something else than W x + b, or does not call its class's forward.
        """
        kind = type(linear)
        if (kind.__module__, kind.__name__) not in PLAIN_LINEARS:
            raise TypeError(
                f'Only a plain linear layer can carry an adjustment, got {kind.__module__}.{kind.__qualname__}; '
                'choose other targets in adjust=dict(targets=...) or adjust before replacing the linear layers.'
            )
        if 'forward' in vars(linear) or getattr(linear, '_compiled_call_impl', None):
            raise TypeError(
                'The forward of a linear layer was replaced (by hooks of accelerate, or compile()), and would pass its '
                'adjustment by: scale first, then dispatch or compile.'
            )
        self = cls.__new__(cls)
        self.__dict__ = {k: copy.copy(v) for k, v in linear.__dict__.items()}
        self.adapter = adapter
        self.gate = Gate().to(linear.weight.device, linear.weight.dtype) if gated else None
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        y = F.linear(x, self.weight, self.bias)  # W x + b
        if self.gate is not None:
            y = self.gate(y)
        return y if self.adapter is None else y + self.adapter(x)  # + B σ(A x), Eq. 9; + B A x, Eq. 8


def as_data(adjust: Mapping[str, Any]) -> dict[str, Any]:
    """``adjust`` as a file or a config can hold it: a class by its name, whatever counts as a whole number as one."""
    found = {k: list(v) if isinstance(v, (tuple, set)) else v for k, v in adjust.items()}
    found = {k: int(v) if isinstance(v, Integral) and not isinstance(v, bool) else v for k, v in found.items()}
    if 'type' in found:  # a class, or its name with or without its module
        found['type'] = getattr(found['type'], '__name__', str(found['type']).rpartition('.')[2])
    return found


def parse_adjust(adjust: dict | None) -> tuple[Callable[[int, int], Adjustment], tuple[str, ...]] | None:
    """Reads ``adjust=dict(type='ParallelAdapter', rank=16, ...)``.

    Returns:
        A factory ``(d_in, d_out) -> Adjustment`` and the names of the linears to adjust, or None.
    """
    if adjust is None:
        return None
    if not isinstance(adjust, Mapping):
        raise ValueError(f"adjust must be dict(type='ParallelAdapter'|'LoRA', ...) or None, got {adjust!r}.")
    options = as_data(adjust)
    kind = options.pop('type', 'ParallelAdapter')
    if kind not in ADJUSTMENTS:
        raise ValueError(f'adjust.type must be one of {sorted(ADJUSTMENTS)} or adjust=None, got {kind!r}.')
    targets = options.pop('targets', ADJUSTMENTS[kind].targets)
    targets = (targets,) if isinstance(targets, str) else tuple(targets)

    def make(in_features: int, out_features: int) -> Adjustment:
        return ADJUSTMENTS[kind](in_features, out_features, **options)

    try:
        make(1, 1)
    except TypeError as e:
        taken = [*inspect.signature(ADJUSTMENTS[kind]).parameters][2:]  # those after d_in, d_out
        raise ValueError(
            f'adjust={adjust} does not fit {kind}, which takes {", ".join(taken)} and targets: {e}.'
        ) from e
    return make, targets
