"""The l2 norm of the gradient of every layer of the source network (Fig. 3); docs/analysis.md says of which tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from ...core.layers import layer_tensors, norms
from .batches import loss_of, number, prepared


def gradient_norms(
    model: nn.Module, batches: Iterable[dict], tensors: str = 'shared', names: Sequence[str] = ()
) -> tuple[dict[str, float], float, int]:
    """Gradient norms of the mean loss of all images, accumulated batch by batch.

    Every batch counts by its images, so where the loss is a mean over images (classifiers), the batches' size changes
    nothing. In eval mode: no drop path, drop-out, mixup or batch statistics. Every parameter gets a gradient, frozen or
    not.

    Args:
        batches: raw, as the loader gives them.

    Returns:
        norm by name of the source layer, mean loss, number of images.
    """
    model.eval()
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    layers, summed, images = layer_tensors(model, tensors, names), 0.0, 0
    for batch in batches:
        n = number(batch)
        loss = loss_of(model, prepared(model, batch, for_loss=True)) * n
        loss.backward()
        summed, images = summed + float(loss.detach()), images + n
    if not images:
        raise ValueError('There are no images to take a gradient of.')
    found = {name: norm / images for name, norm in norms(layers).items()}
    model.zero_grad(set_to_none=True)
    return found, summed / images, images
