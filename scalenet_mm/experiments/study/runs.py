"""One row of the rank task with one seed, from its config to a record, by the real Runner."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from ...checkpoint.writing import write_atomically
from ...compat import configs_dir
from ...core.roles import count, total
from ...models.counts import measure
from ...runner.atomic import make_atomic
from ...runner.config import load_config
from ...runner.continuing import latest
from ...runner.progress_hook import show_progress
from ...runner.resume import make_resumable
from ..benchmark.machine import describe
from ..figures.given import load
from .pool import Diverged, Job
from .rank import CELL, GRID
from .rows import Row
from .studies import ROWS, STUDIES

TOLD = 'top-1 {top1:.2f}, loss {loss:.3f}, {minutes:.1f} min'
WARM_UP, SAVED_EVERY = 50, 500  # steps
SPENT = 'spent.json'  # beside the checkpoints: minutes of training
PRETRAINING, TRAINING, HELD_OUT, SEEN = range(4)  # streams of scenes of one seed


def config(row: Row, seed: int, work_dir: Path, source: str | None = None) -> Config:
    """The config of one run.

    Args:
        source: checkpoint of the seed's source model, for rows that start from it.
    """
    warm_up = min(WARM_UP, max(1, row.steps // 10))
    stream = TRAINING if row.source else PRETRAINING
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
        'default_hooks.checkpoint.interval': min(row.steps, SAVED_EVERY),
        'optim_wrapper.optimizer.lr': row.rate,
        'optim_wrapper.paramwise_cfg.policy': dict(train=row.train),
        'train_dataloader.dataset.scenes': row.scenes,
        'model.backbone.drop_path_rate': row.drop_path,
        'randomness.seed': seed,
        'load_from': source if row.source else None,
        **row.options,
    }
    cfg = load_config(str(configs_dir() / 'demo' / f'rank_{row.host}.py'), str(work_dir), options)
    if row.scale is not None:
        cfg.model.backbone.scale = dict(row.scale)
    if 'distill' in cfg.model:
        cfg.model.distill.checkpoint = source
    return cfg


@cache
def digest(row: Row) -> str:
    """Changes with any setting of a row's runs, and of the source that they start from."""
    cfg = config(row, 0, Path('.'), 'source')
    # where the code lies and how often a run is saved do not make it another run
    settings = {k: v for k, v in cfg.items() if k not in ('work_dir', 'default_hooks', 'env_cfg', 'custom_imports')}
    text = json.dumps(settings, sort_keys=True, default=str) + (digest(row.source) if row.source else '')
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def shortened(row: Row, times: int) -> Row:
    """A row with so many times fewer steps, to try the road and not the method.

    Raises:
        ValueError: if fewer than two would be left, one to warm up and one to train.
    """
    if row.steps < 2 * times:
        raise ValueError(
            f'--shorten {times} leaves less than two of the {row.steps} steps of {row.name}; use at most '
            f'{row.steps // 2}.'
        )
    return replace(row, steps=row.steps // times, source=row.source and shortened(row.source, times))


def jobs(
    studies: Mapping[str, Iterable[int]], shorten: int = 1, among: Container[tuple[str, int]] | None = None
) -> list[Job]:
    """The jobs of some studies with these seeds; where ``among`` is given, of these (row, seed) alone."""
    return jobs_of(
        (shortened(ROWS[key], shorten), seed)
        for name, seeds in studies.items()
        for seed in seeds
        for key in STUDIES[name]
        if among is None or (key, seed) in among
    )


def jobs_of(runs: Iterable[tuple[Row, int]]) -> list[Job]:
    """The jobs of rows with seeds, seed by seed, sources first, each once."""
    found: dict[tuple[str, int], Job] = {}
    for last, seed in runs:
        for row in (last.source, last) if last.source else (last,):
            needs = found[row.source.key, seed] if row.source else None
            found.setdefault((row.key, seed), Job(row.key, seed, digest(row), row, cost(row), needs))
    return sorted(found.values(), key=lambda job: (job.seed, job.needs is not None))


def cost(row: Row) -> float:
    """Expected time of a run, in steps of the source's depth."""
    return row.steps * row.depth * (1.3 if 'model.distill' in row.options else 1)


def train(job: Job, folder: Path, source: str | None) -> dict[str, Any]:
    """Trains one model; returns what the tables need of it.

    Returns:
        ``top1`` (percent of the cells) and ``loss`` (nats) on held-out digits, ``seen_top1`` and ``seen_loss`` on those
        of training; ``params``, ``trainable``, ``mflops`` an image; ``minutes`` of the wall clock, ``cpu_minutes``;
        ``checkpoint``; ``made_with``: versions and processor.

    Raises:
        Diverged: if the loss is not a number.
    """
    row, seed = job.settings, job.seed
    work_dir = folder / job.digest  # what a stopped run left there is of the same settings
    cfg = config(row, seed, work_dir, source)
    cfg.experiment_name = f'{row.key}_{seed}_{os.getpid()}'.replace('/', '_')
    begun = 0
    if last := latest(work_dir):
        cfg.resume, cfg.load_from = True, last
        begun = int(Path(last).stem.removeprefix('iter_'))
    make_resumable(cfg)
    make_atomic(cfg)
    show_progress(cfg)
    runner = Runner.from_cfg(cfg)
    wall, cpu = time.time(), time.process_time()
    runner.train()
    share = row.steps / max(1, row.steps - begun)  # of a continued run the part seen here stands for the whole
    spent = dict(minutes=share * (time.time() - wall) / 60, cpu_minutes=share * (time.process_time() - cpu) / 60)
    if begun == row.steps and (work_dir / SPENT).is_file():  # stopped after its last step, while it was evaluated
        spent = json.loads((work_dir / SPENT).read_text())
    write_atomically(work_dir / SPENT, json.dumps(spent).encode())
    held_out = runner.val_loop.run()
    if not math.isfinite(held_out['rank/loss']):
        raise Diverged(f'the loss is {held_out["rank/loss"]} after {row.steps} steps at a learning rate of {row.rate}')
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
        **spent,
        checkpoint=f'{job.folder}/{job.digest}/iter_{row.steps}.pth',
        made_with=describe('cuda' if torch.cuda.is_available() else 'cpu'),
    )


def trained(row: Row, seed: int, root: Path, checkpoint: str) -> nn.Module:
    """The network of a row with a checkpoint of a run in ``root``."""
    return load(config(row, seed, root), str(root / checkpoint))
