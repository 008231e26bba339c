"""``tools/train.py CONFIG --dry-run``: a run in miniature with the real Runner, and what the whole one would cost."""

from __future__ import annotations

import copy
import io
import math
import resource
import shutil
import tempfile
import time
from bisect import bisect
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, LOOPS
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import Dataset

from ..compat import bare, type_class
from ..core.roles import role_rows
from ..tables import format_table
from .config import build_runner
from .continuing import CheckpointFolder

IMAGES, ITERATIONS = 8, 2
GB = 2**30


@DATASETS.register_module()
class FirstImages(Dataset):
    """The first images of a data set, over and over.

    Args:
        dataset: config of the data set; it reads its annotations whole.
        images: how many of its images are used.
        length: length of this one; by default ``images``.
    """

    def __init__(self, dataset: dict, images: int = IMAGES, length: int | None = None):
        self.dataset = DATASETS.build(dataset)
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        self.images = min(images, len(self.dataset))
        self.length = length or self.images

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.dataset[int(index) % self.images]

    def get_data_info(self, index: int) -> dict:
        return self.dataset.get_data_info(int(index) % self.images)

    def __getattr__(self, name: str):  # metainfo, ...
        if name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)


@HOOKS.register_module()
class DryRunHook(Hook):
    """Stops after two iterations and notes how long things take once they run.

    Attributes:
        iteration: seconds of the last iteration, its data included; the first one warms up.
        image: seconds to evaluate an image, from the second batch on.
    """

    priority = 'BELOW_NORMAL'

    def before_train(self, runner) -> None:
        self.iteration = self.image = 0.0

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        now = _now()
        if batch_idx:
            self.iteration = now - self.last
        self.last = now
        if batch_idx + 1 >= ITERATIONS:
            runner.train_loop.stop_training = True

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        now = _now()
        if batch_idx == 0:
            self.first, self.images = now, 0
        else:
            self.images += len(outputs)
            self.image = (now - self.first) / self.images


@dataclass(frozen=True)
class Estimate:
    """What a schedule costs.

    Attributes:
        iterations: of the whole training.
        images: that one process sees in an iteration.
        validations: during the training.
        checkpoints: that are on the disk at the most, the one being written and the best one included.
        hours: of training and validation.
    """

    iterations: int
    images: int
    validations: int
    checkpoints: int
    hours: float


def miniature(cfg: Config, work_dir: str, processes: int = 1) -> Config:
    """A copy of a config that trains two iterations on eight images, validates on eight and saves once.

    Batch size, model, schedule, checkpoint to start from and hooks are those of the config.
    """
    mini = copy.deepcopy(cfg)
    mini.work_dir, mini.resume, mini.log_level = work_dir, False, 'WARNING'
    loader = mini.train_dataloader
    needed = max(IMAGES, ITERATIONS * _batch_size(loader) * processes)
    loader.dataset = dict(type='FirstImages', dataset=loader.dataset, length=needed)
    val = mini.get('val_dataloader')
    if val:
        length = max(IMAGES, 2 * processes)
        val.dataset = dict(type='FirstImages', dataset=val.dataset, length=length)
        two_batches = length // (2 * processes)  # on each process; the second one is timed
        val.batch_size = min(val.get('batch_size', 1), two_batches)
    by_epoch = _by_epoch(mini)
    loader.num_batch_per_epoch = ITERATIONS if by_epoch else None
    interval = 1 if by_epoch else ITERATIONS
    mini.train_cfg.update(val_interval=interval, val_begin=1)
    mini.train_cfg.pop('dynamic_intervals', None)
    hooks = dict(mini.get('default_hooks') or {})
    saving = dict(hooks.get('checkpoint') or dict(type='CheckpointHook'))
    hooks['checkpoint'] = dict(saving, interval=interval, by_epoch=by_epoch, out_dir=None, save_begin=0)
    mini.default_hooks = hooks
    mini.custom_hooks = [*(mini.get('custom_hooks') or []), dict(type='DryRunHook')]
    if mini.get('visualizer'):
        backends = [dict(type='LocalVisBackend')]  # nothing leaves the machine
        mini.visualizer.update(vis_backends=backends, name=Path(work_dir).name)  # kept by name as long as the process
    return mini


def dry_run(cfg: Config) -> None:
    """Trains the miniature of ``cfg`` in a folder that is removed afterwards, and prints what it learnt.

    Raises:
        Exception: whatever the real run would raise in its first iterations.
    """
    if is_main_process():
        print(
            f'Dry run: {ITERATIONS} iterations, one evaluation and one save on {IMAGES} images; annotations are read '
            'whole, so a full COCO takes its usual time to start.',
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix='dry_run_') as folder:
        runner = build_runner(miniature(cfg, folder, get_world_size()))
        with redirect_stdout(io.StringIO()):  # tables of metrics that say nothing yet
            runner.train()
        if is_main_process():
            saved = max(p.stat().st_size for p in CheckpointFolder.of(runner.cfg, folder).saved())
            print(report(cfg, runner, saved))


