"""Registers what the package brings, and names what it offers."""

from importlib.util import find_spec

from .core.hosts import HostFacts, register_host
from .core.layer_map import LayerMap
from .core.roles import Role, TrainPolicy
from .core.tying import tie
from .ops import rescale, scale, scale_layers

PUBLIC = dict(
    HostFacts=HostFacts,
    LayerMap=LayerMap,
    Role=Role,
    TrainPolicy=TrainPolicy,
    register_host=register_host,
    rescale=rescale,
    scale=scale,
    scale_layers=scale_layers,
    tie=tie,
)

if find_spec('mmengine') and find_spec('mmpretrain'):
    from . import compat, mmcv_finder  # noqa: F401  the second brings mmcv's operators where they were not compiled

    compat.patch()  # before anything imports mmpretrain's models
    with compat.importing_libraries():
        from . import backbones, engine, runner  # noqa: F401
        from .checkpoint.reading import register_schemes
        from .models import distill  # noqa: F401
        from .models.adoption import init
        from .models.build import build, load

    register_schemes()
    PUBLIC |= dict(build=build, init=init, load=load)
