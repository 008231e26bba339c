"""mmcv: without a compiler in seconds, or compiled with its operators against the environment's torch."""

import os
import platform
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path

from base import Setup, SetupError, pip, remedies

PROBE = """
import json, sys, torch
from torch.utils.cpp_extension import CUDA_HOME
gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
print(json.dumps(dict(
    torch=torch.__version__, cuda=torch.version.cuda, home=CUDA_HOME,
    arch=sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in gpus}),
    python='cp%d%d' % sys.version_info[:2])))
"""


def check_compiler() -> None:
    if fault := remedies.compiler_fault():
        raise SetupError(fault)


def install_mmcv(s: Setup) -> str:
    there = s.installed()
    if s.upstream():
        return 'upstream OpenMMLab is there: left alone'
    if not s.managed and 'onedl-mmcv' in there:
        return f'onedl-mmcv {there["onedl-mmcv"]} was there'
    return install_compiled(s, there) if s.compile_mmcv else install_plain(s, there)


def install_plain(s: Setup, there: dict[str, str]) -> str:
    """mmcv without operators, which scalenet_mm/mmcv_ops takes from torch and torchvision."""
    version = s.pins['onedl-mmcv']
    if there.get('onedl-mmcv') == version:
        return f'{version} was there, {"compiled" if operators(s) else "without a compiler"}'
    # Isolated, the build sees no torch and so compiles nothing; MMCV_WITH_OPS=0 alone would not keep it from that.
    pip(s, 'install', '--no-deps', '--no-cache-dir', f'onedl-mmcv=={version}')
    if operators(s):
        raise SetupError('mmcv was built with operators though nobody asked for it: read the log')
    return f'{version}, without a compiler; its operators come from torchvision'


def operators(s: Setup) -> list[str]:
    """The compiled modules of the mmcv that is installed."""
    return [path.name for path in s.site().glob('mmcv/_ext*.so')]


def install_compiled(s: Setup, there: dict[str, str]) -> str:
    build = probe(s)
    key, recorded = wheel_key(s.pins['onedl-mmcv'], build), s.state / 'mmcv-wheel'
    same = there.get('onedl-mmcv') == s.pins['onedl-mmcv'] and recorded.exists() and operators(s)
    if same and recorded.read_text() == key:
        return f'{key} was there'
    folder = s.wheels / key
    cached = any(folder.glob('*.whl'))
    if not cached:
        compile_wheel(s, build, folder)
    # --no-deps: what mmcv requires comes, pinned, with the next step.
    options = '--force-reinstall', '--no-deps', '--no-index'
    pip(s, 'install', *options, next(folder.glob('*.whl')))
    recorded.write_text(key)
    return f'{key} {"from the wheel cache" if cached else "compiled"}'


def probe(s: Setup) -> dict:
    """Asks the environment's torch what mmcv is compiled for; `ops` is `cpu` or `cuda<version>`.

    CUDA ops need a GPU (or FORCE_CUDA=1) and an nvcc of the CUDA that torch was built for.
    """
    try:
        build = s.ask(PROBE)
    except subprocess.CalledProcessError as error:
        s.log.open('a').write(error.stderr)
        raise SetupError(f'torch does not import: delete {s.env} and run this again') from None
    nvcc = Path(build['home'] or '/nowhere', 'bin', 'nvcc')
    build['ops'] = 'cpu'
    if (build['arch'] or os.environ.get('FORCE_CUDA') == '1') and build['cuda'] and nvcc.exists():
        text = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
        release = re.search(r'release ((\d+)\.\d+)', text)
        if release and release[2] == build['cuda'].split('.')[0]:
            build['ops'] = f'cuda{release[1]}'
        else:
            print(f'      {nvcc} is not of CUDA {build["cuda"]} as torch is: CPU ops', flush=True)
    return build


def wheel_key(version: str, build: dict) -> str:
    """Names all that a compiled mmcv depends on: mmcv, torch, CUDA, GPU, Python, processor."""
    arch = os.environ.get('TORCH_CUDA_ARCH_LIST') or '+'.join(build['arch'])
    ops = build['ops'] + (f'-sm{arch}' if build['ops'] != 'cpu' and arch else '')
    key = f'onedl_mmcv-{version}-torch-{build["torch"]}-{ops}-{build["python"]}'
    return re.sub(r'[^\w.+-]', '_', f'{key}-{platform.machine()}')


def compile_wheel(s: Setup, build: dict, folder: Path) -> None:
    """Compiles mmcv into `folder`, which appears complete or not at all.

    Raises:
        SetupError: it did not compile, or came out without its ops.
    """
    check_compiler()
    cpu = build['ops'] == 'cpu'
    env = {
        'MMCV_WITH_OPS': '1',
        'FORCE_CUDA': '0' if cpu else '1',
        'MAX_JOBS': os.environ.get('MAX_JOBS') or str(jobs()),
    }
    if cpu:
        env['CUDA_VISIBLE_DEVICES'] = ''  # else mmcv's build asks for nvcc wherever a GPU is seen
    # Without isolation, so that the build sees torch; without pip's cache, which ignores torch.
    options = '-v --no-build-isolation --no-deps --no-cache-dir --no-binary=onedl-mmcv --wheel-dir'
    failed = 'mmcv did not compile: mend what the first "error:" in the log says and run this again'
    s.wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=s.wheels, prefix='building-') as scratch:
        new = Path(scratch, 'wheel')
        requirement = f'onedl-mmcv=={s.pins["onedl-mmcv"]}'
        pip(s, 'wheel', *options.split(), new, requirement, env=env, otherwise=failed)
        names = zipfile.ZipFile(next(new.glob('*.whl'))).namelist()
        if not any(re.match(r'mmcv/_ext\..*so$', name) for name in names):
            raise SetupError('mmcv was built without its ops although torch is there: read the log')
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():  # else another environment's set-up was faster
                raise


def jobs() -> int:
    """Compilers at once: one a core, and each may take 2 GB."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    return max(1, min(len(os.sched_getaffinity(0)), int(memory / 2)))
