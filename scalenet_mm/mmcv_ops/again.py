"""Gradients of a plain forward, where the forward is all there is to say."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(forward: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Those of ``forward(*inputs)``, computed once more, times ``grad_output``; zero where an input takes no part."""
    with torch.enable_grad():
        again = [x.detach().requires_grad_() for x in inputs]
        found = torch.autograd.grad(forward(*again), again, grad_output, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))
