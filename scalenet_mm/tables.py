"""Plain tables for terminals and Markdown tables for pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(head: Iterable[str], rows: Iterable[Iterable]) -> str:
    """Plain columns; numbers to the right, with thousands separators."""
    table = [list(head)] + [[f'{c:,}' if isinstance(c, int) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ['  '.join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]) for r in table]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def markdown_table(head: Sequence[str], rows: Iterable[Iterable], align: str = '') -> str:
    """A Markdown table.

    Args:
        align: a letter a column, ``'l'`` or ``'r'``; by default the first to the left and all others to the right.
    """
    marks = {'l': '---', 'r': '---:'}
    between = '|'.join(marks[a] for a in align or 'l' + 'r' * (len(head) - 1))
    first, *others = (f'| {" | ".join(map(str, line))} |' for line in (head, *rows))
    return '\n'.join([first, f'|{between}|', *others])
