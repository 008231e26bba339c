"""Histograms of the activations of layers (Fig. 4), counted batch by batch: no activation is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...core.layers import instances, watched
from .batches import see_images

RANGE = (-10.0, 10.0)  # of the x axis of Fig. 4
BINS = 200


@dataclass
class Histogram:
    """Counts of values in equal bins over ``RANGE``, and the moments of all values."""

    bins: int = BINS
    counts: Tensor = field(init=False)
    number: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __post_init__(self):
        self.counts = torch.zeros(self.bins, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        for part in values.detach().flatten().split(2**22):  # doubles of 32 MB at a time
            part = part.double()
            self.counts += torch.histc(part, self.bins, *RANGE).cpu()
            self.number += part.numel()
            self.total += float(part.sum())
            self.squares += float(part.square().sum())

    def summary(self) -> dict:
        """``density`` a bin (its integral is the share of the values inside), share ``outside``, ``mean`` and
        ``std``.
        """
        width, mean = (RANGE[1] - RANGE[0]) / self.bins, self.total / self.number
        return dict(
            density=(self.counts / (self.number * width)).tolist(),
            outside=1 - float(self.counts.sum()) / self.number,
            mean=mean,
            std=max(self.squares / self.number - mean**2, 0.0) ** 0.5,
            values=self.number,
        )


def uniformly(depth: int, number: int) -> list[int]:
    """Up to ``number`` layers of ``depth``, evenly spread, the first and the last among them.

    >>> uniformly(12, 4)
    [0, 4, 7, 11]
    """
    steps = max(min(number, depth) - 1, 1)
    return sorted({round(i * (depth - 1) / steps) for i in range(min(number, depth))})


@torch.no_grad()
def histograms(
    model: nn.Module, batches: Iterable[dict], layers: int = 4, bins: int = BINS, names=()
) -> dict[str, dict]:
    """The distribution of the outputs of uniformly sampled layer instances, in eval mode.

    Args:
        batches: raw, as the loader gives them.
        layers: how many layers are sampled.

    Returns:
        ``Histogram.summary`` by the instance's name, with its position ``layer`` (0-based) in the network.
    """
    model.eval()
    blocks = instances(model, names)
    chosen = {i: list(blocks)[i] for i in uniformly(len(blocks), layers)}
    found = [Histogram(bins) for _ in chosen]
    with watched([blocks[name] for name in chosen.values()], lambda i, x: found[i].add(x)):
        for batch in batches:
            see_images(model, batch)
    return {name: dict(layer=i, **histogram.summary()) for (i, name), histogram in zip(chosen.items(), found)}
