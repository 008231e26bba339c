"""Every decision of the design is kept by a test that fails when the code is broken."""

import ast
import multiprocessing.forkserver
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import mutations
import pytest
from mutation_table import MUTATIONS

ROOT = Path(__file__).parents[1]


def test_each_break_fits_its_file_once_and_leaves_python_behind():
    assert not mutations.stale(MUTATIONS)
    for m in MUTATIONS:
        source = (ROOT / m.file).read_text()
        broken = source.replace(m.old, m.new)
        if not m.file.endswith('.py'):
            assert broken != source, m.what
            continue
        assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source)), m.what


def test_each_named_test_exists():
    for file in {m.test.partition('::')[0] for m in MUTATIONS}:
        functions = [n for n in ast.parse((ROOT / file).read_text()).body if isinstance(n, ast.FunctionDef)]
        named = {m.test.partition('::')[2].partition('[')[0] for m in MUTATIONS if m.test.startswith(file)}
        assert named <= {f.name for f in functions if f.name.startswith('test_')}


def test_each_decision_is_broken_in_at_least_two_ways():
    breaks = Counter(m.decision for m in MUTATIONS)
    assert {d for d, n in breaks.items() if n >= 2} == {
        *'12345678',
        'resume',
        'configs',
        'delta',
        'interop',
        'data',
        'seeing',
        'study',
        'ops',
        'bench',
        'hosts',
        'backbones',
        'lm',
        'machine',
        'elastic',
        'init',
    }
    assert len({(m.file, m.old, m.new, m.test) for m in MUTATIONS}) == len(MUTATIONS)


def test_a_break_that_cannot_run_or_is_not_seen_is_not_caught():
    def report(*children: str) -> mutations.ElementTree.Element:
        cases = ''.join(f'<testcase>{c}</testcase>' for c in children)
        return mutations.ElementTree.fromstring(f'<testsuites><testsuite>{cases}</testsuite></testsuites>')

    for code, xml, outcome in (
        (0, report(''), mutations.SURVIVED),
        (1, report('<failure message="assert 1 == 2"/>'), mutations.CAUGHT),
        (1, report('', '<failure message="ValueError: no"/>'), mutations.CAUGHT),
        (1, report('<failure message="NameError: name"/>'), mutations.ERROR),
        (1, report('<error message="fixture"/>'), mutations.ERROR),
        (2, report('<error message="collection"/>'), mutations.ERROR),
        (4, None, mutations.ERROR),
        (-1, None, mutations.ERROR),
    ):
        assert mutations.judge(code, 'the last line', xml)[0] == outcome


@pytest.fixture
def own_server():
    """A fork server without what another test of this process had preloaded in it."""
    multiprocessing.forkserver._forkserver._stop()
    yield
    multiprocessing.forkserver._forkserver._stop()


@pytest.mark.slow
def test_the_runner_tells_caught_survived_and_broken_breaks_apart(own_server):
    seen = next(m for m in MUTATIONS if m.what == 'the gate scales the adapter as well')
    cases = {
        mutations.CAUGHT: seen,
        mutations.SURVIVED: replace(seen, new=seen.old + '  # nothing'),
        mutations.ERROR: replace(seen, new='return undefined'),
    }
    for jobs in (1, 3):
        results = mutations.run(list(cases.values()), jobs)
        assert {r.mutation.new: r.outcome for r in results} == {m.new: o for o, m in cases.items()}
    failing = replace(seen, test='tests/test_adapters.py::no_such_test')
    with pytest.raises(SystemExit, match='must pass before'):
        mutations.run([failing])


@pytest.mark.slow
def test_an_installed_package_is_never_taken_for_the_copy(monkeypatch, own_server):
    monkeypatch.setattr(mutations, 'COPIED', ('tests', 'pyproject.toml'))
    only = next(m for m in MUTATIONS if m.test.startswith('tests/test_adapters.py'))
    with pytest.raises(SystemExit, match="No module named 'scalenet_mm'|was tested, not the copy"):
        mutations.run([only])


@pytest.mark.slow
def test_every_break_is_caught_by_its_test():
    command = [sys.executable, str(ROOT / 'tests' / 'mutations.py'), '--jobs', '2']
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{len(MUTATIONS)} of {len(MUTATIONS)} caught' in done.stdout
