"""Relative position bias tables for another window size."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Resize a Swin bias table to another window size, as Swin's authors do when fine-tuning.

    Bicubic over the two axes of relative offsets, each head on its own.

    Args:
        table: `((2W - 1)^2, heads)`, a table of window size W.
        window: The window size wanted.

    Returns:
        `((2 * window - 1)^2, heads)` in the table's dtype; the table itself when the size is
        the same.

    Raises:
        ValueError: If the table is not the table of a square window.
    """
    side = math.isqrt(table.shape[0]) if table.ndim == 2 else 0
    if table.ndim != 2 or side * side != table.shape[0] or side % 2 == 0:
        raise ValueError(
            'a relative position bias table has shape ((2W - 1)^2, heads) for a square window of '
            f'size W, got {tuple(table.shape)}; tables of non-square windows cannot be resized'
        )
    if window < 1:
        raise ValueError(f'the window size must be at least 1, got {window}')
    size = 2 * window - 1
    if size == side:
        return table
    grid = table.T.reshape(1, -1, side, side)  # (1, heads, 2W - 1, 2W - 1)
    grid = F.interpolate(grid.float(), size=(size, size), mode='bicubic', align_corners=False)
    return grid.flatten(2)[0].T.contiguous().to(table.dtype)
