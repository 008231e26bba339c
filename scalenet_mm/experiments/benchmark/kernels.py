"""The forms among which ``ops`` chose, side by side: three ways to add an adapter, two ways to attend in windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.adapters import ADAPTER_RANK
from ...ops.gemm import product
from ...ops.linear import linear
from ...ops.window import attend, layout
from .cases import Case, Figure
from .settings import DTYPES, Settings
from .timing import interleaved

BOUND = {'fp32': 1e-5, 'bf16': 0.05}  # of the largest value
WINDOW = 7
STAGES = ((56, 3), (28, 6), (14, 12))  # tokens a side and heads of Swin-T's stages at 224 px


def _compared(s: Settings, dtype: str, forms: Mapping[str, Callable[[], Tensor]]) -> list[Figure]:
    """Times over those of the first form.

    Raises:
        ValueError: if a form computes something else than the first.
    """
    first, *others = forms
    expected = forms[first]().float()
    for name in others:
        apart = ((forms[name]().float() - expected).abs().max() / expected.abs().max()).item()
        if not apart <= BOUND[dtype]:
            raise ValueError(f'{name} differs from {first} by {apart:.1e}, not timed.')
    rounds = interleaved(forms, s.rounds, s.device, s.warmup, 4)
    ms = {name: 1e3 * median(r[name] for r in rounds) for name in forms}
    return [
        Figure(median(r[name] / r[first] for r in rounds), name, told=ms, note=f'{ms[name]:.2f} ms') for name in forms
    ]


def _adapters(s: Settings, dtype: str, rows: int, dims: int) -> list[Figure]:
    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape).to(s.device, DTYPES[dtype]) * shape[-1] ** -0.5

    x, bias = tensor(rows, dims), tensor(4 * dims)
    weight, down, up = (tensor(4 * dims, dims), tensor(ADAPTER_RANK, dims), tensor(4 * dims, ADAPTER_RANK))
    both = torch.cat([weight, up], 1)

    def narrow() -> Tensor:
        return product(x, down, act=F.gelu)

    def concatenated() -> Tensor:
        both[:, dims:] = up  # another instance's B may lie there
        return product(torch.cat([x, narrow()], 1), both, bias)

    forms = {
        'plain sum': lambda: product(x, weight, bias) + product(narrow(), up),
        'addmm': lambda: linear(x, weight, bias, (down, up, F.gelu)),
        'concatenated': concatenated,
    }
    return _compared(s, dtype, {k: torch.no_grad()(form) for k, form in forms.items()})


def _attention(s: Settings, dtype: str, side: int, heads: int) -> list[Figure]:
    batch = 4
    at = layout(batch, side, side, WINDOW, WINDOW // 2, torch.device(s.device))
    shape = len(at.sorts), WINDOW**2, 3, heads, 32
    qkv = torch.randn(shape, device=s.device).to(DTYPES[dtype]).requires_grad_()
    bias = torch.randn(4, heads, WINDOW**2, WINDOW**2, device=s.device).to(DTYPES[dtype])

    def step(method: str) -> Tensor:
        qkv.grad = None
        attend(qkv, bias, at, 32**-0.5, method).sum().backward()
        return qkv.grad

    return _compared(s, dtype, {m: partial(step, m) for m in ('matmul', 'sdpa')})


def cases(s: Settings) -> list[Case]:
    micro = s.size == 'micro'
    dims = ((1568, 384),) if micro else ((12544, 96), (3136, 192), (784, 384), (1576, 768))
    stages = STAGES[-1:] if micro else STAGES
    return [
        Case('kernels', f'{name} {a}x{b}', dtype, partial(make, s, dtype, a, b))
        for name, make, shapes in (('adapter', _adapters, dims), ('attention', _attention, stages))
        for dtype in s.timed('fp32', 'bf16')
        for a, b in shapes
    ]
