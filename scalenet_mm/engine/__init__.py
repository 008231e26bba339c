from .hooks import AnyDialectHook, ProgressHook
from .optim import ScaleNetOptimWrapperConstructor
from .resume import ReseedHook, SeededDataset, SeededSampler
from .wrapper import ScaleNetDistributedDataParallel

__all__ = [
    'AnyDialectHook',
    'ProgressHook',
    'ReseedHook',
    'ScaleNetDistributedDataParallel',
    'ScaleNetOptimWrapperConstructor',
    'SeededDataset',
    'SeededSampler',
]
