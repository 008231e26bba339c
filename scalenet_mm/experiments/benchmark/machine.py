"""The machine of a run: what it is, and how fast it multiplies and copies in this very process."""

from __future__ import annotations

import os
import platform
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F

from .settings import DTYPES
from .timing import seconds

PACKAGES = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'timm', 'torchvision', 'numpy', 'scalenet_mm')
GEMM = {'cpu': (2048, 1024, 4096), 'cuda': (8192, 8192, 8192)}  # rows, d_in, d_out
COPIED = {'cpu': 2**28, 'cuda': 2**31}  # bytes
TRIALS = 7


def describe(device: str) -> dict[str, object]:
    """Processor, threads, GPU and versions; no names of users, hosts or folders."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    found: dict[str, object] = {
        'cpu': names[0] if names else platform.processor(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'waiting': os.environ.get('OMP_WAIT_POLICY') or 'not set',
        'instructions': torch.backends.cpu.get_cpu_capability(),
        'system': f'{platform.system()} {platform.machine()}, Python {platform.python_version()}',
        'versions': {p: getattr(import_module(p), '__version__', '?') for p in PACKAGES if find_spec(p)},
    }
    if device == 'cuda':
        found |= {
            'gpu': torch.cuda.get_device_name(),
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
        }
    return found


def rates(device: str) -> dict[str, float]:
    """GFLOP/s of a matrix product by dtype and library (a multiply-add is two), and GB/s read and written by a copy.

    The best of several trials each, of torch's ``F.linear`` and, on the CPU, of oneDNN called directly.
    """
    rows, d_in, d_out = GEMM[device]
    found = {}
    for name, dtype in DTYPES.items():
        x, weight = (torch.randn(n, d_in, device=device, dtype=dtype) / d_in**0.5 for n in (rows, d_out))
        libraries = {f'{name} F.linear': lambda x=x, w=weight: F.linear(x, w)}
        if device == 'cpu' and name == 'fp32' and torch.backends.mkldnn.is_available():
            libraries[f'{name} oneDNN'] = lambda x=x, w=weight: torch.ops.mkldnn._linear_pointwise(
                x, w, None, 'none', [], ''
            )
        for library, run in libraries.items():
            found[library] = 2e-9 * rows * d_in * d_out / _fastest(run, device)
    source = torch.ones(COPIED[device] // 4, device=device)
    target = torch.empty_like(source)
    found['copy'] = 2e-9 * source.nbytes / _fastest(lambda: target.copy_(source), device)
    return found


def _fastest(run, device: str) -> float:
    run()
    with torch.inference_mode():
        return min(seconds(run, 1, device) for _ in range(TRIALS))


def best_gemm(rates: dict[str, float], dtype: str) -> float:
    """The best GFLOP/s that this process reached in a dtype."""
    return max(v for k, v in rates.items() if k.startswith(f'{dtype} '))
