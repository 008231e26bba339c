"""Wide layers in pieces of rows that stay in the processor's cache. torch only.

A tensor of more than 32 MiB is given back to the operating system when it is freed (glibc), and every page of the next
one is faulted in anew; in pieces, the hidden features of an MLP also never leave the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LARGE = 16 * 2**20  # bytes of hidden features from which on pieces pay
PIECE = 8 * 2**20


def in_pieces(branch: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """``branch(x)`` for a branch that treats tokens independently.

    Args:
        x: (..., C).
        width: of the branch's widest features.
    """
    nbytes = x.numel() // x.shape[-1] * width * x.element_size()
    if x.device.type != 'cpu' or nbytes <= LARGE:
        return branch(x)
    rows = x.reshape(-1, x.shape[-1]).tensor_split(-(-nbytes // PIECE))
    return torch.cat([branch(r) for r in rows]).view(*x.shape[:-1], -1)
