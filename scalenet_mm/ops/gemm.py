"""Matrix products of layers, and the library that computes them. torch only.

torch sends fp32 products on the CPU to MKL, which takes AVX2 kernels on processors that are not Intel's; oneDNN, which
torch carries too, takes AVX-512 there, is faster with AVX2 too, and computes the same sums (docs/performance.md has the
rates).
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ..core.kept import is_constant, kept

LIBRARIES = ('auto', 'onednn', 'plain')
CACHED = 8 * 2**20  # bytes of a piece that stays in a CPU's cache from one operation to the next


@functools.cache
def onednn_works() -> bool:
    """Whether this torch has the oneDNN product that takes ordinary tensors."""
    try:
        torch.ops.mkldnn._linear_pointwise(torch.zeros(1, 1), torch.zeros(1, 1), None, 'none', [], '')
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


@functools.cache
def mkl_is_slow() -> bool:
    """Whether oneDNN's products in fp32 are faster than MKL's: on processors that are not Intel's."""
    if torch.backends.cpu.get_cpu_capability() not in ('AVX2', 'AVX512') or not torch.backends.mkl.is_available():
        return False
    try:
        vendor = Path('/proc/cpuinfo').read_text().partition('vendor_id')[2].split('\n')[0]
    except OSError:
        vendor = platform.processor()
    return bool(vendor) and 'Intel' not in vendor


def by_onednn(x: Tensor, weight: Tensor, library: str) -> bool:
    """Whether ``product`` calls oneDNN on the CPU: in fp32 where it is asked for or known to be faster.

    In bf16 torch calls oneDNN itself, but adds the bias in a pass of its own.
    """
    if library == 'plain' or x.device.type != 'cpu' or x.dtype is not weight.dtype or not x.numel():
        return False
    if x.dtype is torch.float32:
        chosen = library == 'onednn' or mkl_is_slow()
    else:
        chosen = x.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return chosen and torch.backends.mkldnn.enabled and onednn_works()


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    library: str = 'auto',
    act: Callable[[Tensor], Tensor] | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """act(x W^T + b) + add, (N, d_in) -> (N, d_out), without a gradient; any strides. All of one dtype.

    oneDNN computes GELU, or the sum, as it writes the product.
    """
    if add is not None and (act is not None or not by_onednn(x, weight, library)):
        return product(x, weight, bias, library, act) + add
    if add is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, 'add')
    if by_onednn(x, weight, library):
        post = ('gelu', [], 'none') if act is F.gelu else ('none', [], '')
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *post)
        return y if act is None or act is F.gelu else act(y)
    y = F.linear(x, weight, bias)
    return y if act is None else act(y)


def traced() -> bool:
    """Whether a compiler, an exporter, a counter, ``torch.func`` or forward-mode differentiation reads along, which
    should see torch's own operations only.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def in_dtype(tensor: Tensor, dtype: torch.dtype, deployed: bool = False) -> Tensor:
    """``tensor`` in ``dtype``, without a gradient; of a constant or deployed one it is kept, see ``core.kept``.

    Autocast keeps such copies only of tensors that require a gradient, and casts frozen ones at every use.
    """
    constant = is_constant(tensor)  # asked of each: that ends the declaration of one that is trained
    if tensor.dtype is dtype:
        return tensor
    if tensor.element_size() < dtype.itemsize or not (deployed or constant):
        return tensor.detach().to(dtype)
    return kept(dtype, (tensor,), lambda: tensor.detach().to(dtype))


ROWS = 784  # that a packed weight is laid out for; oneDNN's layout for them is good for any number


def packed(weight: Tensor, dtype: torch.dtype, tail: Tensor | None = None) -> Tensor:
    """A deployed weight (d_out, d_in), with ``tail`` (d_out, r) beside it, as oneDNN lays it out for ``product``.

    From ordinary tensors it makes this layout anew in every product. The copy is kept until the values change.
    """
    of = (weight,) if tail is None else (weight, tail)

    def make() -> Tensor:
        whole = torch.cat([t.detach().to(dtype) for t in of], 1)
        return torch.ops.mkldnn._reorder_linear_weight(whole, ROWS)

    return kept(('packed', dtype), of, make)


# kinds of devices that autocast knows: looked up once, as torch.compile cannot trace the question
AUTOCASTED = frozenset(kind for kind in ('cpu', 'cuda', 'xpu', 'mps') if torch.amp.is_autocast_available(kind))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a product of ``x``: autocast's where it is on, which leaves float64 as it is."""
    if x.dtype is torch.float64:
        return x.dtype
    kind = x.device.type
    known = kind in AUTOCASTED or (not torch.compiler.is_compiling() and torch.amp.is_autocast_available(kind))
    return torch.get_autocast_dtype(kind) if known and torch.is_autocast_enabled(kind) else x.dtype
