#!/usr/bin/env python
"""The main job, small: train a "pretrained" DeiT, scale it x2 with shared layers, train the increments, compare.

python tools/quickstart.py [--work-dir DIR] [--data DIR] [--epochs N N]

Real handwritten digits (no download), the shipped configs, the real Runner. An interrupted call continues where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

import scalenet_mm
from scalenet_mm.analysis.counts import measure
from scalenet_mm.data import make_demo_data
from scalenet_mm.engine.optim import format_table
from scalenet_mm.engine.resume import make_resumable
from scalenet_mm.roles import TrainPolicy, count, total

CONFIGS = Path(scalenet_mm.__file__).parents[1] / 'configs' / 'demo'
SHOWN = 12  # validation images in the figure


@dataclass
class Result:
    """One row of the table."""

    name: str
    top1: float
    params: int
    trainable: int
    gflops: float
    minutes: float
    predictions: list[int]


class Job:
    """The runs of the quickstart, each in a folder of its own below ``work_dir``."""

    def __init__(self, work_dir: Path, data: Path, epochs: tuple[int, int]):
        self.work_dir, self.data, self.epochs = work_dir, data, epochs
        work_dir.mkdir(parents=True, exist_ok=True)

    def config(self, file: str, name: str, epochs: int, load_from: str | None = None) -> Config:
        cfg = Config.fromfile(CONFIGS / file)
        cfg.work_dir, cfg.load_from = str(self.work_dir / name), load_from
        cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.dataset.get('dataset', loader.dataset).data_root = str(self.data / 'imagenet')
        make_resumable(cfg)
        cfg.custom_hooks.append(dict(type='ProgressHook', what=name))
        cfg.visualizer.name = f'{name}_{time.time_ns()}'
        return cfg

    def train(self, cfg: Config) -> tuple[str, float]:
        """Trains, continues or finds a finished run; returns its checkpoint and the minutes it took in all."""
        folder = Path(cfg.work_dir)
        settings, clock = folder / 'settings.json', folder / 'minutes.json'
        wanted = json.dumps(
            {
                k: cfg[k]
                for k in ('model', 'train_cfg', 'optim_wrapper', 'load_from', 'train_dataloader')
            }
        )
        if settings.exists() and settings.read_text() != wanted:
            raise SystemExit(
                f'{folder} holds a run with other settings; delete it or choose another --work-dir.'
            )
        folder.mkdir(parents=True, exist_ok=True)
        settings.write_text(wanted)
        done = folder / f'epoch_{cfg.train_cfg.max_epochs}.pth'
        if not done.exists():
            cfg.resume = (folder / 'last_checkpoint').exists()
            cfg.load_from = None if cfg.resume else cfg.load_from
            before = json.loads(clock.read_text()) if cfg.resume and clock.exists() else 0.0
            begin = time.time()
            try:
                with quiet(folder):
                    Runner.from_cfg(cfg).train()
            finally:
                clock.write_text(json.dumps(before + (time.time() - begin) / 60))
        return str(done), json.loads(clock.read_text())

    def evaluate(self, name: str, cfg: Config, checkpoint: str, minutes: float) -> Result:
        """Top-1 on the validation scenes, and what the model costs."""
        cfg = cfg.copy()
        cfg.resume, cfg.load_from, cfg.custom_hooks = (
            False,
            checkpoint,
            [dict(type='AnyDialectHook')],
        )
        cfg.work_dir = str(Path(cfg.work_dir) / 'evaluation')
        cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
        with quiet(Path(cfg.work_dir)):
            runner = Runner.from_cfg(cfg)
            top1 = runner.test()['accuracy/top1']
            predictions = [int(s.pred_label) for s in self.predict(runner)]
        policy = cfg.optim_wrapper.get('paramwise_cfg', {}).get('policy', dict(train='all'))
        model = MODELS.build(cfg.model)
        TrainPolicy.from_cfg(policy).apply(model)
        trainable = total(count(model).values()).trainable if minutes else 0
        cost = measure(model, (32, 32))
        return Result(
            name,
            top1,
            cost.params,
            trainable,
            cost.flops_with_adjustments / 1e9,
            minutes,
            predictions,
        )

    def predict(self, runner: Runner) -> list:
        dataset = runner.test_dataloader.dataset
        picked = [dataset[i] for i in self.shown(dataset)]
        batch = dict(
            inputs=[p['inputs'] for p in picked], data_samples=[p['data_samples'] for p in picked]
        )
        with torch.no_grad():
            return runner.model.test_step(batch)

    @staticmethod
    def shown(dataset) -> list[int]:
        step = len(dataset) / SHOWN
        return [int(step * (i + 0.37)) for i in range(SHOWN)]


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """The Runner's log goes to a file; a failure is told in one sentence with the way to it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'console.log'
    try:
        with log.open('a') as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
            yield
    except KeyboardInterrupt:
        raise SystemExit('\nInterrupted. The same command continues from the last epoch.') from None
    except Exception as e:
        raise SystemExit(f'\nThe run failed: {type(e).__name__}: {e}\nIts log: {log}') from e


def say(step: int, text: str) -> None:
    print(f'[{step}/5] {text}', flush=True)


