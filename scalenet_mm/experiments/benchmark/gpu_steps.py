"""What a GPU's first minutes are spent on: commands as users type them, on digits made here and random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...checkpoint.delta_file import SUFFIX
from ...checkpoint.loading import build_model
from ...commands.cfg_options import setting
from ...compat import configs_dir, read_config
from ..data import CLASSES, make_demo_data
from .loaders import DEMO, FAMILIES

SPEED, DATA, BASE = 'performance_gpu.json', 'data', 'base.pth'
ROOT = configs_dir().resolve().parent  # of a checkout: an editable install's configs are links into it
SCALENET = (sys.executable, '-m', 'scalenet_mm')
TRAIN = 'train'
DEMOS = {**DEMO, 'classification': 'demo/scalenet_deit_micro_digits.py'}
LEAVES = {**{name: family.leaf for name, family in FAMILIES.items()}, 'classification': 'scalenet_deit_b_100e.py'}
DIGITS = {  # what a shipped config needs to take digits for its classes
    'detection': f'model = dict(roi_head=dict(bbox_head=dict(num_classes={len(CLASSES)}), '
    f'mask_head=dict(num_classes={len(CLASSES)})))\n'
    f'train_dataloader = dict(dataset=dict(metainfo=dict(classes={list(CLASSES)})))\n'
}
MOST = 'P1,P3,P2,P4'
SPEEDS = {  # in order of worth: what the benchmark is asked for
    'bf16': ('--pairs', MOST, '--dtype', 'bf16', '--rounds', '5'),
    'compiled': ('--pairs', 'P3,P4', '--dtype', 'bf16', '--rounds', '5', '--compiled'),
    'the other goals': ('--pairs', 'P6,P10,P5,latency,P9,P7,P8', '--dtype', 'bf16', '--rounds', '5'),
    'training, compiled': ('--pairs', 'P1', '--case', 'Swin-T', '--dtype', 'bf16', '--rounds', '5', '--compiled'),
    'switches': ('--pairs', 'ablation', '--dtype', 'bf16', '--rounds', '5'),
    'fp32': ('--pairs', MOST, '--dtype', 'fp32', '--rounds', '5'),
    'forms': ('--pairs', 'kernels', '--rounds', '3'),
}
PIXELS = {'imagenet': 256, 'coco': 800, 'ade': 512}  # a side
CHILD = """# {what}, for {steps} steps on digits: written by scalenet experiment gpu-check
_base_ = {leaf!r}
load_from = {base!r}
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={steps}, val_interval={never})
val_cfg = val_dataloader = val_evaluator = None
param_scheduler = []  # the leaf's goes by epochs, of which there is less than one
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
    images: int = 48  # of each layout, read again and again
    at_once: int = 4  # chains
    pixels: Mapping[str, int] = field(default_factory=lambda: PIXELS)
    leaves: Mapping[str, str] = field(default_factory=lambda: LEAVES)
    extra: Mapping[str, str] = field(default_factory=lambda: DIGITS)  # of the config, by family
    train: tuple[str, ...] = ('--amp',)
    compiled: tuple[str, ...] = ('model.backbone.ops.compile=True',)
    speeds: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SPEEDS)
    continued: tuple[str, ...] = ('detection', 'segmentation')
    tests: bool = True

    def config(self, family: str, out: Path) -> Path:
        return out / family / Path(self.leaves[family]).name

    @property
    def processes(self) -> tuple[int, ...]:
        return (1, 2)[: torch.cuda.device_count()] if self.device == 'cuda' else (2,)


