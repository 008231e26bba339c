"""Say of the Python environment it runs in what works and what does not, with the remedy.

Standard library only, and any environment: with the maintained (onedl) or the upstream family of
OpenMMLab, or with neither. Every import is tried in a process of its own.

    scalenet doctor          # a table; exit status 1 where something fails
    scalenet doctor --json   # the same as a list of rows
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Callable, NamedTuple

from .main import command_parser

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS, COMPAT = CHECKOUT / 'tools', CHECKOUT / 'scalenet_mm' / 'compat.py'
SETUP = f'bash {shlex.quote(str(TOOLS))}/setup_env.sh --env {shlex.quote(sys.prefix)}'
PIP = f'{shlex.quote(sys.executable)} -m pip'
OK, WARN, FAIL, SKIP = 'ok', 'warn', 'FAIL', '-'

# Import name -> distributions that provide it.
MAINTAINED = {
    'mmengine': ('onedl-mmengine',),
    'mmcv': ('onedl-mmcv',),
    'mmpretrain': ('onedl-mmpretrain',),
    'mmdet': ('onedl-mmdetection',),
    'mmseg': ('onedl-mmsegmentation',),
}
UPSTREAM = {
    'mmengine': ('mmengine', 'mmengine-lite'),
    'mmcv': ('mmcv', 'mmcv-full', 'mmcv-lite'),
    'mmpretrain': ('mmpretrain',),
    'mmdet': ('mmdet',),
    'mmseg': ('mmsegmentation',),
}

# What a failed import prints, and what to do about it. The first that matches counts.
GATES = {
    'pkg_resources': (r'pkg_resources', f'setuptools 82 dropped pkg_resources: {PIP} install "setuptools<82"'),
    'numpy ABI': (
        r'compiled using NumPy 1|_ARRAY_API not found|multiarray failed to import|dtype size changed'
        r'|Numpy is not available',
        f'compiled for another numpy: {PIP} install -U <names>, or {PIP} install "numpy<2"',
    ),
    'versions': (
        r'is used but incompatible',
        'mmdet 3.3 and mmseg 1.2.2 take mmcv 2.0 and 2.1 only: MMCV_WITH_OPS=1 '
        f'{PIP} install --no-build-isolation mmcv==2.1.0, or use the maintained family ({SETUP})',
    ),
    'libGL': (r'libGL\.so', f'this OpenCV wants libGL: {PIP} install opencv-python-headless'),
    'imgaug': (r"No module named 'imgaug'", f'{PIP} install imaug'),
    'ftfy': (r"No module named '(ftfy|regex)'", f'{PIP} install ftfy regex'),
    'torchvision': (
        r'torchvision::nms does not exist|Couldn.t load custom C\+\+ ops',
        'torch and torchvision do not belong together: install both from one index, such as '
        f'{PIP} install torch==2.11.0 torchvision==0.26.0',
    ),
    'mmcv ops': (
        r"No module named 'mmcv._ext'|undefined symbol|cannot open shared",
        'its ops are missing or of another torch, compile them: MMCV_WITH_OPS=1 '
        f'{PIP} install --no-build-isolation --no-deps --no-cache-dir --force-reinstall <mmcv> '
        '(needs torch, "setuptools<82", ninja and g++)',
    ),
}

ABI_MODULES = {  # compiled against numpy -> their distribution
    'cv2': 'opencv-python',
    'pycocotools._mask': 'pycocotools',
    'scipy.ndimage': 'scipy',
    'shapely': 'shapely',
    'skimage.measure': 'scikit-image',
    'sklearn.cluster': 'scikit-learn',
}
NMS = 'nms(torch.tensor([[0., 0, 9, 9]]), torch.ones(1), 0.5)'
RESUME = """
import os, tempfile, torch
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import _load_checkpoint
hub = MessageHub('doctor')
hub.update_scalar('loss', 0.5)
hub.update_info('epoch', 1)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'epoch_1.pth')
    torch.save(dict(state_dict={}, message_hub=hub.state_dict()), path)
    _load_checkpoint(path, map_location='cpu')
"""
INHERIT = """
import os, tempfile
from mmengine.config import Config
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'config.py')
    with open(path, 'w') as file:
        file.write("_base_ = 'MODULE::_base_/default_runtime.py'")
    Config.fromfile(path)
