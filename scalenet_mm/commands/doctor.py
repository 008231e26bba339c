"""Say of the Python environment it runs in what works and what does not, with the remedy.

Standard library only, and any environment: with the maintained (onedl) or the upstream family of
OpenMMLab, or with neither. Every import is tried in a process of its own.

    scalenet doctor          # a table; exit status 1 where something fails
    scalenet doctor --json   # the same as a list of rows
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .main import command_parser
from .remedies import FAMILIES, PIP, SETUP, SETUP_HERE, TRIED, compiler_fault, installed, remedy_for

OK, WARN, FAIL, SKIP = 'ok', 'warn', 'FAIL', '-'
CHECKOUT = Path(__file__).resolve().parents[2]

# Code that prints, last, what it found; a line that begins with WARN names a fault that not everybody minds.
TORCH = """
import shutil, torch
gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(f'{torch.__version__}, CUDA {torch.version.cuda}, {gpus} GPU')
if not gpus and shutil.which('nvidia-smi'): print('warn', torch.__version__, 'does not see the GPU')
"""
NMS = """
from NAME.ops import nms
nms(torch.tensor([[0., 0, 9, 9]]), torch.ones(1), 0.5)
print('run')
"""
TORCHVISION = 'import torch, torchvision' + NMS.replace('NAME', 'torchvision')
MMCV = f"""
import torch, mmcv._ext{NMS.replace('NAME', 'mmcv')}
if hasattr(mmcv._ext, 'SUPPLIED'):
    print(f'of torchvision run, {{len(mmcv._ext.SUPPLIED)}} of them')
    raise SystemExit
from mmcv.ops import get_compiling_cuda_version
if get_compiling_cuda_version() == 'not available' and torch.cuda.is_available(): print('warn are for the CPU alone')
"""
PKG_RESOURCES = f"""
try: import pkg_resources; print('has it')
except ImportError:
    if {bool(installed(FAMILIES['mmengine'][1:]))}: raise
    print('lacks it, and only upstream mmengine needs it')
"""
COMPILED = {  # against numpy, by distribution
    **dict.fromkeys(('opencv-python', 'opencv-python-headless'), 'import cv2'),
    'pycocotools': 'import pycocotools._mask',
    'scipy': 'import scipy.ndimage',
    'shapely': 'import shapely',
    'scikit-image': 'import skimage.measure',
    'scikit-learn': 'import sklearn.cluster',
    'torch': 'import torch; torch.zeros(1).numpy()',  # it imports with any numpy
}
IMPORTS = {
    name: f'import {name}; print("imports")'
    for name in ('mmengine.runner', 'mmpretrain.models', 'mmdet.models', 'mmseg.models')
}
RESUME = """
import tempfile, torch
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import _load_checkpoint
hub = MessageHub('doctor')
hub.update_scalar('loss', 0.5)
with tempfile.NamedTemporaryFile(suffix='.pth') as file:
    torch.save(dict(state_dict={}, message_hub=hub.state_dict()), file.name)
    _load_checkpoint(file.name, map_location='cpu')
