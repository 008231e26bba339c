"""Weight sharing by Parameter identity: the only place that ties (Sec. III-B). torch only.

A scaled network is a container of complete blocks in which every instance holds its source's own Parameter
objects, except those of normalisation layers and adjustments. ``tie`` turns any container of blocks into one;
``scale.scale_layers`` makes one from the layers of a live model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

import torch
from torch import Tensor, nn

from .adapters import Adjustment
from .layer_map import LayerMap
from .spread import check_stored_map, expand

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer (torch's, or a class of its own called ...Norm, ...Norm2d)."""
    return isinstance(module, NORMS) or type(module).__name__.rstrip('123dD').endswith('Norm')


class MappedLayers:
    """Mixed into the class of a container by ``mapped``: its blocks are instances of a pretrained network's layers."""

    layer_map: LayerMap

    def __getitem__(self, index):  # a slice is a plain container of the host's class: its map would be another one
        if not isinstance(index, slice):
            return super().__getitem__(index)
        host, blocks = type(self).__bases__[1], list(self)[index]
        return host(*blocks) if issubclass(host, nn.Sequential) else host(blocks)

    def __reduce__(self):  # the class is made at run time, so pickle and deepcopy are told how
        return _rebuild, type(self).__bases__, self.__dict__

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        check_stored_map(local_metadata.get('layer_map'), self.layer_map, prefix)
        expand(state_dict, prefix, self)
        self.complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def complete(self, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
        """Adds the keys that torch expects beside those of a file."""

    def fill(self, instance: int, name: str, by_source: Mapping[int, Tensor]) -> Tensor | None:
        """Entry ``name`` of an instance that is no owner, from the pretrained layers' ones; None where it has none."""
        raise NotImplementedError


class TiedLayers(MappedLayers):
    """Mixed into the class of a layer container by ``tie``: keeps the ties and keeps one key for one tensor."""

    def retie(self) -> None:
        """Every instance takes the Parameter (and buffer) objects of its owner. Idempotent."""
        if len(self) != len(self.layer_map):
            raise ValueError(
                f'The layer map has {len(self.layer_map)} instances, but the container now holds {len(self)} blocks; '
                'take a slice (a plain container) or scale the source layers anew instead of adding to this one.'
            )
        owners: dict[int, dict[str, nn.Module]] = {}
        for i, layer in enumerate(self):
            owner = self.layer_map.owner(i)
            mine = dict(shared_modules(layer))
            if owner == i:
                owners[i] = mine
                continue
            assert mine.keys() == owners[owner].keys(), 'instances of one source must have the same structure'
            for name, module in mine.items():
                module._parameters.update(owners[owner][name]._parameters)
                module._buffers.update(persistent(owners[owner][name]))

    def _apply(self, fn, recurse=True):  # .to(), .half(), .to_empty(): some of them make new Parameters
        super()._apply(fn, recurse)
        self.retie()
        return self

    def complete(self, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
        """Every instance's keys of a shared tensor lead to the owner's."""
        for key, owner in tied_keys(self):
            shared = state_dict.get(prefix + owner)
            if shared is not None and not _same(state_dict.setdefault(prefix + key, shared), shared):
                raise ValueError(
                    f'{prefix + key} and {prefix + owner} are one tensor in this model, but the checkpoint holds two '
                    'different ones: it is of an independent-copy network. Load it into an unshared network.'
                )

    def fill(self, instance: int, name: str, by_source: Mapping[int, Tensor]) -> Tensor | None:
        """Norms are copied (Sec. III-B); all else is the owner's."""
        block = self[instance]
        own = set(block.state_dict(keep_vars=True)) - set(shared_names(block))
        return by_source[self.layer_map.sources[instance]].clone() if name in own else None


def scaled_layers(model: nn.Module) -> list[tuple[str, MappedLayers]]:
    """Every tied or grown container inside ``model``, by name."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, MappedLayers)]


_mixed_classes: dict[tuple[type, type], type] = {}


def _rebuild(mixin: type, host: type) -> nn.Module:
    made = _mixed(mixin, host)
    return object.__new__(made)


def _mixed(mixin: type, host: type) -> type:
    if (mixin, host) not in _mixed_classes:
        name = mixin.__name__.removesuffix('Layers') + host.__name__
        _mixed_classes[mixin, host] = type(name, (mixin, host), {'__module__': __name__})
    return _mixed_classes[mixin, host]


def mapped(layers: nn.Module, layer_map: LayerMap, mixin: type[MappedLayers]) -> bool:
    """Makes a container of complete blocks a ``mixin``, in place; returns whether it was not one yet.

    Raises:
        ValueError: if the number of blocks is not the map's.
    """
    if len(layers) != len(layer_map):
        raise ValueError(
            f'The layer map has {len(layer_map)} instances, but the container holds {len(layers)} blocks; '
            'build the network at the scaled depth first, or call scale_layers on the source layers.'
        )
    layers.layer_map = layer_map
    if isinstance(layers, mixin):
        return False
    if isinstance(layers, MappedLayers):
        raise ValueError('These layers are tied or grown already; start from the source layers.')
    layers.__class__ = _mixed(mixin, type(layers))
    layers._register_state_dict_hook(_store_layer_map)
    return True


def tie(layers: nn.Module, layer_map: LayerMap) -> nn.Module:
    """Ties a container of complete blocks in place; returns it.

    Args:
        layers: an ``nn.ModuleList`` or ``nn.Sequential`` with ``len(layer_map)`` blocks of one structure.

    Raises:
        ValueError: if the number of blocks is not the map's.
    """
    if mapped(layers, layer_map, TiedLayers):
        layers._register_state_dict_hook(_one_tensor_one_key)
        layers.register_load_state_dict_post_hook(_after_load)
    assert isinstance(layers, TiedLayers)
    layers.retie()
    return layers


def _store_layer_map(layers, state_dict, prefix, local_metadata) -> None:
    local_metadata['layer_map'] = list(layers.layer_map.sources)


def _one_tensor_one_key(layers, state_dict, prefix, local_metadata) -> None:
    for key, _ in tied_keys(layers):
        state_dict.pop(prefix + key, None)


def _after_load(layers, incompatible_keys) -> None:
    layers.retie()


def shared_modules(block: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """The modules of a block whose own tensors are shared: all but norms, adjustments and what lies in them."""
    if is_norm(block) or isinstance(block, Adjustment):
        return
    yield prefix, block
    for name, child in block.named_children():
        yield from shared_modules(child, f'{prefix}{name}.')


def persistent(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module itself that a file keeps."""
    held = module._buffers.items()
    return {k: v for k, v in held if v is not None and k not in module._non_persistent_buffers_set}


def shared_names(block: nn.Module) -> list[str]:
    """Keys, relative to the block, of the tensors that instances of one source share."""
    return [
        prefix + name
        for prefix, module in shared_modules(block)
        for name, tensor in (module._parameters | persistent(module)).items()
        if tensor is not None
    ]


def tied_keys(layers: TiedLayers) -> Iterator[tuple[str, str]]:
    """(key of a tied tensor, key of its owner), relative to the container, for every instance but the owners."""
    for i, layer in enumerate(layers):
        owner = layers.layer_map.owner(i)
        if owner != i:
            yield from ((f'{i}.{name}', f'{owner}.{name}') for name in shared_names(layer))


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


AT_THE_ROOT = 'shard the whole model with one call, fully_shard(model), or use DistributedDataParallel'


def require_tied(model: nn.Module) -> None:
    """Call it on a model that was wrapped or sharded, before the first forward pass.

    Raises:
        RuntimeError: if FSDP1 wraps tied layers (its ``state_dict()`` cannot leave a tied tensor out), or if layers
            that shared a tensor hold one each (``fully_shard`` of single blocks, which unties silently).
    """
    tied = [(name, m) for name, m in model.named_modules() if isinstance(m, TiedLayers)]
    kinds = {kind.__name__ for m in model.modules() for kind in type(m).__mro__}
    if tied and 'FullyShardedDataParallel' in kinds:
        raise RuntimeError(
            'FullyShardedDataParallel (FSDP1) cannot hold tied layers: it flattens them, and its state_dict() fails on '
            f'tensors that are stored once; {AT_THE_ROOT}.'
        )
    for name, layers in tied:
        held = dict(layers.named_parameters(remove_duplicate=False))
        apart = [(a, b) for a, b in tied_keys(layers) if held.get(a) is not held.get(b)]
        if apart:
            raise RuntimeError(
                f'{len(apart)} tensors of {name or "the model"} are shared no more: {apart[0][0]} and {apart[0][1]} '
                f'were one tensor and are two now, because the blocks were sharded one by one; {AT_THE_ROOT}.'
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are DTensors, as ``fully_shard`` makes them."""
    return any(hasattr(p, 'device_mesh') for p in model.parameters())