"""
PATCH = f"""
import importlib.util
spec = importlib.util.spec_from_file_location('scalenet_mm_compat', {str(COMPAT)!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
compat.patch()
"""


class Row(NamedTuple):
    """What one check found."""

    state: str
    value: str
    remedy: str = ''


class Probe(NamedTuple):
    """How a piece of code ended in a process of its own."""

    ok: bool
    said: str  # the last line it printed
    error: str  # all that it printed to stderr

    @property
    def cause(self) -> str:
        """The line that names the error, up to its first full stop."""
        text = re.sub(r'\x1b\[\d*m', '', self.error)  # torch prints some of it in bold
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        named = [line for line in lines if re.match(r'[\w.]*(Error|Exception)\b', line)]
        return re.split(r'\. ', ([*lines, *named] or ['it ended without a word'])[-1])[0][:200]


def probe(code: str) -> Probe:
    """Runs code with this interpreter, somewhere with nothing to import by accident."""
    try:
        done = subprocess.run([sys.executable, '-c', code], cwd='/', capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return Probe(False, '', 'TimeoutError: it took more than 5 minutes')
    said = done.stdout.strip().splitlines()[-1:]
    error = done.stderr
    if done.returncode < 0:
        error += f'\nError: the process died of signal {-done.returncode}'
    return Probe(done.returncode == 0, said[0] if said else '', error)


def remedy(gate: str, names: str = 'PACKAGE') -> str:
    """What to do about a gate, with the packages concerned filled in."""
    mmcv = (installed(MAINTAINED['mmcv'] + UPSTREAM['mmcv']) or ['mmcv'])[0].replace(' ', '==')
    return GATES[gate][1].replace('<mmcv>', mmcv).replace('<names>', names)


def remedy_for(error: str, otherwise: str = '') -> str:
    for gate, (pattern, _) in GATES.items():
        if re.search(pattern, error):
            return remedy(gate)
    return otherwise


def installed(names: tuple[str, ...]) -> list[str]:
    """`name version` of those distributions that are installed."""
    found = []
    for name in names:
        try:
            found.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            continue
    return found


def family(of: dict[str, tuple[str, ...]]) -> list[str]:
    return [found for names in of.values() for found in installed(names)]


# --- the checks ----------------------------------------------------------------------------------


def check_python() -> Row:
    here, number = sys.version.split()[0], tuple(sys.version_info[:2])
    if number < (3, 10):
        return Row(FAIL, here, f'make an environment of Python 3.10 to 3.12: bash {TOOLS}/setup_env.sh')
    if number >= (3, 13):
        return Row(WARN, here, 'not tried; Python 3.10 to 3.12 are')
    return Row(OK, f'{here} at {sys.executable}')


def check_family() -> Row:
    maintained, upstream = family(MAINTAINED), family(UPSTREAM)
    if not maintained and not upstream:
        return Row(FAIL, 'no OpenMMLab package', SETUP)
    both = maintained + upstream
    twice = [m for m in UPSTREAM if len(installed(MAINTAINED[m] + UPSTREAM[m])) > 1]
    if twice or (maintained and upstream):
        names = ' '.join(found.split()[0] for found in both)
        return Row(
            FAIL,
            'mixed: ' + ', '.join(both),
            f'they overwrite each other: {PIP} uninstall -y {names}; then {SETUP} for the maintained '
            'family, or pip install -e ".[openmmlab]" for upstream',
        )
    value = ('maintained: ' if maintained else 'upstream: ') + ', '.join(both)
    missing = [m for m in UPSTREAM if not installed(MAINTAINED[m] + UPSTREAM[m])]
    if missing:
        of = MAINTAINED if maintained else UPSTREAM
        names = ' '.join(of[m][0] for m in missing)
        return Row(WARN, f'{value}; without {", ".join(missing)}', f'{PIP} install {names}')
    return Row(OK, value)


def check_torch() -> Row:
    code = (
        'import torch; gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0; '
        'print(f"{torch.__version__}, CUDA {torch.version.cuda}, {gpus} GPU")'
    )
    done = probe(code)
    if not done.ok:
        return Row(FAIL, done.cause, remedy_for(done.error, f'{PIP} install torch torchvision'))
    if ' 0 GPU' in done.said and shutil.which('nvidia-smi'):
        hint = 'torch does not see the GPU: its CUDA may be newer than the driver (nvidia-smi)'
        return Row(WARN, done.said, hint)
    return Row(OK, done.said)


def check_torchvision() -> Row:
    done = probe(f'import torch, torchvision; from torchvision.ops import nms; {NMS}; print(torchvision.__version__)')
    if done.ok:
        return Row(OK, f'{done.said}, its compiled ops run')
    otherwise = 'install the torchvision that belongs to this torch'
    return Row(FAIL, done.cause, remedy_for(done.error, otherwise))


def check_numpy() -> Row:
    done = probe('import numpy; print(numpy.__version__)')
    if not done.ok:
        return Row(FAIL, done.cause, f'{PIP} install numpy==2.2.6')
    tries = {name: f'import {name}' for name, dist in ABI_MODULES.items() if installed((dist,))}
    if installed(('torch',)):
        tries['torch'] = 'import torch; torch.zeros(1).numpy()'
    pattern = GATES['numpy ABI'][0]
    clash = [name for name, code in tries.items() if re.search(pattern, probe(code).error)]
    if clash:
        names = ' '.join(ABI_MODULES.get(name, name) for name in clash)
        value = f'{done.said}, but {", ".join(clash)} compiled for another'
        return Row(FAIL, value, remedy('numpy ABI', names))
    return Row(OK, f'{done.said}, fits {", ".join(tries)}')


def check_mmcv_ops() -> Row:
    name = (installed(MAINTAINED['mmcv'] + UPSTREAM['mmcv']) or ['mmcv'])[0]
    code = (
        f'import torch, mmcv._ext; from mmcv.ops import nms, get_compiling_cuda_version as cuda; {NMS}; '
        'print(cuda(), torch.cuda.is_available())'
    )
    done = probe(code)
    if not done.ok:
        return Row(FAIL, f'{name}: {done.cause}', remedy_for(done.error, remedy('mmcv ops')))
    if done.said == 'not available True':
        return Row(WARN, f'{name}: compiled for the CPU alone', remedy('mmcv ops'))
    return Row(OK, f'{name}: compiled ops run')


def check_pkg_resources() -> Row:
    name = (installed(('setuptools',)) or ['no setuptools'])[0]
    done = probe('import pkg_resources')
    if done.ok:
        return Row(OK, f'{name} has it')
    if installed(UPSTREAM['mmengine']):
        value = f'{name} lacks it and upstream mmengine needs it'
        return Row(FAIL, value, remedy('pkg_resources'))
    return Row(OK, f'{name} lacks it; only upstream needs it')


def check_imports() -> Row:
    failed, remedies, works, mended = [], [], [], []
    for module in ('mmengine.runner', 'mmpretrain.models', 'mmdet.models', 'mmseg.models'):
        package = module.split('.')[0]
        if not installed(MAINTAINED[package] + UPSTREAM[package]):
            continue
        done = probe(f'import {module}')
        if done.ok:
            works.append(package)
        elif COMPAT.exists() and probe(f'{PATCH}import {module}').ok:
            mended.append(package)
        else:
            failed.append(f'{package}: {done.cause}')
            remedies.append(remedy_for(done.error, f'{PIP} install what is missing, or {SETUP}'))
    if failed:
        return Row(FAIL, '; '.join(failed), '; '.join(dict.fromkeys(remedies)))
    if mended:
        hint = (
            "nothing where scalenet_mm is imported first, as our tools do: it leaves out mmpretrain's multimodal "
            f'models, which are written for transformers 4; or {PIP} install "transformers<5"'
        )
        return Row(WARN, f'{", ".join(mended)}: only after `import scalenet_mm`', hint)
    return Row(OK, ', '.join(works))


def _mended(code: str, mending: str) -> Row:
    """Tries code as it is, then after the patch that importing scalenet_mm applies."""
    plain = probe(code)
    if plain.ok:
        return Row(OK, 'works')
    if COMPAT.exists() and probe(PATCH + code).ok:
        hint = 'nothing where scalenet_mm is imported first, as our tools do: it ' + mending
        return Row(WARN, f'fails alone ({plain.cause}), works after `import scalenet_mm`', hint)
    return Row(FAIL, plain.cause, remedy_for(plain.error, f'use {SETUP}, or import scalenet_mm first'))


def check_resume() -> Row:
    return _mended(RESUME, 'lists what mmengine saves as safe to load (torch >= 2.6 asks for that)')


def check_inheritance() -> Row:
    rows = {}
    for module in ('mmpretrain', 'mmdet', 'mmseg'):
        if installed(MAINTAINED[module] + UPSTREAM[module]):
            code = INHERIT.replace('MODULE', module)
            rows[module] = _mended(code, 'corrects the name mmengine looks it up by')
    for state in (FAIL, WARN):
        for module, row in rows.items():
            if row.state == state:
                return Row(state, f'{module}:: {row.value}', row.remedy)
    return Row(OK, ', '.join(f'{module}::' for module in rows) + ' resolve')


def check_timm() -> Row:
    done = probe('import timm; print(timm.__version__)')
    if done.ok:
        return Row(OK, done.said)
    hint = f'{PIP} install timm==1.0.31 (only the tests and timm models need it)'
    return Row(WARN, done.cause, hint)


def check_compiler() -> Row:
    compiler = os.environ.get('CXX', 'c++').split()[0]
    headers = Path(sysconfig.get_path('include'), 'Python.h')
    missing = [
        what for what, there in ((compiler, shutil.which(compiler)), (str(headers), headers.exists())) if not there
    ]
    if missing:
        hint = 'only compiling mmcv needs it: apt install g++ python3-dev'
        return Row(WARN, f'{" and ".join(missing)} not found', hint)
    nvcc = shutil.which('nvcc')
    return Row(OK, f'{shutil.which(compiler)}, Python.h' + (f', {nvcc}' if nvcc else ', no nvcc'))


def check_scalenet() -> Row:
    done = probe('import scalenet_mm; from scalenet_mm.version import __version__; print(__version__)')
    if done.ok:
        return Row(OK, done.said)
    return Row(WARN, done.cause, remedy_for(done.error, f'{PIP} install -e {CHECKOUT} --no-deps'))


CHECKS: tuple[tuple[str, Callable[[], Row], tuple[str, ...]], ...] = (
    # name, check, the checks without which it says nothing
    ('python', check_python, ()),
    ('family', check_family, ()),
    ('torch', check_torch, ()),
    ('torchvision', check_torchvision, ('torch',)),
    ('numpy ABI', check_numpy, ()),
    ('pkg_resources', check_pkg_resources, ()),
    ('mmcv ops', check_mmcv_ops, ('torch',)),
    ('imports', check_imports, ('torch',)),
    ('resume', check_resume, ('torch',)),
    ('inheritance', check_inheritance, ('torch',)),
    ('timm', check_timm, ('torch',)),
    ('compiler', check_compiler, ()),
    ('scalenet_mm', check_scalenet, ('torch',)),
)


def attempt(check: Callable[[], Row], needs: dict[str, Future[Row]]) -> Row:
    """Runs a check, unless one of those it needs failed. They come earlier, so they have begun."""
    for name, future in needs.items():
        if future.result().state == FAIL:
            return Row(SKIP, f'not tried, as {name} fails')
    return check()


def show(name: str, row: Row) -> None:
    print(f'{row.state:5} {name:14} {row.value}', flush=True)
    if row.remedy:
        print(f'{"":20} -> {row.remedy}', flush=True)  # one line, to be copied


def main(argv: Sequence[str]) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--json', action='store_true', help='print a list of rows instead')
    as_json = parser.parse_args(argv).json
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(max_workers=4) as pool:
        futures: dict[str, Future[Row]] = {}
        for name, check, needs in CHECKS:
            futures[name] = pool.submit(attempt, check, {need: futures[need] for need in needs})
        for name, future in futures.items():
            rows[name] = future.result()
            if not as_json:
                show(name, rows[name])
    failed = [name for name, row in rows.items() if row.state == FAIL]
    if as_json:
        print(json.dumps([{'check': name, **row._asdict()} for name, row in rows.items()], indent=1))
    else:
        print(f'{len(failed)} of {len(rows)} checks fail' + (f': {", ".join(failed)}' if failed else ''))
    return 1 if failed else 0
