"""The paper's shorter training of a config that somebody has: its schedulers, hooks and loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ..compat import type_name

PAPERS_SHARE = 3  # Sec. IV-A1: a third of the epochs that the source had
PAPERS_LR, PER_IMAGES = 2e-4, 512  # Sec. IV-A1, classification
# What hooks and loops of the libraries do at a time, or for so long at the end
TIMES = {'val_begin', 'save_begin', 'switch_epoch', 'action_epoch', 'begin_epoch', 'begin_iter', 'num_last_epochs'}


def shorten(cfg: Config) -> None:
    """The paper's third of a config's own epochs or iterations, in place, and of a classifier its learning rate."""
    train = cfg.get('train_cfg') or {}
    key = next((k for k in ('max_epochs', 'max_iters') if train.get(k)), None)
    if key is None:
        return
    before, after = train[key], max(1, round(train[key] / PAPERS_SHARE))
    train[key] = after
    if train.get('val_interval', 1) > after:
        train['val_interval'] = after
    if train.get('dynamic_intervals'):
        train['dynamic_intervals'] = [
            (max(1, round(begin * after / before)), min(interval, after))
            for begin, interval in train['dynamic_intervals']
        ]
    for part in ('train_cfg', 'default_hooks', 'custom_hooks'):
        _shorten_times(cfg.get(part), before, after)
    given = cfg.get('param_scheduler') or []
    schedulers = list(given) if isinstance(given, (list, tuple)) else [given]
    warm_ups = [s for s in schedulers if _warms_up(s)]
    of_part = [s for s in warm_ups if _counts_in(s) == key and s['end'] < before]
    warm = {s['end'] for s in warm_ups}
    for scheduler in schedulers:
        kept = {value for value in warm if _counts_in(scheduler) != key or value <= after / 4}
        _shorten_one(scheduler, before, after, kept)
    left = _without([s for s in of_part if s['end'] >= after], schedulers, after)  # as long as the whole is now
    if isinstance(given, (list, tuple)):
        cfg.param_scheduler = left
    if cfg.default_scope == 'mmpretrain':
        optimizer = cfg.optim_wrapper.optimizer
        images = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
        if images and type_name(optimizer) == 'AdamW':
            optimizer['lr'] = PAPERS_LR * images / PER_IMAGES


def _counts_in(scheduler: Mapping) -> str:
    return 'max_epochs' if scheduler.get('by_epoch', True) else 'max_iters'


def _warms_up(scheduler: Mapping) -> bool:
    """Whether its rate rises from the start to an end: one that falls, or comes late, is of the whole training."""
    first, last = {'LinearLR': ('start_factor', 'end_factor'), 'ConstantLR': ('factor', '')}.get(
        type_name(scheduler), ('', '')
    )
    rises = bool(first) and scheduler.get(first, 1 / 3) < scheduler.get(last, 1.0)
    return rises and not scheduler.get('begin') and bool(scheduler.get('end')) and scheduler['end'] != float('inf')


def _without(warm_ups: list[dict], schedulers: list[dict], after: int) -> list[dict]:
    """The others, of which those that followed begin at once; without what shortening left no time for."""
    rest = [s for s in schedulers if s not in warm_ups] or schedulers
    for scheduler in rest if warm_ups else ():
        if scheduler.get('begin', 0) >= after:
            scheduler['begin'] = 0
            if 'T_max' in scheduler:
                scheduler['T_max'] = after
    return [s for s in rest if s.get('end', float('inf')) > s.get('begin', 0)] or rest


def _shorten_times(node: Any, before: int, after: int) -> None:
    """Of a loop and of hooks, in place: a change of the pipeline after 80 of 100 epochs would never come in 33."""
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _shorten_times(value, before, after)
    for key in TIMES & set(node if isinstance(node, Mapping) else ()):
        if isinstance(node[key], int) and node[key] > 0:
            node[key] = max(1, round(node[key] * after / before))


def _shorten_one(scheduler: dict, before: int, after: int, kept: set[int]) -> None:
    begin = scheduler.get('begin', 0)
    for key in ('begin', 'end', 'T_max', 'milestones', 'step_size', 'total_steps', 'periods'):
        value = scheduler.get(key)
        several = isinstance(value, (list, tuple))
        if value is None or value in (0, float('inf')) or (key in ('begin', 'end') and value in kept):
            continue
        if key == 'periods':
            scheduler[key] = type(value)(max(1, round(v * after / before)) for v in value)
        elif several:
            scheduler[key] = type(value)(sorted({max(1, v * after // before) for v in value}))
        elif key == 'T_max' and value + begin == before:
            scheduler[key] = after - scheduler.get('begin', 0)
        else:
            scheduler[key] = max(1, round(value * after / before))
