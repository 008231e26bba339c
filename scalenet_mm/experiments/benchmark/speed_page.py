"""Rows as a table for people: on the terminal, and in docs/results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

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
    """One table of all runs in these files; of a row that is there twice, the later one.

    Raises:
        ValueError: for a file that is no result.
    """
    files = list(files)
    runs = [run for file in files for run in read_runs(file)]
    latest = {_key(row) + (row['device'],): row for run in runs for row in run['rows']}
    keys = sorted(dict.fromkeys(k[:-1] for k in latest), key=lambda k: list(GOALS).index(k[0]))
    lines = [
        '# Performance: goals and what was measured',
        '',
        f'Written by `scalenet experiment benchmark --report {" ".join(f.name for f in files)}`; measured by',
        '`scalenet experiment benchmark --json FILE`. Medians of interleaved rounds (ABBA), least and largest round '
        'behind; ',
        'no speed without forward and gradient parity in the same run. The floor is what the count of multiply-adds '
        'allows.',
        '',
        *_machines(runs),
        '',
    ]
    head = ('pair', 'case', 'against', 'CPU goal', 'floor', 'CPU measured', '', 'GPU goal', 'GPU measured', '')
    rows = []
    for key in keys:
        pair, case, dtype, setting = key
        on = {device: latest.get((*key, device)) for device in ('cpu', 'cuda')}
        cpu, gpu = (_measured(on[d], pair, d, dtype, setting) for d in on)
        some = on['cpu'] or on['cuda']
        cells = [pair, f'{case} {dtype}'.strip(), setting, cpu[0], _number(some.get('floor')), *cpu[1:], *gpu]
        rows.append(cells)
    lines += [
        markdown_table(head, rows, 'l' * len(head)),
        '',
        *(f'* {g.id}: {g.what}.' for g in GOALS.values() if any(k[0] == g.id for k in keys)),
    ]
    return '\n'.join(lines) + '\n'


def _key(row: Row) -> tuple[str, str, str, str]:
    return row['pair'], row['case'], row['dtype'], row['setting']


def _measured(row: Row | None, pair: str, device: str, dtype: str, setting: str) -> tuple[str, str, str]:
    goal = GOALS[pair]
    if row is None:
        bound = goal.bound(device, dtype, setting.removeprefix('fused '))
        return goal.text(bound), NOT_RUN, ''
    if 'value' not in row:
        return row['goal'], row['status'], row.get('note', '').replace('|', '/')
    spread = f' ({_spread(row)})' if 'low' in row else ''
    verdict = '' if row['verdict'] == 'ok' else row['verdict']
    return row['goal'], f'{_number(row["value"])}{spread}', verdict


def _machines(runs: Sequence[dict]) -> list[str]:
    """A line for each machine, with the rates of its last run."""
    last = {str(run['machine']): run for run in runs}
    lines = []
    for run in last.values():
        m = run['machine']
        versions = ', '.join(f'{k} {v}' for k, v in m['versions'].items())
        shown = ', '.join(f'{k} {v:.0f}' for k, v in run['rates'].items())
        gpu = f'{m["gpu"]}, CUDA {m["cuda"]}; ' if 'gpu' in m else ''
        lines.append(
            f'* {gpu}{m["cpu"]}, {m["cores"]} cores, {m["threads"]} threads, {m["instructions"]}; {m["system"]}; '
            f'{versions}. In-run rates (GFLOP/s; copy GB/s): {shown}.'
        )
    return lines


def write(files: Iterable[Path], out: Path) -> None:
    write_atomically(out, markdown(files).encode())
