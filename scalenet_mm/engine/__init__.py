from .atomic import AtomicBackend, ScaleNetCheckpointHook, make_atomic
from .delta_hook import ApplyDeltaHook, DeltaHook
from .elastic_hook import RandomDepthHook
from .gradient_hook import GradientNormHook
from .hooks import AnyDialectHook
from .optim import ScaleNetOptimWrapperConstructor
from .progress import ProgressHook
from .resume import ReseedHook, SeededDataset, SeededSampler
from .wrapper import ScaleNetDistributedDataParallel

__all__ = [
    'AnyDialectHook',
    'ApplyDeltaHook',
    'AtomicBackend',
    'DeltaHook',
    'GradientNormHook',
    'ProgressHook',
    'RandomDepthHook',
    'ReseedHook',
    'ScaleNetCheckpointHook',
    'ScaleNetDistributedDataParallel',
    'ScaleNetOptimWrapperConstructor',
    'SeededDataset',
    'SeededSampler',
    'make_atomic',
]
