"""A run of any config: read, checked, launched, resumed to the bit, its files whole or not there."""

from .atomic import AtomicBackend, ScaleNetCheckpointHook, make_atomic
from .config import ScaleNetRunner
from .progress_hook import ProgressHook
from .resume import ReseedHook, SeededDataset, SeededSampler

__all__ = [
    'AtomicBackend',
    'ProgressHook',
    'ReseedHook',
    'ScaleNetCheckpointHook',
    'ScaleNetRunner',
    'SeededDataset',
    'SeededSampler',
    'make_atomic',
]
