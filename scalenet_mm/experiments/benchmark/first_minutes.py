"""A GPU's first minutes: commands as users type them, in order of worth; each result is written when it is there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...checkpoint.delta_file import SUFFIX
from ...checkpoint.loading import build_model
from ...checkpoint.writing import write_atomically
from ...compat import configs_dir, read_config
from ..data import CLASSES, make_demo_data
from .loaders import DEMO, FAMILIES
from .machine import describe

RESULTS, SPEED, DATA = 'gpu_check.json', 'performance_gpu.json', 'data'
ROOT = Path(__file__).parents[3]
SCALENET = (sys.executable, '-m', 'scalenet_mm')
LEAST = 20  # seconds that are left for a step to be begun
DEMOS = {**DEMO, 'classification': 'demo/scalenet_deit_micro_digits.py'}
LEAVES = {**{name: family.leaf for name, family in FAMILIES.items()}, 'classification': 'scalenet_deit_b_100e.py'}
DIGITS = {  # what a shipped config needs to take digits for its classes
    'detection': f'model = dict(roi_head=dict(bbox_head=dict(num_classes={len(CLASSES)}), '
    f'mask_head=dict(num_classes={len(CLASSES)})))\n'
    f'train_dataloader = dict(dataset=dict(metainfo=dict(classes={list(CLASSES)})))\n'
}
SPEEDS = ('P1', 'P3', 'P2', 'P4', 'P5', 'P6', 'P10', 'latency', 'P9', 'kernels', 'P7', 'P8')  # in order of worth
PIXELS = {'imagenet': 256, 'coco': 800, 'ade': 512}  # a side
CHILD = """# {what}, for {steps} steps on digits: written by scalenet experiment gpu-check
_base_ = {leaf!r}
load_from = {base!r}
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={steps}, val_interval={never})
val_cfg = val_dataloader = val_evaluator = None
default_hooks = dict(
    logger=dict(interval={shown}),
    checkpoint=dict(by_epoch=False, interval={saved}, save_best=None, max_keep_ckpts=-1),
)
log_processor = dict(by_epoch=False)
"""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    device: str = 'cuda'
    steps: int = 100
    images: int = 128  # of each layout, read again and again
    pixels: Mapping[str, int] = field(default_factory=lambda: PIXELS)
    leaves: Mapping[str, str] = field(default_factory=lambda: LEAVES)
    extra: Mapping[str, str] = field(default_factory=lambda: DIGITS)  # of the config, by family
    train: tuple[str, ...] = ('--amp',)
    compiled: str = 'model.backbone.ops.compile=True'
    speed: tuple[str, ...] = SPEEDS
    measured: tuple[str, ...] = ('--device', 'cuda', '--compiled')
    continued: tuple[str, ...] = ('detection', 'segmentation')
    tests: bool = True

    @property
    def processes(self) -> tuple[int, ...]:
        return (1, 2)[: torch.cuda.device_count()] if self.device == 'cuda' else (2,)


DRY = Size(  # on the CPU: whether every step runs
    device='cpu',
    steps=4,
    images=8,
    pixels={},
    leaves=DEMOS,
    extra=dict.fromkeys(DEMOS, 'train_dataloader = dict(batch_size=2)\n'),
    train=(),
    compiled='randomness.seed=0',  # nothing is compiled
    speed=('P7',),
    measured=('--size', 'micro', '--rounds', '1'),
    continued=('detection',),
    tests=False,
)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        told: what its record says beside status and seconds.
        needs: the step without whose files it cannot run.
    """

    name: str
    command: tuple[str, ...]
    told: Callable[[], dict[str, Any]] = dict
    needs: str = ''


