"""Stochastic depth that computes the kept samples only (Huang et al., arXiv 1603.09382). torch only.

The dense form computes a branch for every sample and multiplies by zero. Here the branch runs on the samples that are
kept, with the same distribution: each by itself with probability 1 - rate, scaled by 1 / (1 - rate).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def draw(batch: int, rate: float) -> Tensor:
    """(B,) bool on the CPU: which samples keep the branch. Drawn there, since its sum decides the shapes."""
    return torch.rand(batch) >= rate


def sparse_residual(x: Tensor, branch: Callable[[Tensor], Tensor], rate: float, keep: Tensor | None = None) -> Tensor:
    """x + mask / (1 - rate) · branch(x), the branch on the kept samples only.

    If none is kept, the first one runs with weight 0: every parameter has a gradient in every step, as DDP needs it.

    Args:
        x: (B, ...).
        branch: treats samples independently.
        keep: (B,) bool; drawn by default.
    """
    keep = draw(len(x), rate) if keep is None else keep
    weight = 1 / (1 - rate)
    if keep.all():
        return torch.add(x, branch(x), alpha=weight)
    kept = keep.nonzero().flatten() if keep.any() else torch.zeros(1, dtype=torch.long)
    weight = weight if keep.any() else 0.0
    kept = kept.to(x.device, non_blocking=True)
    return x.index_add(0, kept, branch(x.index_select(0, kept)).to(x.dtype), alpha=weight)
