"""Regional ``torch.compile``: one graph for all blocks of a shape, whatever their place, shift and drop-path rate.

Drop path enters as a tensor, window layout and bias enter as tensors, so blocks of a stage differ in data only. Sizes
are compiled once as they are and once for all others (torch's automatic dynamic shapes).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from .drop_path import draw
from .window import by_size

_compiled: dict[Hashable, Callable] = {}


def signature(block: nn.Module) -> Hashable:
    """What two blocks have in common that run the same graph."""
    return type(block), tuple((name, tensor.shape) for name, tensor in block.state_dict().items())


def compiled(block: nn.Module) -> Callable:
    """``type(block).body`` compiled, shared by all blocks of one ``signature``, which ``block.graph`` holds.

    torch counts recompilations for each code object and gives up after eight: each signature gets a copy of the code.
    """
    key = block.graph
    if key not in _compiled:
        body = type(block).body
        code = body.__code__.replace(co_name=f'body_{len(_compiled)}')
        copy = types.FunctionType(code, body.__globals__, code.co_name, body.__defaults__)
        _compiled[key] = torch.compile(copy)
    return _compiled[key]


def branch_weights(x: Tensor, drops: list[nn.Module]) -> list[Tensor]:
    """For each drop path (B, 1, 1): 0 for a dropped sample, else 1 / (1 - rate); 1 in evaluation."""
    weights = []
    for place, drop in enumerate(drops):
        rate = getattr(drop, 'drop_prob', 0.0) if drop.training else 0.0
        if rate:
            keep = draw(len(x), rate) / (1 - rate)
            weights.append(keep.to(x.device, non_blocking=True)[:, None, None])
        else:
            weights.append(filled(1.0, (len(x), 1, 1), place, x.device))
    return weights


@by_size(64)
def filled(value: float | bool, shape: tuple[int, ...], place: int, device: torch.device) -> Tensor:
    """A constant that is made once: on a GPU making it takes as long as a small layer.

    Args:
        place: of the argument; one tensor at two places would be another graph.
    """
    return torch.full(shape, value, device=device)
