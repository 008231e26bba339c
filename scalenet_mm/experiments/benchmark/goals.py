"""The goals of docs/performance.md as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """What one pair is to reach."""

    id: str
    what: str  # ours over theirs unless it says otherwise
    bounds: Mapping[str, float]  # by device, or device and dtype or setting of the peer, which go before it
    better: str = 'lower'  # or 'higher'
    floor: str = ''  # what the bound cannot pass at equal efficiency; measured beside it

    def bound(self, device: str, dtype: str = '', setting: str = '') -> float | None:
        keys = f'{device} {setting}', f'{device} {dtype}', device
        return next((self.bounds[k] for k in keys if k in self.bounds), None)

    def text(self, bound: float | None) -> str:
        sign = '<=' if self.better == 'lower' else '>='
        return '' if bound is None else f'{sign} {bound:g}'

    def met(self, value: float, bound: float) -> bool:
        return value <= bound if self.better == 'lower' else value >= bound


STEP_FLOPS = 'multiply-adds of the two steps'
FORWARD_FLOPS = 'multiply-adds of the two forward passes'

GOALS = {
    goal.id: goal
    for goal in (
        Goal(
            'P1',
            "train step, frozen + adapters, over mmdet's Swin of the same depths fully fine-tuned",
            {'cpu': 0.75, 'cuda': 0.45, 'cuda compiled': 0.75, 'cuda best': 0.75},
            floor=STEP_FLOPS,
        ),
        Goal(
            'P2',
            "train step over mmdet's Swin, frozen alike and given plain adapters",
            {'cpu': 0.90, 'cuda': 0.55},
            floor=STEP_FLOPS,
        ),
        Goal(
            'P3',
            "inference speed, times that of timm's Swin of equal depth; ours carries adapters",
            {'cpu': 1.0, 'cpu bf16': 1.1, 'cuda': 2.0, 'cuda compiled': 1.2, 'cuda best': 1.2},
            'higher',
            FORWARD_FLOPS,
        ),
        Goal(
            'P4',
            "inference speed, times that of timm's ViT of equal depth without adapters",
            {'cpu': 0.95, 'cuda': 0.95},
            'higher',
            FORWARD_FLOPS,
        ),
        Goal(
            'P5',
            "adapters' share of the forward time: CPU times their share of the FLOPs, GPU percentage points above it",
            {'cpu': 1.5, 'cuda': 3.0},
            floor='time in proportion to multiply-adds',
        ),
        Goal(
            'P6', "bytes saved for the backward pass, over mmdet's Swin fully fine-tuned", {'cpu': 0.50, 'cuda': 0.45}
        ),
        Goal(
            'P7',
            'optimizer + gradient + weight bytes, over the unshared network of equal depth',
            {'cpu': 0.15, 'cuda': 0.15, 'cpu bf16 frozen': 0.085, 'cuda bf16 frozen': 0.085},
        ),
        Goal(
            'P8',
            'delta file less 64 KB, over its trainable bytes',
            {'cpu': 1.05, 'cuda': 1.05},
            floor='the bytes themselves',
        ),
        Goal('P9', 'time that x2 ... x4 of depth add for each x1, over the time of x1', {'cpu': 1.03, 'cuda': 1.02}),
        Goal(
            'P10',
            'train step with sparse over dense drop path, rate 0.5 in the last block',
            {'cpu': 0.80, 'cuda': 0.80},
            floor='mean share of kept branches',
        ),
        Goal(
            'ablation',
            "P1's step with switches alone, together, and all but one, over mmdet's Swin fully fine-tuned",
            {},
            floor=STEP_FLOPS,
        ),
        Goal(
            'kernels',
            "forms of adapters and window attention, and an adapter's narrow products, over the first one",
            {},
        ),
        Goal('operators', "mmcv's operators from torch and torchvision, over the compiled ones", {}),
        Goal('startup', "import, building and loading, over the host's", {}),
        Goal('data', "data loading in the shipped configs, over a training step's time", {}),
        Goal('latency', "one image through Mask R-CNN and UPerNet, over the stock detector's of equal depth", {}),
        Goal('detectors', "whole steps of Mask R-CNN and UPerNet, over the stock detector's", {}),
    )
}
DEFAULT = [name for name in GOALS if name.startswith('P')]
