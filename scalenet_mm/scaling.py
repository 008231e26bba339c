"""Weight sharing by Parameter identity: the only place that ties (Sec. III-B). torch only.

A scaled network is a container of complete blocks in which every instance holds its source's own Parameter
objects, except those of normalisation layers and adjustments. ``tie`` turns any container of blocks into one;
``scale_layers`` makes one from the layers of a live model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import torch
from torch import Tensor, nn

from .adapters import AdaptedLinear, Adjustment, parse_adjust
from .hosts import HostFacts, host_facts
from .layer_map import LayerMap

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
ADJUST_ON = ('all', 'reused')
STARTS = ('paper', 'function')


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation layer (torch's, or a class of its own called ...Norm, ...Norm2d)."""
    return isinstance(module, NORMS) or type(module).__name__.rstrip('123dD').endswith('Norm')


class MappedLayers:
    """Mixed into the class of a layer container by ``mapped``: its blocks are instances of a pretrained network's
    layers.
    """

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
        """Entry ``name`` of an instance that is no owner, from those of the pretrained layers; None where it has
        none.
        """
        raise NotImplementedError


class TiedLayers(MappedLayers):
    """Mixed into the class of a layer container by ``tie``: keeps the ties and keeps one key for one tensor."""

    def retie(self) -> None:
        """Every instance takes the Parameter (and buffer) objects of its owner. Idempotent."""
        if len(self) != len(self.layer_map):
            raise ValueError(
                f'The layer map has {len(self.layer_map)} instances, but the container now holds {len(self)} blocks; '
                'take a slice (a plain container) or scale the source layers anew instead of adding to a scaled '
                'container.'
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
                module._buffers.update(_persistent(owners[owner][name]))

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


_mixed_classes: dict[tuple[type, type], type] = {}


def _rebuild(mixin: type, host: type) -> nn.Module:
    return (made := _mixed(mixin, host)).__new__(made)


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


def _persistent(module: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}


def shared_names(block: nn.Module) -> list[str]:
    """Keys, relative to the block, of the tensors that instances of one source share."""
    return [
        prefix + name
        for prefix, module in shared_modules(block)
        for name, tensor in (module._parameters | _persistent(module)).items()
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


def check_stored_map(stored: list[int] | None, layer_map: LayerMap, where: str) -> None:
    """Raises ValueError if a file carries another layer map, since two maps can have the same keys.

    The unscaled network's map, every layer once, passes: such a file is one to be scaled.
    """
    known = (None, layer_map.sources, tuple(range(layer_map.depth)))
    if (None if stored is None else tuple(stored)) not in known:
        raise ValueError(
            f'The checkpoint was saved with another layer map at {where.rstrip(".") or "the top"}: file '
            f'{list(stored)}, model {list(layer_map.sources)}. Build the model with the scale of the file (sources, or '
            'growth and '
            'new_layers), or load the unscaled checkpoint.'
        )


def expand(state_dict: MutableMapping[str, Tensor], prefix: str, layers: MappedLayers) -> bool:
    """Turns the entries of an unscaled network into those of the scaled one, in place.

    Layers move to their owner's index; every other instance gets what ``layers.fill`` says (a copy of its source's
    norms where layers are tied); adjustments keep the values they have in ``layers``. Entries of a network that is
    scaled already are left alone.

    Returns:
        Whether the entries were those of the unscaled network.
    """
    layer_map = layers.layer_map
    entries = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
    parts = {k: k[len(prefix) :].partition('.')[::2] for k in entries}
    indices = {int(i) for i, _ in parts.values() if i.isdecimal()}
    if indices != set(range(layer_map.depth)):
        return False
    adjustments = {
        f'{name}.{k}': v.detach()
        for name, module in layers.named_modules()
        if isinstance(module, Adjustment)
        for k, v in module.named_parameters(recurse=False)
    }
    plain = not any(f'{i}.{rest}' in adjustments for i, rest in parts.values())
    if not plain:
        return False
    by_source: dict[str, dict[int, Tensor]] = {}
    for key, (index, rest) in parts.items():
        if index.isdecimal():
            by_source.setdefault(rest, {})[int(index)] = state_dict.pop(key)
    for rest, tensors in by_source.items():
        for i, source in enumerate(layer_map.sources):
            if source not in tensors:
                continue
            own = layer_map.owner(i) == i
            value = tensors[source] if own else layers.fill(i, rest, tensors)
            if value is not None:
                state_dict[f'{prefix}{i}.{rest}'] = value
    state_dict.update({prefix + k: v for k, v in adjustments.items()})
    return True


def adjust_layers(
    layers: TiedLayers,
    adjust: dict | None,
    adjust_on: str = 'all',
    start: str = 'paper',
    period: int = 1,
    facts: HostFacts | None = None,
) -> None:
    """Gives the instances of a tied container their adjustments and, if asked for, their gates.

    Args:
        adjust: ``dict(type='ParallelAdapter'|'LoRA', rank=..., targets=...)`` or None.
        adjust_on: ``'all'`` instances, or only ``'reused'`` ones, that share their tensors (Table III).
        start: ``'paper'`` starts from the plain deep net, ``'function'`` at the pretrained function (decision 8).
        period: of hosts whose layers alternate, see ``LayerMap.live``.
    """
    if adjust_on not in ADJUST_ON:
        raise ValueError(f'adjust_on must be one of {ADJUST_ON}, got {adjust_on!r}.')
    if start not in STARTS:
        raise ValueError(f'start must be one of {STARTS}, got {start!r}.')
    parsed = parse_adjust(adjust)
    if parsed is None and start == 'paper':
        return  # plain sharing asks nothing of the host
    live = layers.layer_map.live(period) if start == 'function' else range(len(layers))
    for i, block in enumerate(layers):
        known = facts or host_facts(block)
        for name, value in known.plain.items():
            setattr(block, name, value)
        adjusted = parsed is not None and (adjust_on == 'all' or layers.layer_map.is_reused(i))
        targets = parsed[1] if adjusted else ()
        gated = () if i in live else known.identity_at_zero()
        for target in dict.fromkeys((*targets, *gated)):
            for holder, name in known.linears(block, target):
                linear = getattr(holder, name)
                adapter = _like(linear, parsed[0]) if target in targets else None
                setattr(holder, name, AdaptedLinear.wrap(linear, adapter, gated=target in gated))


def _like(linear: nn.Linear, make: Callable[[int, int], Adjustment]) -> Adjustment:
    with torch.device(linear.weight.device):
        return make(linear.in_features, linear.out_features).to(linear.weight.dtype)


def scale_layers(
    layers: nn.Module,
    layer_map: LayerMap,
    adjust: dict | None = None,
    adjust_on: str = 'all',
    start: str = 'paper',
    period: int = 1,
    facts: HostFacts | None = None,
) -> nn.Module:
    """A tied container made from the layers of a live model of any origin, which it consumes.

    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> encoder.layers = scale_layers(encoder.layers, LayerMap.build(3, 2), dict(type='ParallelAdapter', rank=4))
    >>> len(encoder.layers)
    6

    Args:
        layers: ``nn.Sequential``, ``nn.ModuleList`` or a sequence of blocks; the owners are these very blocks.

    The other arguments are those of ``adjust_layers``.
    """
    if isinstance(layers, TiedLayers):
        raise ValueError(
            'These layers are scaled already, and scaling them again would lose track of what is shared; scale the '
            'source layers once, with the whole map: LayerMap(sources) or a larger times.'
        )
    if len(layers) != layer_map.depth:
        raise ValueError(
            f'The layer map names {layer_map.depth} source layers, but the network has {len(layers)}; '
            'build the map with LayerMap.build(len(layers), ...).'
        )
    blocks = [
        layers[source] if layer_map.owner(i) == i else _copy(layers[source])
        for i, source in enumerate(layer_map.sources)
    ]
    host = layers if isinstance(layers, nn.Module) else nn.ModuleList()
    container = type(host).__new__(type(host))
    container.__dict__ = {k: copy.copy(v) for k, v in vars(host).items()}  # hooks and flags stay
    container._modules = {str(i): block for i, block in enumerate(blocks)}
    tie(container, layer_map)
    adjust_layers(container, adjust, adjust_on, start, period, facts)
    return container


def _copy(block: nn.Module) -> nn.Module:
    """A copy with norms of its own; the tensors and the config it will share are not copied on the way."""
    shared = (t for _, m in shared_modules(block) for t in (*m._parameters.values(), *_persistent(m).values()))
    configs = (c for m in block.modules() if (c := vars(m).get('config')) is not None)
    return copy.deepcopy(block, {id(t): t for t in (*shared, *configs) if t is not None})
