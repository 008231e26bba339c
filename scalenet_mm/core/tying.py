"""Weight sharing by Parameter identity: the only place that ties (Sec. III-B). torch only.

A scaled network is a container of complete blocks in which every instance holds its source's own Parameter
objects, except those of normalisation layers and adjustments. ``tie`` turns any container of blocks into one;
``scale.scale_layers`` makes one from the layers of a live model.

From then on two places are tied if they hold one object, and only then: whatever is put on an instance later is its
own, and a tensor stays tied where it is moved to another name (a wrapped layer, a parametrization).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .adapters import Adjustment, refuse_scripting
from .guests import tell_guests
from .layer_map import LayerMap
from .spread import check_stored_map, expand

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
PRODUCTS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
NAMED_NORM = re.compile('(Norm|GRN)(?![a-z])')  # RmsNormFp32, LayerNorm2d, BatchNormAct2d, ConvNextV2GRN


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer: torch's, or one named so that holds no other layer."""
    named = NAMED_NORM.search(type(module).__name__) is not None and not isinstance(module, PRODUCTS)
    return isinstance(module, NORMS) or (named and all(is_norm(m) or not m.state_dict() for m in module.children()))


class MappedLayers:
    """Mixed into the class of a container by ``mapped``: its blocks are instances of a pretrained network's layers."""

    __prepare_scriptable__ = refuse_scripting
    layer_map: LayerMap
    shared_names: list[str]  # what ``shared_names`` said of the blocks when the network was scaled
    source_names: Sequence[str] = ()  # of the unscaled network's layers: '0', '1', ... but of a Sequential with names

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

    def _apply(self, fn, recurse=True):  # .to(), .half(), .to_empty(): some of them make new tensors
        tied = list(ties(self))
        super()._apply(fn, recurse)
        hold_one(tied)
        return self

    def complete(self, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
        """Every place of a tied tensor leads to the owner's entry."""
        for place, owner in ties(self):
            shared = state_dict.get(prefix + owner.key)
            if shared is None:
                continue
            if not _same(state_dict.get(prefix + place.key, shared), shared):
                raise ValueError(
                    f'{prefix + place.key} and {prefix + owner.key} are one tensor in this model, but the checkpoint '
                    'holds two different ones: it is of an independent-copy network. Load it into an unshared network.'
                )
            if isinstance(owner.tensor, nn.Parameter) and not isinstance(shared, nn.Parameter):
                shared = nn.Parameter(shared, owner.tensor.requires_grad)  # with assign=True torch takes it as it is
            state_dict[prefix + owner.key] = state_dict[prefix + place.key] = shared

    def fill(self, instance: int, name: str, by_source: Mapping[int, Tensor]) -> Tensor:
        """Norms are copied (Sec. III-B), and so is all else that is the instance's own."""
        return by_source[self.layer_map.sources[instance]].clone()


class Place(NamedTuple):
    """Where a tensor that a file keeps is held.

    Attributes:
        key: in the state dict of the container.
        held: the parameters or the buffers of the module that holds it, under ``name``.
    """

    key: str
    held: dict[str, Tensor]
    name: str

    @property
    def tensor(self) -> Tensor:
        return self.held[self.name]


def ties(layers: TiedLayers) -> Iterator[tuple[Place, Place]]:
    """Every place in which an instance holds a tensor of an earlier one of its source, and the first place of it.

    Raises:
        ValueError: if blocks were added or taken away.
    """
    if len(layers) != len(layers.layer_map):
        raise ValueError(
            f'The layer map has {len(layers.layer_map)} instances, but the container now holds {len(layers)} blocks; '
            'take a slice (a plain container) or scale the source layers anew instead of adding to this one.'
        )
    held: dict[int, dict[int, Place]] = {}  # by source, the tensors so far; the owner's, as a rule
    for i, block in enumerate(layers):
        source, mine = layers.layer_map.sources[i], list(_places(block, str(i)))
        first = held.get(source, {})
        yield from [(place, first[id(place.tensor)]) for place in mine if id(place.tensor) in first]
        held[source] = {id(place.tensor): place for place in reversed(mine)} | first


def _places(block: nn.Module, prefix: str) -> Iterator[Place]:
    for path, module in block.named_modules(prefix=prefix, remove_duplicate=False):
        for held, names in ((module._parameters, module._parameters), (module._buffers, persistent(module))):
            yield from (Place(f'{path}.{name}', held, name) for name in names if held[name] is not None)


def hold_one(tied: Iterable[tuple[Place, Place]]) -> None:
    """Gives each place the owner's tensor."""
    for place, owner in tied:
        place.held[place.name] = owner.tensor


def scaled_layers(model: nn.Module) -> list[tuple[str, MappedLayers]]:
    """Every tied or grown container inside ``model``, by name."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, MappedLayers)]


_mixed_classes: dict[tuple[type, type], type] = {}
_alive: WeakSet[MappedLayers] = WeakSet()  # all containers of this process


def _rebuild(mixin: type, host: type) -> nn.Module:
    made = object.__new__(_mixed(mixin, host))
    _alive.add(made)
    return made


def _mixed(mixin: type, host: type) -> type:
    if (mixin, host) not in _mixed_classes:
        name = mixin.__name__.removesuffix('Layers') + host.__name__
        _mixed_classes[mixin, host] = type(name, (mixin, host), {'__module__': __name__})
    return _mixed_classes[mixin, host]


def mapped(layers: nn.Module, layer_map: LayerMap, mixin: type[MappedLayers]) -> bool:
    """Makes a container of complete blocks a ``mixin``, in place; returns whether it was not one yet.

    Raises ValueError if the number of blocks is not the map's.
    """
    if len(layers) != len(layer_map):
        raise ValueError(
            f'The layer map has {len(layer_map)} instances, but the container holds {len(layers)} blocks; '
            'build the network at the scaled depth first, or call scale_layers on the source layers.'
        )
    if isinstance(layers, mixin) and layers.layer_map == layer_map:
        return False
    if isinstance(layers, MappedLayers):
        raise ValueError(
            f'These layers are tied or grown already, by the map {list(layers.layer_map.sources)}, and '
            f'{list(layer_map.sources)} asked for now would join or fill others; start from the source layers.'
        )
    layers.layer_map = layer_map
    names = list(layers._modules)
    layers.source_names = (vars(layers).get('source_names') or names)[: layer_map.depth]
    if type(layers).forward in (nn.Module.forward, nn.Sequential.forward):  # else it may call them by their names
        layers._modules = {str(i): block for i, block in enumerate(layers)}
    layers.shared_names = list(dict.fromkeys(name for block in layers for name in shared_names(block)))
    layers.__class__ = _mixed(mixin, type(layers))
    _alive.add(layers)
    layers._register_state_dict_hook(_store_layer_map)
    return True


def tie(layers: nn.Module, layer_map: LayerMap) -> nn.Module:
    """Ties a container of complete blocks in place; returns it.

    Of a tied one, ties the tensors of the host's own names again, after a tool has replaced each instance's by one of
    its own (a quantiser). What else was put on an instance stays its own.

    Args:
        layers: an ``nn.ModuleList`` or ``nn.Sequential`` with ``len(layer_map)`` blocks, else a ValueError.
    """
    if mapped(layers, layer_map, TiedLayers):
        layers._register_state_dict_hook(_one_tensor_one_key)
    _share(layers)
    return layers


def _share(layers: TiedLayers) -> None:
    """Every instance takes what has the names of shared tensors from its owner."""
    held = [{p.key.partition('.')[2]: p for p in _places(block, str(i))} for i, block in enumerate(layers)]
    for i, mine in enumerate(held):
        owner = held[layers.layer_map.owner(i)]
        hold_one((mine[name], owner[name]) for name in layers.shared_names if name in mine and name in owner)


def _store_layer_map(layers, state_dict, prefix, local_metadata) -> None:
    local_metadata['layer_map'] = list(layers.layer_map.sources)


def _one_tensor_one_key(layers, state_dict, prefix, local_metadata) -> None:
    for place, _ in ties(layers):
        state_dict.pop(prefix + place.key, None)


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


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def refuse_merging(model: nn.Module) -> None:
    """Raises ValueError if a network, or one layer of one, has adapters around a tied tensor that could be merged."""
    inside = _holders(model)
    for layers, places in _tied_places(inside):
        wrapped = [p.key for p in places if '.base_layer.' in p.key and id(p.held) in inside]
        if wrapped:
            name = next((f'{name}.' for name, m in model.named_modules() if m is layers and name), '')
            raise ValueError(
                f'Adapters cannot be merged into {name}{wrapped[0]}: one tensor serves several layers here, and each '
                'has an adapter of its own. Keep them beside the weights (save_pretrained of the PEFT model), or take '
                'them off with unload().'
            )


@contextmanager
def own_what_is_written(module: nn.Module) -> Iterator[None]:
    """Within, a tool may write into tensors of ``module``: of a tied one it gets its own, the others keep theirs."""
    inside = _holders(module)
    places = [place for _, found in _tied_places(inside) for place in found]
    outside = {id(p.tensor) for p in places if id(p.held) not in inside}
    tied = {id(p.tensor): p.tensor for p in places if id(p.held) in inside and id(p.tensor) in outside}
    before = [(tensor, tensor.data, tensor.detach().clone()) for tensor in tied.values() if not tensor.is_meta]
    known = {id(p.tensor): p.tensor for p in _places(module, '')}
    try:
        yield
    finally:
        for tensor, data, value in before:
            written = not _same(tensor.data, value)
            own = copy.deepcopy(tensor) if written else tensor
            for place in _places(module, ''):
                if place.tensor is tensor:
                    place.held[place.name] = own
                elif id(place.tensor) not in known and _storage(place.tensor) == _storage(data):
                    place.tensor.data = place.tensor.data.clone()  # a new Parameter that is a view of the tied one
            if written:
                tensor.data = data.copy_(value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _holders(model: nn.Module) -> set[int]:
    return {id(held) for m in model.modules() for held in (m._parameters, m._buffers)}


def _tied_places(inside: set[int]) -> Iterator[tuple[TiedLayers, list[Place]]]:
    """All tied containers with a holder in ``inside``, and all their places."""
    # a copy that failed half way, which an exception keeps, has no modules
    for layers in [m for m in _alive if isinstance(m, TiedLayers) and '_modules' in vars(m)]:
        if not inside.isdisjoint(id(m._parameters) for m in layers.modules()):
            yield layers, [place for pair in ties(layers) for place in pair]


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
        held = {k: p for k, p in layers.named_parameters(remove_duplicate=False) if _is_sharded(p)}
        owners = {i: layers.layer_map.owner(i) for i in range(len(layers))}
        pairs = [(f'{i}.{name}', f'{owner}.{name}') for i, owner in owners.items() for name in layers.shared_names]
        apart = [(a, b) for a, b in pairs if held.get(a) is not held.get(b)]
        if apart:
            raise RuntimeError(
                f'{len(apart)} tensors of {name or "the model"} are shared no more: {apart[0][0]} and {apart[0][1]} '
                f'were one tensor and are two now, because the blocks were sharded one by one; {AT_THE_ROOT}.'
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are DTensors, as ``fully_shard`` makes them."""
    return any(map(_is_sharded, model.parameters()))


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, 'device_mesh')


tell_guests(refuse_merging, own_what_is_written)  # here, so that a network that is unpickled is known as well
