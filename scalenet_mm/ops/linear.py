"""A linear layer with its adjustment in one step, forward and backward (Eq. 8 and 9). torch only.

The reference is the plain sum ``F.linear(x, W, b) + adapter(x)``; against it
  * the adjustment is accumulated into the wide output by the product itself (one pass instead of three),
  * nothing is saved for a gradient that is not computed: of a frozen layer without adjustment, nothing at all,
  * an input that is cheap to compute again (a norm's or an activation's output) need not be saved, see ``remakable``,
  * frozen weights are cast once and not at every use under autocast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..core.adapters import AdaptedLinear, LowRank
from ..core.kept import trained
from .gemm import by_onednn, compute_dtype, in_dtype, packed, product, traced


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    low_rank: LowRank | None = None,
    library: str = 'auto',
    deployed: bool = False,
) -> Tensor:
    """x W^T + b + B σ(A x).

    Args:
        x: (..., d_in).
        weight: (d_out, d_in); bias: (d_out,).
        low_rank: A (r, d_in), B (d_out, r) and σ.
        library: see ``gemm.LIBRARIES``; 'plain' is the reference.
        deployed: weights change no more, see ``ops.deploy``.

    Returns:
        (..., d_out).
    """
    if library == 'plain' or not ordinary(x, weight, low_rank) or traced():
        return plain(x, weight, bias, low_rank)
    recipe = getattr(x, 'recipe', None)
    if recipe is not None and recipe.version != x._version:  # changed in place since
        recipe = None
    if x.device.type != 'cpu' and recipe is None:
        return composed(x, weight, bias, low_rank, deployed)
    if not torch.is_grad_enabled():
        return inferred(x, weight, bias, low_rank, library, deployed)
    down, up, act = low_rank or (None, None, None)
    return _Linear.apply(x, weight, bias, down, up, act, library, recipe)


def inferred(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low_rank: LowRank | None,
    library: str,
    deployed: bool,
    act: Callable[[Tensor], Tensor] | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """act(x W^T + b + B σ(A x)) + add, without a gradient; ``act`` and ``add`` (..., d_out) as the product is written.

    Of deployed weights oneDNN's layout is kept. Where the output is wider than the input, the adjustment is then a part
    of the same product, [x, σ(A x)] [W | B]^T, which costs a layout of W for every instance.
    """
    dtype, (down, up, sigma) = compute_dtype(x), low_rank or (None, None, None)
    a = x.to(dtype).reshape(-1, x.shape[-1])
    z = None if down is None else product(a, down.to(dtype), None, library, sigma)
    rest = None if add is None else add.reshape(-1, add.shape[-1])
    bias = None if bias is None else in_dtype(bias, dtype)
    ready = deployed and by_onednn(a, a, library)
    if ready and z is not None and len(weight) > a.shape[1]:
        a, z, weight = torch.cat([a, z], 1), None, packed(weight, dtype, up)
    else:
        weight = packed(weight, dtype) if ready else in_dtype(weight, dtype)
    sooner = rest is not None and rest.dtype is dtype and (z is None or act is None)
    y = product(a, weight, bias, library, act if z is None else None, rest if sooner else None)
    if z is not None:
        y = torch.addmm(y, z, up.to(dtype).t(), out=y)
        y = y if act is None else act(y)
    y = y if rest is None or sooner else y + rest
    return y.view(*x.shape[:-1], y.shape[-1])


def composed(
    x: Tensor, weight: Tensor, bias: Tensor | None, low_rank: LowRank | None, deployed: bool = False
) -> Tensor:
    """``linear`` of torch's own operations, for a GPU, which waits for Python: they launch faster than ``_Linear``.

    Frozen and deployed weights are cast once, and the adjustment is added in place: out of it, CUDA copies the wide
    output first.
    """
    dtype, fixed = compute_dtype(x), deployed and not torch.is_grad_enabled()

    def ready(t: Tensor) -> Tensor:
        if trained(t) and not fixed:
            return t.to(dtype)
        return in_dtype(t, dtype, fixed)

    x, weight, bias = x.to(dtype), ready(weight), None if bias is None else ready(bias)
    if low_rank is None:
        return F.linear(x, weight, bias)
    down, up, act = low_rank
    rows = x.reshape(-1, x.shape[-1])  # a view of the output could not be added to in place without more kernels
    y, z = F.linear(rows, weight, bias), F.linear(rows, ready(down))
    y.addmm_(z if act is None else act(z), ready(up).t())
    return y.view(*x.shape[:-1], y.shape[-1])


OWN = (nn.Parameter, Tensor)


def ordinary(x: Tensor, weight: Tensor, low_rank: LowRank | None = None) -> bool:
    """Whether they are torch's own real numbers, some, and no quantized, distributed or wrapped ones."""
    own = type(x) is Tensor and type(weight) in OWN and (low_rank is None or type(low_rank[0]) in OWN)
    return own and x.is_floating_point() and weight.is_floating_point() and weight.numel() > 0


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, low_rank: LowRank | None = None) -> Tensor:
    """The reference of ``linear``; also takes weights that are stored in another dtype than x.

    ``torch.fx`` reads it with a stand-in of x, which has no dtype to ask for.
    """
    other = isinstance(x, Tensor) and x.is_floating_point() and weight.dtype is not x.dtype
    if other and compute_dtype(x) is x.dtype:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    y = F.linear(x, weight, bias)
    if low_rank is None:
        return y
    down, up, act = low_rank
    if isinstance(x, Tensor) and down.dtype is not x.dtype and compute_dtype(x) is x.dtype:
        down, up = down.to(x.dtype), up.to(x.dtype)
    z = F.linear(x, down)
    return y + F.linear(z if act is None else act(z), up)