def run(job: Job) -> list[Result]:
    source_epochs, epochs = job.epochs
    say(
        1,
        f'Data: scenes of two handwritten digits, the label is their sum -> {job.data} (about 30 s, once)',
    )
    make_demo_data(job.data, ['imagenet'], workers=2, progress=progress)
    say(2, f'Source: a DeiT with 4 layers from scratch, {source_epochs} epochs (about 4 min)')
    source_cfg = job.config('deit_digits.py', 'source', source_epochs)
    source, minutes = job.train(source_cfg)
    rows = [job.evaluate('source', source_cfg, source, minutes)]
    say(3, f'Control: the source trained on, everything, {epochs} epochs (about 1 min)')
    control_cfg = job.config('deit_digits.py', 'control', epochs, source)
    control, minutes = job.train(control_cfg)
    rows.append(job.evaluate('source trained on (control)', control_cfg, control, minutes))
    say(
        4,
        f'ScaleNet: 8 layers that share the 4; adapters and norms trained, {epochs} epochs (about 2 min)',
    )
    scaled_cfg = job.config('scalenet_deit_digits.py', 'scalenet', epochs, source)
    rows.append(job.evaluate('scaled x2, not yet trained', scaled_cfg, source, 0.0))
    scaled, minutes = job.train(scaled_cfg)
    rows.append(job.evaluate('ScaleNet x2, increments trained', scaled_cfg, scaled, minutes))
    return rows


def progress(layout: str, done: int, scenes: int) -> None:
    if done == scenes or done % (200 if sys.stdout.isatty() else 5000) == 0:
        live = sys.stdout.isatty() and done < scenes
        print(
            f'\r  {done} of {scenes} scenes'
            if sys.stdout.isatty()
            else f'  {done} of {scenes} scenes',
            end='' if live else '\n',
            flush=True,
        )


def table(rows: list[Result], images: int) -> str:
    def cells(r: Result) -> tuple:
        half = 196 * math.sqrt(r.top1 / 100 * (1 - r.top1 / 100) / images)
        return (
            r.name,
            f'{r.top1:.1f} +- {half:.1f}',
            r.params,
            r.trainable,
            f'{r.gflops * 1e3:.1f}',
            f'{r.minutes:.1f}',
        )

    head = ('model', 'top-1 %', 'parameters', 'trained', 'MFLOPs', 'minutes')
    return format_table(head, map(cells, rows))


def figure(rows: list[Result], data: Path, path: Path) -> None:
    """Accuracy of every row, and validation scenes with what source and ScaleNet read."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from mmpretrain.registry import DATASETS

    init_default_scope('mmpretrain')
    dataset = DATASETS.build(
        dict(
            Config.fromfile(CONFIGS / 'deit_digits.py').val_dataloader.dataset,
            data_root=str(data / 'imagenet'),
        )
    )
    fig = plt.figure(figsize=(13, 4.6), layout='constrained')
    left, right = fig.subfigures(1, 2, width_ratios=[1, 1.25])
    axes = left.subplots()
    names = [r.name.replace(', ', ',\n').replace(' (', '\n(') for r in rows]
    bars = axes.barh(
        names, [r.top1 for r in rows], color=['#999999', '#999999', '#f0b27a', '#d35400']
    )
    axes.bar_label(bars, [f'{r.top1:.1f} %  {r.params / 1e3:.0f} k' for r in rows], padding=4)
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 100),
        xlabel='top-1 on unseen digits (%), and parameters',
        title='Sum of two digits, 19 classes',
    )
    axes.spines[['top', 'right']].set_visible(False)
    for i, (index, cell) in enumerate(zip(Job.shown(dataset), right.subplots(2, SHOWN // 2).flat)):
        sample = dataset[index]
        truth = int(sample['data_samples'].gt_label)
        cell.imshow(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
        cell.axis('off')
        before, after = rows[0].predictions[i], rows[-1].predictions[i]
        cell.set_title(f'sum {truth}', fontsize=10)
        for y, name, got in ((-0.14, 'source', before), (-0.30, 'ScaleNet', after)):
            colour = 'tab:green' if got == truth else 'tab:red'
            cell.text(
                0.5,
                y,
                f'{name} {got}',
                color=colour,
                ha='center',
                fontsize=9,
                transform=cell.transAxes,
            )
    right.suptitle('Validation scenes and what each model reads', fontsize=12)
    fig.savefig(path, dpi=110)


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/quickstart'),
        help='checkpoints, logs, table, figure',
    )
    p.add_argument(
        '--data', type=Path, default=Path('data/demo'), help='where the demo data is, or is made'
    )
    p.add_argument(
        '--epochs',
        type=int,
        nargs=2,
        default=(12, 4),
        metavar=('SOURCE', 'SCALED'),
        help='default: 12 4',
    )
    args = p.parse_args()
    begin = time.time()
    init_default_scope('mmpretrain')
    rows = run(Job(args.work_dir, args.data, tuple(args.epochs)))
    say(5, 'Result')
    images = len(list((args.data / 'imagenet' / 'val').rglob('*.png')))
    text = table(rows, images)
    print(
        f'\n{text}\n\ntop-1 on {images} scenes of digits never trained on, +- the 95 % interval of the {images} draws (one seed).'
    )
    print(
        'MFLOPs: multiply-adds of one image, adapters included: sharing saves parameters, not arithmetic.'
    )
    (args.work_dir / 'result.json').write_text(json.dumps([asdict(r) for r in rows], indent=1))
    (args.work_dir / 'result.txt').write_text(text + '\n')
    figure(rows, args.data, args.work_dir / 'result.png')
    print(f'Figure: {args.work_dir / "result.png"}   Table: {args.work_dir / "result.txt"}')
    print(f'{(time.time() - begin) / 60:.1f} minutes in all, this call.')


if __name__ == '__main__':
    main()
