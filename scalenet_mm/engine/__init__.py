from .hooks import AnyDialectHook
from .optim import ScaleNetOptimWrapperConstructor
from .resume import ReseedHook, SeededDataset, SeededSampler
from .wrapper import ScaleNetDistributedDataParallel

__all__ = [
    'AnyDialectHook',
    'ReseedHook',
    'ScaleNetDistributedDataParallel',
    'ScaleNetOptimWrapperConstructor',
    'SeededDataset',
    'SeededSampler',
]
