"""Swin's window attention as one Triton kernel each way, straight from and to tokens in their order.

A program is one head of one window. It reads its queries, keys and values by the rows of ``window.Layout`` and writes
its result by the same rows: padding, shift, partition, their reverse and the crop are index arithmetic, and no
(windows, heads, N, N) tensor exists. The backward pass computes the probabilities again from qkv, the only activation
that is kept.

Frozen position tables only: no gradient goes to the bias, nor to what stands at padding places.
The kernels have been compiled for a GPU and run in Triton's interpreter; they have never run on a GPU.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .window import Layout

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCORES = 4096  # of one block of queries, at most: a program holds several such tables in registers


def jit(function):
    return function if triton is None else triton.jit(function)


@jit
def places_of(window, start, rows, padding, N: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr):
    """BLOCK places of a window: their numbers in it, their rows, and whether a token is there."""
    i = start + tl.arange(0, BLOCK)
    inside = i < N
    place = window.to(tl.int64) * N + i
    real = inside
    if PADDED:
        real = inside & (tl.load(padding + place, mask=inside, other=1) == 0)
    return i, tl.load(rows + place, mask=inside, other=0), real


@jit
def load(x, pad, row, real, first, PADDED: tl.constexpr, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(BLOCK, BLOCK_D) channels ``first``, ... of ``x``; where no token is, those of ``pad`` (zeros if not PADDED)."""
    d = tl.arange(0, BLOCK_D)
    at = x + row[:, None] * STRIDE + (first + d)[None, :]
    value = tl.load(at, mask=real[:, None] & (d < D)[None, :], other=0.0)
    if PADDED:
        there = tl.load(pad + first + d, mask=d < D, other=0.0).to(value.dtype)
        value = tl.where(real[:, None], value, there[None, :])
    return value


