"""Breaks the decisions of the design one at a time, in a copy, and requires the named test to fail.

    python tests/mutations.py [--decision N] [--only TEXT] [--jobs 2] [--verbose]

The table is ``mutation_table.py``. All named tests are run unbroken first. A break counts as caught only when its test
itself fails: an import, a collection or a fixture that breaks proves nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

from mutation_table import MUTATIONS, Mutation

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
COPIED = ('scalenet_mm', 'configs', 'tools', 'tests', 'docs', 'README.md', 'model-index.yml', 'pyproject.toml')
SKIPPED = shutil.ignore_patterns('__pycache__', '.mim')
REPORT, OUTPUT = 'report.xml', 'output.txt'
TIMEOUT = 300  # seconds for one test
AT_ONCE = 16  # tests in a process, before anything is broken
CAUGHT, SURVIVED, ERROR = 'caught', 'SURVIVED', 'ERROR'
# Failures of a break that is none: its text does not run at all.
NO_BREAK = ('NameError', 'UnboundLocalError', 'SyntaxError', 'ImportError', 'ModuleNotFoundError')

# Imported once; every run of pytest is forked from there, and imports scalenet_mm from its copy.
PRELOADED = ('pytest', 'timm', 'mmengine.runner', 'mmpretrain.models')


@dataclass(frozen=True)
class Result:
    """What became of a mutation; ``why`` is the first line of the failure, or what went wrong."""

    mutation: Mutation
    outcome: str
    seconds: float
    why: str


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str, ElementTree.Element | None]:
    """Runs tests in a copy of the checkout.

    Returns:
        pytest's exit code, the end of its output, and its junit report (None if it wrote none).
    """
    (copy / REPORT).unlink(missing_ok=True)
    (copy / OUTPUT).write_text('')
    process = multiprocessing.get_context('forkserver').Process(target=run_pytest, args=(copy, tests))
    process.start()
    process.join(TIMEOUT * len(tests))
    if process.exitcode is None:
        process.kill()
        process.join()
        return -1, f'no end after {TIMEOUT * len(tests)} s', None
    xml = ElementTree.parse(copy / REPORT).getroot() if (copy / REPORT).is_file() else None
    return process.exitcode, (copy / OUTPUT).read_text()[-2000:], xml


def run_pytest(copy: Path, tests: Sequence[str]) -> None:
    """The forked process: pytest in ``copy``, and proof that the package under test was the copy's."""
    with open(copy / OUTPUT, 'w') as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(copy)
    for name in [n for n in os.environ if n.startswith('PYTEST_')]:  # of a pytest around us
        del os.environ[name]
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE='1', OMP_NUM_THREADS='1')
    sys.dont_write_bytecode = True  # a break as long as the original would be taken for it
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p).resolve() not in (ROOT, TESTS))]
    assert 'scalenet_mm' not in sys.modules, 'imported before the copy was there'

    import pytest

    code = pytest.main(['-q', '--tb=line', '-p', 'no:cacheprovider', f'--junitxml={REPORT}', *tests])
    import scalenet_mm  # an editable installation must not win over the copy

    if copy not in Path(scalenet_mm.__file__).resolve().parents:
        raise SystemExit(f'{scalenet_mm.__file__} was tested, not the copy in {copy}')
    sys.exit(int(code))


def judge(code: int, output: str, xml: ElementTree.Element | None) -> tuple[str, str]:
    """(outcome, why) of the run of a broken copy."""
    last = output.strip().rpartition('\n')[2]
    if code == 0:
        return SURVIVED, last
    failures = [] if xml is None else xml.findall('.//testcase/failure')
    whys = [(f.get('message') or '').partition('\n')[0] for f in failures]
    real = [why for why in whys if not why.startswith(NO_BREAK)]
    if code == 1 and real:
        return CAUGHT, real[0]
    return ERROR, f'no failure of the test itself (exit code {code}): {(whys or [last])[0]}'


def stale(mutations: Sequence[Mutation]) -> list[str]:
    """A line for each mutation whose text does not occur exactly once in its file."""
    found = [(m, (ROOT / m.file).read_text().count(m.old)) for m in mutations]
    return [f'{m.file}: {n} times, not once: {m.old!r}' for m, n in found if n != 1]


@contextmanager
def applied(mutation: Mutation, copy: Path) -> Iterator[None]:
    """The copy with the mutation in it."""
    path = copy / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def copies(n: int) -> Iterator[list[Path]]:
    """``n`` folders with what the tests need of the checkout."""
    with tempfile.TemporaryDirectory(prefix='scalenet_mutations_') as folder:
        made = [Path(folder).resolve() / str(i) for i in range(n)]
        for copy in made:
            copy.mkdir()
            for name in COPIED:
                source = ROOT / name
                if source.is_dir():
                    shutil.copytree(source, copy / name, ignore=SKIPPED)
                else:
                    shutil.copy(source, copy / name)
        yield made


