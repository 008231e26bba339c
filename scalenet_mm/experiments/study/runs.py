"""One row with one seed, from its config to one JSON record, by the real Runner."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ...checkpoint.writing import write_atomically
from ...compat import configs_dir
from ...core.roles import count, total
from ...models.counts import measure
from ...runner.atomic import make_atomic
from ...runner.config import load_config
from ...runner.progress_hook import show_progress
from ...runner.resume import make_resumable
from .pool import RECORD, Job
from .rank import CELL, GRID
from .rows import ROWS, Row

WARM_UP = 50  # steps
PRETRAINING, TRAINING, HELD_OUT, SEEN = range(4)  # streams of scenes of one seed


def config(row: Row, seed: int, work_dir: Path, source: str | None = None) -> Config:
    """The config of one run.

    Args:
        source: checkpoint of the seed's source model, for rows that start from it.
    """
    warm_up = min(WARM_UP, max(1, row.steps // 10))
    stream = TRAINING if row.pretrained else PRETRAINING
    options = {
        'train_dataloader.dataset.seed': (seed, stream),
        'val_dataloader.dataset.seed': (seed, HELD_OUT),
        'test_dataloader.dataset.seed': (seed, SEEN),
        'test_dataloader.dataset.digits': 'train',
        'test_dataloader.dataset.batches': 4,
        'train_cfg.max_iters': row.steps,
        'train_cfg.val_interval': row.steps + 1,  # measured once, after the run
        'param_scheduler.0.end': warm_up,
        'param_scheduler.1.begin': warm_up,
        'param_scheduler.1.end': row.steps,
        'default_hooks.checkpoint.interval': row.steps,
        'default_hooks.checkpoint.save_optimizer': False,
        'optim_wrapper.optimizer.lr': row.rate,
        'optim_wrapper.paramwise_cfg.policy': dict(train=row.train),
        'randomness.seed': seed,
        'load_from': source if row.pretrained else None,
        **row.options,
    }
    cfg = load_config(str(configs_dir() / 'demo' / f'rank_{row.host}.py'), str(work_dir), options)
    if row.scale is not None:
        cfg.model.backbone.scale = dict(row.scale)
    if 'distill' in cfg.model:
        cfg.model.distill.checkpoint = source
    return cfg


@cache
def digest(key: str, shorten: int = 1) -> str:
    """Changes with any setting of a row's runs, and of the source that they start from."""
    row = shortened(key, shorten)
    cfg = config(row, 0, Path('.'), 'source')
    settings = {k: v for k, v in cfg.items() if k not in ('work_dir', 'default_hooks', 'env_cfg')}
    origin = digest(f'{row.host}/source', shorten) if row.pretrained else ''
    text = json.dumps(settings, sort_keys=True, default=str) + origin
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shortened(key: str, shorten: int) -> Row:
    """A row with so many times fewer steps, to try the road and not the method."""
    row = ROWS[key]
    return replace(row, steps=max(1, row.steps // shorten))


def jobs_of(rows: Iterable[str], seeds: Iterable[int], shorten: int = 1) -> list[Job]:
    """The jobs of some rows, sources first, each once."""
    found: dict[tuple[str, int], Job] = {}
    for seed in seeds:
        for key in rows:
            row = ROWS[key]
            origin = f'{row.host}/source' if row.pretrained else None
            for k in filter(None, (origin, key)):
                if (k, seed) not in found:
                    needs = found[origin, seed] if k == key and origin else None
                    found[k, seed] = Job(k, seed, digest(k, shorten), cost(k), needs)
    return sorted(found.values(), key=lambda job: (job.needs is not None, job.seed))


def cost(key: str) -> float:
    """Expected time of a run, in steps of the source's depth."""
    row = ROWS[key]
    scale = row.scale or {}
    times = 4 / 3 if 'new_layers' in scale else scale.get('times', 2 if scale else 1)
    return row.steps * times * (1.3 if 'model.distill' in row.options else 1)


def train_and_measure(row: Row, seed: int, work_dir: Path, source: str | None) -> dict[str, Any]:
    """Trains one model; returns what the tables need of it.

    Returns:
        ``top1`` (percent of the cells) and ``loss`` (nats) on held-out digits, ``seen_top1`` and ``seen_loss`` on those
        of training; ``params``, ``trainable``, ``mflops`` an image; ``minutes`` of the wall clock, ``cpu_minutes``.
    """
    cfg = config(row, seed, work_dir, source)
    cfg.experiment_name = f'{row.key}_{seed}_{os.getpid()}'.replace('/', '_')
    make_resumable(cfg)
    make_atomic(cfg)
    show_progress(cfg)
    runner = Runner.from_cfg(cfg)
    wall, cpu = time.time(), time.process_time()
    runner.train()
    minutes, cpu_minutes = (time.time() - wall) / 60, (time.process_time() - cpu) / 60
    held_out = runner.val_loop.run()
    seen = runner.test()
    counts = total(count(runner.model).values())
    cost = measure(runner.model, (GRID * CELL, GRID * CELL))
    return dict(
        top1=held_out['rank/top1'],
        loss=held_out['rank/loss'],
        seen_top1=seen['rank/top1'],
        seen_loss=seen['rank/loss'],
        params=counts.params,
        trainable=counts.trainable,
        mflops=cost.flops_with_adjustments / 1e6,
        minutes=minutes,
        cpu_minutes=cpu_minutes,
    )


def run(
    key: str,
    seed: int,
    digest: str,
    root: Path,
    folder: str,
    source: str | None,
    device: int | None = None,
    shorten: int = 1,
) -> None:
    """Runs one row in a process of its own; log and record lie in ``root/folder``, a failure is a record too.

    Args:
        source: checkpoint that it starts from.
        device: index of the GPU to use.
    """
    if device is not None:
        torch.cuda.set_device(device)
    work_dir = root / folder
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / RECORD).unlink(missing_ok=True)
    log = os.open(work_dir / 'console.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    row = shortened(key, shorten)
    record = dict(row=key, seed=seed, digest=digest)
    try:
        record |= dict(status='done', **train_and_measure(row, seed, work_dir, source))
        record['checkpoint'] = f'{folder}/iter_{row.steps}.pth'
    except Exception as e:
        traceback.print_exc()
        record |= dict(status='failed', error=f'{type(e).__name__}: {e}'[:500])
    write_atomically(work_dir / RECORD, json.dumps(record).encode())
    sys.stdout.flush()
