"""What a benchmark run is asked for, and the sizes it runs at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...ops import Ops

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16}


def _swin(width: int, depths: tuple, heads: tuple) -> dict:
    return dict(embed_dims=width, depths=depths, num_heads=heads)


def _vit(width: int, layers: int) -> dict:
    return dict(embed_dims=width, num_layers=layers, num_heads=width // 64, feedforward_channels=4 * width)


HEADS = (3, 6, 12, 24)
ARCHS = {  # of the pretrained networks; scaled as the paper scales them
    'Swin-T': _swin(96, (2, 2, 6, 2), HEADS),
    'Swin-S': _swin(96, (2, 2, 18, 2), HEADS),
    'DeiT-T': _vit(192, 12),
    'DeiT-B': _vit(768, 12),
}
MICRO = {  # for tests
    'Swin-T': _swin(32, (2, 2, 2, 2), (1, 2, 2, 4)),
    'Swin-S': _swin(32, (2, 2, 4, 2), (1, 2, 2, 4)),
    'DeiT-T': _vit(64, 2),
    'DeiT-B': _vit(128, 2),
}
CONFIGS = ('scalenet_mm::scalenet_swin_t_100e.py', 'scalenet_mm::scalenet_deit_b_100e.py')


@dataclass(frozen=True)
class Size:
    """Architectures and images of a run."""

    archs: Mapping[str, Any] = field(default_factory=lambda: ARCHS)
    image: int = 224
    window: int = 7
    batch: int | None = None  # replaces every batch size
    configs: tuple[str, ...] = CONFIGS  # whose deltas are written
    rss: bool = True  # measure the memory of fresh processes too


SIZES = {
    'full': Size(),
    'quick': Size(batch=1),
    'micro': Size(MICRO, 64, 2, 2, ('scalenet_mm::demo/upernet_scalenet_swin_digits.py',), rss=False),
}


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    device: str = 'cpu'
    size: str = 'full'
    rounds: int = 7
    warmup: int = 2
    ops: Mapping[str, Any] = field(default_factory=dict)  # switches of our networks that are not the defaults
    dtypes: tuple[str, ...] | None = None  # timed ones; None leaves each pair its own
    compiled: bool = False  # measure compiled networks too
    case: str = ''  # only cases with this in their name

    @property
    def at(self) -> Size:
        return SIZES[self.size]

    def batches(self, cpu: tuple[int, ...]) -> tuple[int, ...]:
        """The batch sizes of a pair on this device and at this size."""
        return (self.at.batch,) if self.at.batch else (64,) if self.device == 'cuda' else cpu

    def timed(self, *dtypes: str) -> tuple[str, ...]:
        return dtypes if self.dtypes is None else self.dtypes

    def our_ops(self, **switches: Any) -> dict[str, Any]:
        return Ops.read({**self.ops, **switches}).as_dict()


def parse_ops(text: str) -> dict[str, Any]:
    """Reads ``'linear=plain,recompute=True'``.

    Raises:
        ValueError: for what is no ``switch=choice``, naming the choices.
    """
    values = {'True': True, 'False': False, 'None': None}
    pairs = [item.strip().partition('=') for item in text.split(',') if item.strip()]
    ops = {name: values.get(value, value) for name, _, value in pairs}
    Ops.read(ops)
    return ops
