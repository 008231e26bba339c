"""What the host takes where the arithmetic is next to nothing: two forms of an adapted linear layer, and compiling.

    python tests/host_time.py

On a GPU the host has to launch a step's kernels before they can run; a tiny layer on the CPU shows what that costs.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F

import scalenet_mm.engine  # noqa: F401  (puts mmcv's operators in)
from scalenet_mm.experiments.benchmark import networks
from scalenet_mm.experiments.benchmark.parity import Net
from scalenet_mm.experiments.benchmark.settings import Settings
from scalenet_mm.experiments.benchmark.steps import images, precision, train_step
from scalenet_mm.experiments.benchmark.timing import interleaved
from scalenet_mm.ops.linear import composed, linear


def forms() -> None:
    """Microseconds, without and with the backward pass, of ``_Linear`` (``linear`` on the CPU) and ``composed``."""
    weight, bias = torch.randn(64, 16), torch.randn(64)
    down, up, x = (torch.randn(*n, requires_grad=True) for n in ((4, 16), (64, 4), (2, 4, 16)))

    def forward(form, backward: bool) -> None:
        with torch.autocast('cpu', torch.bfloat16), torch.set_grad_enabled(backward):
            y = form(x, weight, bias, (down, up, F.gelu))
        if backward:
            torch.autograd.grad(y.sum(), (x, down, up))

    for backward in (False, True):
        runs = {f.__name__: partial(forward, f, backward) for f in (linear, composed)}
        rounds = interleaved(runs, 21, repeats=200)
        times = {name: 1e6 * median(r[name] for r in rounds) for name in runs}
        share = median(r['composed'] / r['linear'] for r in rounds)
        told = ', '.join(f'{name} {t:.0f} µs' for name, t in times.items())
        print(f'adapted layer, {"forward and backward" if backward else "forward"}: {told}; share {share:.2f}')


def compiling() -> None:
    """Seconds of the first steps of a tiny Swin in mixed precision, compiled."""
    s = Settings(size='micro')
    net = networks.switched(Net(networks.our_swin(s, 'Swin-T', pyramid=True)), s.our_ops(compile=True))
    step = train_step(net, images(s, 2), precision(s, 'bf16'))
    for number in range(1, 4):
        begin = time.perf_counter()
        step()
        print(f'compiled, step {number}: {time.perf_counter() - begin:.2f} s', flush=True)


if __name__ == '__main__':
    torch.set_num_threads(1)
    forms()
    compiling()
