"""Accuracy against depth, and early exits against fixed depths at equal FLOPs, on the rank task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint.writing import write_atomically
from ...core.depth import depth_range, set_depth
from ...core.early_exit import EarlyExit, largest_probability
from ...progress import Progress
from .pool import FAILED, RESULTS, Job, alone, latest, read_results, records_of
from .rank import RankBatches
from .rows import DEIT_SOURCE, TWICE, Row
from .runs import HELD_OUT, trained
from .stats import Records
from .studies import ROWS as STUDIED

HOOKS = [dict(type='AnyDialectHook'), dict(type='ReseedHook'), dict(type='RandomDepthHook', full=0.5)]
RANDOM = tuple(
    Row(f'{name}_random', title, scale=scale, options=dict(custom_hooks=HOOKS), source=DEIT_SOURCE)
    for name, title, scale in (
        ('scalenet', 'ScaleNet x2, random depth', TWICE),
        ('stacked', 'ScaleNet x2, stack order, random depth', dict(TWICE, order='stack')),
    )
)
CONTROL = 'deit/on'  # the source, trained on for as many steps
SCALED = ('deit/scalenet', 'deit/scalenet_random', 'deit/stacked', 'deit/stacked_random')
ROWS = {**STUDIED, **{row.key: row for row in RANDOM}}
ROWS = {key: ROWS[key] for key in (CONTROL, *SCALED)}
MEASURED = 'elastic.json'
THRESHOLDS = [round(float(t), 2) for t in np.linspace(0, 1.01, 102)]
CASCADES = ('two', 'all')  # the smallest and the full depth; all depths in turn


def adopt(jobs: Iterable[Job], root: Path, other: Path) -> int:
    """Takes over finished runs of the same settings from another folder of studies; returns how many."""
    mine = records_of(jobs := list(jobs), root)
    found = latest(read_results(other / RESULTS))
    taken = 0
    with alone(root) as file, file.open('a') as out:
        for job in jobs:
            record = found.get(job.key, {})
            same = record.get('status') == 'done' and record['digest'] == job.digest
            if mine.get(job.key, {}).get('status', FAILED) != FAILED or not same:
                continue
            checkpoint = (other / record['checkpoint']).resolve()
            if checkpoint.is_file():
                out.write(json.dumps({**record, 'checkpoint': str(checkpoint)}) + '\n')
                taken += 1
    return taken


@torch.no_grad()
def measure(model: nn.Module, seed: int) -> dict[str, Any]:
    """Accuracy at every depth, and of the cascades at every threshold, on the seed's 10,000 held-out scenes.

    Returns:
        ``depths``: {depth: dict(top1, mflops)}; ``exits``: {cascade: [dict(threshold, top1, mflops, depth)]}, means
        over scenes. MFLOPs are millions of multiply-adds a scene, adapters included, all passes of a cascade together.
    """
    data = RankBatches('val', 20, 500, (seed, HELD_OUT))
    low, high = depth_range(model)
    sure, right, fixed = [], [], {}
    for depth in range(low, high + 1):
        set_depth(model, depth)
        parts = [judged(model(b['inputs']), b['data_samples']) for b in map(data.__getitem__, range(20))]
        c, r = (torch.cat(x).double().numpy() for x in zip(*parts))
        sure.append(c)
        right.append(r)
        cost = EarlyExit(model, 0, [depth]).costs(data[0]['inputs'])[0]
        fixed[depth] = dict(top1=100 * r.mean(), mflops=cost / 1e6)
    set_depth(model)
    exits = {}
    for name in CASCADES if high > low else ():
        depths = [low, high] if name == 'two' else list(range(low, high + 1))
        costs = EarlyExit(model, 0, depths).costs(data[0]['inputs'])
        at = [d - low for d in depths]
        exits[name] = curve(np.stack(sure)[at], np.stack(right)[at], costs, depths)
    return dict(depths=fixed, exits=exits)


def judged(logits: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Of each scene: confidence, and share of the cells whose rank is right."""
    return largest_probability(logits), (logits.argmax(-1) == ranks).double().mean(1)


def curve(sure: np.ndarray, right: np.ndarray, costs: list[int], depths: list[int]) -> list[dict]:
    """What ``EarlyExit`` does at every threshold, from the results of all depths (passes, scenes)."""
    spent, scenes = np.cumsum(costs), np.arange(sure.shape[1])
    points = []
    for threshold in THRESHOLDS:
        stops = sure >= threshold
        stops[-1] = True
        k = stops.argmax(0)
        top1, mflops, depth = right[k, scenes], spent[k] / 1e6, np.asarray(depths)[k]
        points.append(dict(threshold=threshold, top1=100 * top1.mean(), mflops=mflops.mean(), depth=depth.mean()))
    return points


def measure_all(records: Records, root: Path) -> dict[str, dict]:
    """The measurements of all finished runs, {row: {seed: measurement}}; each is kept beside its run's record."""
    todo = sorted(k for k, r in records.items() if r['status'] == 'done' and k[0] in ROWS)
    found: dict[str, dict] = {}
    with Progress('measuring', len(todo), unit='run') as progress:
        for i, (key, seed) in enumerate(todo):
            record = records[key, seed]
            file = root / f'{key}/seed{seed}' / MEASURED
            kept = json.loads(file.read_text()) if file.is_file() else {}
            if kept.get('digest') != record['digest']:
                result = measure(trained(ROWS[key], seed, root, record['checkpoint']).eval(), seed)
                kept = dict(digest=record['digest'], **json.loads(json.dumps(result)))
                write_atomically(file, json.dumps(kept).encode())
            found.setdefault(key, {})[seed] = kept
            progress.update(i + 1)
    return found


def at_equal_flops(measured: Mapping[str, Any], cascade: str) -> dict[str, dict[str, float]]:
    """Top-1 of a cascade beside that of fixed depths, at the cost of each fixed depth but the smallest.

    Returns:
        {depth: dict(exit, fixed, mixture)}: of the cascade, interpolated between its thresholds; of that depth; and of
        the best two fixed depths (or one) with each scene given one of them at random, at the same cost on average.
    """
    points = sorted(measured['exits'][cascade], key=lambda p: p['mflops'])
    x, y = [p['mflops'] for p in points], [p['top1'] for p in points]
    fixed = [(v['mflops'], v['top1']) for v in measured['depths'].values()]
    return {
        depth: dict(exit=float(np.interp(v['mflops'], x, y)), fixed=v['top1'], mixture=best_mixture(fixed, v['mflops']))
        for depth, v in list(measured['depths'].items())[1:]
    }


def best_mixture(fixed: Sequence[tuple[float, float]], cost: float) -> float:
    """The best top-1 at ``cost`` on average, of (cost, top-1) pairs with each sample given one of two at random.

    >>> best_mixture([(1, 80.0), (2, 79.0), (3, 82.0)], 2)
    81.0
    """
    pairs = [(a, b) for a in fixed for b in fixed if a[0] <= cost <= b[0]]
    return max(float(np.interp(cost, *zip(a, b))) if a != b else a[1] for a, b in pairs)
