"""Write the tables of docs/hosts.md from what its tests prove (about ten minutes on one core)."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...commands.main import command_parser
from ...tables import markdown_table

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / 'docs' / 'hosts.md'
END = '<!-- end of the table -->'


@dataclass(frozen=True)
class Source:
    """A table of the document.

    Attributes:
        tests: what proves it.
        check: the test there that compares it with the document.
        variable: names, in the environment of the tests, the file where they leave their cells.
        begin: the line before it.
        first: the head of its first column.
    """

    tests: str
    check: str
    variable: str
    begin: str
    first: str


SOURCES = (
    Source(
        'tests/test_hosts.py',
        'test_the_table_in_the_documentation_is_of_these_hosts',
        'SCALENET_HOST_CELLS',
        '<!-- table: scalenet experiment host-table -->',
        'host',
    ),
    Source(
        'tests/test_code_tools.py',
        'test_the_table_of_tools_in_the_documentation_is_of_these_networks',
        'SCALENET_TOOL_CELLS',
        '<!-- table of tools: scalenet experiment host-table -->',
        'network',
    ),
)


def table(promises: dict[str, str], cells: dict[str, dict[str, str]], made: str, first: str = 'host') -> str:
    """The table as text.

    >>> print(table({'a': 'is a'}, {'x': {'a': 'yes'}}, 'With one library'))
    | host | a |
    |---|---|
    | x | yes |
    <BLANKLINE>
    `a`: is a.
    <BLANKLINE>
    With one library.

    Raises:
        SystemExit: if a host lacks a promise's cell.
    """
    for host, row in cells.items():
        if missing := [p for p in promises if p not in row]:
            raise SystemExit(f'{host} has no cell for {missing}: a test does not tell it.')
    lines = [(host, *(row[p] for p in promises)) for host, row in cells.items()]
    legend = '; '.join(f'`{p}`: {text}' for p, text in promises.items())
    shown = markdown_table((first, *promises), lines, 'l' * (len(promises) + 1))
    return '\n\n'.join([shown, f'{legend}.', f'{made}.'])


def main(argv: Sequence[str]) -> None:
    command_parser(__doc__).parse_args(argv)
    document = DOCUMENT.read_text()
    for source in SOURCES:
        before, rest = document.split(source.begin)
        after = rest.split(END, 1)[1]
        document = f'{before}{source.begin}\n\n{table(**told(source), first=source.first)}\n\n{END}{after}'
    DOCUMENT.write_text(document)


def told(source: Source) -> dict:
    """What the tests say of the cells of a table.

    Raises:
        SystemExit: if one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / 'cells.json'
        tests = [source.tests, '--deselect', f'{source.tests}::{source.check}']
        code = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *tests],
            cwd=ROOT,
            env=os.environ | {source.variable: str(found)},
        ).returncode
        if code:
            raise SystemExit('Some promises do not hold (above), so the tables were left as they are.')
        return json.loads(found.read_text())