DRY = Size(  # on the CPU: whether every step runs
    device='cpu',
    steps=4,
    images=8,
    at_once=1,
    pixels={},
    leaves=DEMOS,
    extra=dict.fromkeys(DEMOS, 'train_dataloader = dict(batch_size=2)\n'),
    train=(),
    compiled=(),
    speeds={'P7': ('--pairs', 'P7', '--size', 'micro', '--rounds', '1')},
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

    @property
    def compiles(self) -> bool:
        return any(word == '--compiled' or word.endswith('.compile=True') for word in self.command)


def prepare(family: str, size: Size, out: Path) -> None:
    """Makes a family's images, the config of its runs and a checkpoint of its stock model with random weights."""
    layout = FAMILIES[family].layout
    make_demo_data(out / DATA, [layout], train=size.images, val=1, size=size.pixels.get(layout))
    file, leaf = size.config(family, out), configs_dir() / size.leaves[family]
    file.parent.mkdir()
    base = file.parent / BASE
    text = CHILD.format(
        what=leaf.stem,
        leaf=str(leaf),
        base=str(base),
        steps=size.steps,
        saved=size.steps // 2,
        shown=max(1, size.steps // 10),
        never=10**9,
    )
    file.write_text(text + size.extra.get(family, ''))
    cfg = read_config(file)
    cfg.model.backbone.scale = dict(times=1, adjust=None)
    torch.save({'state_dict': build_model(cfg).state_dict()}, base)


def last_logged(work: Path) -> dict[str, Any]:
    """Loss, seconds a step and megabytes of the last line that a run logged."""
    lines = [json.loads(x) for f in sorted(work.glob('*/vis_data/scalars.json')) for x in f.read_text().splitlines()]
    return {k: v for k, v in lines[-1].items() if k in ('iter', 'loss', 'time', 'data_time', 'memory', 'grad_norm')}


def command(*words: object) -> tuple[str, ...]:
    return tuple(map(str, words))


def chains(size: Size, out: Path) -> dict[str, list[Step]]:
    """Steps that follow each other, by what they are about; chains can run side by side."""

    def training(family: str, name: str, *options: str, work='work', more=(), needs='', tool=None) -> Step:
        """``tool``: what runs a config, and what it takes after it."""
        (first, second), folder = tool or ((*SCALENET, 'train'), ()), out / family / work
        data = setting('data_root', out / DATA / FAMILIES[family].layout)
        words = (*first, size.config(family, out), *second, '--work-dir', folder, *more, *size.train)
        told = partial(last_logged, folder)
        return Step(f'{family}: {name}', command(*words, '--cfg-options', data, *options), told, needs)

    def again(family: str) -> list[Step]:
        folder, end = out / family, size.steps + size.steps // 2
        until = f'train_cfg.max_iters={end}'
        resume = training(family, 'resume', until, more=('--resume',), needs=f'{family}: {TRAIN}')
        base, delta = folder / BASE, folder / f'exported{SUFFIX}'
        files = folder / 'work' / f'iter_{end}.pth', '--base', base, '--out', delta
        export = Step(f'{family}: delta export', command(*SCALENET, 'delta', 'export', *files), needs=resume.name)
        verify = command(*SCALENET, 'delta', 'verify', base, delta)
        told = lambda: dict(bytes=delta.stat().st_size)  # noqa: E731
        return [resume, export, Step(f'{family}: delta verify', verify, told, export.name)]

    found = {family: [training(family, TRAIN)] for family in ('detection', 'segmentation')}
    found['classification'] = [training('classification', 'train, compiled', *size.compiled)]
    for family in size.continued:
        found[family] += again(family)
    launcher = ROOT / 'tools' / 'dist_train.sh'
    for number in size.processes if launcher.is_file() else ():
        tool = ('bash', launcher), (number,)
        found['segmentation'].append(training('segmentation', f'torchrun, {number}', work=f'work_{number}', tool=tool))
    if size.tests and (ROOT / 'tests').is_dir():
        tests = command(sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', ROOT / 'tests')
        found['tests'] = [Step('the tests that need a GPU', tests)]
    return found


def speeds(size: Size, out: Path) -> list[Step]:
    """Runs of the benchmark, which keeps every row when it is there."""
    words = (*SCALENET, 'experiment', 'benchmark', '--device', size.device, '--json', out / SPEED)
    return [Step(f'speed: {name}', command(*words, *asked)) for name, asked in size.speeds.items()]
