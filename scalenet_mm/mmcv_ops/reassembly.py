"""Operators that gather neighbourhoods: CARAFE (arXiv 1905.02188), masked convolution, PSANet's masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .again import gradients


def _carafe(features: Tensor, masks: Tensor, kernel: int, groups: int, factor: int) -> Tensor:
    batch, channels, height, width = features.shape
    near = F.unfold(features, kernel, padding=(kernel - 1) // 2).view(batch, channels, kernel**2, height, 1, width, 1)
    weights = masks.view(batch, groups, 1, kernel**2, height, factor, width, factor)
    near = near.view(batch, groups, channels // groups, kernel**2, height, 1, width, 1)
    return (near * weights).sum(3).view(batch, channels, height * factor, width * factor)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Each pixel of ``output`` (B, C, sH, sW) is the sum of its neighbours in (B, C, H, W), weighted by ``masks``."""
    output.copy_(_carafe(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    sizes = (kernel_size, group_size, scale_factor)
    found = gradients(lambda *given: _carafe(*given, *sizes), [features, masks], grad_output)
    grad_input.copy_(found[0])
    grad_masks.copy_(found[1])


def carafe_forward(
    features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor, output: Tensor, **sizes: int
) -> None:
    """The same; ``rfeatures`` keeps what the backward needs."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, **sizes)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **sizes: int,
) -> None:
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **sizes)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """The neighbourhoods of the named pixels of an image (1, C, H, W), into ``col`` (C x kh x kw, pixels)."""
    rows = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    down, along = (torch.arange(n, device=im.device) for n in (kernel_h, kernel_w))
    y, x = mask_h_idx[None, None] + down[:, None, None], mask_w_idx[None, None] + along[None, :, None]
    col.copy_(rows[:, y, x].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Puts the columns (C, pixels) back at the named pixels of ``im`` (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col


def _places(height: int, width: int, h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int, device) -> tuple:
    """Where pixel, mask entry and the pixel that the entry speaks of meet: four indices of equal length."""
    ranges = (torch.arange(n, device=device) for n in (height, width, h_mask, w_mask))
    y, x, i, j = torch.meshgrid(*ranges, indexing='ij')
    other_y, other_x = i + y - half_h_mask, j + x - half_w_mask
    inside = (other_y >= 0) & (other_y < height) & (other_x >= 0) & (other_x < width)
    here, other = y * width + x, other_y * width + other_x
    return (i * w_mask + j)[inside], y[inside], x[inside], here[inside], other[inside]


def psamask_forward(
    input: Tensor, output: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int, **mask: int
) -> None:
    """``input`` (B, masks, H, W) spread over ``output`` (B, H x W, H, W); type 0 collects, 1 distributes."""
    entry, y, x, here, other = _places(h_feature, w_feature, **mask, device=input.device)
    into, place = (other, here) if psa_type == 0 else (here, other)
    output.view(num_, h_feature * w_feature, -1)[:, into, place] = input[:, entry, y, x]


def psamask_backward(
    grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int, **mask: int
) -> None:
    entry, y, x, here, other = _places(h_feature, w_feature, **mask, device=grad_output.device)
    into, place = (other, here) if psa_type == 0 else (here, other)
    grad_input[:, entry, y, x] = grad_output.reshape(num_, h_feature * w_feature, -1)[:, into, place]
