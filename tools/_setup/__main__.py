"""Does the work of setup_env.sh, with the standard library alone.

Under `.scalenet_mm/` in the environment lie: `managed` (we made the environment), `stamp.json` (what
the last complete run saw; the next one compares and stops), `setup.log` (all that the tools printed).
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from base import ROOT, TRANSITIVE, Setup, SetupError, elapsed, read_pins, remedies
from mmcv_install import operators
from steps import STEPS

INPUTS = (
    *('tools/setup_env.sh', 'tools/_setup/*.py', 'scalenet_mm/commands/remedies.py'),
    *('scalenet_mm/mmcv_finder.py', 'requirements.txt', 'setup.py', 'pyproject.toml'),
)


def inputs() -> str:
    """A hash of where the checkout is and of what the set-up reads from it."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in sorted(path for pattern in INPUTS for path in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fingerprint(s: Setup) -> dict:
    """What the environment was made from, and what must still be in it."""
    there, site = s.installed(), s.site()
    return {
        'inputs': inputs(),
        'python': re.search(r'python3\.\d+|$', str(site))[0],
        'versions': {n: there[n] for n in (*s.pins, 'scalenet-mm') if n in there},
        'upstream': s.upstream(),
        'mmcv_ops': operators(s),
        'finder': (site / 'scalenet_mm_mmcv_finder.pth').exists(),
        'mim': (ROOT / 'scalenet_mm' / '.mim').is_dir(),
    }


def up_to_date(s: Setup) -> bool:
    stamp = s.stamp()
    try:
        same = stamp['is'] == fingerprint(s)
    except (OSError, KeyError, subprocess.CalledProcessError):
        return False
    compiled = not s.compile_mmcv or bool(stamp['is']['mmcv_ops'])
    return same and compiled and s.torch_index in (None, stamp['torch_index'])


@contextmanager
def locked(s: Setup) -> Iterator[None]:
    """One set-up of an environment at a time; the lock ends with the last process that holds it."""
    s.lock = os.open(s.state / 'lock', os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(s.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f'setup_env: another set-up of {s.env} is running; waiting for it', flush=True)
        fcntl.flock(s.lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(s.lock)


def run_steps(s: Setup) -> None:
    s.log.write_text('')
    if sys.version_info[:2] > remedies.TRIED[1]:
        print(f'setup_env: Python {sys.version_info[0]}.{sys.version_info[1]} is newer than any this was tried with')
    before = inputs()  # a file changed while we work must count as changed
    start = time.monotonic()
    for number, (what, usually, step) in enumerate(STEPS, 1):
        begin = time.monotonic()
        print(f'[{number}/{len(STEPS)}] {what} (usually {usually})', flush=True)
        try:
            note = step(s)
        except SetupError as error:
            sentence = f'Step {number} ({what}) failed. {error}. The log is {s.log}'
            raise SetupError(sentence) from error
        print(f'      done in {elapsed(begin)}: {note}', flush=True)
    stamp = {'is': fingerprint(s) | {'inputs': before}, 'torch_index': s.torch_index}
    (s.state / 'stamp.json').write_text(json.dumps(stamp, indent=1))
    print(f'setup_env: ready after {elapsed(start)}. To use it: source "{s.env}/bin/activate"')


def parse(arguments: list[str]) -> argparse.Namespace:
    cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    parser = argparse.ArgumentParser(
        prog='setup_env.sh',
        description='Sets up the Python environment of scalenet_mm; a second run does nothing.',
        epilog='Each option can also be given as the environment variable in parentheses.',
    )
    for option, default, what in (
        ('env', ROOT / '.venv', 'where it is made; in one that exists (venv, conda) only what is missing is installed'),
        ('python', None, 'the Python, 3.10 or newer, to make it from'),
        (
            'torch-index',
            None,
            'address of an index for torch and torchvision: of another CUDA, or for the CPU alone; '
            'later calls keep to it',
        ),
        ('wheels', cache / 'scalenet_mm' / 'wheels', 'cache of compiled mmcv wheels'),
    ):
        variable = f'SCALENET_{option.upper().replace("-", "_")}'
        parser.add_argument(f'--{option}', default=os.environ.get(variable) or default, help=f'{what} ({variable})')
    parser.add_argument(
        '--compile-mmcv',
        action='store_true',
        default=os.environ.get('SCALENET_COMPILE_MMCV') == '1',
        help="compile mmcv with its own operators, which needs g++; without it torchvision's are used "
        '(SCALENET_COMPILE_MMCV=1)',
    )
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> Setup:
    """Holds the options against what is there, and makes the state folder.

    Raises:
        SetupError: the environment is broken, of another Python than this one, or not writable.
    """
    env = Path(options.env).expanduser().absolute()
    version = sys.version_info[:2]
    requirements = (ROOT / 'requirements.txt').read_text()
    s = Setup(
        env=env,
        wheels=Path(options.wheels).expanduser().absolute(),
        torch_index=options.torch_index,
        compile_mmcv=options.compile_mmcv,
        pins=read_pins(requirements, version),
        direct=read_pins(requirements.partition(TRANSITIVE)[0], version),
    )
    s.torch_index = s.torch_index or s.index_of_torch()
    if s.python.exists():
        try:
            same = s.ask('import sys; print(list(sys.version_info[:2]))') == list(version)
        except (OSError, subprocess.CalledProcessError):
            same = False
        if not same:
            way = 'delete it' if s.managed else 'name its own with --python'
            raise SetupError(
                f'{env} does not hold a working Python {version[0]}.{version[1]}: {way}, or name another place with '
                '--env'
            )
    elif env.exists() and not env.is_dir():
        raise SetupError(f'{env} is a file: name the folder of an environment with --env')
    elif env.exists() and not s.managed and any(path != s.state for path in env.iterdir()):
        raise SetupError(f'{env} is no Python environment and not empty: name another with --env')
    try:
        s.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f'Name a place you can write to with --env ({error})') from error
    return s


def main() -> int:
    try:
        s = prepare(parse(sys.argv[1:]))
        if up_to_date(s):
            print(f'setup_env: {s.env} is up to date')
            return 0
        with locked(s):
            if not up_to_date(s):  # unless the one we waited for did it
                run_steps(s)
    except SetupError as error:
        print(f'setup_env: {error}.', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('setup_env: interrupted; run it again to continue.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
