"""Pooling of regions of interest; ``rois`` are (R, 5): image, x1, y1, x2, y2 in pixels of the input image."""

from itertools import product

import torch
from torch import Tensor
from torch.ops import torchvision

from .again import gradients

EMPTY = -10000.0  # of mmcv's CPU kernel: the maximum of a region without area


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The mean (``pool_mode`` 1) or maximum (0) of bilinear samples in each bin, into ``output`` (R, C, h, w)."""
    size = (aligned_height, aligned_width)
    if pool_mode:
        pooled = torchvision.roi_align(input, rois.to(input.dtype), spatial_scale, *size, sampling_ratio, aligned)
    else:
        pooled, y, x = _sampled_maximum(input, rois, size, spatial_scale, sampling_ratio, aligned)
        argmax_y.copy_(y)
        argmax_x.copy_(x)
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    size = (aligned_height, aligned_width)
    if pool_mode:
        grad = torchvision._roi_align_backward(
            grad_output, rois.to(grad_output.dtype), spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned
        )
    else:

        def at_the_maximum(features: Tensor) -> Tensor:
            return _bilinear(features[rois[:, 0].long()], argmax_y, argmax_x) * (argmax_y != -1)

        (grad,) = gradients(at_the_maximum, [grad_input], grad_output)
    grad_input.copy_(grad)


def _bilinear(features: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples of (R, C, H, W) at ``y`` and ``x``, each (R, C, h, w): zero beyond a pixel outside, else clamped."""
    height, width = features.shape[2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long().clamp(max=height - 1), x.floor().long().clamp(max=width - 1)
    below, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, along = (y - top), (x - left)
    flat = features.flatten(2)

    def pixel(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row * width + column).flatten(2)).view_as(y)

    upper = pixel(top, left) * (1 - along) + pixel(top, right) * along
    lower = pixel(below, left) * (1 - along) + pixel(below, right) * along
    return (upper * (1 - down) + lower * down) * inside


def _sampled_maximum(
    input: Tensor, rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest sample of each bin and where it lies; regions one by one, since each may have its own grid."""
    shape = (len(rois), input.shape[1], *size)
    best, best_y, best_x = (input.new_full(shape, value) for value in (EMPTY, -1, -1))
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (value * spatial_scale - 0.5 * aligned for value in corners)
        sides = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        places = []
        for start, side, bins in zip((y1, x1), sides, size, strict=True):
            step = side / bins
            grid = sampling_ratio if sampling_ratio > 0 else int(-(-side // bins))
            inner = (torch.arange(max(grid, 0), device=input.device, dtype=input.dtype) + 0.5) * step / max(grid, 1)
            places.append(start + step * torch.arange(bins, device=input.device)[:, None] + inner)
        y, x = (p.to(input.dtype) for p in places)
        if not (y.numel() and x.numel()):
            continue
        y = y[:, None, :, None].expand(*size, y.shape[1], x.shape[1]).flatten(2)
        x = x[None, :, None, :].expand(*size, y.shape[2] // x.shape[1], x.shape[1]).flatten(2)
        features = input[int(image)][None]
        where = [p.flatten()[None, None].expand(1, input.shape[1], -1) for p in (y, x)]
        values = _bilinear(features, where[0][..., None], where[1][..., None]).view(input.shape[1], *y.shape)
        best[r], at = values.max(-1)
        best_y[r], best_x[r] = (p.expand(input.shape[1], *p.shape).gather(-1, at[..., None])[..., 0] for p in (y, x))
    return best, best_y, best_x


def _bins(rois: Tensor, size: tuple[int, int], shape: torch.Size, spatial_scale: float) -> tuple[Tensor, ...]:
    """Begin and end of every bin, rows (R, h) and columns (R, w), cut at the map; of a region without area none."""
    ends = []
    width, height = ((rois[:, k + 2] + 1) * spatial_scale - rois[:, k] * spatial_scale for k in (1, 2))
    there = ((width > 0) & (height > 0))[:, None]
    for k, side, bins, limit in ((2, height, size[0], shape[2]), (1, width, size[1], shape[3])):
        start, step = (rois[:, k] * spatial_scale)[:, None], (side / bins)[:, None]
        steps = torch.arange(bins, device=rois.device, dtype=rois.dtype)
        begin = (steps * step + start).floor().clamp(0, limit).long()
        end = ((steps + 1) * step + start).ceil().clamp(0, limit).long()
        ends += [begin, torch.where(there, end, begin)]
    return (*ends, there)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The maximum of each bin into ``output`` (R, C, h, w), its pixel into ``argmax``; nothing in it gives 0 and -1."""
    top, below, left, right, there = _bins(rois, (pooled_height, pooled_width), input.shape, spatial_scale)
    output.zero_()
    argmax.copy_(torch.where(there, -1, 0)[..., None, None].expand_as(argmax))
    bounds = torch.cat((top, below, left, right), 1).tolist()
    for r, (image, bound) in enumerate(zip(rois[:, 0].long().tolist(), bounds)):
        y1, y2 = bound[:pooled_height], bound[pooled_height : 2 * pooled_height]
        x1, x2 = bound[-2 * pooled_width : -pooled_width], bound[-pooled_width:]
        for i, j in product(range(pooled_height), range(pooled_width)):
            width = x2[j] - x1[j]
            if y2[i] <= y1[i] or width <= 0:
                continue
            output[r, :, i, j], at = input[image, :, y1[i] : y2[i], x1[j] : x2[j]].flatten(1).max(-1)
            argmax[r, :, i, j] = (y1[i] + at // width) * input.shape[3] + x1[j] + at % width


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    channels, place = grad_input.shape[1], argmax.long()
    image = rois[:, 0].long()[:, None, None, None] * channels
    plane = image + torch.arange(channels, device=rois.device)[None, :, None, None]
    index = plane * grad_input[0, 0].numel() + place.clamp(min=0)
    grad_input.view(-1).index_add_(0, index.flatten(), (grad_output * (place >= 0)).flatten())
