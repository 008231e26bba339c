"""The steps of the set-up, in order. Each may be interrupted and run again."""

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from base import ROOT, Setup, SetupError, clean_environment, normalise, pip, run
from mmcv_install import check_compiler, install_mmcv, operators

BUILD_TOOLS = ('pip', 'setuptools', 'wheel', 'ninja', 'psutil', 'packaging', 'numpy')
DISK_GB = 8  # torch with its CUDA libraries 5, the rest 2, pip's own needs 1


def check_machine(s: Setup) -> str:
    if platform.system() != 'Linux':
        raise SetupError(f'Use Linux: on {platform.system()} the pinned packages were never tried')
    there = s.installed() if s.python.exists() else {}
    needed = 1 if 'torch' in there else DISK_GB
    free = shutil.disk_usage(s.state).free / 1e9
    if free < needed:
        raise SetupError(
            f'Free disk space: {s.env} needs {needed} GB and {free:.1f} GB are free; or name another place with --env'
        )
    if not s.compile_mmcv or (s.python.exists() and operators(s)):
        return f'{free:.0f} GB free'
    if not s.managed and (name := next((name for name in ('mmcv', 'onedl-mmcv') if name in there), None)):
        raise SetupError(
            f'--compile-mmcv: {s.env} has {name} {there[name]} without operators, and what is there is not changed. '
            f'Leave the option out, or compile it yourself: MMCV_WITH_OPS=1 {s.python} -m pip install '
            f'--no-build-isolation --no-deps --force-reinstall --no-binary={name} {name}=={there[name]}'
        )
    check_compiler()
    return f'{free:.0f} GB free, compiler and Python headers found'


def make_environment(s: Setup) -> str:
    if not s.python.exists():
        (s.state / 'managed').touch()
        no_venv = 'Install the venv module of this Python (apt install python3-venv) and run this again'
        run(s, sys.executable, '-I', '-m', 'venv', s.env, otherwise=no_venv)
    if s.managed:
        for path in s.site().glob('*.dist-info'):
            if not (path / 'INSTALLER').exists():  # pip writes it last: this one was interrupted
                shutil.rmtree(path)
    if subprocess.run([s.python, '-I', '-m', 'pip', '--version'], capture_output=True).returncode:
        no_pip = f'{s.env} has no pip and none can be made: delete it and run this again'
        run(s, s.python, '-I', '-m', 'ensurepip', '--upgrade', otherwise=no_pip)
    kind = 'made by this script' if s.managed else 'yours: nothing that is there is changed'
    return f'{s.env} ({kind})'


def constraints(s: Setup, pins: dict[str, str]) -> Path:
    """A file that holds pip to `pins`, and in a foreign environment to what is there."""
    pins = pins if s.managed else pins | s.installed()
    path = s.state / 'constraints.txt'
    path.write_text(''.join(f'{name}=={version}\n' for name, version in sorted(pins.items())))
    return path


CAUSES = re.compile(
    r'^\s+(\S+) \S+ depends on '
    r'|^\s+The user requested (\S+?)[=<>!~]'
    r'|satisfies the requirement [^(]*\(from ([^\s=<>!~):]+)[)=<>!~]',
    re.M,
)


# without a network pip finds no version of anything
CONFLICT = re.compile(r'ResolutionImpossible|[Cc]onflict|Could not find a version .*\(from versions: (?!none\))')


def in_conflict(output: str) -> set[str]:
    """Packages that pip names as the cause of a conflict with what is there."""
    return {normalise(name) for names in CAUSES.findall(output) for name in names if name}


