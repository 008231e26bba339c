"""Window attention of Swin without its copies: gather by index, bias and shift mask as constants. torch only.

What the host computes in every forward pass (pad, roll, partition, mask, reverse, roll, crop) is one permutation of
tokens, known from (H, W): rows are gathered into windows once and back once. Windows are sorted by which of the four
shift masks they have (none, last column, last row, both), so that the mask is a constant of (1, heads, N, N) for each
sort, whatever the image size and the batch: it is added to the position bias and kept where the table is frozen.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.kept import is_constant, kept, trained
from .gemm import CACHED

METHODS = ('auto', 'efficient', 'sdpa', 'matmul', 'plain')
MAX_WINDOWS = 65_535  # of one call: the largest grid dimension of CUDA kernels
MASKED = -100.0  # the host's
HALF = (torch.bfloat16, torch.float16)


class Layout(NamedTuple):
    """Where the tokens of a batch of maps go; places are numbered through windows, images and places in a window.

    Attributes:
        rows: (windows B N,) row of x, (B H W, C), for each place; 0 where it is padding.
        padding: (windows B N, 1) whether a place is padding; None if none is.
        places: (B H W,) place of each row.
        sorts: (windows B,) sort of each window.
        counts: number of windows of each of the four sorts.
    """

    rows: Tensor
    padding: Tensor | None
    places: Tensor
    sorts: Tensor
    counts: tuple[int, ...]


def by_size(maxsize: int):
    """Keeps what is computed of sizes and a device, the last argument; autograd can save it, also if it is first asked
    for in inference mode. Not while a CUDA graph is captured, in whose memory it would lie.
    """

    def decorate(compute):
        def plainly(*args):
            with torch.inference_mode(False), torch.no_grad():
                return compute(*args)

        cached = functools.lru_cache(maxsize)(plainly)

        @functools.wraps(compute)
        def found(*args):
            captured = args[-1].type == 'cuda' and torch.cuda.is_current_stream_capturing()
            return plainly(*args) if captured else cached(*args)

        found.cache_clear, found.cache_info = cached.cache_clear, cached.cache_info
        return found

    return decorate


@by_size(64)  # four stages, with and without shift, some numbers of images that drop path keeps
def layout(batch: int, height: int, width: int, window: int, shift: int, device: torch.device) -> Layout:
    """The layout of maps of (height, width) tokens, padded at the right and at the bottom to whole windows.

    Computed on the device, nothing of which is asked: each image of a detector has a size of its own, and with sparse
    drop path each step a batch size.
    """
    one = image_layout(height, width, window, shift, device)
    if batch == 1:
        return one
    image = torch.arange(batch, device=device)
    rows = one.rows.view(-1, 1, window**2) + height * width * image[:, None]
    padding = one.padding
    if padding is not None:
        padding = padding.view(-1, 1, window**2).expand(-1, batch, -1).reshape(-1, 1)
    before = one.places // window**2 * (batch - 1) + image[:, None]  # windows, beside those of the one image
    return Layout(
        rows.flatten(),
        padding,
        (one.places + before * window**2).flatten(),
        one.sorts.repeat_interleave(batch),
        tuple(batch * count for count in one.counts),
    )


@by_size(256)
def image_layout(height: int, width: int, window: int, shift: int, device: torch.device) -> Layout:
    """The layout of one image."""
    high, wide = -(-height // window), -(-width // window)
    counts = ((high - 1) * (wide - 1), high - 1, wide - 1, 1) if shift else (high * wide, 0, 0, 0)
    numbers = torch.arange(high * wide, device=device)
    rank = numbers.view(high, wide)  # of the window at a place, among all, which are sorted
    if shift:
        inner, right, below, corner = numbers.split(counts)
        rank = torch.empty_like(rank)
        rank[:-1, :-1] = inner.view(high - 1, wide - 1)
        rank[:-1, -1], rank[-1, :-1], rank[-1, -1:] = right, below, corner
    y = (torch.arange(height, device=device) - shift) % (high * window)  # where a row and a column go
    x = (torch.arange(width, device=device) - shift) % (wide * window)
    places = rank[(y // window)[:, None], x // window] * window**2 + (y % window * window)[:, None] + x % window
    places = places.flatten()
    rows = torch.zeros(high * wide * window**2, dtype=torch.long, device=device)
    rows[places] = torch.arange(height * width, device=device)
    padding = None
    if height % window or width % window:
        padding = torch.ones(len(rows), 1, dtype=torch.bool, device=device).index_fill_(0, places, False)
    sorts = torch.cat([torch.full((n,), sort, device=device) for sort, n in enumerate(counts)])
    return Layout(rows, padding, places, sorts, counts)


def shift_masks(window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """(4, N, N): what is added to the attention of a window of each sort."""
    late = torch.arange(window, device=device) >= window - shift
    row, column = late.repeat_interleave(window), late.repeat(window)
    apart = [c[:, None] != c for c in (row, column)]
    sorts = [torch.zeros_like(apart[0]), apart[1], apart[0], apart[0] | apart[1]]
    return torch.stack(sorts) * MASKED


def biases(
    table: Tensor,
    index: Tensor,
    window: int,
    shift: int,
    dtype: torch.dtype,
    every: bool = False,
    deployed: bool = False,
) -> Tensor:
    """Position bias plus shift mask, (4, heads, N, N); (1, heads, N, N) without a shift, unless for ``every`` sort.

    Those of a constant or deployed table are kept with it (``core.kept``), and so for all instances that share it; a
    trained one's carry its gradient.

    Args:
        table: ((2 window - 1)², heads).
        index: (N, N), row of the table for each pair of places.
    """
    learns = trained(table) and torch.is_grad_enabled()
    make = functools.partial(_biases_of, table if learns else table.detach(), index, window, shift, dtype, every)
    if learns or not (deployed or is_constant(table)):
        return make()
    return kept(('bias', shift, dtype, every), (table,), make)


def _biases_of(
    table: Tensor, index: Tensor, window: int, shift: int, dtype: torch.dtype, every: bool = False
) -> Tensor:
    pairs = window**2
    bias = table[index.flatten()].view(1, pairs, pairs, -1).permute(0, 3, 1, 2)
    if shift or every:
        bias = bias + shift_masks(window, shift, table.device).to(table.dtype)[:, None]
    # kernels read 8 values at once, and copy a bias whose rows do not begin at multiples of 8
    bias = F.pad(bias.to(dtype), (0, -pairs % 8))
    return bias.contiguous()[..., :pairs]


class Permute(torch.autograd.Function):
    """Rows of x by index, zeros for padding; the gradient takes the way back, which is a permutation too."""

    @staticmethod
    def forward(ctx, x, index, padding, back, back_padding):
        ctx.save_for_backward(back, back_padding)
        return _take(x, index, padding)

    @staticmethod
    def backward(ctx, grad):
        return _take(grad, *ctx.saved_tensors), None, None, None, None


def _take(x: Tensor, index: Tensor, padding: Tensor | None) -> Tensor:
    y = x.index_select(0, index)
    return y if padding is None else y.masked_fill_(padding, 0)


def to_windows(x: Tensor, at: Layout) -> Tensor:
    """(B, L, C) -> (windows B N, C)."""
    return _permute(x.reshape(-1, x.shape[-1]), at.rows, at.padding, at.places, None)


def from_windows(x: Tensor, at: Layout, batch: int) -> Tensor:
    """(windows B N, C) -> (B, L, C)."""
    x = _permute(x, at.places, None, at.rows, at.padding)
    return x.view(batch, -1, x.shape[-1])


def _permute(x: Tensor, *ways) -> Tensor:
    return Permute.apply(x, *ways) if torch.is_grad_enabled() else _take(x, *ways[:2])


def attend(qkv: Tensor, bias: Tensor, at: Layout, scale: float, method: str, dropout: float = 0.0) -> Tensor:
    """softmax(scale q k^T + bias) v in every window.

    Args:
        qkv: (windows, N, 3, heads, C / heads), windows as in ``at``.
        bias: (sorts, heads, N, N); but for 'matmul' of the dtype that ``mask_dtype`` says.
        method: 'efficient', 'sdpa' or 'matmul', see ``fastest``.

    Returns:
        (windows, N, C).
    """
    if method == 'matmul':
        return _matmul(qkv, bias, at, scale, dropout).flatten(2)
    return _sdpa(qkv, bias, at, scale, dropout, method == 'efficient').flatten(2)


def heads(qkv: Tensor) -> list[Tensor]:
    """Queries, keys and values, each (B, heads, N, C / heads), of (B, N, 3, heads, C / heads); gradients come back by
    one copy.
    """
    return [part.transpose(1, 2) for part in qkv.unbind(2)]


def mask_dtype(method: str, dtype: torch.dtype, table: Tensor) -> torch.dtype:
    """Of bias plus mask for tokens of a dtype. torch's fused kernel for the CPU is slow in half precision."""
    if method == 'matmul':
        return table.dtype
    return torch.float32 if table.device.type == 'cpu' and dtype in HALF else dtype


