"""What two- and one-stage detectors do with boxes, for one image and without a branch on how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torchvision
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

SMALLEST = abs(float(np.log(16 / 1000)))  # of the log of a side's ratio, mmdet's wh_ratio_clip


def several(count: int) -> None:
    """torch.export asks of each count that follows from the image whether it is 0 or 1: it is told "more".

    The operations are the same for every count, so the graph runs with none and one too, which the check of a written
    file shows.
    """
    if torch.compiler.is_exporting():
        torch._check(count >= 2)


def where(mask: Tensor) -> Tensor:
    """Indices (n,) of the true entries of ``mask`` (N,)."""
    found = mask.nonzero().squeeze(1)
    several(found.shape[0])
    return found


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, most: int) -> Tensor:
    """Indices of what non-maximum suppression within each group keeps, by falling score, ``most`` at the most.

    Boxes (N, 4) of a group are moved to a place of their own, as mmcv's ``batched_nms`` does.
    """
    apart = groups.to(boxes) * (torch.cat((boxes.flatten(), boxes.new_zeros(1))).max() + 1)
    kept = torchvision.ops.nms(boxes + apart[:, None], scores, overlap)
    several(kept.shape[0])
    kept = kept[:most]
    several(kept.shape[0])
    return kept


def decode(coder: DeltaXYWHBBoxCoder, boxes: Tensor, deltas: Tensor, shape: Sequence[int]) -> Tensor:
    """Boxes (..., 4) moved by what a head predicts (..., 4), cut at the image of ``shape`` (H, W) pixels."""
    d = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    centres, sides = (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]
    centres, sides = centres + sides * d[..., :2], sides * d[..., 2:].clamp(-SMALLEST, SMALLEST).exp()
    x1, y1, x2, y2 = torch.cat((centres - sides * 0.5, centres + sides * 0.5), -1).unbind(-1)
    if coder.clip_border:
        (x1, x2), (y1, y2) = ([v.clamp(0, n) for v in pair] for pair, n in (((x1, x2), shape[1]), ((y1, y2), shape[0])))
    return torch.stack((x1, y1, x2, y2), -1)


def pool(extractor: SingleRoIExtractor, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Features (n, C, h, w) of boxes (n, 4), each from the level of its size."""
    rois = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), 1)
    levels = levels[: extractor.num_inputs]
    size = extractor.roi_layers[0].output_size
    pooled = rois.new_zeros(rois.shape[0], extractor.out_channels, *size)
    which = extractor.map_roi_levels(rois, len(levels))
    for i, (level, layer) in enumerate(zip(levels, extractor.roi_layers, strict=True)):
        at = where(which == i)
        found = torchvision.ops.roi_align(
            level, rois[at], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        pooled = pooled.index_copy(0, at, found)
    return pooled


def paste(masks: Tensor, boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Masks (n, h, w) of boxes (n, 4) in an image: (n, H, W), bilinear, 0 outside a box.

    A bilinear sample is a product of two hat functions, so a mask is placed by two products of matrices. That of a box
    without area is empty (mmdet fills it with the mask's central value).
    """

    def hats(low: Tensor, high: Tensor, side: int, cells: int) -> Tensor:
        at = (torch.arange(side, device=low.device) + 0.5 - low[:, None]) / (high - low)[:, None] * cells - 0.5
        return (1 - (at[:, :, None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0).nan_to_num(0.0)

    rows = hats(boxes[:, 1], boxes[:, 3], shape[0], masks.shape[1])
    columns = hats(boxes[:, 0], boxes[:, 2], shape[1], masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)
