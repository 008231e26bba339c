"""The imports of the package run one way, read from its source (docs: CONTRIBUTING.md, "Layout")."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'scalenet_mm'
# A part imports itself and the parts before it. What several parts need and that imports none of them is a leaf.
LEAVES = {'version', 'tables', 'progress', 'one_run', 'compat', 'cores', 'file_names', 'mmcv_finder', 'mmcv_ops'}
ORDER = (
    'core',
    'ops',
    'checkpoint',
    'backbones',
    'engine',
    'lm',
    'runner',
    'models',
    'export',
    'registration',
    'commands',
)


def imported(file: Path) -> set[str]:
    """The absolute dotted names that a module imports anywhere, in functions and for type checkers too."""
    here = ('scalenet_mm', *file.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(here[: len(here) - node.level + 1]) if node.level else ''
            module = '.'.join(filter(None, (base, node.module)))
            found |= {f'{module}.{alias.name}' for alias in node.names}
    return found


def broken(file: Path) -> list[str]:
    """The rules of the house that a module's imports break."""
    parts = file.relative_to(PACKAGE).with_suffix('').parts
    part, wrong = parts[0], []
    for name in imported(file):
        top, _, rest = name.partition('.')
        other = rest.partition('.')[0]
        if top != 'scalenet_mm':
            if part == 'core' and top not in {'torch', *sys.stdlib_module_names}:
                wrong.append(f'core imports {top}')
        elif part != 'experiments' and other == 'experiments':
            wrong.append(f'{part} imports experiments')
        elif part in LEAVES and other in ORDER:
            wrong.append(f'{part} is a leaf and imports {other}')
        elif part in ORDER and other in ORDER and ORDER.index(other) > ORDER.index(part):
            wrong.append(f'{part} imports {other}, which is above it')
        elif part == 'core' and other != 'core':
            wrong.append(f'core imports {other}')
    return wrong


FILES = sorted(PACKAGE.rglob('*.py'))


def test_every_module_stands_in_a_part_that_has_a_place_in_the_order():
    known = {*LEAVES, *ORDER, 'experiments', '__init__', '__main__'}
    assert {f.relative_to(PACKAGE).with_suffix('').parts[0] for f in FILES} <= known


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    assert not broken(file)


@pytest.mark.parametrize(
    ('place', 'line', 'rule'),
    [
        ('core/planted.py', 'import numpy', 'core imports numpy'),
        ('core/planted.py', 'from ..ops.linear import linear', 'core imports ops, which is above it'),
        ('core/planted.py', 'from ..tables import format_table', 'core imports tables'),
        ('models/planted.py', 'from ..experiments import data', 'models imports experiments'),
        ('commands/planted.py', 'def f():\n    import scalenet_mm.experiments.data', 'commands imports experiments'),
        ('checkpoint/planted.py', 'from .. import models', 'checkpoint imports models, which is above it'),
        ('compat.py', 'from .core import hosts', 'compat is a leaf and imports core'),
    ],
)
def test_a_planted_import_is_found(tmp_path, monkeypatch, place, line, rule):
    monkeypatch.setitem(globals(), 'PACKAGE', tmp_path / 'scalenet_mm')
    file = tmp_path / 'scalenet_mm' / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line)
    assert broken(file) == [rule]


def test_no_two_modules_have_the_same_name():
    names = Counter(f.stem for f in FILES if not f.stem.startswith('__'))
    assert not {name for name, n in names.items() if n > 1}