def require_unbroken(tests: Sequence[str], code: int, output: str, xml: ElementTree.Element | None) -> None:
    """Raises SystemExit unless each of these tests passed (and was not skipped) without a mutation."""
    cases = [] if xml is None else xml.findall('.//testcase')
    skipped = [c.get('name') for c in cases if c.find('skipped') is not None]
    if code or skipped or len(cases) < len(tests):
        raise SystemExit(
            f'The named tests must pass before anything is broken (skipped: {skipped or "none"}):\n{output}'
        )


def progress(of: int) -> Callable[[], str]:
    """Counts its calls: ``'3/40  ETA 1:20'``."""
    begin, done = time.monotonic(), count(1)

    def told() -> str:
        n = next(done)
        eta = int((time.monotonic() - begin) / n * (of - n))
        return f'{n:>3}/{of}  ETA {eta // 60}:{eta % 60:02d}'

    return told


def run(
    mutations: Sequence[Mutation], jobs: int = 2, say: Callable[[Result | None, str], None] | None = None
) -> list[Result]:
    """Runs the named tests unbroken, then applies each mutation and runs its test.

    Args:
        jobs: copies, and processes at a time.
        say: called as each mutation is done, with its result and ``'3/40  ETA 1:20'``; before with None, as some of the
            tests have passed unbroken.

    Raises:
        SystemExit: if a mutation does not fit the source, or a named test does not pass unbroken.
    """
    if misfits := stale(mutations):
        raise SystemExit('\n'.join(['Bring tests/mutation_table.py up to date.', *misfits]))
    tests = list(dict.fromkeys(m.test for m in mutations))
    jobs = max(1, min(jobs, len(mutations)))
    results: list[Result] = []
    os.environ['OMP_NUM_THREADS'] = '1'
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    with copies(jobs) as made, ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for copy in made:
            free.put(copy)

        def in_a_copy(tests: Sequence[str], mutation: Mutation | None = None):
            copy, start = free.get(), time.monotonic()
            try:
                with applied(mutation, copy) if mutation else nullcontext():
                    return *run_tests(copy, tests), time.monotonic() - start
            finally:
                free.put(copy)

        parts = [tests[i : i + AT_ONCE] for i in range(0, len(tests), AT_ONCE)]
        told = progress(len(parts))
        running = {pool.submit(in_a_copy, part): part for part in parts}
        try:
            for future in as_completed(running):
                require_unbroken(running[future], *future.result()[:3])
                if say:
                    say(None, f'{told()}  unbroken')
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise
        told = progress(len(mutations))
        running = {pool.submit(in_a_copy, [m.test], m): m for m in mutations}
        for future in as_completed(running):
            *ran, seconds = future.result()
            outcome, why = judge(*ran)
            results.append(Result(running[future], outcome, seconds, why))
            if say:
                say(results[-1], told())
    return results


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each mutation; returns 1 if one was not caught."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    decisions = sorted({m.decision for m in MUTATIONS})
    parser.add_argument('--decision', choices=decisions, help='only those of one decision')
    parser.add_argument('--only', default='', metavar='TEXT', help='only those with this in what they break')
    parser.add_argument('--jobs', type=int, default=2, help='processes at a time (default: 2)')
    parser.add_argument('--verbose', action='store_true', help='show how each test failed')
    args = parser.parse_args(argv)
    chosen = [m for m in MUTATIONS if args.decision in (None, m.decision) and args.only in m.what]
    if not chosen:
        parser.error(f'no mutation says {args.only!r}; see `what` in tests/mutation_table.py')
    width = max(len(m.what) for m in chosen)

    def say(result: Result | None, progress: str) -> None:
        if result is None:
            print(progress, flush=True)
            return
        m = result.mutation
        test = m.test.removeprefix('tests/')
        print(
            f'{progress}  {m.decision:<6}  {result.outcome:<8}  {result.seconds:5.1f} s  {m.what:<{width}}  {test}',
            flush=True,
        )
        if args.verbose or result.outcome != CAUGHT:
            print(f'{"":16}{result.why}', flush=True)

    tests = len({m.test for m in chosen})
    print(f'Unbroken first: {tests} tests. Then {len(chosen)} breaks.', flush=True)
    start = time.monotonic()
    results = run(chosen, args.jobs, say)
    lost = [r for r in results if r.outcome != CAUGHT]
    print(f'{len(results) - len(lost)} of {len(results)} caught in {time.monotonic() - start:.0f} s.')
    return int(bool(lost))


if __name__ == '__main__':
    sys.exit(main())
