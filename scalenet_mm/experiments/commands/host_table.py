"""Write the table of docs/hosts.md from what tests/test_hosts.py proves (about five minutes on one core)."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...commands.main import command_parser

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = ROOT / 'docs' / 'hosts.md'
CHECK = 'test_the_table_in_the_documentation_is_what_these_tests_gave'
BEGIN, END = '<!-- table: scalenet experiment host-table -->', '<!-- end of the table -->'


def table(promises: dict[str, str], cells: dict[str, dict[str, str]], made: str) -> str:
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
    lines = [f'| host | {" | ".join(promises)} |', '|---' * (len(promises) + 1) + '|']
    lines += [f'| {host} | {" | ".join(row[p] for p in promises)} |' for host, row in cells.items()]
    legend = '; '.join(f'`{p}`: {text}' for p, text in promises.items())
    return '\n'.join([*lines, '', f'{legend}.', '', f'{made}.'])


def main(argv: Sequence[str]) -> None:
    command_parser(__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / 'cells.json'
        tests = ['tests/test_hosts.py', '--deselect', f'tests/test_hosts.py::{CHECK}']
        code = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *tests],
            cwd=ROOT,
            env=os.environ | {'SCALENET_HOST_CELLS': str(found)},
        ).returncode
        if code:
            raise SystemExit('Some promises do not hold (above), so the table was left as it is.')
        told = json.loads(found.read_text())
    before, rest = DOCUMENT.read_text().split(BEGIN)
    after = rest.split(END)[1]
    made = f'{BEGIN}\n\n{table(**told)}\n\n{END}'
    DOCUMENT.write_text(before + made + after)