def estimate(cfg: Config, images: int, val_images: int, iteration: float, image: float) -> Estimate:
    """What the schedule of a config costs.

    Args:
        images: in the whole training set.
        val_images: in the whole validation set; 0 without validation.
        iteration: seconds an iteration.
        image: seconds to evaluate an image.
    """
    batch, by_epoch = _batch_size(cfg.train_dataloader), _by_epoch(cfg)
    per_epoch = images / (batch * get_world_size())
    drop_last = cfg.train_dataloader.get('drop_last')
    per_epoch = math.floor(per_epoch) if drop_last else math.ceil(per_epoch)
    per_epoch = min(per_epoch, cfg.train_dataloader.get('num_batch_per_epoch') or per_epoch)
    length = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    iterations = length * per_epoch if by_epoch else length
    validations = _validations(cfg.train_cfg, length, by_epoch) if val_images else 0
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    kept = saving.get('max_keep_ckpts', -1)
    if kept <= 0:
        steps = length if saving.get('by_epoch', True) == by_epoch else iterations
        every, begin = saving.get('interval', 1), saving.get('save_begin', 0)
        kept = math.ceil(max(0, steps - begin) / every) + (0 < begin <= steps) if every > 0 else 1
        kept = max(1, kept)
    seconds = iterations * iteration + validations * val_images / get_world_size() * image
    best = saving.get('save_best')
    checkpoints = kept + 1 + (len(best) if isinstance(best, list) else bool(best))
    return Estimate(iterations, batch, validations, checkpoints, seconds / 3600)


def _validations(train_cfg: Mapping[str, Any], length: int, by_epoch: bool) -> int:
    """How often mmengine's loops validate in so many epochs or iterations."""
    every, begin = train_cfg.get('val_interval', 1 if by_epoch else 1000), train_cfg.get('val_begin', 1)
    begins, intervals = calc_dynamic_intervals(every, train_cfg.get('dynamic_intervals'))
    return sum(n == length or n % intervals[bisect(begins, n + 1) - 1] == 0 for n in range(max(1, begin), length + 1))


def report(cfg: Config, runner, saved: int) -> str:
    """The text that a dry run prints; ``saved`` is the size of a checkpoint in bytes."""
    (hook,) = (h for h in runner.hooks if isinstance(h, DryRunHook))
    images = _whole_length(runner.train_dataloader)
    val_images = _whole_length(runner.val_dataloader) if runner.val_loop is not None else 0
    cost = estimate(cfg, images, val_images, hook.iteration, hook.image)
    folder = Path(cfg.work_dir).absolute()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    disk = cost.checkpoints * saved
    lasts = f'{cost.hours:.1f} hours' if cost.hours >= 1 else f'{60 * cost.hours:.1f} minutes'
    lines = [
        '',
        format_table(('role', 'tensors', 'parameters', 'trainable'), role_rows(bare(runner.model))),
        '',
        f'memory      {_memory()}',
        f'iteration   {hook.iteration:.3g} s for {cost.images} images on each of {get_world_size()} process(es)',
        f'evaluation  {hook.image:.3g} s an image',
        f'whole run   {lasts}: {cost.iterations:,} iterations on {images:,} images, '
        f'evaluations of {val_images:,} images: {cost.validations}',
        f'checkpoint  {saved / 2**20:,.1f} MB; at most {cost.checkpoints} at a time, {disk / GB:.3g} GB '
        f'of {free / GB:,.0f} GB free',
    ]
    if disk > free:
        lines.append(
            'The disk is too small: lower default_hooks.checkpoint.max_keep_ckpts or choose another --work-dir.'
        )
    lines.append('Times are rough, from one iteration after the first. Nothing was kept.')
    return '\n'.join(lines)


def _by_epoch(cfg: Config) -> bool:
    """Whether the training is counted in epochs, as the Runner tells it."""
    kind = type_class(cfg.train_cfg, LOOPS)
    return cfg.train_cfg.get('by_epoch', True) if kind is None else not issubclass(kind, IterBasedTrainLoop)


def _batch_size(loader: dict) -> int:
    return loader.get('batch_size') or loader.batch_sampler.batch_size


def _whole_length(loader) -> int:
    first = getattr(loader.dataset, '_dataset', loader.dataset)  # out of num_batch_per_epoch's
    while not isinstance(first, FirstImages):
        first = first.dataset
    return len(first.dataset)


def _now() -> float:
    """Seconds; what the GPU was told to do is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory() -> str:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
    text = f'{used:.1f} GB of main memory at the most, and the workers of the loaders besides'
    if torch.cuda.is_available():
        text = f'{torch.cuda.max_memory_reserved() / GB:.1f} GB of the GPU at the most; {text}'
    return text