def _forward(x, weight, bias, down, up, act, library) -> tuple[Tensor, Tensor | None]:
    """The output, and A x, (N, r)."""
    dtype, z = compute_dtype(x), None
    a = x.to(dtype).reshape(-1, x.shape[-1])
    y = product(a, in_dtype(weight, dtype), None if bias is None else in_dtype(bias, dtype), library)
    if down is not None:
        z = product(a, down.to(dtype), None, library)
        torch.addmm(y, act(z) if act else z, up.to(dtype).t(), out=y)
    return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], len(weight)]), z  # a view would be another graph


class _Linear(torch.autograd.Function):
    """``linear`` with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, act, library, recipe):
        y, z = _forward(x, weight, bias, down, up, act, library)
        ctx.act, ctx.library, ctx.dtype = act, library, compute_dtype(x)
        ctx.x_meta = x.shape, x.dtype, x.device.type
        needs_input = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        ctx.again = recipe and recipe.again
        kept = (recipe.source if recipe else x) if needs_input else None
        ctx.save_for_backward(kept, weight, down, up, z)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        kept, weight, down, up, z = ctx.saved_tensors
        (shape, x_dtype, kind), dtype = ctx.x_meta, ctx.dtype
        need_x, need_w, need_b, need_down, need_up = ctx.needs_input_grad[:5]
        if ctx.again is not None and kept is not None:
            kept = ctx.again(kept)
        with torch.autocast(kind, enabled=False):
            a = None if kept is None else kept.to(dtype).reshape(-1, shape[-1])
            g = grad.to(dtype).reshape(-1, len(weight))
            dx = dw = db = d_down = d_up = None
            if down is not None:
                narrow = up.to(dtype).t()
                if kind == 'cpu':
                    narrow = narrow.contiguous()  # MKL is up to three times as slow with the other order
                s, dz = _through(ctx.act, z, product(g, narrow, None, ctx.library))
                if need_up:
                    d_up = _over_rows(g, s, ctx.library).to(up.dtype)
                if need_down:
                    d_down = _over_rows(dz, a, ctx.library).to(down.dtype)
            if need_x:
                dx = product(g, in_dtype(weight, dtype).t(), None, ctx.library)
                if down is not None:
                    dx.addmm_(dz, down.to(dtype))  # not `out=`: several gradients at once may be batched
                dx = dx.view(shape).to(x_dtype)
            if need_w:
                dw = _over_rows(g, a, ctx.library).to(weight.dtype)
            if need_b:
                db = g.sum(0)
        return dx, dw, db, d_down, d_up, None, None, None


def _over_rows(g: Tensor, a: Tensor, library: str) -> Tensor:
    """G^T A of (N, d_out) and (N, d_in): the narrower comes first, as oneDNN copies a transposed first factor."""
    if a.shape[1] < g.shape[1]:
        return product(a.t(), g.t(), None, library).t().contiguous()
    return product(g.t(), a.t(), None, library)


def _through(act, z: Tensor, ds: Tensor) -> tuple[Tensor, Tensor]:
    """σ(z) and the gradient before σ; z and ds are (N, r), narrow."""
    if act is None:
        return z, ds
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        s = act(z)
    return s.detach(), torch.autograd.grad(s, z, ds)[0]


class Recipe(NamedTuple):
    """How a tensor is made again."""

    source: Tensor
    again: Callable[[Tensor], Tensor]
    version: int  # of the tensor that it makes


REMADE = (nn.LayerNorm, nn.RMSNorm, nn.GELU, nn.SiLU)  # they save their input, so that a recipe costs no memory


def remakable(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``; of a norm's or an activation's output a linear layer that follows saves the recipe."""
    y = module(x)
    own = isinstance(module, REMADE) and not module._modules  # of a parametrized one the weight is made elsewhere
    if own and type(y) is Tensor and y is not x and not is_hooked(module):
        kind = y.device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        y.recipe = Recipe(x, partial(_again, module, dict(module._parameters), kind, enabled, dtype), y._version)
    return y


