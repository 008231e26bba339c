"""Rows as a table for people: on the terminal, and in docs/results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ...checkpoint.writing import write_atomically
from ...tables import format_table, markdown_table
from .goals import GOALS
from .measure import Row, read_runs

HEAD = ('pair', 'case', 'against', 'goal', 'floor', 'measured', 'spread', 'verdict')
NOT_RUN = 'not run'


def terminal(rows: Sequence[Row]) -> str:
    """The rows as plain columns, and below them what else is to be said, once each."""
    remarks = dict.fromkeys(
        f'{row["pair"]} {row["case"]} {row["dtype"]}: {row["note"]}' for row in rows if 'note' in row
    )
    return '\n'.join([format_table(HEAD, [_cells(row) for row in rows]), '', *remarks])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row['pair'],
        f'{row["case"]} {row["dtype"]}'.strip(),
        row['setting'],
        row['goal'],
        _number(row.get('floor')),
        _number(row.get('value')),
        _spread(row),
        row['verdict'],
    )


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.3f}'


def _spread(row: Row) -> str:
    return f'{row["low"]:.3f} .. {row["high"]:.3f}' if 'low' in row else ''


def markdown(files: Iterable[Path]) -> str:
    """One table of all runs in these files, a column a machine; of a row that one has measured twice, the later one.

    Raises:
        ValueError: for a file that is no result.
    """
    files = list(files)
    machines: dict[tuple, list[dict]] = {}
    for run in (run for file in files for run in read_runs(file)):
        machines.setdefault(_identity(run), []).append(run)
    latest = {at: _latest(runs) for at, runs in machines.items()}
    keys = sorted(dict.fromkeys(k for rows in latest.values() for k in rows), key=lambda k: list(GOALS).index(k[0]))
    names = dict(zip(machines, ascii_uppercase))
    lines = [
        '# Performance: goals and what was measured',
        '',
        f'Written by `scalenet experiment benchmark --report {" ".join(f.name for f in files)}`; measured by',
        '`scalenet experiment benchmark --json FILE`. Medians of interleaved rounds (ABBA), least and largest round '
        'behind; ',
        'no speed without forward and gradient parity in the same run. The floor is what the count of multiply-adds '
        'allows.',
        '',
        *(f'* **{names[at]}**: {_about(runs)}' for at, runs in machines.items()),
        '',
    ]
    gpu = [] if any(run['device'] == 'cuda' for runs in machines.values() for run in runs) else ['on a GPU']
    head = ['pair', 'case', 'against', 'CPU goal', 'GPU goal', 'floor', *(f'on {n}' for n in names.values()), *gpu]
    rows = []
    for key in keys:
        pair, case, dtype, setting = key
        found = [rows_of.get(key) for rows_of in latest.values()]
        goals = [_goal(key, device, found) for device in ('cpu', 'cuda')]
        floor = next((row['floor'] for row in found if row and row.get('floor') is not None), None)
        cells = [_measured(row) for row in found] + [NOT_RUN] * len(gpu)
        rows.append([pair, f'{case} {dtype}'.strip(), setting, *goals, _number(floor), *cells])
    lines += [
        markdown_table(head, rows, 'l' * len(head)),
        '',
        *(f'* {g.id}: {g.what}.' for g in GOALS.values() if any(k[0] == g.id for k in keys)),
    ]
    return '\n'.join(lines) + '\n'


def _identity(run: dict) -> tuple:
    """What tells two machines apart."""
    return (run['device'], *(run['machine'].get(k) for k in ('gpu', 'cpu', 'instructions', 'threads')))


def _latest(runs: Iterable[dict]) -> dict[tuple[str, str, str, str], Row]:
    """The last row of each kind, those that measured nothing only where no other did."""
    found: dict[tuple, Row] = {}
    for run in runs:
        for row in run['rows']:
            key = _key(row, run.get('settings', {}))
            if 'value' in row or 'value' not in found.get(key, ()):
                found[key] = row
    return found


def _key(row: Row, settings: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What a row is of; other sizes and switches than the usual ones make it another."""
    size, asked = settings.get('size', 'full'), settings.get('asked', {})
    unusual = [f'size {size}'] * (size != 'full') + [f'{name}={value}' for name, value in asked.items()]
    return row['pair'], row['case'], row['dtype'], ', '.join([row['setting'], *unusual])


def _goal(key: tuple, device: str, found: Sequence[Row | None]) -> str:
    """As a row that was measured there says it; else as it would be."""
    said = next((row['goal'] for row in found if row and row['device'] == device), None)
    pair, _, dtype, setting = key
    goal = GOALS[pair]
    return goal.text(goal.bound(device, dtype, setting.removeprefix('fused '))) if said is None else said


def _measured(row: Row | None) -> str:
    if row is None:
        return NOT_RUN
    if 'value' not in row:
        return f'{row["status"]}: {row.get("note", "")}'.replace('|', '/')
    spread = f' ({_spread(row)})' if 'low' in row else ''
    verdict = '' if row['verdict'] == 'ok' else f', {row["verdict"]}'
    return f'{_number(row["value"])}{spread}{verdict}'


def _about(runs: Sequence[dict]) -> str:
    """A machine, the versions of its last run, and what its library reached in all of them."""
    m, versions = runs[-1]['machine'], ', '.join(f'{k} {v}' for k, v in runs[-1]['machine']['versions'].items())
    gpu = f'{m["gpu"]}, CUDA {m["cuda"]}; ' if 'gpu' in m else ''
    rates = []
    for name in runs[-1]['rates']:
        reached = [run['rates'][name] for run in runs if name in run['rates']]
        low, high = f'{min(reached):.0f}', f'{max(reached):.0f}'
        rates.append(f'{name} {low}' + (f' to {high}' if high != low else ''))
    return (
        f'{gpu}{m["cpu"]}, {m["cores"]} cores, {m["threads"]} threads, {m["instructions"]}; {m["system"]}; {versions}. '
        f'Rates in its {len(runs)} runs (GFLOP/s; copy GB/s): {", ".join(rates)}.'
    )


def write(files: Iterable[Path], out: Path) -> None:
    write_atomically(out, markdown(files).encode())