def prepare(family: str, size: Size, out: Path) -> Path:
    """Writes a checkpoint of a family's stock model with random weights, and the config of the run.

    Returns:
        The config.
    """
    folder, leaf = out / family, configs_dir() / size.leaves[family]
    folder.mkdir()
    text = CHILD.format(
        what=leaf.stem,
        leaf=str(leaf),
        base=str(folder / 'base.pth'),
        steps=size.steps,
        saved=size.steps // 2,
        shown=max(1, size.steps // 10),
        never=10**9,
    )
    file = folder / f'{leaf.stem}.py'
    file.write_text(text + size.extra.get(family, ''))
    cfg = deepcopy(read_config(file))
    cfg.model.backbone.scale = dict(times=1, adjust=None)
    torch.save({'state_dict': build_model(cfg).state_dict()}, folder / 'base.pth')
    return file


def last_logged(work: Path) -> dict[str, Any]:
    """Loss, seconds a step and megabytes of the last line that a run logged."""
    lines = [json.loads(x) for f in sorted(work.glob('*/vis_data/scalars.json')) for x in f.read_text().splitlines()]
    return {k: v for k, v in lines[-1].items() if k in ('iter', 'loss', 'time', 'data_time', 'memory', 'grad_norm')}


def steps(size: Size, out: Path) -> Iterator[Step]:
    """What is done, in order of worth."""

    def training(family: str, name: str = 'train', *options: str, more: tuple[str, ...] = (), work: str = 'work'):
        folder = out / family
        file = folder / f'{Path(size.leaves[family]).stem}.py'
        tool = (*SCALENET, 'train', file, '--work-dir', folder / work, *more, *size.train)
        return Step(
            f'{family}: {name}',
            tuple(map(str, (*tool, '--cfg-options', f'data_root={out / DATA / FAMILIES[family].layout}', *options))),
            lambda: last_logged(folder / work),
        )

    def again(family: str) -> Iterator[Step]:
        folder, end = out / family, size.steps + size.steps // 2
        yield training(family, 'resume', f'train_cfg.max_iters={end}', more=('--resume',))
        base, delta = folder / 'base.pth', folder / f'exported{SUFFIX}'
        export = (*SCALENET, 'delta', 'export', folder / 'work' / f'iter_{end}.pth', '--base', base, '--out', delta)
        after = f'{family}: resume'
        yield Step(f'{family}: delta export', tuple(map(str, export)), needs=after)
        verify = tuple(map(str, (*SCALENET, 'delta', 'verify', base, delta)))
        yield Step(f'{family}: delta verify', verify, lambda: dict(bytes=delta.stat().st_size), after)

    def speed(pairs: tuple[str, ...]) -> Iterator[Step]:
        for pair in pairs:
            command = (
                *SCALENET,
                'experiment',
                'benchmark',
                '--pairs',
                pair,
                *size.measured,
                '--json',
                str(out / SPEED),
            )
            yield Step(f'speed: {pair}', command)

    yield training('detection')
    yield from speed(size.speed[:2])
    yield training('segmentation')
    if size.tests and (ROOT / 'tests').is_dir():
        yield Step(
            'the tests that need a GPU', (sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', str(ROOT / 'tests'))
        )
    yield training('classification', 'train, compiled', size.compiled)
    for family in size.continued:
        yield from again(family)
    if (ROOT / 'tools').is_dir():
        for number in size.processes:
            alone = training('segmentation', f'torchrun, {number}', work=f'work_{number}')
            tool = ('bash', str(ROOT / 'tools' / 'dist_train.sh'), alone.command[4], str(number), *alone.command[5:])
            yield Step(alone.name, tool, alone.told)
    yield from speed(size.speed[2:])


def run(size: Size, out: Path, minutes: float, tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Runs the steps, each with what is left of the time; writes ``out/gpu_check.json`` after each.

    Returns:
        A record a step: ``status`` is ``'done'``, ``'failed'``, ``'out of time'`` or ``'not run'``.
    """
    end, records = time.monotonic() + 60 * minutes, {}
    result = dict(started=time.strftime('%Y-%m-%d %H:%M:%S'), machine=describe(size.device), minutes=minutes)
    (out / 'logs').mkdir(parents=True, exist_ok=True)
    for layout in {family.layout for family in FAMILIES.values()}:
        make_demo_data(out / DATA, [layout], train=size.images, val=1, size=size.pixels.get(layout))
    for family in FAMILIES:
        prepare(family, size, out)
    todo = list(steps(size, out))
    for number, step in enumerate(todo, 1):
        left = end - time.monotonic()
        if step.needs and records[step.needs]['status'] != 'done':
            record = dict(status='not run', why=f'{step.needs} is not done')
        elif left < LEAST:
            record = dict(status='not run', why='no time was left')
        else:
            record = carry_out(step, left, out / 'logs' / f'{number:02}.log')
        records[step.name] = dict(step=step.name, command=shlex.join(step.command), **record)
        result['steps'] = list(records.values())
        write_atomically(out / RESULTS, json.dumps(result, indent=1).encode())
        told = ', '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' for k, v in record.items())
        tell(f'[{number}/{len(todo)}] {step.name}: {told}; {max(0, end - time.monotonic()) / 60:.1f} min left')
    return result['steps']


def carry_out(step: Step, seconds: float, log: Path) -> dict[str, Any]:
    """Runs a step's command; what it printed is in ``log``."""
    begin, environment = time.monotonic(), {**os.environ, 'SCALENET_ENV': sys.prefix}
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    with log.open('w') as file:
        try:
            code = subprocess.run(
                step.command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            return dict(status='out of time', seconds=round(time.monotonic() - begin, 1), log=log.name)
    record: dict[str, Any] = dict(status='done', seconds=round(time.monotonic() - begin, 1))
    if code:
        last = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        return record | dict(status='failed', exit=code, error=last[-1][:300] if last else '', log=log.name)
    return record | step.told()
