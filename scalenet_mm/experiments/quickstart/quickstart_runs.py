"""The runs: configs, training that continues where it was, evaluation."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.hooks import Hook

import scalenet_mm

from ...checkpoint.delta_file import beside
from ...compat import configs_dir
from ...core.roles import count, total
from ...models.counts import measure, train_policy
from ...models.side_by_side import Panel
from ...runner.atomic import make_atomic
from ...runner.config import build_runner, load_config
from ...runner.continuing import latest
from ...runner.progress_hook import show_progress
from ..data import LAYOUTS
from .quickstart_tasks import Task

CONFIGS = configs_dir() / 'demo'
LR = 'optim_wrapper.optimizer.lr'
SETTINGS = ('model', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'load_from', 'train_dataloader', 'randomness')


class Scene(NamedTuple):
    """A validation image: its file, what is there, what was predicted."""

    file: str
    truth: Panel
    predicted: Panel


class KeepScenes(Hook):
    """Keeps what is drawn of each scene while a model is evaluated; ``read`` is the task's."""

    def __init__(self, read: Callable[[object], tuple[Panel, Panel]]):
        self.read, self.scenes = read, []

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=()):
        self.scenes += [Scene(s.img_path, *self.read(s)) for s in (o.cpu() for o in outputs)]


@dataclass
class Result:
    """One row of the table; ``delta`` is bytes that turn the source into this model, ``scenes`` is what it predicts of
    each validation scene.
    """

    name: str
    metrics: dict[str, float]
    params: int
    trainable: int
    delta: int
    gflops: float
    minutes: float
    scenes: list[Scene] = field(repr=False)


