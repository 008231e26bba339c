"""Top-1 and loss against the drop-path rate of the training (Fig. 6): one trained model or several for every rate."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path


def rates(words: Iterable[str]) -> list[tuple[float, str]]:
    """Reads ``RATE=CKPT ...``; a rate may come several times (seeds).

    >>> rates(['0.1=a.pth', '0.1=b.pth'])
    [(0.1, 'a.pth'), (0.1, 'b.pth')]

    Raises:
        ValueError: if a word is none, or a rate is outside 0..1.
    """
    found = []
    for word in words:
        rate, equals, checkpoint = word.partition('=')
        try:
            value = float(rate)
        except ValueError:
            value = -1.0
        if not equals or not checkpoint or not 0 <= value <= 1:
            raise ValueError(
                f'A run is named RATE=CKPT with a drop-path rate in 0..1, such as 0.1=run/epoch_100.pth; got {word!r}.'
            )
        found.append((value, checkpoint))
    return found


def read_results(
    paths: Iterable[str | Path], rows: Mapping[str, float] | None = None, sweep: str | None = None
) -> list[dict]:
    """Runs that were evaluated already, from files of JSON lines: those of ``scalenet experiment study``, or one's own.

    A line is a run of the sweep if it has the number ``drop_path``, or a ``row`` that ends with ``drop_path_RATE`` or
    is one of ``rows``. Other lines, and runs that did not come to their end, are left out. A row and seed is one run,
    in whichever files it stands; its last line counts.

    Args:
        rows: rates of rows whose name does not tell them.
        sweep: what the names of its rows begin with, where the files hold several: ``deit5000/scalenet``.

    Raises:
        ValueError: if a line is no JSON object, a run lacks ``top1`` or ``loss``, or there is no run,
            or those of several sweeps.
    """
    found: dict[tuple, dict] = {}
    sweeps: set[str] = set()
    lines = [(path, i, line) for path in paths for i, line in enumerate(Path(path).read_text().splitlines(), 1)]
    for path, i, line in lines:
        try:
            entry = json.loads(line or '{}')
            name, told = _rate(entry.get('row', ''))
            if told is not None and sweep not in (None, name):
                continue
            rate = entry.get('drop_path', (rows or {}).get(entry.get('row')) if told is None else told)
            if rate is not None and entry.get('status', 'done') == 'done':
                numbers = {k: float(entry[k]) for k in ('top1', 'loss')}
                run = (entry['row'], entry.get('seed')) if 'row' in entry else (path, i)
                found[run] = dict(drop_path=float(rate), **numbers)
                sweeps |= {name} if told is not None else set()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f'{path}, line {i}: a run is a JSON object with the numbers top1 and loss, and drop_path or a row '
                f'called ..._drop_path_RATE; got {line[:80]!r}.'
            ) from error
    named = ', '.join(map(str, paths))
    if not found:
        raise ValueError(f'{named} holds no finished run of a drop-path sweep; name its rows: --rows 0=ROW.')
    if missing := sorted(set(rows or ()) - {run[0] for run in found}):
        raise ValueError(f'{named} holds no finished run of {", ".join(missing)}, which --rows names.')
    if len(sweeps) > 1:
        raise ValueError(
            f'{named} holds the sweeps of {", ".join(map(repr, sorted(sweeps)))}, which are curves of their own; '
            f'choose one: --sweep {max(sweeps)}.'
        )
    return list(found.values())


def _rate(row: str) -> tuple[str, float | None]:
    """The sweep that a row's name tells, and its rate."""
    told = re.fullmatch(r'(.*?)_?drop_path_([\d.]+)', row)
    return (told[1], float(told[2])) if told else (row, None)


def curve(runs: Iterable[dict]) -> list[dict]:
    """Mean, least and greatest top-1 and loss of the runs of each rate, by rate."""
    by_rate: dict[float, list[dict]] = {}
    for run in runs:
        by_rate.setdefault(run['drop_path'], []).append(run)
    points = []
    for rate, found in sorted(by_rate.items()):
        points.append(dict(drop_path=rate, runs=len(found)))
        for key in ('top1', 'loss'):
            values = [run[key] for run in found]
            points[-1][key] = dict(mean=sum(values) / len(values), least=min(values), greatest=max(values))
    return points