def fastest(dtype: torch.dtype, device: torch.device, bias_grad: bool, dropout: float) -> str:
    """The faster method as measured, see docs/performance.md.

    torch's fused kernels give a bias no gradient; on the CPU they know no drop-out. In half precision there SDPA
    computes in fp32, and a backward pass would keep that. On newer GPUs torch prefers cuDNN's in half precision, which
    plans each new number of windows for a good part of a second, and image sizes and drop path make many: 'efficient'
    is the kernel that torch takes elsewhere.
    """
    if bias_grad or dropout:
        return 'matmul'
    if device.type == 'cuda' and dtype in HALF:
        return 'efficient'
    return 'matmul' if device.type == 'cpu' and dtype in HALF and torch.is_grad_enabled() else 'sdpa'


def _sdpa(qkv: Tensor, bias: Tensor, at: Layout, scale: float, dropout: float, efficient: bool) -> Tensor:
    cast = bias.dtype is not qkv.dtype  # a piece at a time, which stays in the cache
    most = max(1, CACHED // (qkv[0].numel() * bias.element_size())) if cast else MAX_WINDOWS
    calls = list(zip(bias.split(1), at.counts))
    if len(bias) > 1 and set(at.counts) == {1}:  # every window has a mask of its own
        calls, most = [(bias, len(bias))], len(bias)
    pieces = [(one, min(most, count - first)) for one, count in calls for first in range(0, count, most)]
    outs = []
    for (one, _), part in zip(pieces, qkv.split([size for _, size in pieces])):
        q, k, v = heads(part.to(bias.dtype))
        out = _masked(q, k, v, one.expand(len(q), -1, -1, -1), dropout, scale, efficient)
        out = out.transpose(1, 2)
        outs.append(out.to(qkv.dtype, memory_format=torch.contiguous_format) if cast else out)
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float, scale: float, efficient: bool) -> Tensor:
    """SDPA with a bias, by torch's memory-efficient kernel if asked for and there."""
    if efficient and q.is_cuda and torch.version.hip is None and q.shape[-1] % 8 == 0:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(q, k, v, bias, q.requires_grad, dropout, False, scale=scale)[0]
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)


def _matmul(qkv: Tensor, bias: Tensor, at: Layout, scale: float, dropout: float) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
    scores = q @ k.transpose(-2, -1)
    if torch.is_grad_enabled() or bias.dtype is not scores.dtype:
        mask = bias if len(bias) == 1 else bias.index_select(0, at.sorts)
        scores = torch.add(mask, scores, alpha=scale).softmax(-1).to(v.dtype)
    else:
        for one, part in zip(bias.split(1), scores.split(at.counts)):
            torch.add(one, part, alpha=scale, out=part)
        torch.softmax(scores, -1, out=scores)
    return (F.dropout(scores, dropout) @ v).transpose(1, 2)


def attend_any(qkv: Tensor, bias: Tensor, sorts: Tensor, scale: float, dropout: nn.Module) -> Tensor:
    """``attend`` for a compiler: shapes depend on nothing but the number of windows, (windows,) ``sorts`` is data."""
    q, k, v = heads(qkv)
    scores = (q * scale) @ k.transpose(-2, -1) + bias[sorts]
    return (dropout(scores.softmax(-1)).to(v.dtype) @ v).transpose(1, 2).flatten(2)