class Job:
    """The runs of one task, each in a folder of its own below ``work_dir``.

    Args:
        epochs: of ScaleNet and of the control; None for those of ScaleNet's config.
        scenes: of the training and the validation split; None for the quickstart's.
        lr: learning rates of ScaleNet and of the control; None for those that were chosen.
    """

    def __init__(
        self,
        task: Task,
        work_dir: Path,
        data: Path,
        epochs: int | None = None,
        scenes: tuple[int, int] | None = None,
        seed: int = 0,
        lr: tuple[float | None, float | None] = (None, None),
    ):
        self.task, self.work_dir, self.data, self.seed = task, work_dir, data, seed
        self.scaled_options = {LR: lr[0]} if lr[0] else {}
        self.control_options = {LR: lr[1] or task.control_lr}
        self.scenes = scenes or (task.scenes, LAYOUTS[task.layout].val)
        self.epochs = epochs or self.epochs_of(task.scaled)
        loader = Config.fromfile(CONFIGS / task.scaled).train_dataloader
        if loader.get('drop_last') and self.scenes[0] < loader.batch_size:
            raise SystemExit(
                f'{self.scenes[0]} scenes for training are no whole batch: --scenes {loader.batch_size} VAL.'
            )
        work_dir.mkdir(parents=True, exist_ok=True)

    def _unit(self, cfg: Config) -> int:
        """What the training loop counts in an epoch: 1, or its iterations."""
        batch = cfg.train_dataloader.batch_size
        return 1 if self.task.unit == 'epoch' else max(1, self.scenes[0] // batch)

    def epochs_of(self, file: str) -> int:
        """Of a config: passes over this job's scenes."""
        cfg = Config.fromfile(CONFIGS / file)
        return max(1, cfg.train_cfg[f'max_{self.task.unit}s'] // self._unit(cfg))

    def config(
        self, file: str, name: str, epochs: int, load_from: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Config:
        options = {'data_root': str(self.data / self.task.layout), **(options or {})}
        cfg = load_config(str(CONFIGS / file), str(self.work_dir / name), options=options)
        unit, cfg.load_from = self._unit(cfg), load_from
        end = epochs * unit
        cfg.train_cfg.update({f'max_{self.task.unit}s': end, 'val_begin': end + 1})  # see evaluate
        cfg.default_hooks.checkpoint.interval = unit
        cfg.randomness = dict(seed=self.seed)
        make_atomic(cfg)
        show_progress(cfg, name)
        if load_from:
            cfg.custom_hooks.append(dict(type='DeltaHook'))
        cfg.visualizer.name = f'{name}_{time.time_ns()}'
        return cfg

    def train(self, cfg: Config) -> tuple[str, float]:
        """Trains, continues or finds a finished run; returns its checkpoint and the minutes it took in all."""
        folder = Path(cfg.work_dir)
        settings, clock = folder / 'settings.json', folder / 'minutes.json'
        wanted = json.dumps({**{k: cfg[k] for k in SETTINGS}, 'scenes': self.scenes[0]})
        places = {str(self.data / self.task.layout): 'DATA', str(self.task.weights.parent): 'SOURCES'}
        wanted = _anywhere(wanted, places)
        if settings.exists() and _anywhere(settings.read_text(), places) != wanted:
            raise SystemExit(f'{folder} holds a run with other settings; delete it or choose another --work-dir.')
        folder.mkdir(parents=True, exist_ok=True)
        if not settings.exists():
            settings.write_text(wanted)
        done = folder / f'{self.task.unit}_{cfg.train_cfg[f"max_{self.task.unit}s"]}.pth'
        if not done.exists():
            cfg = cfg.copy()
            last = latest(folder)
            cfg.resume, cfg.load_from = last is not None, last or cfg.load_from
            before, begin = _minutes(clock, last), time.time()
            clock.write_text(json.dumps(before))
            try:
                with quiet(folder):
                    build_runner(cfg).train()
            finally:
                clock.write_text(json.dumps(before + (time.time() - begin) / 60))
        return str(done), _minutes(clock, done)

    def evaluate(self, name: str, cfg: Config, file: str, checkpoint: str, minutes: float) -> Result:
        """Metrics on the validation scenes, and what the model of config ``file`` costs."""
        cfg = cfg.copy()
        cfg.resume, cfg.load_from = False, checkpoint
        cfg.custom_hooks = [dict(type='ProgressHook')]
        cfg.work_dir = str(Path(cfg.work_dir) / 'evaluation')
        cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
        with quiet(Path(cfg.work_dir)):
            runner, kept = build_runner(cfg), KeepScenes(self.task.read)
            runner.register_hook(kept)
            metrics = runner.test()
            model = scalenet_mm.build(CONFIGS / file)
        train_policy(CONFIGS / file).apply(model)
        trainable = total(count(model).values()).trainable if minutes else 0
        cost = measure(model, self.task.size)
        return Result(
            name,
            # without a single detection CocoMetric has no entry
            {k: f * float(metrics.get(key, 0)) for k, (key, f) in self.task.metrics.items()},
            cost.params,
            trainable,
            delta_bytes(checkpoint),
            cost.flops_with_adjustments / 1e9,
            minutes,
            kept.scenes,
        )


def delta_bytes(checkpoint: str) -> int:
    """Of the file that the ``DeltaHook`` of a run wrote beside its checkpoint; 0 where a run started from nothing."""
    file = beside(checkpoint)
    return file.stat().st_size if file.exists() else 0


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """The Runner's log goes to a file; a failure is told in one sentence with the way to it."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'console.log'
    try:
        with log.open('a') as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
            yield
    except KeyboardInterrupt:
        print('\nInterrupted. The same command continues from the last epoch.', file=sys.stderr)
        raise
    except Exception as e:
        raise SystemExit(f'\nThe run failed: {type(e).__name__}: {e}\nIts log: {log}') from e


def _anywhere(settings: str, places: Mapping[str, str]) -> str:
    """JSON with names instead of the folders that may have moved."""
    for folder, name in places.items():
        settings = settings.replace(json.dumps(folder)[1:-1], name)
    return settings


def _minutes(clock: Path, last: str | Path | None) -> float:
    """What the parts of a run took, up to its last checkpoint; one that was killed had no time to write its own."""
    if last is None or not clock.exists():
        return 0.0
    return json.loads(clock.read_text()) + max(0.0, Path(last).stat().st_mtime - clock.stat().st_mtime) / 60
