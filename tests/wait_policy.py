"""A training step on a quiet, a busy and a rationed machine: python tests/wait_policy.py

A thread that has done its share of an operation waits for the others. Actively, it keeps its core busy, and whoever has
the missing share waits for that core. Prints the table of docs/performance.md; a quarter of an hour, nothing else
running. A ration is a cgroup's (version 1), which needs root.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.compat import configs_dir, read_config
from scalenet_mm.cores import CGROUPS
from scalenet_mm.progress import Progress
from scalenet_mm.tables import markdown_table

STEPS = {  # backbone of a config -> images (N, 3, H, W), steps
    'demo/scalenet_deit_micro_digits.py': ((128, 3, 32, 32), 40),
    'demo/upernet_scalenet_swin_digits.py': ((8, 3, 96, 96), 12),
    'mask_rcnn_scalenet_swin_t_1x.py': ((2, 3, 224, 320), 3),
}
WAYS = {
    'threads for all cores, `PASSIVE`': {'OMP_WAIT_POLICY': 'PASSIVE'},
    'the same, not set': {},
    'one thread': {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'},
}
Enter = Callable[[], object]


def step_time(config: str) -> float:
    """Milliseconds of forward, backward and AdamW, the mean of some steps after two."""
    size, steps = STEPS[config]
    cfg = read_config(configs_dir() / config)
    cfg.model.backbone.drop_path_rate = 0.0
    model = build_model(cfg).backbone.train()
    images, optimizer = torch.randn(size), torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        output = model(images)
        (output[-1] if isinstance(output, tuple) else output).square().mean().backward()
        optimizer.step()

    for _ in range(2):
        step()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps * 1e3


def in_a_process(config: str, way: dict[str, str], enter: Enter) -> float:
    env = {k: v for k, v in os.environ.items() if k not in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY')} | way
    command = [sys.executable, __file__, config]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, preexec_fn=enter)
    return float(done.stdout.split()[-1])


@contextmanager
def quiet() -> Iterator[Enter]:
    yield lambda: None


@contextmanager
def busy() -> Iterator[Enter]:
    other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        yield lambda: None
    finally:
        other.kill()


@contextmanager
def rationed() -> Iterator[Enter]:
    """Raises OSError where no cgroup can be made."""
    group = CGROUPS / 'cpu' / f'scalenet_test_{os.getpid()}'
    group.mkdir()
    (group / 'cpu.cfs_quota_us').write_text((group / 'cpu.cfs_period_us').read_text())
    try:
        yield lambda: (group / 'cgroup.procs').write_text(str(os.getpid()))
    finally:
        group.rmdir()


SITUATIONS = {'quiet': quiet, 'one other busy process': busy, "a ration of one core's time": rationed}


def main() -> None:
    rows = []
    with Progress('steps', len(SITUATIONS) * len(STEPS) * len(WAYS), stream=sys.stderr, unit='case') as progress:
        for name, situation in SITUATIONS.items():
            with situation() as enter:
                for config, (size, _) in STEPS.items():
                    times = []
                    for way in WAYS.values():
                        times.append(in_a_process(config, way, enter))
                        progress.update(len(rows) * len(WAYS) + len(times))
                    images = f'{size[0]} images of {size[2]} x {size[3]}'
                    rows.append((name, f'{config.split("/")[-1].removesuffix(".py")}, {images}', *map(round, times)))
    print(markdown_table(['', 'backbone of', *WAYS], rows, 'll' + 'r' * len(WAYS)))


if __name__ == '__main__':
    if len(sys.argv) > 1:
        print(step_time(sys.argv[1]))
    else:
        main()
