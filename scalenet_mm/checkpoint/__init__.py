"""Checkpoints in and out: reading, dialects, strict comparison."""

from .dialects import head_to_mmpretrain, recognise, rewrite, split, to_host
from .reading import read_checkpoint, register_schemes, unwrap
from .strict import CheckpointError, Differences, compare, require

__all__ = [
    'CheckpointError',
    'Differences',
    'compare',
    'head_to_mmpretrain',
    'read_checkpoint',
    'recognise',
    'register_schemes',
    'require',
    'rewrite',
    'split',
    'to_host',
    'unwrap',
]