@jit
def store(x, value, row, real, first, STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    at = x + row[:, None] * STRIDE + (first + d)[None, :]
    tl.store(at, value.to(x.dtype.element_ty), mask=real[:, None] & (d < D)[None, :])


@jit
def probabilities(q, k, bias, bias_row, i, j, scale, N: tl.constexpr, PRECISION: tl.constexpr):
    """softmax(scale q k^T + bias), float32."""
    at = bias + i[:, None] * bias_row + j[None, :]
    added = tl.load(at, mask=(i < N)[:, None] & (j < N)[None, :], other=0.0).to(tl.float32)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + added
    s = tl.where((j < N)[None, :], s, float('-inf'))
    p = tl.exp(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@jit
def forward_kernel(
    qkv,
    pad,
    rows,
    padding,
    sorts,
    bias,
    out,
    bias_sort,
    bias_head,
    bias_row,
    scale,
    HEADS: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out: (B L, HEADS, D)."""
    window, head = tl.program_id(0), tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    bias += tl.load(sorts + window) * bias_sort + head * bias_head
    first = head * D
    j, key, real_key = places_of(window, 0, rows, padding, N, BLOCK_N, PADDED)
    k = load(qkv, pad, key, real_key, WIDTH + first, PADDED, 3 * WIDTH, D, BLOCK_D)
    v = load(qkv, pad, key, real_key, 2 * WIDTH + first, PADDED, 3 * WIDTH, D, BLOCK_D)
    for start in range(0, N, BLOCK_M):
        i, row, real = places_of(window, start, rows, padding, N, BLOCK_M, PADDED)
        q = load(qkv, pad, row, real, first, False, 3 * WIDTH, D, BLOCK_D)
        p = probabilities(q, k, bias, bias_row, i, j, scale, N, PRECISION)
        o = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        store(out, o, row, real, first, WIDTH, D, BLOCK_D)


@jit
def backward_kernel(
    qkv,
    pad,
    rows,
    padding,
    sorts,
    bias,
    grad,
    dqkv,
    bias_sort,
    bias_head,
    bias_row,
    scale,
    HEADS: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad: (B L, HEADS, D); dqkv: (B L, 3, HEADS, D)."""
    window, head = tl.program_id(0), tl.program_id(1)
    WIDTH: tl.constexpr = HEADS * D
    bias += tl.load(sorts + window) * bias_sort + head * bias_head
    first = head * D
    j, key, real_key = places_of(window, 0, rows, padding, N, BLOCK_N, PADDED)
    k = load(qkv, pad, key, real_key, WIDTH + first, PADDED, 3 * WIDTH, D, BLOCK_D)
    v = load(qkv, pad, key, real_key, 2 * WIDTH + first, PADDED, 3 * WIDTH, D, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, N, BLOCK_M):
        i, row, real = places_of(window, start, rows, padding, N, BLOCK_M, PADDED)
        q = load(qkv, pad, row, real, first, False, 3 * WIDTH, D, BLOCK_D)
        do = load(grad, pad, row, real, first, False, WIDTH, D, BLOCK_D)
        p = probabilities(q, k, bias, bias_row, i, j, scale, N, PRECISION)
        dv += tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(q.dtype)
        dk += tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        dq = tl.dot(ds, k, input_precision=PRECISION)
        store(dqkv, dq, row, real, first, 3 * WIDTH, D, BLOCK_D)
    store(dqkv, dk, key, real_key, WIDTH + first, 3 * WIDTH, D, BLOCK_D)
    store(dqkv, dv, key, real_key, 2 * WIDTH + first, 3 * WIDTH, D, BLOCK_D)


def block_sizes(places: int, channels: int) -> dict[str, int]:
    """Powers of two, at least the 16 of a matrix instruction: queries at a time, all keys, channels of a head."""
    keys, wide = (max(16, 1 << (n - 1).bit_length()) for n in (places, channels))
    return dict(BLOCK_M=min(keys, max(16, SCORES // keys)), BLOCK_N=keys, BLOCK_D=wide)


def launch(kernel, saved: tuple, outputs: tuple, scale: float) -> None:
    qkv, bias, rows, padding, sorts, pad = saved
    _, _, heads, channels = qkv.shape
    places = len(rows) // len(sorts)
    blocks = block_sizes(places, channels)
    exact = qkv.dtype is torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    with torch.cuda.device_of(qkv):
        kernel[len(sorts), heads](
            qkv,
            qkv if pad is None else pad,
            rows,
            rows if padding is None else padding.view(torch.uint8),
            sorts,
            bias,
            *outputs,
            *bias.stride()[:3],
            scale,
            HEADS=heads,
            N=places,
            D=channels,
            PADDED=padding is not None,
            PRECISION='ieee' if exact else 'tf32',
            num_warps=4 if blocks['BLOCK_N'] <= 64 else 8,
            num_stages=1,
            **blocks,
        )


class TritonWindowAttention(torch.autograd.Function):
    """Use it through ``window_attention``, which checks its arguments."""

    @staticmethod
    def forward(ctx, qkv, bias, rows, padding, sorts, pad, scale):
        ctx.scale = scale
        ctx.save_for_backward(qkv, bias, rows, padding, sorts, pad)
        out = qkv.new_empty(len(qkv), *qkv.shape[2:])
        launch(forward_kernel, (qkv, bias, rows, padding, sorts, pad), (out,), scale)
        return out.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        dqkv = torch.empty_like(ctx.saved_tensors[0])
        launch(backward_kernel, ctx.saved_tensors, (grad.contiguous(), dqkv), ctx.scale)
        return dqkv, None, None, None, None, None, None


def available(device: torch.device) -> bool:
    """Whether the kernels run there: on CUDA, and anywhere in Triton's interpreter (TRITON_INTERPRET=1)."""
    return triton is not None and (device.type == 'cuda' or interpreted())


def interpreted() -> bool:
    return not isinstance(forward_kernel, triton.JITFunction)


def window_attention(qkv: Tensor, bias: Tensor, at: Layout, scale: float, pad: Tensor | None = None) -> Tensor:
    """softmax(scale q k^T + bias) v in every window; the same as ``reference``, in float32 sums.

    Args:
        qkv: (B L, 3, heads, hd), tokens in their own order, float32, bfloat16 or float16.
        bias: (sorts, heads, N, N) as of ``window.biases``: without gradient, any float dtype.
        at: the layout of the maps.
        scale: of q k^T.
        pad: (3, heads, hd), what stands at padding places, i.e. the qkv of a zero token; zeros if None.

    Returns:
        (B L, heads hd) in the dtype of qkv.

    Raises:
        RuntimeError: if the kernels do not run on the device of ``qkv``.
        ValueError: on a dtype or shape that does not fit, and on a bias or pad that wants a gradient.
    """
    if not available(qkv.device):
        raise RuntimeError(
            f'window attention by Triton needs the package triton and a CUDA device, got {qkv.device}; '
            'use another method (or set TRITON_INTERPRET=1 to try it slowly).'
        )
    require_fit(qkv, bias, at, pad)
    if at.padding is None:
        pad = None
    elif pad is None:
        pad = qkv.new_zeros(qkv.shape[1:])
    for name, x in ('bias', bias), ('pad', pad):
        if torch.is_grad_enabled() and x is not None and x.requires_grad:
            raise ValueError(
                f'window attention by Triton gives no gradient to {name}, which requires one; '
                "use method 'matmul' where it trains, or detach it."
            )
    args = at.rows, at.padding, at.sorts, None if pad is None else pad.contiguous(), scale
    bias = bias if bias.stride(-1) == 1 else bias.contiguous()
    return TritonWindowAttention.apply(qkv.contiguous(), bias, *args)


def require_fit(qkv: Tensor, bias: Tensor, at: Layout, pad: Tensor | None) -> None:
    """Refuses what the kernels would read past the end of."""
    if qkv.dtype not in DTYPES:
        raise ValueError(f'qkv must have a dtype of {DTYPES}, got {qkv.dtype}; cast it.')
    if qkv.dtype is torch.bfloat16 and interpreted():
        raise ValueError("Triton's interpreter does not compute in bfloat16; cast qkv or unset TRITON_INTERPRET.")
    places, heads = len(at.rows) // len(at.sorts), qkv.shape[2]
    if tuple(qkv.shape[:2]) != (len(at.places), 3):
        raise ValueError(f'qkv must be ({len(at.places)}, 3, heads, hd) for this layout, got {tuple(qkv.shape)}.')
    if tuple(bias.shape[1:]) != (heads, places, places) or any(at.counts[len(bias) :]):
        raise ValueError(
            f'bias must be (sorts, {heads}, {places}, {places}) with a row for each sort of window '
            f'(windows of the four sorts: {at.counts}), got {tuple(bias.shape)}.'
        )
    if pad is not None and pad.shape != qkv.shape[1:]:
        raise ValueError(f'pad must be {tuple(qkv.shape[1:])}, one row of qkv, got {tuple(pad.shape)}.')


def reference(qkv: Tensor, bias: Tensor, at: Layout, scale: float, pad: Tensor | None = None) -> Tensor:
    """``window_attention`` in plain PyTorch, in float32 or better and with all gradients."""
    wide = partial(Tensor.to, dtype=torch.promote_types(qkv.dtype, torch.float32))
    windows = wide(qkv).index_select(0, at.rows)
    if at.padding is not None:
        there = torch.zeros_like(qkv[0]) if pad is None else pad.to(qkv.dtype)
        windows = torch.where(at.padding[..., None, None], wide(there), windows)
    windows = windows.unflatten(0, (len(at.sorts), -1))  # (windows, N, 3, heads, hd)
    q, k, v = windows.permute(2, 0, 3, 1, 4).unbind(0)
    p = (scale * q @ k.transpose(-2, -1) + wide(bias)[at.sorts]).softmax(-1)
    out = (p @ v).transpose(1, 2).reshape(len(at.rows), -1)
    return out.index_select(0, at.places).to(qkv.dtype)
