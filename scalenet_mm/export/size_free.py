"""Modules that compute the same for every image size without a branch, in place of those that look at the size."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmdet.models.backbones import swin as mmdet_swin
from mmpretrain.models.utils.attention import ShiftWindowMSA
from mmseg.models.backbones import swin as mmseg_swin
from torch import Tensor, nn

from ..ops import set_ops

LARGEST = 8192  # pixels of a side, where the size is free


def generic_size(size: tuple[int, int], steps: list[int], window: int, unit: int = 1) -> tuple[int, int]:
    """The least (H, W) above ``size`` that is no special case, for torch.export takes a coincidence for a rule.

    Not square, not whole units; in each stage more than a window, never whole windows.

    Args:
        size: (H, W).
        steps: stride of each stage, pixels.
        window: tokens of a window's side.
        unit: what H and W are padded to a multiple of.
    """

    def generic(side: int) -> bool:
        tokens = [-(-up(side, unit) // s) for s in steps]
        return (unit == 1 or side % unit > 0) and all(n > window and n % window for n in tokens)

    high = next(n for n in range(size[0] + 1, LARGEST) if generic(n))
    apart = max(high, size[1]) + steps[-1] * window  # another number of windows in each stage
    return high, next(n for n in range(apart, LARGEST) if generic(n))


def up(side, unit: int):
    """The next multiple of ``unit``, also of a symbolic size, without a branch."""
    return unit * ((side + unit - 1) // unit)


class _PadFirst:
    """Pads to whole windows before the host does: its branches on the size then go one way for every size."""

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        (h, w), (b, _, c) = hw_shape, query.shape
        high, wide = up(h, self.window_size), up(w, self.window_size)
        padded = F.pad(query.view(b, h, w, c), (0, 0, 0, wide - w, 0, high - h))
        out = super().forward(padded.flatten(1, 2), (high, wide))
        out = out.view(b, high, wide, c)
        for axis, side in ((1, h), (2, w)):  # torch.export would take a slice's size for a new unknown
            out = out.index_select(axis, torch.arange(side, device=out.device))
        return out.flatten(1, 2)


class _Windows(_PadFirst, ShiftWindowMSA):
    @staticmethod
    def get_attn_mask(hw_shape: tuple, window_size: int, shift_size: int, device=None) -> Tensor | None:
        """As the host's, whose slices are empty at some sizes: -100 between what the cyclic shift brought together."""
        if not shift_size:
            return None
        rows, columns = (torch.arange(n, device=device) >= n - shift_size for n in hw_shape)
        regions = (2 * rows[:, None].int() + columns)[None, :, :, None]
        windows = ShiftWindowMSA.window_partition(regions, window_size).view(-1, window_size**2)
        return torch.where(windows.unsqueeze(1) != windows.unsqueeze(2), -100.0, 0.0)

    @staticmethod
    def window_reverse(windows: Tensor, H, W, window_size: int) -> Tensor:
        """As the host's, whose ``int(...)`` makes the traced batch size a constant."""
        return _joined(windows, H, W, window_size)


class _DetectorWindows(_PadFirst, mmdet_swin.ShiftWindowMSA):
    def window_reverse(self, windows: Tensor, H, W) -> Tensor:
        return _joined(windows, H, W, self.window_size)


class _SegmentorWindows(_PadFirst, mmseg_swin.ShiftWindowMSA):
    window_reverse = _DetectorWindows.window_reverse


def _joined(windows: Tensor, high, wide, side: int) -> Tensor:
    """Windows (B * n, side, side, C) as maps (B, high, wide, C), for every B."""
    c = windows.shape[-1]
    x = windows.view(-1, high // side, wide // side, side, side, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, high, wide, c)


class _Padding(AdaptivePadding):
    """Bottom and right to multiples of the stride, also if there is nothing to pad."""

    def forward(self, x: Tensor) -> Tensor:
        high, wide = (up(n, s) for n, s in zip(x.shape[-2:], self.stride))
        return F.pad(x, (0, wide - x.shape[-1], 0, high - x.shape[-2]))


class _Pool(nn.AdaptiveAvgPool2d):
    """Means over bins whose borders follow the size, as two products."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.output_size
        rows, columns = (
            _bins(n, count) for n, count in zip(x.shape[-2:], (size, size) if isinstance(size, int) else size)
        )
        return rows.to(x) @ x @ columns.to(x).T


def _bins(side: int, count: int) -> Tensor:
    """Weights (count, side) of the means over ``count`` bins of a side."""
    bins, at = torch.arange(count)[:, None], torch.arange(side)
    inside = ((at >= bins * side // count) & (at < ((bins + 1) * side + count - 1) // count)).float()
    return inside / inside.sum(1, keepdim=True)


class _Unfold(nn.Unfold):
    """Patches side by side, whose number torch's own leaves open while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), (high, wide) = x.shape, self.kernel_size
        cut = x.view(b, c, h // high, high, w // wide, wide).permute(0, 1, 3, 5, 2, 4)
        return cut.reshape(b, c * high * wide, (h // high) * (w // wide))


SIZE_FREE = {
    ShiftWindowMSA: _Windows,
    mmdet_swin.ShiftWindowMSA: _DetectorWindows,
    mmseg_swin.ShiftWindowMSA: _SegmentorWindows,
    AdaptivePadding: _Padding,
    nn.Unfold: _Unfold,
    nn.AdaptiveAvgPool2d: _Pool,
}


def traceable(model: nn.Module) -> nn.Module:
    """A copy with the same tensors and outputs, whose modules compute the same for every size without branches."""
    made = set_ops(copy.deepcopy(model), 'plain')
    for module in made.modules():
        module.__class__ = SIZE_FREE.get(type(module), module.__class__)
    return made
