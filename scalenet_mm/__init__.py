"""ScaleNet for OpenMMLab: deeper pretrained vision transformers by shared layers (arXiv 2510.18431).

Importing the package registers backbones, wrapper and hooks where OpenMMLab is installed, so that
``custom_imports = dict(imports=['scalenet_mm'])`` is enough. The command line alone starts without.
"""

import sys
from importlib import import_module
from pathlib import Path

from .version import __version__

__all__ = [
    'HostFacts',
    'LayerMap',
    'Role',
    'TrainPolicy',
    '__version__',
    'build',
    'load',
    'register_host',
    'rescale',
    'scale',
    'scale_layers',
    'tie',
]


def __getattr__(name: str):
    """The first use of a name below the command line imports everything."""
    if name in __all__:
        globals().update(vars(import_module('.registration', __name__))['PUBLIC'])
        if name in globals():
            return globals()[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


if Path(sys.argv[0] if sys.argv else '').name not in ('-m', 'scalenet'):  # `scalenet --help` is there at once
    globals().update(vars(import_module('.registration', __name__))['PUBLIC'])