print('resumes')
"""
DEFAULTS = """
from mmengine.config import Config
Config.fromstring("_base_ = 'NAME::_base_/default_runtime.py'", '.py')
print('configs are found')
"""
INHERIT = {name: DEFAULTS.replace('NAME', name) for name in ('mmpretrain', 'mmdet', 'mmseg')}
OURS = f'import sys; sys.path.append({str(CHECKOUT)!r}); import scalenet_mm\n'  # patches mmengine


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


# --- the checks ----------------------------------------------------------------------------------


def check_python() -> Row:
    here, number = sys.version.split()[0], tuple(sys.version_info[:2])
    oldest, newest = TRIED
    tried = 'Python {}.{} to {}.{}'.format(*oldest, *newest)
    if number < oldest:
        return Row(FAIL, here, f'make an environment of {tried}: {SETUP}')
    if number > newest:
        return Row(WARN, here, f'not tried; {tried} are')
    return Row(OK, f'{here} at {sys.executable}')


def check_family() -> Row:
    there = {module: installed(names) for module, names in FAMILIES.items()}
    found = [name for names in there.values() for name in names]
    maintained = [name for name in found if name.startswith('onedl-')]
    if not found:
        return Row(FAIL, 'no OpenMMLab package', SETUP_HERE)
    if len(maintained) not in (0, len(found)) or any(len(names) > 1 for names in there.values()):
        names = ' '.join(name.split()[0] for name in found)
        return Row(
            FAIL,
            'mixed: ' + ', '.join(found),
            f'they overwrite each other: {PIP} uninstall -y {names}; then {SETUP_HERE} for the maintained family, '
            'or pip install -e ".[openmmlab]" for upstream',
        )
    value = ('maintained: ' if maintained else 'upstream: ') + ', '.join(found)
    missing = [module for module, names in there.items() if not names]
    if missing:
        names = ' '.join(FAMILIES[module][0 if maintained else 1] for module in missing)
        return Row(WARN, f'{value}; without {", ".join(missing)}', f'{PIP} install {names}')
    return Row(OK, value)


def check_compiler() -> Row:
    fault = compiler_fault()
    if fault:
        return Row(WARN, 'only compiling mmcv needs what is missing', fault)
    return Row(OK, f'compiles C++17 with Python.h, {shutil.which("nvcc") or "no nvcc"}')


def run_codes(codes: Mapping[str, str], otherwise: str, mending: str = 'helps', fails: str = FAIL) -> Row:
    """Runs pieces of code, and once more after importing scalenet_mm what fails; the worst state counts.

    Args:
        codes: the pieces by the name that the row gives them.
        otherwise: what to do about a failure without a known remedy.
        mending: what importing scalenet_mm does about it.
        fails: the state where a piece fails both times.
    """
    rows = []
    for name, code in codes.items():
        done = probe(code)
        if done.ok and done.said.startswith(WARN):
            rows.append(Row(WARN, f'{name}{done.said.removeprefix(WARN)}', remedy_for(done.said, otherwise)))
        elif done.ok:
            rows.append(Row(OK, f'{name} {done.said}'.strip()))
        elif probe(OURS + code).ok:
            hint = f'nothing where scalenet_mm is imported first, as our tools do: it {mending}'
            rows.append(Row(WARN, f'{name} fails alone ({done.cause}), works after `import scalenet_mm`', hint))
        else:
            rows.append(Row(fails, f'{name}: {done.cause}', remedy_for(done.error, otherwise, package=name)))
    worst = next((state for state in (FAIL, WARN) if any(row.state == state for row in rows)), OK)
    rows = [row for row in rows if row.state == worst]
    remedies = dict.fromkeys(row.remedy for row in rows if row.remedy)
    return Row(worst, '; '.join(row.value for row in rows), '; '.join(remedies))


def there(codes: Mapping[str, str]) -> dict[str, str]:
    """Those whose package is installed."""
    return {n: code for n, code in codes.items() if installed(FAMILIES.get(n.partition('.')[0], [n]))}


GATE = f'use {SETUP_HERE}, or import scalenet_mm first'
MULTIMODAL = (
    "leaves out mmpretrain's multimodal models, which are written for transformers 4; "
    f'or {PIP} install "transformers<5"'
)
NUMPY, TIMM, SCALENET = (
    {name: f'import {name}; print({name}.__version__)'} for name in ('numpy', 'timm', 'scalenet_mm')
)
INSTALL = f'{PIP} install -e {shlex.quote(str(CHECKOUT))}'
CHECKS = (
    # name, whether it says nothing without torch, check and its arguments
    ('python', False, check_python),
    ('family', False, check_family),
    ('torch', False, run_codes, {'torch': TORCH}, f'{PIP} install torch torchvision'),
    ('torchvision', True, run_codes, {'compiled ops': TORCHVISION}, 'install the torchvision of this torch'),
    ('numpy ABI', False, run_codes, NUMPY | there(COMPILED), f'{PIP} install numpy==2.2.6'),
    ('pkg_resources', False, run_codes, {'setuptools': PKG_RESOURCES}, ''),
    ('mmcv ops', True, run_codes, {'ops': MMCV}, remedy_for('undefined symbol', ''), 'takes them from torchvision'),
    ('imports', True, run_codes, there(IMPORTS), f'{PIP} install what is missing, or {SETUP_HERE}', MULTIMODAL),
    ('resume', True, run_codes, {'mmengine': RESUME}, GATE, 'lists what mmengine saves as safe to load'),
    ('inheritance', True, run_codes, there(INHERIT), GATE, 'corrects the name mmengine looks it up by'),
    ('timm', True, run_codes, TIMM, f'{PIP} install timm==1.0.31 (for timm models and the tests)', '', WARN),
    ('compiler', False, check_compiler),
    ('scalenet_mm', True, run_codes, SCALENET, INSTALL, '', FAIL if installed(['scalenet-mm']) else WARN),
)


def unless_torch_fails(torch: Future[Row], check: Callable[..., Row], *arguments) -> Row:
    return Row(SKIP, 'not tried, as torch fails') if torch.result().state == FAIL else check(*arguments)


def main(argv: Sequence[str]) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--json', action='store_true', help='print a list of rows instead')
    names = [name for name, *_ in CHECKS]
    parser.add_argument(
        '--skip', nargs='+', default=[], metavar='CHECK', choices=names, help=f'leave out, of: {", ".join(names)}'
    )
    args = parser.parse_args(argv)
    as_json = args.json
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(max_workers=4) as pool:
        futures: dict[str, Future[Row]] = {}
        for name, needs_torch, check, *arguments in (
            c for c in CHECKS if c[0] not in args.skip
        ):  # torch comes before what needs it, so it has begun
            if needs_torch and 'torch' in futures:
                check, arguments = unless_torch_fails, (futures['torch'], check, *arguments)
            futures[name] = pool.submit(check, *arguments)
        try:
            for name, future in futures.items():
                row = rows[name] = future.result()
                if not as_json:
                    print(f'{row.state:5} {name:14} {row.value}', flush=True)
                if row.remedy and not as_json:
                    print(f'{"":20} -> {row.remedy}', flush=True)  # one line, to be copied
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that have not begun
            raise
    failed = [name for name, row in rows.items() if row.state == FAIL]
    if as_json:
        print(json.dumps([{'check': name, **row._asdict()} for name, row in rows.items()], indent=1))
    else:
        print(f'{len(failed)} of {len(rows)} checks fail' + (f': {", ".join(failed)}' if failed else ''))
    return 1 if failed else 0
