"""A training step beside other processes by OpenMP's wait policy: python tests/wait_policy.py

A thread that has done its share of an operation waits for the others. Actively, it keeps its core busy, and whoever has
the missing share waits for that core. Prints the table of docs/performance.md; five minutes, nothing else running.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping

import torch

from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.compat import configs_dir, read_config
from scalenet_mm.tables import markdown_table

STEPS = {  # backbone of a demo config -> images (N, 3, H, W), steps
    'scalenet_deit_micro_digits.py': ((128, 3, 32, 32), 40),
    'upernet_scalenet_swin_digits.py': ((8, 3, 96, 96), 12),
}
POLICIES = ('PASSIVE', '', 'ACTIVE')  # none: what the OpenMP that torch brings does by itself
TRIES = 3


def step_time(config: str) -> float:
    """Milliseconds of forward, backward and AdamW, the mean of some steps after three."""
    size, steps = STEPS[config]
    model = build_model(read_config(configs_dir() / 'demo' / config)).backbone.train()
    images, optimizer = torch.randn(size), torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        output = model(images)
        (output[-1] if isinstance(output, tuple) else output).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps * 1e3


def in_a_process(config: str, policy: str) -> float:
    env: Mapping = {k: v for k, v in os.environ.items() if k not in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY')}
    env |= {'OMP_WAIT_POLICY': policy} if policy else {}
    done = subprocess.run([sys.executable, __file__, config], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    rows = []
    for busy in range(os.cpu_count() + 1):
        others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(busy)]
        try:
            for config in STEPS:
                # the least of some: what else the machine does only adds
                times = [min(in_a_process(config, policy) for _ in range(TRIES)) for policy in POLICIES]
                rows.append((busy, config.removesuffix('.py'), *(f'{t:.1f}' for t in times)))
                print(*rows[-1], file=sys.stderr, flush=True)
        finally:
            for other in others:
                other.kill()
    print(markdown_table(['other busy processes', 'backbone of', *(p or 'not set' for p in POLICIES)], rows))


if __name__ == '__main__':
    if len(sys.argv) > 1:
        print(step_time(sys.argv[1]))
    else:
        main()
