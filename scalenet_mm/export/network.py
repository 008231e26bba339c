"""What every file has in common: an input of prepared images, sizes, the library's results to agree with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.backbones.swin import SwinTransformer as DetectorSwin
from mmpretrain.models.backbones import SwinTransformer, VisionTransformer
from mmpretrain.models.utils.attention import ShiftWindowMSA
from mmseg.models.backbones.swin import SwinTransformer as SegmentorSwin
from torch import Tensor, nn

from ..core.flops import INPUT_SIZE, image_channels
from .size_free import LARGEST, generic_size, traceable, up

BACKBONES = (SwinTransformer, VisionTransformer, DetectorSwin, SegmentorSwin)  # and ours, which are of them
VALUES = 1e-4  # of the largest value, where that is above 1; of scores


class Agreement(NamedTuple):
    """How far a file's outputs are from the library's: the largest difference, and what is too far, or nothing."""

    difference: float
    wrong: str = ''


class Network(nn.Module):
    """A model as it goes into a file.

    ``forward`` takes prepared images (B, C, H, W) and gives one tensor for each of ``names``.

    Attributes:
        model: the library's model, float, on the CPU, in eval mode; ``traced`` is its copy that is exported.
        backbone: of both.
        free_batch: whether B is free, or 1.
        nms: whether results are final; a detector may give candidates before the last suppression.
        unit: what the graph pads H and W to a multiple of, with ``pad_value``.
        spare: share of the bytes that the graph's own constants (anchors, bins) may take beside the model's tensors.
    """

    names: tuple[str, ...]
    task: str
    free_batch = nms = True
    unit, pad_value = 1, 0.0
    spare = 0.02

    def __init__(self, model: nn.Module):
        super().__init__()
        object.__setattr__(self, 'model', copy.deepcopy(model).cpu().float().eval())
        self.traced = traceable(self.model).eval()

    @property
    def backbone(self) -> nn.Module:
        return self.model.backbone

    def padded(self, image: Tensor) -> Tensor:
        if self.unit == 1:
            return image
        high, wide = (up(side, self.unit) for side in image.shape[-2:])
        return F.pad(image, (0, wide - image.shape[-1], 0, high - image.shape[-2]), value=self.pad_value)

    def reference(self, image: Tensor) -> Sequence[Tensor]:
        """The library's own results, as ``forward`` gives them."""
        raise NotImplementedError

    def without_ties(self) -> AbstractContextManager:
        """While ``reference`` makes no ties by its own rounding."""
        return nullcontext()

    def compare(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Agreement:
        """The library's outputs with those of a file."""
        worst = 0.0
        for name, a, b in zip(self.names, ours, theirs, strict=True):
            if a.shape != b.shape:
                return Agreement(float('inf'), f'{name} has the shape {tuple(b.shape)}, torch gives {tuple(a.shape)}')
            difference = float((a - b).abs().max()) if a.numel() else 0.0
            worst = max(worst, difference)
            if not difference <= VALUES * max(1.0, float(a.abs().max()) if a.numel() else 0.0):
                return Agreement(worst, f'{name} differs by {difference:.2e}, more than {VALUES:.0e}')
        return Agreement(worst)

    # Sizes

    @property
    def channels(self) -> int:
        return image_channels(self.backbone)

    @property
    def default_size(self) -> tuple[int, int]:
        size = getattr(self.backbone, 'img_size', INPUT_SIZE)
        return tuple(size) if isinstance(size, Iterable) else (size, size)

    @property
    def step(self) -> int:
        """What the sides of an image have to be multiples of."""
        return self._stride() if isinstance(self.backbone, VisionTransformer) else 1

    @property
    def least(self) -> int:
        """The least free side: torch.export takes a side of one for a constant."""
        if isinstance(self.backbone, VisionTransformer):
            return 2 * self._stride()
        return self._stride() * 2 ** (len(self.backbone.stages) - 1) + 1

    def trace_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """An image size near ``size`` that is no special case."""
        if self.step > 1:
            return size[0] + self.step, size[1] + 2 * self.step
        steps = [self._stride() * 2**i for i in range(len(self.backbone.stages))]
        window = next(
            m.window_size for m in self.backbone.modules() if isinstance(getattr(m, 'window_size', None), int)
        )
        return generic_size(size, steps, window, self.unit)

    def _stride(self) -> int:
        stride = self.backbone.patch_embed.projection.stride
        return stride[0] if isinstance(stride, tuple) else stride

    def dimensions(self, dynamic: bool) -> dict[int, torch.export.Dim]:
        """What of the input's shape is free."""
        free = {0: torch.export.Dim('batch')} if self.free_batch else {}
        for axis, name in ((2, 'height'), (3, 'width')) if dynamic else ():
            count = torch.export.Dim(name, min=-(-self.least // self.step), max=LARGEST // self.step)
            free[axis] = count if self.step == 1 else self.step * count
        return free

    def require(self, size: tuple[int, ...], dynamic: bool) -> None:
        """Refuses, before any work, what cannot be exported.

        Raises:
            ValueError: with the part, its value and the way out.
        """
        backbone = self.backbone
        if not isinstance(backbone, BACKBONES):
            raise not_covered(
                'model.backbone',
                backbone,
                "ScaleNetSwin, ScaleNetDeiT, mmpretrain's Swin and ViT, and the Swin of mmdet and mmseg",
            )
        unit = 1 if dynamic else self.unit  # one size is padded before there are patches
        if any(up(side, unit) % self.step for side in size):
            raise ValueError(f'The size {tuple(size)} must be multiples of the patch size {self.step}.')
        if not dynamic:
            return
        if getattr(backbone, 'use_abs_pos_embed', False):
            raise ValueError('A Swin with absolute position embeddings has one image size; leave dynamic out.')
        windows = [m for m in backbone.modules() if isinstance(m, ShiftWindowMSA)]
        if not all(w.pad_small_map for w in windows):
            raise ValueError(
                'The image size of this Swin cannot be free: with pad_small_map=False (classification) it looks at the '
                'size to decide whether windows are shifted, and a graph has one of the two. Give size=(H, W) (--size '
                'H W) without dynamic, or build it with pad_small_map=True, as for detection and segmentation.'
            )


def not_covered(name: str, part: Any, covered: str) -> ValueError:
    return ValueError(f'{name} is a {type(part).__name__}, which is not covered by the export; covered are {covered}.')
