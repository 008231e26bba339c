"""FLOPs of a live model, counted from the operations that its forward pass dispatches. torch only.

The counter is torch's own: it sees operations and not modules, so shared layers count once for each use, and nothing
has to be registered for adapters or host blocks. It runs on the meta device, where Base-size networks take neither
memory nor arithmetic, and where attention decomposes into the matrix products it consists of; torch does not count the
fused attention kernel of the CPU, and tracers such as fvcore leave ``scaled_dot_product_attention`` out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from .adapters import AdaptedLinear

INPUT_SIZE = (224, 224)  # Sec. IV-A


class meta_parameters(TorchFunctionMode):
    """Builds networks without storage for their weights: ``torch.empty`` gives tensors on the meta device.

    What a constructor computes (drop-path schedules, position indices) stays real, which
    ``with torch.device('meta')`` would break.

    >>> with meta_parameters():
    ...     nn.Linear(4, 4).weight.device
    device(type='meta')
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get('device') is None:
            kwargs['device'] = 'meta'
        return func(*args, **kwargs)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device, in eval mode; its weights are not copied on the way."""
    tensors = (t for group in (model.parameters(), model.buffers()) for t in group)
    model = copy.deepcopy(model, {id(t): t for t in tensors}).to('meta')
    model.eval()  # some hosts' return None
    return model


def to_count(model: nn.Module) -> nn.Module:
    """`on_meta` with parameters that ask for no gradient: torch's counter takes no view of one that does."""
    model = on_meta(model)
    constant = {p: nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}  # on meta before: theirs
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else constant[p]
    return model


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """torch's counter, for models on the meta device, on which torch refuses any autocast.

    Some hosts turn it off for their rotary embeddings on any device (transformers 4); no count depends on it.
    """
    autocast = torch.autocast

    def none_on_meta(device_type: str, *args, **kwargs):
        return nullcontext() if device_type == 'meta' else autocast(device_type, *args, **kwargs)

    torch.autocast = none_on_meta  # type: ignore[misc]
    try:
        with FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.autocast = autocast  # type: ignore[misc]


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its first convolution, 3 without one."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


@torch.no_grad()
def count_flops(model: nn.Module, input_size: tuple[int, int] = INPUT_SIZE, channels: int | None = None) -> int:
    """Multiply-adds of one forward pass of one image, as the paper counts: convolutions and matrix products.

    Norms, activations, softmax and sums are left out.

    Args:
        model: takes images ``(1, channels, H, W)``; left as it is.
        input_size: (H, W) in pixels.
        channels: of an image; by default those that the model takes.
    """
    channels = channels or image_channels(model)
    images = torch.zeros(1, channels, *input_size, device='meta')
    with flop_counter() as counter:
        to_count(model)(images)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


@contextmanager
def without_adjustments(model: nn.Module) -> Iterator[nn.Module]:
    """Takes the adapters (or LoRA) off ``model`` for a while: the plain deep network with shared layers."""
    linears = [m for m in model.modules() if isinstance(m, AdaptedLinear)]
    adapters = [linear.adapter for linear in linears]
    for linear in linears:
        linear.adapter = None
    try:
        yield model
    finally:
        for linear, adapter in zip(linears, adapters):
            linear.adapter = adapter
