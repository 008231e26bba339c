"""What ScaleNet adds to a run: optimizer constructor, DDP wrapper, hooks."""

from .delta_hook import ApplyDeltaHook, DeltaHook
from .gradient_hook import GradientNormHook
from .hooks import AnyDialectHook, RandomDepthHook
from .optim import ScaleNetOptimWrapperConstructor
from .wrapper import ScaleNetDistributedDataParallel

__all__ = [
    'AnyDialectHook',
    'ApplyDeltaHook',
    'DeltaHook',
    'GradientNormHook',
    'RandomDepthHook',
    'ScaleNetDistributedDataParallel',
    'ScaleNetOptimWrapperConstructor',
]
