"""The blocks of README.md and docs/*.md, as they stand there: found, and run.

    python tests/pages.py docs/usage.md

runs those of one page in the current folder, in its order; its Python blocks share one namespace. A comment that ends
on the line before a block says how it is taken, and is not seen on the rendered page:

    <!-- parsed only: why -->      not run: it needs a GPU, the Hub, real data, or names placeholders
    <!-- file: my_det.py -->       written to that file instead of being run; later commands of the page use it
    <!-- with: OLD -> NEW -->      run with NEW in the place of OLD; several of them, one a comment
    <!-- bash: ... -->             a block that is not shown, run before it (also `python`)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ('bash', 'python')
OTHER_FENCES = ('', 'bibtex')  # output, layouts of folders, the citation
PART = re.compile(
    r'^(?P<comment><!--(?P<said>.*?)-->)\n'
    r'|^(?P<indent> *)(?P<ticks>```+|~~~+)(?P<language>.*?)\n(?P<code>.*?)^ *(?P=ticks)$',
    re.MULTILINE | re.DOTALL,
)
MARKER = re.compile(r' (?P<name>[\w ]+?):(?P<value>.*)', re.DOTALL)
MARKERS = ('parsed only', 'file', 'with', *LANGUAGES)


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: path from the root of the checkout.
        line: of its first line of code.
        language: ``'bash'`` or ``'python'``.
        code: as it stands on the page.
        runs: as it is run.
        file: what it is written to instead.
        why_not: why it is not run; empty if it is.
    """

    page: str
    line: int
    language: str
    code: str
    runs: str
    file: str = ''
    why_not: str = ''

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page, those in comments among them, in its order.

    Raises:
        ValueError: for a marker that is unknown, says nothing or stands before no block, and for another notation.
    """
    pending: list[tuple[str, str, int]] = []
    end = 0
    for part in PART.finditer(text):
        line = text.count('\n', 0, part.start()) + 1
        if pending and part.start() != end:
            raise ValueError(
                f'{page}:{line}: the marker {pending[-1][0]!r} above must stand on the line before a block.'
            )
        end = part.end()
        if part['comment']:
            if marker := MARKER.fullmatch(part['said']):
                pending.append((marker['name'], marker['value'].strip(' '), line))
            elif text.startswith(('```', '~~~'), end):
                raise ValueError(f'{page}:{line}: the comment before a block is no marker, NAME: VALUE.')
            if pending and pending[-1][0] not in MARKERS:
                name = pending.pop()[0]
                if pending or text.startswith(('```', '~~~'), end):
                    raise ValueError(f'{page}:{line}: there is no marker {name!r}; choose from {", ".join(MARKERS)}.')
            continue
        yield from _marked(page, line, part, pending)
        pending = []
    if pending:
        raise ValueError(f'{page}:{pending[-1][2]}: the marker {pending[-1][0]!r} stands before no block.')


def _marked(page: str, line: int, part: re.Match, markers: list[tuple[str, str, int]]) -> Iterator[Block]:
    """The block of a fence, behind those that its markers hide."""
    language, where = part['language'], f'{page}:{line}'
    if language not in LANGUAGES + OTHER_FENCES or part['indent'] or '~' in part['ticks']:
        raise ValueError(f'{where}: write ```bash or ```python at the margin, or no language for what is not run.')
    if language not in LANGUAGES:
        if markers:
            raise ValueError(f'{where}: a marker is for a block of bash or python.')
        return
    runs, said = part['code'], {}
    for name, value, at in markers:
        if not value.strip():
            raise ValueError(f'{page}:{at}: the marker {name!r} says nothing.')
        if name in LANGUAGES:
            yield Block(page, at + value.startswith('\n'), name, value.lstrip('\n'), value.lstrip('\n'))
        elif name == 'with':
            old, arrow, new = value.partition(' -> ')
            if not arrow or old not in runs:
                raise ValueError(f'{page}:{at}: with: OLD -> NEW wants an OLD that the block has, got {value!r}.')
            runs = runs.replace(old, new)
        else:
            said[name] = value
    yield Block(page, line + 1, language, part['code'], runs, said.get('file', ''), said.get('parsed only', ''))


def run_page(page: str) -> None:
    """Runs the blocks of a page that are to be run, in the current folder."""
    namespace = {'__name__': '__main__'}
    for block in blocks_of(page, Path(page).read_text()):
        if block.why_not:
            continue
        print(f'--- {block}', flush=True)
        if block.file:
            Path(block.file).write_text(block.runs)
        elif block.language == 'bash':
            subprocess.run(['bash', '-euo', 'pipefail', '-c', block.runs], check=True)
        else:  # a traceback names the page and shows its line
            exec(compile('\n' * (block.line - 1) + block.runs, os.path.abspath(page), 'exec'), namespace)


if __name__ == '__main__':
    run_page(sys.argv[1])
