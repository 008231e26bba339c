"""The l2 norm of the gradient of every layer of the source network (Fig. 3).

What is in the norm: the weights that instances of a source layer share, i.e. every tensor of the layer but those of its
norms and adjustments: qkv, proj, fc1, fc2 with their biases, and position tables. A tied tensor has one gradient, the
sum over its instances. The same tensors are taken of the unscaled network, so the models are compared on the same
parameters. ``tensors='all'`` adds norms and adjustments, of all instances of the source layer. Where instances are
independent copies (the growth baselines), the norm is over the tensors of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ..scaling import shared_modules
from .batches import loss_of, number, prepared
from .layers import source_layers

TENSORS = ('shared', 'all')


def layer_tensors(
    model: nn.Module, tensors: str = 'shared', names: Sequence[str] = ()
) -> dict[str, list[nn.Parameter]]:
    """The parameters of every source layer, each tensor once.

    Args:
        tensors: ``'shared'`` or ``'all'``, see above.
        names: see ``layers.containers``.

    Raises:
        ValueError: for another value of ``tensors``, or if there are no layers.
    """
    if tensors not in TENSORS:
        raise ValueError(f'tensors must be one of {TENSORS}, got {tensors!r}.')

    def of(block: nn.Module) -> Iterable[nn.Parameter]:
        if tensors == 'all':
            return block.parameters()
        return (p for _, m in shared_modules(block) for p in m.parameters(recurse=False))

    return {
        name: list({id(p): p for block in blocks for p in of(block)}.values())
        for name, blocks in source_layers(model, names).items()
    }


def norms(layers: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, float]:
    """The l2 norm of the gradients of each layer as one vector; layers without a gradient are left out."""
    found = {name: [p.grad for p in params if p.grad is not None] for name, params in layers.items()}
    each = {
        name: torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        for name, grads in found.items()
        if grads
    }
    return {name: float(norm) for name, norm in each.items()}


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
        loss = loss_of(model, prepared(model, batch)) * n
        loss.backward()
        summed, images = summed + float(loss.detach()), images + n
    if not images:
        raise ValueError('There are no images to take a gradient of.')
    found = {name: norm / images for name, norm in norms(layers).items()}
    model.zero_grad(set_to_none=True)
    return found, summed / images, images