def install(s: Setup, names: Iterable[str]) -> str:
    """Installs pinned packages: all of `names` in our environment, else those that are missing."""
    there = s.installed()
    names = [name for name in names if s.managed or name not in there]
    if not names:
        return 'all there'
    pins = s.pins
    while True:
        try:
            pip(s, 'install', '-c', constraints(s, pins), *(f'{n}=={pins[n]}' if n in pins else n for n in names))
            break
        except SetupError as e:
            if s.managed or not pins:
                raise
            # pip names those that do not fit what is there; with all others held it finds versions in seconds
            loose = in_conflict(e.output) & pins.keys()
            if not loose:
                if not CONFLICT.search(e.output):
                    raise  # no network, a full disk: no other version helps
                loose = set(pins)
            which = ', '.join(sorted(loose)) if len(loose) < len(pins) else 'any package'
            print(f'      our versions do not fit what is there; trying other versions of {which}', flush=True)
            pins = {name: version for name, version in pins.items() if name not in loose}
    return f'{len(names)} packages'


def install_torch(s: Setup) -> str:
    names = ('torch', 'torchvision')
    if s.managed and s.torch_index and 'torch' in s.installed() and s.torch_index != s.index_of_torch():
        pip(s, 'uninstall', '-y', *names)  # pip takes the same version of another index for the one that is asked for
    (s.state / 'torch-index').write_text(s.torch_index or '')
    install(s, names)
    return f'torch {s.installed()["torch"]}'


def install_others(s: Setup) -> str:
    names = list(s.pins if s.managed else s.direct)
    if s.upstream():  # imaug, too, is the maintained family's
        names = [name for name in names if not name.startswith('onedl-') and name != 'imaug']
    if not s.managed and any(name.startswith('opencv-') for name in s.installed()):
        names = [name for name in names if not name.startswith('opencv-')]  # all write into cv2/
    note = install(s, names)
    version = s.site() / 'cv2' / 'version.py'
    if s.managed and 'headless = True' not in version.read_text():
        # Both OpenCVs write the same files; the last one wins, and this one needs no libGL.
        headless = f'opencv-python-headless=={s.pins["opencv-python-headless"]}'
        pip(s, 'install', '--force-reinstall', '--no-deps', headless)
    return note


def install_package(s: Setup) -> str:
    # As a path: setuptools' own finder is asked after Python has taken a folder of this name (a clone) for a package.
    as_path = ('--config-settings', 'editable_mode=compat')
    pip(s, 'install', '--no-deps', '--no-build-isolation', '--no-index', *as_path, '-e', ROOT)
    # mmdet's and mmseg's own tools import mmcv.ops before a config could import us.
    finder = ROOT / 'scalenet_mm' / 'mmcv_finder.py'
    shutil.copyfile(finder, s.site() / 'scalenet_mm_mmcv_finder.py')
    (s.site() / 'scalenet_mm_mmcv_finder.pth').write_text('import scalenet_mm_mmcv_finder\n')
    return f'from {ROOT}'


def check_result(s: Setup) -> str:
    doctor = [s.python, '-m', 'scalenet_mm', 'doctor', '--json', *([] if s.compile_mmcv else ['--skip', 'compiler'])]
    done = subprocess.run(doctor, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    s.log.open('a').write(done.stdout + done.stderr)
    try:
        rows = json.loads(done.stdout)
    except ValueError:
        raise SetupError(f'`scalenet doctor` ended with code {done.returncode} before it had a result') from None
    for row in rows:
        if row['state'] == 'FAIL':
            raise SetupError(f'{row["check"]}: {row["value"]}: {row["remedy"]}')
    if s.managed:
        delete = f'Packages contradict each other: delete {s.env} and run this again'
        pip(s, 'check', otherwise=delete)
    return f'{len(rows)} checks of `scalenet doctor`'


STEPS: tuple[tuple[str, str, Callable[[Setup], str]], ...] = (
    ('check the machine', 'a second', check_machine),
    ('make the virtual environment', '10 s', make_environment),
    ('install pip and the build tools', '20 s', lambda s: install(s, BUILD_TOOLS)),
    ('install torch and torchvision', '1 to 5 min, 3 GB to download', install_torch),
    ('install mmcv', '10 s; compiled 10 to 20 min on 2 cores, 5 s from the wheel cache', install_mmcv),
    ('install the other packages', '1 min', install_others),
    ('install scalenet_mm itself', '5 s', install_package),
    ('check that all of it works', '1 min', check_result),
)
