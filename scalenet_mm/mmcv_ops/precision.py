"""Half precision: torchvision's kernels know it in part, and a position of 600 pixels has no place in 8 bits."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)


def in_fp32(function: Callable) -> Callable:
    """The operator on fp32 copies of its half-precision tensors; what it wrote into goes back, rounded once."""

    @wraps(function)
    def call(*args, **kwargs):
        copies: list[tuple[torch.Tensor, torch.Tensor, int]] = []

        def widened(x: Any) -> Any:
            if not torch.is_tensor(x) or x.dtype not in HALF:
                return x
            with torch.inference_mode(False):  # else it would not count how often it is written into
                copy = x.detach().float()
            copies.append((x, copy, copy._version))
            return copy

        result = function(*map(widened, args), **{name: widened(x) for name, x in kwargs.items()})
        for half, copy, before in copies:
            if copy._version != before:
                half.copy_(copy)
        if copies and torch.is_tensor(result) and result.is_floating_point():
            return result.to(copies[0][0].dtype)
        return result

    return call
