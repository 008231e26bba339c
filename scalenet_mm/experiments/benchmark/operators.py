"""mmcv's operators from torch and torchvision (``mmcv_ops``) beside the compiled ones, by mmcv's own Python code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES

import torch
from torch import Tensor

from .cases import Case, Timed
from .kernels import compared
from .settings import Settings

COMPILED = 'mmcv._ext'


def compiled() -> bool:
    """Whether mmcv's own operators are there to compare with."""
    return str(getattr(import_module(COMPILED), '__file__', '')).endswith(tuple(EXTENSION_SUFFIXES))


def _beside(module: str, call: Callable[[], Tensor]) -> Timed:
    """``call`` with the compiled operators and with ours, put into the module of mmcv that calls them."""
    part = import_module(f'mmcv.ops.{module}')
    sides = {'compiled': import_module(COMPILED), 'supplied': import_module('scalenet_mm.mmcv_ops')}

    def run(side: str) -> Tensor:
        part.ext_module = sides[side]
        try:
            return call()
        finally:
            part.ext_module = sides['compiled']

    return compared('fp32', {side: partial(run, side) for side in sides})


def _boxes(s: Settings, count: int, size: float = 800.0) -> Tensor:
    corner = torch.rand(count, 2, device=s.device) * size
    return torch.cat((corner, corner + 8 + torch.rand(count, 2, device=s.device) * size / 4), 1)


def _nms(s: Settings, count: int) -> Timed:
    from mmcv.ops import nms

    boxes, scores = _boxes(s, count), torch.rand(count, device=s.device)
    return _beside('nms', lambda: nms(boxes, scores, 0.7)[1])


def _roi_align(s: Settings, count: int) -> Timed:
    from mmcv.ops import RoIAlign

    pool, level = RoIAlign(7, 1 / 8, 0), torch.randn(2, 256, 100, 100, device=s.device).requires_grad_()
    rois = torch.cat((torch.randint(0, 2, (count, 1), device=s.device), _boxes(s, count)), 1)

    def step() -> Tensor:
        level.grad = None
        pool(level, rois).sum().backward()
        return level.grad

    return _beside('roi_align', step)


def _focal(s: Settings, count: int) -> Timed:
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.randn(count, 80, device=s.device).requires_grad_()
    target = torch.randint(0, 81, (count,), device=s.device)

    def step() -> Tensor:
        logits.grad = None
        sigmoid_focal_loss(logits, target).backward()
        return logits.grad

    return _beside('focal_loss', step)


def _deformable(s: Settings, side: int) -> Timed:
    from mmcv.ops import ModulatedDeformConv2d

    conv, images = ModulatedDeformConv2d(64, 64, 3, padding=1).to(s.device), torch.randn(2, 64, side, side).to(s.device)
    offset, mask = (torch.randn(2, n, side, side, device=s.device) for n in (18, 9))

    def step() -> Tensor:
        conv.zero_grad()
        conv(images, offset, mask).sum().backward()
        return conv.weight.grad

    return _beside('modulated_deform_conv', step)


def cases(s: Settings) -> list[Case]:
    """None where mmcv was not compiled. mmcv's focal losses have no compiled form on the CPU."""
    if not compiled():
        return []
    few = s.size == 'micro'
    kinds = [('NMS', _nms, 100 if few else 2000), ('RoIAlign step', _roi_align, 16 if few else 512)]
    kinds += [('deformable step', _deformable, 8 if few else 56)]
    kinds += [('focal loss step', _focal, 20_000)] if s.device == 'cuda' else []
    return [Case('operators', f'{name} {size}', 'fp32', partial(make, s, size)) for name, make, size in kinds]
