"""Linear CKA between the layers of two networks (Fig. 5), from minibatches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...core.layers import instances, watched
from .batches import number, see_images

SMALLEST = 4  # images a minibatch, which the unbiased estimator needs
CHUNK = 2**16  # features of an image that are doubles at a time


def gram(features: Tensor) -> Tensor:
    """Inner products of the images' features (n, ...), all positions and channels of an image as one vector: (n, n),
    double.
    """
    parts = features.detach().flatten(1).split(CHUNK, dim=1)
    return sum(part.double() @ part.double().T for part in parts)


def centred(k: Tensor) -> Tensor:
    """U-centred Gram matrices (..., n, n): the inner product of two of them is n (n - 3) times the unbiased HSIC."""
    n = k.shape[-1]
    k = k - torch.diag_embed(k.diagonal(dim1=-2, dim2=-1))
    rows = k.sum(-1) / (n - 2)
    whole = k.sum((-2, -1)) / ((n - 1) * (n - 2))
    k = k - rows[..., None] - rows[..., None, :] + whole[..., None, None]
    return k - torch.diag_embed(k.diagonal(dim1=-2, dim2=-1))


class MinibatchCKA:
    """Adds up the HSIC of every pair of layers over minibatches of equal size, as Nguyen et al. (2021) do.

    The unbiased estimator (Song et al., 2012): its expectation does not depend on the minibatches' size.
    """

    def __init__(self):
        self.cross = self.own_a = self.own_b = 0.0
        self.minibatches = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Takes Gram matrices of the same n images, (layers of A, n, n) and (layers of B, n, n).

        Raises:
            ValueError: if n is below 4.
        """
        n = a.shape[-1]
        if n < SMALLEST:
            raise ValueError(f'The unbiased estimator needs minibatches of at least {SMALLEST} images, got {n}.')
        a, b = (centred(k).flatten(1) / (n * (n - 3)) ** 0.5 for k in (a, b))
        self.cross = self.cross + a @ b.T
        self.own_a = self.own_a + a.square().sum(1)
        self.own_b = self.own_b + b.square().sum(1)
        self.minibatches += 1

    def result(self) -> Tensor:
        """CKA, (layers of A, layers of B); near 1 for equal representations, near 0 for unrelated ones."""
        return self.cross / (self.own_a[:, None] * self.own_b).sqrt()


@torch.no_grad()
def cka(a: nn.Module, b: nn.Module, batches: Iterable[dict], size: int, names=()) -> tuple[Tensor, int]:
    """CKA between all layer instances of two models in eval mode; the outputs of whole blocks are compared.

    Args:
        batches: raw, as the loader gives them.
        size: images a minibatch; a smaller one (the last) is left out.

    Returns:
        (layers of A, layers of B) in double, and the number of images.

    Raises:
        ValueError: if there is no whole minibatch, or ``size`` is below 4.
    """
    blocks = [list(instances(m, names).values()) for m in (a, b)]
    for model in (a, b):
        model.eval()
    summed = MinibatchCKA()
    for batch in batches:
        if number(batch) == size:
            summed.add(*(grams(m, found, batch) for m, found in zip((a, b), blocks)))
    if not summed.minibatches:
        raise ValueError(
            f'There are fewer than {size} images, so no whole minibatch; choose a smaller --batch (at least '
            f'{SMALLEST}).'
        )
    return summed.result().cpu(), summed.minibatches * size


def grams(model: nn.Module, blocks: list[nn.Module], batch: dict) -> Tensor:
    """The Gram matrix of the output of every block, (layers, n, n) in double; each output is let go at once."""
    found: dict[int, Tensor] = {}
    with watched(blocks, lambda i, x: found.update({i: gram(x)})):
        see_images(model, batch)
    return torch.stack([found[i] for i in range(len(blocks))])
