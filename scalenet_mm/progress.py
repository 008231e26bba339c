"""How far something with a known end is: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import TextIO

from tqdm import tqdm

REFRESH = 0.2  # seconds between two drawings of a live bar
EVERY = 10.0  # seconds between two lines of a log


class Progress:
    """Counts something with a known end, as a context manager or until ``close``.

    On a terminal a bar is redrawn in place; elsewhere a line is printed every few seconds and at the end.

    Args:
        what: name of the run.
        total: where it ends.
        begin: where it begins (a resumed run).
        every: seconds between lines where the output is no terminal.
        keep: leave the finished bar on the terminal.
        stream: by default the real stdout, also while ``sys.stdout`` is redirected.
        unit: of what is counted, in lines.
    """

    def __init__(
        self,
        what: str,
        total: int,
        begin: int = 0,
        every: float = EVERY,
        keep: bool = True,
        stream: TextIO | None = None,
        unit: str = 'iteration',
    ):
        self.what, self.total, self.begin, self.unit = what, total, begin, unit
        self.stream = stream or sys.__stdout__
        self.live = self.stream.isatty()
        self.interval = REFRESH if self.live else every
        self.started = time.time()
        self.shown = self.started if begin < total else 0.0
        self.bar = tqdm(
            desc=f'  {what}',
            total=total,
            initial=begin,
            leave=keep,
            file=self.stream,
            disable=not self.live,
            **(dict(dynamic_ncols=True) if self._columns() else dict(ncols=80)),
            mininterval=0,
            smoothing=0.05,
        )

    def _columns(self) -> int:
        return os.get_terminal_size(self.stream.fileno()).columns if self.live else 0

    def due(self, done: int) -> bool:
        """Whether ``update`` would show something; what it shows need not be computed before."""
        return done >= self.total or time.time() - self.shown >= self.interval

    def update(self, done: int, **values: str) -> None:
        """Shows that ``done`` of ``total`` are done, with ``values`` beside it."""
        if not self.due(done):
            return
        self.shown = time.time()
        if self.live:
            self.bar.set_postfix_str(', '.join(f'{k} {v}' for k, v in values.items()), refresh=False)
            self.bar.update(done - self.bar.n)
            return
        left = (self.shown - self.started) / max(done - self.begin, 1) * (self.total - done)
        parts = [f'{self.unit} {done} of {self.total}', *(f'{k} {v}' for k, v in values.items())]
        print(
            f'  {self.what}: {100 * done // self.total:3d} %, {", ".join(parts)}, {timedelta(seconds=round(left))} '
            'left',
            file=self.stream,
            flush=True,
        )

    def close(self) -> None:
        """Leaves the cursor on an empty line; may be called again."""
        self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self.close()
