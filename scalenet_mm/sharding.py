"""Refuses what takes shared tensors apart: some ways to shard a model over processes (decision 2). torch only."""

from __future__ import annotations

from torch import nn

from .scaling import TiedLayers, tied_keys

AT_THE_ROOT = 'shard the whole model with one call, fully_shard(model), or use DistributedDataParallel'


def require_tied(model: nn.Module) -> None:
    """Call it on a model that was wrapped or sharded, before the first forward pass.

    Raises:
        RuntimeError: if FSDP1 wraps tied layers (its ``state_dict()`` cannot leave a tied tensor out), or if layers
            that shared a tensor hold one each (``fully_shard`` of single blocks, which unties silently).
    """
    tied = [(name, m) for name, m in model.named_modules() if isinstance(m, TiedLayers)]
    flat = [type(m).__name__ for m in model.modules() if tied and _is_fsdp1(m)]
    if flat:
        raise RuntimeError(
            f'{flat[0]} (FSDP1) cannot hold tied layers: it flattens them, and its state_dict() fails on tensors that '
            f'are stored once; {AT_THE_ROOT}.'
        )
    for name, layers in tied:
        held = dict(layers.named_parameters(remove_duplicate=False))
        apart = [(a, b) for a, b in tied_keys(layers) if held.get(a) is not held.get(b)]
        if apart:
            raise RuntimeError(
                f'{len(apart)} tensors of {name or "the model"} are shared no more: {apart[0][0]} and {apart[0][1]} '
                'were '
                f'one tensor and are two now, because the blocks were sharded one by one; {AT_THE_ROOT}.'
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are DTensors, as ``fully_shard`` makes them."""
    return any(hasattr(p, 'device_mesh') for p in model.parameters())


def _is_fsdp1(module: nn.Module) -> bool:
    return any(c.__name__ == 'FullyShardedDataParallel' for c in type(module).__mro__)
