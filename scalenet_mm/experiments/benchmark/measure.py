"""Runs the chosen pairs, one case after the other, and keeps every row as soon as it is there."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...checkpoint.writing import write_atomically
from ...progress import Progress
from . import counted, detectors, kernels, loaders, operators, pairs, startup, variants
from .cases import Case, Timed, grid
from .goals import GOALS
from .machine import best_gemm, describe, rates
from .settings import ARCHS, Settings
from .timing import Spread, interleaved, on_a_gpu


def as_text(runs: Sequence[dict]) -> str:
    """The JSON of a file of runs, a row a line."""
    parts = []
    for run in runs:
        head = json.dumps({k: v for k, v in run.items() if k != 'rows'})[:-1]
        parts.append(head + ', "rows": [\n' + ',\n'.join(map(json.dumps, run['rows'])) + '\n]}')
    return '{"runs": [\n' + ',\n'.join(parts) + '\n]}\n'


SWINS = {'Swin-T': ('Swin-T', (4,)), 'Swin-S': ('Swin-S', (2,))}
BASE = {'DeiT-B24': ('DeiT-B', (4,))}
PAIRS: dict[str, Callable[[Settings], list[Case]]] = {
    'P1': grid('P1', partial(pairs.training, 'P1'), SWINS),
    'P2': grid('P2', partial(pairs.training, 'P2'), SWINS),
    'P3': grid('P3', pairs.beside_timm_swin, {'Swin-T': ('Swin-T', (1, 8))}, ('fp32', 'bf16')),
    'P4': grid('P4', pairs.beside_timm_vit, {'DeiT-B24': ('DeiT-B', (1, 8))}, ('fp32', 'bf16')),
    'P5': grid('P5', variants.adapters, {name: (name, (4,)) for name in ARCHS}),
    'P6': grid('P6', counted.activations, SWINS),
    'P7': lambda s: [Case('P7', 'DeiT-B24', '', partial(counted.state, s, 'DeiT-B'))],
    'P8': lambda s: [
        Case('P8', Path(c.partition('::')[2]).stem, '', partial(counted.delta_size, c)) for c in s.at.configs
    ],
    'P9': grid('P9', variants.depth, {'DeiT-B forward': (False, (1,)), 'DeiT-B step': (True, (1,))}),
    'P10': grid('P10', variants.drop_path, BASE),
    'ablation': grid('ablation', variants.ablation, {'Swin-T': ('Swin-T', (4,))}),
    'kernels': kernels.cases,
    'operators': operators.cases,
    'startup': startup.cases,
    'data': loaders.cases,
    'detectors': partial(detectors.cases, 'detectors', detectors.whole_steps),
    'latency': partial(detectors.cases, 'latency', detectors.one_image),
}
Row = dict[str, Any]
BAD = ('error', 'no parity')
NO_CASE = 'nothing to measure here; operators are timed beside those of a compiled mmcv (setup_env.sh --compile-mmcv).'


def chosen(names: Sequence[str]) -> list[str]:
    """The pairs of these names.

    Raises:
        ValueError: for one that is none, with the choices.
    """
    unknown = [name for name in names if name not in PAIRS]
    if unknown or not names:
        raise ValueError(f'there is no pair {unknown}; the pairs are {", ".join(PAIRS)}.')
    return list(dict.fromkeys(names))


def run(
    names: Sequence[str], s: Settings, file: Path | None = None, show: Callable[[Row], None] = lambda row: None
) -> dict[str, Any]:
    """Measures pairs.

    Args:
        file: JSON to which the run is added; written after every case.
        show: called with every row.

    Returns:
        The run: machine, rates, settings and rows.

    Raises:
        ValueError: for a pair, case or device that is not there, before anything is built.
    """
    names = chosen(names)
    if s.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('device is cuda, but torch sees no CUDA GPU here; leave --device out to measure on the CPU.')
    earlier = read_runs(file) if file and file.exists() else []
    found = {name: PAIRS[name](s) for name in names}
    if empty := [name for name, some in found.items() if not some]:
        raise ValueError(f'{", ".join(empty)}: {NO_CASE}')
    cases = [case for some in found.values() for case in some if s.case in case.name]
    if not cases:
        raise ValueError(f'--case {s.case!r} is in the name of no case of {", ".join(names)}; leave it out.')
    result = dict(
        started=time.strftime('%Y-%m-%d %H:%M:%S'),
        device=s.device,
        settings=asdict(s) | {'ops': s.our_ops(), 'asked': dict(s.ops)},
        machine=describe(s.device),
        rates=rates(s.device),
        rows=[],
    )
    with Progress('benchmark', len(cases) * s.rounds, stream=sys.stderr, unit='round') as progress:
        for number, case in enumerate(cases):
            done = iter(range(number * s.rounds + 1, (number + 1) * s.rounds + 1))
            label = f'{case.pair} {case.name} {case.dtype}'.strip()

            def tick(done=done, label=label) -> None:
                progress.update(next(done), case=label)

            for row in measure(case, s, result['rates'], tick):
                result['rows'].append(row)
                show(row)
            if file:
                write_atomically(file, as_text([*earlier, result]).encode())
            progress.update((number + 1) * s.rounds, case=label)
    return result


def read_runs(file: Path) -> list[dict]:
    """The runs that a JSON of this tool holds.

    Raises:
        ValueError: if it is another file.
    """
    try:
        runs = json.loads(file.read_text())['runs']
        assert all('rows' in run for run in runs)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{file} is no result of scalenet experiment benchmark, and nothing was changed; name another file.'
        ) from error
    return runs


def measure(case: Case, s: Settings, rates: dict[str, float], tick=lambda: None) -> list[Row]:
    """The rows of a case; an exception makes one row of its own."""
    try:
        made = case.make()
        timed = isinstance(made, Timed)
        rows = _timed(case, made, s, rates, tick) if timed else [dict(vars(f), status='ok') for f in made]
    except Exception as error:
        traceback.print_exc()
        rows = [dict(status='error', note=f'{type(error).__name__}: {error}'.splitlines()[0])]
    finally:
        made = None
        gc.collect()
        if s.compiled:
            torch._dynamo.reset()
        if s.device == 'cuda':
            torch.cuda.empty_cache()
    return [_judged(case, s, row) for row in rows]


def _timed(case: Case, made: Timed, s: Settings, rates: dict[str, float], tick) -> list[Row]:
    found = made.check()
    parity = [{**asdict(p), 'holds': p.holds} for p in found]
    broken = [str(p) for p in found if not p.holds]
    if broken:
        return [dict(status='no parity', note='differs ' + '; '.join(broken), parity=parity)]
    runs, failed = _that_run(made.runs)
    rounds = interleaved(runs, s.rounds, s.device, s.warmup, made.repeats, tick)
    times = {name: median(r[name] for r in rounds) for name in runs}
    speed = {n: made.operations[n.split()[0]] / t / 1e9 for n, t in times.items() if made.operations}
    share = {n: v / best_gemm(rates, case.dtype) for n, v in speed.items()}
    told = [f'{n} {1e3 * t:.2f} ms' + (f' ({share[n]:.0%} of GEMM)' if share else '') for n, t in times.items()]
    gpu = {name: on_a_gpu(run) for name, run in runs.items()} if s.device == 'cuda' and made.operations else {}
    told += [f'{n}: host {g["host"]:.1f} ms, {g["launched"]:.0f} kernels {g["kernels"]:.1f} ms' for n, g in gpu.items()]
    note, notes = ', '.join(told), made.notes()
    if found:
        note += f'; differences at most {max(p.used for p in found):.2f} of their bounds'
    ms = {n: 1e3 * t for n, t in times.items()}
    common = dict(floor=made.floor, parity=parity, ms=ms, gflops=speed, share=share) | (dict(gpu=gpu) if gpu else {})
    values = dict(made.values)
    if {'peer eager', 'ours eager'} <= set(runs):
        fastest = {side: min((n for n in times if n.startswith(side)), key=times.get) for side in ('peer', 'ours')}
        if fastest['peer'] != 'peer eager':
            higher = GOALS[case.pair].better == 'higher'
            top, bottom = (fastest[x] for x in (('peer', 'ours') if higher else ('ours', 'peer')))
            values['best'] = lambda r: r[top] / r[bottom]
    rows = []
    for setting, value in values.items():
        try:
            each = [value(r) for r in rounds]
        except KeyError as missing:
            rows.append(dict(setting=setting, status='error', note=failed[missing.args[0]]))
            continue
        spread = Spread.of(each)
        more = dict(note='; '.join(filter(None, [note, notes.get(setting)])), bound=made.bounds.get(setting))
        measured = dict(value=spread.median, low=spread.low, high=spread.high, rounds=each)
        rows.append(dict(setting=setting, status='ok', **measured, **common, **more))
    if 'peer eager' in made.runs and case.pair != 'ablation' and not s.compiled:
        rows.append(dict(setting='compiled', status='not run', note='add --compiled'))
    return rows


def _that_run(runs: dict[str, Callable[[], object]]) -> tuple[dict[str, Callable], dict[str, str]]:
    """The runs that run, and why each compiled one does not; an eager one has to."""
    failed = {}
    for name, run in runs.items():
        if name.endswith('compiled'):
            try:
                run()
            except Exception as error:
                traceback.print_exc(limit=1)
                first = str(error).strip().partition('\n')[0]
                failed[name] = f'{name} does not run: {type(error).__name__}: {first}'
    return {name: run for name, run in runs.items() if name not in failed}, failed


def _judged(case: Case, s: Settings, row: Row) -> Row:
    """A row with what it is a row of, its goal and the verdict."""
    goal = GOALS[case.pair]
    setting = row.get('setting', '')
    of = dict(pair=case.pair, case=case.name, dtype=case.dtype, device=s.device, setting=setting)
    bound = row.pop('bound', None)
    if bound is None:
        bound = goal.bound(s.device, case.dtype, setting.removeprefix('fused '))
    verdict = row['status']
    if verdict == 'ok' and bound is not None:
        verdict = 'pass' if goal.met(row['value'], bound) else 'falls short'
    return {**of, **row, 'goal': goal.text(bound), 'verdict': verdict}
