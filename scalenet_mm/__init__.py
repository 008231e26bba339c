"""ScaleNet for OpenMMLab: deeper pretrained vision transformers by shared layers (arXiv 2510.18431).

Importing the package registers backbones, wrapper and hooks where OpenMMLab is installed, so that
``custom_imports = dict(imports=['scalenet_mm'])`` is enough. The command line alone starts without.
"""

import sys
from pathlib import Path

from .version import __version__

__all__ = [
    'HostFacts',
    'LayerMap',
    'Role',
    'TrainPolicy',
    '__version__',
    'build',
    'init',
    'load',
    'register_host',
    'rescale',
    'scale',
    'scale_layers',
    'tie',
]


def _register() -> None:
    from .registration import PUBLIC

    globals().update(PUBLIC, __all__=['__version__', *PUBLIC])  # without OpenMMLab there is less


def __getattr__(name: str):
    """Below the command line, the first use of a name imports everything."""
    if name in __all__:
        _register()
        if name in globals():
            return globals()[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _is_command_line() -> bool:
    """Whether this is ``scalenet`` or ``python -m scalenet_mm``, not ``python -m`` a package that imports this one."""
    name = Path(sys.argv[0] if sys.argv else '').name
    return name == 'scalenet' or (name == '-m' and ('-m', __name__) in zip(sys.orig_argv, sys.orig_argv[1:]))


if not _is_command_line():  # whose --help is there at once
    _register()
