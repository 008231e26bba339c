"""Start-up, data loading and whole detectors among the pairs; each of their rows brings its own goal."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module

from .cases import Case, Figure
from .settings import Settings


def _rows(s: Settings, module: str) -> list[Figure]:
    options = {} if module == 'startup' else dict(device=s.device)
    rows = import_module(f'.{module}', __package__).rows(
        s.size != 'full', s.rounds, partial(print, file=sys.stderr), **options
    )
    return [
        Figure(
            row['ratio'],
            row['what'],
            told=row,
            note=f'{row["what"]}: {row["ours"]:.3g} against {row["peer"]:.3g} {row["unit"]} {row["note"]}'.strip(),
            bound=row['goal'],
        )
        for row in rows
    ]


def cases(module: str, s: Settings) -> list[Case]:
    """One case with all rows of ``startup``, ``data`` or ``detectors``."""
    return [Case(module, module, '', partial(_rows, s, module))]
