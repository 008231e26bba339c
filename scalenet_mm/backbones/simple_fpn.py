"""The simple feature pyramid of ViTDet (Li et al., arXiv 2203.16527, Sec. 3): a neck for plain backbones."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmpretrain.models.utils import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Maps of strides 4, 8, 16 and 32 made side by side from the last map of a ViT, then coarser ones by subsampling.

    Args:
        in_channels: C of the backbone's map; a multiple of 4.
        out_channels: channels of every output.
        num_outs: number of outputs, at least 4; mmdet's Mask R-CNN takes 5.

    Raises:
        ValueError: for a number outside these rules.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, num_outs: int = 5, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if in_channels % 4 or num_outs < 4:
            raise ValueError(
                f'in_channels must be a multiple of 4 and num_outs at least 4, got {in_channels} and {num_outs}.'
            )
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        stride_4 = [
            nn.ConvTranspose2d(in_channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        ]
        stride_8 = [nn.ConvTranspose2d(in_channels, half, 2, stride=2)]
        stride_32 = [nn.MaxPool2d(2, ceil_mode=True)]
        scales = ((stride_4, quarter), (stride_8, half), ([], in_channels), (stride_32, in_channels))
        self.levels = nn.ModuleList(
            nn.Sequential(
                *rescale,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for rescale, channels in scales
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the pyramid.

        Args:
            inputs: maps of the backbone; the last one, (B, C, H, W) of stride 16, is used.

        Returns:
            (B, out_channels, 4 H, 4 W), (..., 2 H, 2 W), (..., H, W) and then halves, rounded up.
        """
        outs = [level(inputs[-1]) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
