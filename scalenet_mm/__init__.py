"""ScaleNet for OpenMMLab: deeper pretrained vision transformers by shared layers (arXiv 2510.18431).

The core (``layer_map``, ``adapters``, ``scaling``, ``roles``) needs torch only. Where OpenMMLab is installed, importing
the package registers the backbones and the engine, so that ``custom_imports = dict(imports=['scalenet_mm'])`` is
enough.
"""

from importlib.util import find_spec

from .hosts import HostFacts, register_host
from .layer_map import LayerMap
from .live import rescale, scale
from .roles import Role, TrainPolicy
from .scaling import scale_layers, tie
from .version import __version__

__all__ = [
    'HostFacts',
    'LayerMap',
    'Role',
    'TrainPolicy',
    '__version__',
    'register_host',
    'rescale',
    'scale',
    'scale_layers',
    'tie',
]

if find_spec('mmengine') and find_spec('mmpretrain'):
    import io
    import sys
    from contextlib import redirect_stdout

    from . import compat

    compat.patch()  # before anything imports mmpretrain's models
    with redirect_stdout(io.StringIO()) as said:  # what they print is no part of a tool's output
        from . import backbones, distill, engine
        from .api import build, load
        from .checkpoint.reading import register_schemes

    register_schemes()
    for line in said.getvalue().splitlines():
        if line != 'Could not import OneDL':  # a data set of the maintained family's own
            print(line, file=sys.stderr)
    __all__ += ['backbones', 'build', 'distill', 'engine', 'load']