def _again(module: nn.Module, held: dict, kind: str, enabled: bool, dtype: torch.dtype, source: Tensor):
    lent = any(module._parameters.get(name) is not p for name, p in held.items())  # by torch.func.functional_call
    if lent:
        module = copy.copy(module)
        module._parameters = held
    with torch.no_grad(), torch.autocast(kind, dtype, enabled):
        return type(module).forward(module, source)


class Deployable:
    """Mixed in before a module: ``ops.deploy`` says that its weights change no more, training takes it back."""

    deployed = False

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self.deployed = False
        return super().train(mode)

    def __getstate__(self) -> dict:
        """A copy's weights may change, as those of an average do, whatever is said of these."""
        return {**super().__getstate__(), 'deployed': False}


class FastLinear(Deployable, nn.Linear):
    """``nn.Linear`` through ``linear``; made from one by changing its class, see ``ops.set_ops``."""

    library = 'auto'

    @staticmethod
    def wanted(ops) -> bool:
        return ops.linear != 'plain'

    def use_ops(self, ops) -> None:
        self.library, self.deployed = ops.linear, False

    def parts(self) -> tuple[Tensor, Tensor | None, LowRank | None, str, bool] | None:
        """What ``linear`` takes beside x, if the layer computes that and nothing else."""
        return self.weight, self.bias, None, self.library, self.deployed

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        return linear(x, *self.parts())


class FastAdaptedLinear(FastLinear, AdaptedLinear, nn.Linear):
    """``AdaptedLinear`` (the reference) through ``linear``.

    ``nn.Linear`` is named again for mmengine, whose ``init_cfg=dict(layer='Linear', ...)`` asks for direct bases alone.
    """

    def low_rank(self) -> LowRank | None:
        """The adjustment, where it is added to W x + b and nobody waits for its call."""
        make = getattr(self.adapter, 'low_rank', None)  # a module of another kind has none
        return None if self.gate is not None or make is None or is_hooked(self.adapter) else make()

    def parts(self) -> tuple[Tensor, Tensor | None, LowRank | None, str, bool] | None:
        """As of ``FastLinear``."""
        low_rank = self.low_rank()
        whole = low_rank or (self.gate is None and self.adapter is None)
        return (self.weight, self.bias, low_rank, self.library, self.deployed) if whole else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        low_rank = self.low_rank()
        y = linear(x, self.weight, self.bias, low_rank, self.library, self.deployed)
        if self.gate is not None:
            y = self.gate(y)
        return y if self.adapter is None or low_rank else y + self.adapter(x)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody waits for the call of this or of every module, or replaced its forward (accelerate)."""
    own = module.__dict__
    if 'forward' in own or own['_forward_pre_hooks'] or own['_backward_hooks'] or own['_backward_pre_hooks']:
        return True
    return bool(own['_forward_hooks']) or torch_module._has_any_global_hook()
