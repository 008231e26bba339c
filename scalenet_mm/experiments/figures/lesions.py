"""What each layer instance of a trained network is worth: top-1 and loss without it (lesions, arXiv 1605.06431)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...core.layers import containers, instances
from .accuracy import Change


@contextmanager
def left_out(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these blocks hand on the state that they are given, tied or not (``depth.set_depth`` is of tied ones).

    Raises:
        ValueError: when one runs whose output has not the shape of its input.
    """
    handles = [block.register_forward_hook(_handed_on, with_kwargs=True, prepend=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _handed_on(block: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
    state = next(iter((*args, *kwargs.values())))
    several = isinstance(output, (tuple, list))
    made = output[0] if several else output
    if not isinstance(state, torch.Tensor) or state.shape != made.shape:
        raise ValueError(
            f'{type(block).__name__} makes {tuple(made.shape)} of {tuple(getattr(state, "shape", ()))}, so nothing can '
            'stand in its place; this figure is of layers that keep the shape of their input.'
        )
    return type(output)((state, *output[1:])) if several else state


def lesions(model: nn.Module, measure: Callable[[Sequence[Change]], list[dict]], names: Sequence[str] = ()) -> dict:
    """Leaves out each layer instance alone, and those together that come on top of the source's.

    Args:
        measure: the result of each change of the model, see ``accuracy.evaluate``.
        names: see ``layers.containers``.

    Returns:
        ``whole``: of the model as it is; ``layers``: a dict an instance in the order of the forward pass, with its
        name, its ``source`` layer (0-based) in its container, whether it was ``added``, and the result without it;
        ``without_added``: that without all of these, None where there are none.
    """
    blocks = instances(model, names)
    layers = [
        dict(source=source, added=source in sources[:i])
        for _, sources in containers(model, names).values()
        for i, source in enumerate(sources)
    ]
    every = [block for layer, block in zip(layers, blocks.values()) if layer['added']]
    tried = [[], *([block] for block in blocks.values()), *([every] if every else [])]
    whole, *results = measure([partial(left_out, some) for some in tried])
    without_added = results.pop() if every else None
    return dict(
        whole=whole,
        layers=[dict(layer=name, **layer, **found) for name, layer, found in zip(blocks, layers, results)],
        without_added=without_added,
    )
