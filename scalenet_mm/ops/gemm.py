"""Matrix products of layers, and the library that computes them. torch only.

torch sends fp32 products on the CPU to MKL, which takes AVX2 kernels on processors that are not Intel's; oneDNN, which
torch carries too, takes AVX-512 there and computes the same sums (docs/performance.md has the rates).
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

LIBRARIES = ('auto', 'onednn', 'plain')


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
    """Whether MKL leaves half of the processor unused: AVX-512 that is not Intel's."""
    if torch.backends.cpu.get_cpu_capability() != 'AVX512' or not torch.backends.mkl.is_available():
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
) -> Tensor:
    """act(x W^T + b), (N, d_in) -> (N, d_out), without a gradient; any strides. oneDNN computes GELU on the way."""
    if by_onednn(x, weight, library):
        post = ('gelu', [], 'none') if act is F.gelu else ('none', [], '')
        y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *post)
        return y if act is None or act is F.gelu else act(y)
    y = F.linear(x, weight, bias)
    return y if act is None else act(y)


def traced() -> bool:
    """Whether a compiler, an exporter or a counter reads along, which should see torch's own operations only."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


_casts: WeakIdKeyDictionary = WeakIdKeyDictionary()


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``; of a frozen one the copy is kept until its values change.

    Autocast keeps such copies only of tensors that require a gradient, and casts frozen ones at every use.
    """
    if tensor.dtype is dtype:
        return tensor
    source = tensor.detach()
    if tensor.requires_grad or tensor.is_inference() or tensor.element_size() < dtype.itemsize:
        return source.to(dtype)
    state = (tensor._version, tensor.data_ptr(), tensor.device)
    kept = _casts.setdefault(tensor, {})
    if kept.get(dtype, (None,))[0] != state:
        with torch.inference_mode(False):
            kept[dtype] = (state, source.to(dtype))
    return kept[dtype][1]


# kinds of devices that autocast knows: looked up once, as torch.compile cannot trace the question
AUTOCASTED = frozenset(kind for kind in ('cpu', 'cuda', 'xpu', 'mps') if torch.amp.is_autocast_available(kind))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a product of ``x``: autocast's where it is on."""
    kind = x.device.type
    known = kind in AUTOCASTED or (not torch.compiler.is_compiling() and torch.amp.is_autocast_available(kind))
    return torch.get_autocast_dtype(kind) if known and torch.is_autocast_enabled(kind) else x.dtype
