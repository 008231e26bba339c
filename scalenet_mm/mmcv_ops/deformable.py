"""Deformable convolution (v1, v2) by torchvision's kernels, and multi-scale deformable attention by grid sampling."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.ops import torchvision

from .again import gradients


def _settings(
    kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int, **groups: int
) -> tuple[int, ...]:
    """In torchvision's order: stride, padding and dilation, height first, then groups of channels and of offsets."""
    return dH, dW, padH, padW, dilationH, dilationW, groups['group'], groups['deformable_group']


def _mask(offset: Tensor) -> Tensor:
    """Of v1, which has none."""
    return offset.new_zeros(len(offset), 1)


def _bias(weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight))


def _backward(input: Tensor, offset: Tensor, weight: Tensor, grad_output: Tensor, settings: dict) -> tuple[Tensor, ...]:
    arguments = (grad_output, input, weight, offset, _mask(offset), _bias(weight), *_settings(**settings), False)
    return torchvision._deform_conv2d_backward(*arguments)


def _inside(grad: Tensor, offset: Tensor, weight: Tensor, *numbers: int) -> Tensor:
    """The gradient of ``offset``, 0 where a sample lies at -1 or before: mmcv ends there, torchvision behind it.

    Offsets of zero with a padding of one lie there at two borders.
    """
    height, width = weight.shape[2:]
    (*stride, pad_h, pad_w, dilation_h, dilation_w), (rows, columns) = numbers[:6], offset.shape[2:]
    places = offset.detach().unflatten(1, (-1, height, width, 2))  # (B, groups, kH, kW, 2, H', W')

    def regular(taps: int, step: int, outputs: int, stride: int, pad: int) -> Tensor:
        at = torch.arange(taps, device=offset.device)[:, None] * step
        return at + torch.arange(outputs, device=offset.device) * stride - pad

    y = places[:, :, :, :, 0] + regular(height, dilation_h, rows, stride[0], pad_h)[:, None, :, None]
    x = places[:, :, :, :, 1] + regular(width, dilation_w, columns, stride[1], pad_w)[:, None, :]
    inside = ((y > -1) & (x > -1)).unsqueeze(4).expand_as(places)
    return torch.where(inside.reshape(offset.shape), grad, 0)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    im2col_step: int = 0,
    **settings: int,
) -> None:
    """``input`` (B, C, H, W), ``offset`` (B, 2 x deformable_group x kH x kW, H', W'), y before x, into ``output``."""
    arguments = (input, weight, offset, _mask(offset), _bias(weight), *_settings(**settings), False)
    output.copy_(torchvision.deform_conv2d(*arguments))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    im2col_step: int = 0,
    **settings: int,
) -> None:
    found = _backward(input, offset, weight, grad_output, settings)
    grad_input.copy_(found[0])
    grad_offset.copy_(_inside(found[2], offset, weight, *_settings(**settings)))


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float = 1.0,
    im2col_step: int = 0,
    **settings: int,
) -> None:
    grad_weight.add_(_backward(input, offset, grad_weight, grad_output, settings)[1], alpha=scale)


def _modulated(kernel_h: int, kernel_w: int, with_bias: bool, bias: Tensor, weight: Tensor, **s: int) -> tuple:
    order = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group')
    return bias if with_bias else _bias(weight), tuple(s[name] for name in order)


def _as_read(maps: Tensor, like: Tensor) -> Tensor:
    """What the compiled operator reads of ``maps`` (B, C, H', W') where its output ``like`` has other sizes: of each
    sample the first values in the order of memory.

    mmdet's DyHead hands the offsets of a level to the next smaller one; its published weights were trained so.

    Raises:
        RuntimeError: if there are too few; the compiled operator would read on behind them.
    """
    size = like.shape[2:]
    if maps.shape[2:] == size:
        return maps
    if maps.shape[2:].numel() < size.numel():
        raise RuntimeError(
            f'modulated_deform_conv: offsets or masks of {tuple(maps.shape)} are too few for an output of '
            f'{tuple(like.shape)}; their height and width have to be its.'
        )
    return maps.flatten(1)[:, : maps.shape[1] * size.numel()].view(*maps.shape[:2], *size)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """As ``deform_conv_forward``, each sample times ``mask`` (B, deformable_group x kH x kW, H', W'), plus ``bias``."""
    bias, numbers = _modulated(bias=bias, weight=weight, **settings)
    offset, mask = (_as_read(maps, output) for maps in (offset, mask))
    output.copy_(torchvision.deform_conv2d(input, weight, offset, mask, bias, *numbers, True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **settings: int,
) -> None:
    bias, numbers = _modulated(bias=bias, weight=weight, **settings)
    offset, mask = (_as_read(maps, grad_output) for maps in (offset, mask))
    found = torchvision._deform_conv2d_backward(grad_output, input, weight, offset, mask, bias, *numbers, True)
    grad_input.copy_(found[0])
    grad_weight.copy_(found[1])
    grads = _inside(found[2], offset, weight, *numbers), found[3]
    for given, grad in zip((grad_offset, grad_mask), grads, strict=True):
        _as_read(given.zero_(), grad).copy_(grad)  # what was not read has no gradient
    if settings['with_bias']:
        grad_bias.copy_(found[4])


def _attention(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[list[int]]) -> Tensor:
    batch, _, heads, width = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    grids = 2 * locations - 1
    sampled, start = [], 0
    for level, (height, breadth) in enumerate(shapes):
        part = value[:, start : start + height * breadth]
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, width, height, breadth)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B x heads, queries, points, 2)
        sampled.append(F.grid_sample(maps, grid, mode='bilinear', padding_mode='zeros', align_corners=False))
        start += height * breadth
    weight = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(shapes) * points)
    out = (torch.stack(sampled, -2).flatten(-2) * weight).sum(-1)
    return out.view(batch, heads * width, queries).transpose(1, 2).contiguous()


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """(B, queries, heads x width) of values (B, pixels of all levels, heads, width).

    Locations are (B, queries, heads, levels, points, 2), x before y from 0 to 1; weights the same but for the 2.
    """
    return _attention(value, sampling_locations, attention_weights, spatial_shapes.tolist())


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int = 64,
) -> None:
    shapes = spatial_shapes.tolist()
    inputs = [value, sampling_locations, attention_weights]
    found = gradients(lambda *given: _attention(*given, shapes), inputs, grad_output)
    for given, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        given.copy_(grad)
