"""The forms among which ``ops`` chose, side by side: three ways to add an adapter, ways to attend in windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.adapters import ADAPTER_RANK
from ...ops.gemm import product
from ...ops.linear import linear
from ...ops.window import attend, layout
from .cases import Case, Timed, Times
from .parity import Parity, relative
from .settings import DTYPES, Settings

BOUND = {'fp32': 1e-5, 'bf16': 0.05}  # of the largest value
WINDOW = 7
STAGES = ((56, 3), (28, 6), (14, 12))  # tokens a side and heads of Swin-T's stages at 224 px


def compared(dtype: str, forms: Mapping[str, Callable[[], Tensor]]) -> Timed:
    """Times over those of the first form, which gives what the others have to give."""
    first, *others = forms

    def check() -> list[Parity]:
        expected = forms[first]().float()
        apart = {name: relative(forms[name]().float(), expected) for name in others}
        return [Parity(f'{first} in {k}', d, bounds=(BOUND[dtype], BOUND[dtype])) for k, d in apart.items()]

    return Timed(forms, {k: lambda times, k=k: times[k] / times[first] for k in forms}, check, repeats=4)


def _adapters(s: Settings, dtype: str, rows: int, dims: int) -> Timed:
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
    return compared(dtype, {k: torch.no_grad()(form) for k, form in forms.items()})


def _narrow(s: Settings, dtype: str, rows: int, dims: int) -> Timed:
    """The products of an adapter in a training step, over the wide one beside them: their arithmetic is r over dims or
    over 4 dims of its, their time is more.
    """

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape).to(s.device, DTYPES[dtype])

    x, g, z = tensor(rows, dims), tensor(rows, 4 * dims), tensor(rows, ADAPTER_RANK)
    weight, down, up = tensor(4 * dims, dims), tensor(ADAPTER_RANK, dims), tensor(4 * dims, ADAPTER_RANK)
    y, dx = torch.empty_like(g), torch.empty_like(x)
    wide, narrow = ADAPTER_RANK / dims, ADAPTER_RANK / (4 * dims)  # shares of the arithmetic
    forms = {
        'A x': (narrow, lambda: product(x, down)),
        'y + B z': (wide, lambda: torch.addmm(y, z, up.t(), out=y)),
        'g B': (wide, lambda: product(g, up.t().contiguous())),
        "B's gradient": (wide, lambda: product(z.t(), g.t())),
        "A's gradient": (narrow, lambda: product(z.t(), x.t())),
        'dx + dz A': (narrow, lambda: torch.addmm(dx, z, down, out=dx)),
    }
    runs = {'W x': lambda: product(x, weight), **{name: run for name, (_, run) in forms.items()}}
    values = {f'{k}, {share:.3f} of the arithmetic': partial(_over, 'W x', (k,)) for k, (share, _) in forms.items()}
    values[f'all six, {3 * (wide + narrow):.3f} of the arithmetic'] = partial(_over, 'W x', tuple(forms))
    return Timed({k: torch.no_grad()(run) for k, run in runs.items()}, values, repeats=4)


def _over(first: str, some: tuple[str, ...], times: Times) -> float:
    return sum(times[k] for k in some) / times[first]


def _attention(s: Settings, dtype: str, side: int, heads: int) -> Timed:
    at = layout(batch(s), side, side, WINDOW, WINDOW // 2, torch.device(s.device))
    shape = len(at.sorts), WINDOW**2, 3, heads, 32
    qkv = torch.randn(shape, device=s.device).to(DTYPES[dtype]).requires_grad_()
    bias = torch.randn(4, heads, WINDOW**2, WINDOW**2, device=s.device).to(DTYPES[dtype])

    def step(method: str) -> Tensor:
        qkv.grad = None
        attend(qkv, bias, at, 32**-0.5, method).sum().backward()
        return qkv.grad

    return compared(dtype, {m: partial(step, m) for m in methods(s)})


def _new_sizes(s: Settings, dtype: str, side: int, heads: int) -> Timed:
    """Attention of a number of windows that was never seen: a kernel that plans each of them anew shows it here."""
    device = torch.device(s.device)
    bias = torch.randn(4, heads, WINDOW**2, WINDOW**2, device=device).to(DTYPES[dtype])
    images = {m: count(1) for m in methods(s)}

    def step(method: str) -> Tensor:
        number = next(images[method])
        at = layout(number, side, side, WINDOW, WINDOW // 2, device)
        same = torch.Generator(device).manual_seed(number)
        qkv = torch.randn(len(at.sorts), WINDOW**2, 3, heads, 32, device=device, generator=same)
        qkv = qkv.to(DTYPES[dtype]).requires_grad_()
        attend(qkv, bias, at, 32**-0.5, method).sum().backward()
        return qkv.grad

    return compared(dtype, {m: partial(step, m) for m in images})


def methods(s: Settings) -> tuple[str, ...]:
    """Of window attention."""
    return ('matmul', 'sdpa', 'efficient') if s.device == 'cuda' else ('matmul', 'sdpa')


def batch(s: Settings) -> int:
    """Images, of 224 px: on a GPU so many that its kernels take longer than their start."""
    return 64 if s.device == 'cuda' else 4


def cases(s: Settings) -> list[Case]:
    micro = s.size == 'micro'
    n = batch(s)
    dims = ((2 * n * 196, 384),) if micro else ((n * 3136, 96), (n * 784, 192), (n * 196, 384), (2 * n * 197, 768))
    stages = STAGES[-1:] if micro else STAGES
    return [
        Case('kernels', f'{name} {a}x{b}', dtype, partial(make, s, dtype, a, b))
        for name, make, shapes in (
            ('adapter', _adapters, dims),
            ('narrow', _narrow, dims),
            ('attention', _attention, stages),
            ('attention, new sizes', _new_sizes, stages[-1:]),
        )
        for dtype in s.timed('fp32', 'bf16')
        for a, b in shapes
    ]
