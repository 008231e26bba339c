"""What goes wrong in a Python environment and what to do about it, for `scalenet doctor` and the set-up.

Imports the standard library alone: the set-up (tools/_setup) loads this file by its path.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PIP = f'{shlex.quote(sys.executable)} -m pip'
PACKAGE = Path(__file__).resolve().parents[1]
TOOLS = next((p for p in (PACKAGE.parent / 'tools', PACKAGE / '.mim' / 'tools') if p.is_dir()), Path('tools'))
SETUP = f'bash {shlex.quote(str(TOOLS / "setup_env.sh"))}'
SETUP_HERE = f'{SETUP} --env {shlex.quote(sys.prefix)}'

# Import name -> distributions that provide it: the maintained family's, then upstream's.
FAMILIES = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}
TRIED = ((3, 10), (3, 13))  # Python, from and to
UPSTREAM = tuple(name for names in FAMILIES.values() for name in names[1:])

# What a failed command or import printed, and what to do about it. The first that matches counts.
REMEDIES = {
    r'No space left on device': 'Free some disk space and run this again',
    r'Name or service not known|name resolution|Network is unreachable|timed out|SSLError|ConnectionError'
    r'|Connection refused|ProxyError': 'The package index could not be reached: mend the network (or set '
    'PIP_INDEX_URL to a mirror) and run this again',
    r'No matching distribution|Could not find a version': 'The package index lacks a version that requirements.txt '
    'names: set PIP_INDEX_URL to a complete index (or correct --torch-index) and run this again',
    r'Killed signal|cannot allocate memory|std::bad_alloc': 'The memory did not suffice: run this again with '
    'MAX_JOBS=1',
    r'ResolutionImpossible|conflicting dependencies': 'What is in this environment excludes what is missing: use an '
    'environment of its own (leave --env out)',
    r'Permission denied|Read-only file system': 'Make the environment writable for you and run this again',
    r"No module named 'pkg_resources'": 'setuptools 82 dropped pkg_resources: {pip} install "setuptools<82"',
    r'compiled using NumPy 1|_ARRAY_API not found|multiarray failed to import|dtype size changed'
    r'|Numpy is not available': 'compiled for another numpy: {pip} install -U {package}, or {pip} install "numpy<2"',
    r'is used but incompatible': 'mmdet 3.3 and mmseg 1.2.2 take mmcv 2.0 and 2.1 only: MMCV_WITH_OPS=1 '
    f'{{pip}} install --no-build-isolation mmcv==2.1.0, or use the maintained family ({SETUP_HERE})',
    r'libGL\.so': 'this OpenCV wants libGL: {pip} install opencv-python-headless',
    r"No module named 'imgaug'": '{pip} install imaug',
    r"No module named '(ftfy|regex)'": '{pip} install ftfy regex',
    r'torchvision::nms does not exist|Couldn.t load custom C\+\+ ops': 'torch and torchvision do not belong together: '
    'install both from one index, such as {pip} install torch==2.11.0 torchvision==0.26.0',
    r'does not see the GPU': 'its CUDA may be newer than the driver (nvidia-smi)',
    r"No module named 'mmcv._ext'|undefined symbol|cannot open shared|are for the CPU alone": 'the ops of mmcv are '
    'missing or of another torch, compile them: MMCV_WITH_OPS=1 {pip} install --no-build-isolation --no-deps '
    '--no-cache-dir --force-reinstall {mmcv} (needs torch, "setuptools<82", ninja and g++)',
}


def remedy_for(printed: str, otherwise: str, python: object = sys.executable, package: str = '?') -> str:
    """What to do about a failure, by all that it printed.

    Args:
        printed: what the failed command or import printed.
        otherwise: what to do where no remedy is known.
        python: the interpreter of the environment to be mended.
        package: the distribution concerned, if that is known.
    """
    for pattern, remedy in REMEDIES.items():
        if re.search(pattern, printed, re.I):
            pip, mmcv = f'{shlex.quote(str(python))} -m pip', (installed(FAMILIES['mmcv']) or ['mmcv'])[0]
            package = package if installed([package]) else 'PACKAGE'  # of a row that is about more than one
            return remedy.format(pip=pip, mmcv=mmcv.replace(' ', '=='), package=package)
    return otherwise


def installed(names: Iterable[str]) -> list[str]:
    """`name version` of those distributions that are installed."""
    found = []
    for name in names:
        try:
            found.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            continue
    return found


SOURCE = '#include <filesystem>\n#include <Python.h>\nstatic_assert(__cplusplus >= 201703L, "");\n'


def compiler_fault() -> str:
    """Compiles three lines; what to do where there is no C++17 compiler or no header of this Python, else ''."""
    try:
        compiler = shlex.split(os.environ.get('CXX') or 'c++')
    except ValueError as error:
        return f'Mend the variable CXX ({error}), or unset it'
    include = sysconfig.get_path('include')
    command = [*compiler, '-std=c++17', '-fsyntax-only', f'-I{include}', '-x', 'c++', '-']
    try:
        done = subprocess.run(command, input=SOURCE, capture_output=True, text=True)
    except OSError:
        return f'Install a C++ compiler ({compiler[0]} was not found): apt install g++, or dnf install gcc-c++'
    if done.returncode and 'Python.h' in done.stderr:
        python = '.'.join(platform.python_version_tuple()[:2])
        return (
            f'Install the headers of Python {python} ({include}/Python.h is missing): apt install '
            f'python{python}-dev; or name another Python with --python'
        )
    return f'Install a C++17 compiler: {compiler[0]} is too old or broken (gcc 9 is enough)' if done.returncode else ''
