"""mmcv's compiled operators from torch and torchvision, for an mmcv that was installed without a compiler.

Loaded as ``mmcv._ext`` where the compiled module is missing (``mmcv_finder.py``), never imported otherwise. Names
and arguments are those of the compiled functions, which write into tensors that mmcv's Python code hands over.
"""

from inspect import isfunction

from . import deformable, focal_loss, reassembly, roi, suppression
from .precision import in_fp32

SUPPLIED = {
    name: in_fp32(function)
    for part in (deformable, focal_loss, reassembly, roi, suppression)
    for name, function in vars(part).items()
    if isfunction(function) and function.__module__ == part.__name__ and not name.startswith('_')
}
ABOUT = dict.fromkeys(('get_compiler_version', 'get_compiling_cuda_version'), lambda: 'not compiled')
COMPILE = 'bash tools/setup_env.sh --compile-mmcv'


def __getattr__(name: str):
    """An operator; of one that is not here the import works, and calling it says what to do."""
    if name.startswith('_'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f"mmcv's operator {name!r} needs a compiled mmcv, and this one was installed without a compiler. Compile "
            f'it with: {COMPILE} (elsewhere: MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary :all: mmcv). '
            f'Without a compiler there are: {", ".join(sorted(SUPPLIED))}.'
        )

    return (SUPPLIED | ABOUT).get(name, missing)
