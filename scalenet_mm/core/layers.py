"""Where a model keeps its transformer layers, and which of them stand for the same layer of the source network.

A container with a ``layer_map`` (tied or grown) says it itself. Of any other model, the containers are found whose
blocks all are of a known host (``hosts.host_facts``), or those that are named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from .hosts import holds_blocks
from .tying import shared_modules


def containers(model: nn.Module, names: Sequence[str] = ()) -> dict[str, tuple[list[nn.Module], tuple[int, ...]]]:
    """The layer instances of every container of layers, and the source layer of each, by the container's name.

    Args:
        model: a whole model or a backbone.
        names: patterns of containers of a model without a known host (``backbone.layer?``), besides the others.

    Raises:
        ValueError: if there is no such container.
    """
    found: dict[str, tuple[list[nn.Module], tuple[int, ...]]] = {}
    for name, module in model.named_modules():
        if any(not outer or name.startswith(f'{outer}.') for outer in found):
            continue
        blocks = list(module.children())
        layer_map = getattr(module, 'layer_map', None)
        if layer_map is not None:
            found[name] = blocks, tuple(layer_map.sources)
        elif any(fnmatchcase(name, pattern) for pattern in names) or holds_blocks(module):
            found[name] = blocks, tuple(range(len(blocks)))
    if not found:
        raise ValueError(
            f'No layers were found in {type(model).__name__}: no container has a layer map, or holds blocks of '
            'a known host (hosts.py). Name the containers of its layers: --layers PATTERN (backbone.layer?).'
        )
    return found


def instances(model: nn.Module, names: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Every layer in the order of the forward pass, by its name: ``{'backbone.layers.0': block, ...}``."""
    return {
        f'{name}.{i}'.lstrip('.'): block
        for name, (blocks, _) in containers(model, names).items()
        for i, block in enumerate(blocks)
    }


def source_layers(model: nn.Module, names: Sequence[str] = ()) -> dict[str, list[nn.Module]]:
    """The instances of every layer of the source network, by the name it has in there.

    >>> import scalenet_mm
    >>> deep = scalenet_mm.build('deit_t', scale=dict(times=2), num_classes=None)
    >>> [len(blocks) for blocks in source_layers(deep).values()]
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    found: dict[str, list[nn.Module]] = {}
    for name, (blocks, sources) in containers(model, names).items():
        of_container: dict[int, list[nn.Module]] = {}
        for source, block in zip(sources, blocks):
            of_container.setdefault(source, []).append(block)
        found |= {f'{name}.{s}'.lstrip('.'): of_container[s] for s in sorted(of_container)}
    return found


@contextmanager
def watched(blocks: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Calls ``see(index, output)`` with the output (B, ...) of every block while a model runs."""

    def hook(index: int):
        def look(module, args, output) -> None:
            see(index, output[0] if isinstance(output, (tuple, list)) else output)

        return look

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


TENSORS = ('shared', 'all')


def layer_tensors(
    model: nn.Module, tensors: str = 'shared', names: Sequence[str] = ()
) -> dict[str, list[nn.Parameter]]:
    """The parameters of every source layer, each tensor once.

    Args:
        tensors: ``'shared'``, those that all instances of a layer hold, or ``'all'``: norms and adjustments too.
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
