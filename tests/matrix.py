"""Builds an environment for each Python and torch of docs/install.md and runs a core of the tests in it.

    python tests/matrix.py [--work-dir work_dirs/matrix] [NAME ...]

Each takes 5 to 10 minutes and 6 GB, most of it torch (compiling mmcv 10 to 20 more); one that is there is used again.
Prints the table of the page.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CORE = ('layer_map', 'adapters', 'scaling', 'roles', 'backbones', 'mmcv_ops', 'runner_config', 'load_rule', 'delta')


class Environment(NamedTuple):
    """What is built: a Python, packages that are installed before the set-up adds the rest, the set-up's options."""

    python: str
    first: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


MATRIX = {
    **{f'py{v}': Environment(v) for v in ('3.10', '3.11', '3.12', '3.13')},
    'torch2.6': Environment('3.11', ('torch==2.6.0', 'torchvision==0.21.0')),
    'newest torch': Environment('3.12', ('torch', 'torchvision')),
    'compiled mmcv': Environment('3.11', options=('--compile-mmcv',)),
}


def find(version: str) -> str | None:
    """A Python of this version: on the PATH, or among pyenv's."""
    found = shutil.which(f'python{version}')
    if found and not subprocess.run([found, '--version'], capture_output=True).returncode:
        return found
    versions = sorted(Path.home().glob(f'.pyenv/versions/{version}.*/bin/python'))
    return str(versions[-1]) if versions else None


def run(command: list, log: Path, env: dict | None = None) -> int:
    with log.open('a') as out:
        out.write(f'\n$ {" ".join(map(str, command))}\n')
        out.flush()
        return subprocess.run(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, **(env or {})}).returncode


def build_and_test(name: str, work_dir: Path) -> tuple[str, ...]:
    """A line of the table: name, Python, torch, minutes of the set-up, what the tests said."""
    wanted, folder = MATRIX[name], work_dir / name.replace(' ', '_')
    log, python = work_dir / f'{folder.name}.log', find(wanted.python)
    if python is None:
        return name, wanted.python, '-', '-', 'no such Python here'
    begin = time.monotonic()
    if wanted.first and not (folder / 'bin' / 'python').exists():
        run([python, '-m', 'venv', folder], log)
        run([folder / 'bin' / 'python', '-m', 'pip', 'install', *wanted.first], log)
    if run(['bash', 'tools/setup_env.sh', '--python', python, '--env', folder, *wanted.options], log):
        return name, wanted.python, '-', '-', f'set-up failed: {log.read_text().strip().splitlines()[-1]}'
    minutes = (time.monotonic() - begin) / 60
    inside = folder / 'bin' / 'python'
    torch = subprocess.check_output([inside, '-c', 'import torch; print(torch.__version__)'], text=True).strip()
    tests = [f'tests/test_{part}.py' for part in CORE]
    run([inside, '-m', 'pytest', '-q', '-m', 'not slow and not gpu', '-n', '2', *tests], log, {'OMP_NUM_THREADS': '1'})
    said = re.findall(r'^(?:\d+ \w+,? ?)+.*in [\d.]+s.*$', log.read_text(), re.M)
    return name, wanted.python, torch, f'{minutes:.1f}', said[-1] if said else 'the tests did not end'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('name', nargs='*', help=f'of {", ".join(MATRIX)} (default: all)')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'matrix')
    args = parser.parse_args()
    unknown = [name for name in args.name if name not in MATRIX]
    if unknown:
        parser.error(f'no environment {unknown}; there are {", ".join(MATRIX)}')
    args.work_dir.mkdir(parents=True, exist_ok=True)
    print('| environment | Python | torch | set-up, minutes | core of the tests |\n|---|---|---|---:|---|')
    lines = []
    for name in args.name or MATRIX:
        lines.append(build_and_test(name, args.work_dir.absolute()))
        print(f'| {" | ".join(lines[-1])} |', flush=True)
    return int(any('failed' in line[-1] or 'did not' in line[-1] for line in lines))


if __name__ == '__main__':
    sys.exit(main())
