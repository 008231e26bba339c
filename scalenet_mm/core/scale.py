"""Scaling a live network of any origin (timm, Hugging Face, plain torch) in one call. torch only.

``scale_layers`` makes tied layers, ``positions`` tells each of them where it stands now.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .adapters import ADAPTER_RANK, AdaptedLinear, Adjustment, as_data, parse_adjust
from .find import _require_one_width, _stages, blocks_of, tower
from .hosts import HostFacts, host_facts
from .layer_map import LayerMap, by_stage, stage_maps
from .positions import (
    alternation,
    configs_in,
    drop_path,
    moving,
    own_configs,
    place,
    refuse_by_layer,
    require_kinds,
    set_drop_path,
    tell_depth,
)
from .positions import period as period_of
from .tying import TiedLayers, persistent, shared_modules, tie

ADJUST = dict(type='ParallelAdapter', rank=ADAPTER_RANK)
ADJUST_ON, STARTS = ('all', 'reused'), ('paper', 'function')


def scale(
    model: nn.Module,
    times: float | Sequence[float] = 2,
    order: str | None = None,
    layers: str | Iterable[int] = 'all',
    stages: str | Iterable[int] | None = None,
    sources: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
    adjust: Mapping[str, Any] | None = ADJUST,
    adjust_on: str | None = None,
    start: str = 'paper',
    facts: HostFacts | None = None,
) -> nn.Module:
    """Scales the depth of a live network by shared layers, in place; the paper's defaults.

    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> len(scale(encoder, times=2).layers)
    6

    Args:
        model: a network whose blocks lie in one list or sequence, or in one a stage (see ``blocks_of``).
        times: depth factor n; for several stages also one factor each.
        order: ``'interpolate'`` or ``'stack'``; by default the first for one container, the second for stages (Sec.
            IV).
        layers: the layers that are reused, ``'all'`` or 0-based indices, in each scaled container.
        stages: of several containers, those that are scaled, by index or name, or ``'all'``; by default the last, or
            those that ``sources`` or a list of ``times`` names. Where a network has several towers (an image and a text
            encoder), only those that are named are touched.
        sources: the whole layer map, of several stages ``{stage: map}``, by index or name; replaces ``times``,
            ``order`` and ``layers`` there.
        adjust: ``dict(type='ParallelAdapter'|'LoRA', rank=..., targets=...)`` or None.
        adjust_on: ``'all'`` instances or the ``'reused'`` ones; by default 'all', of a single container with
            partial ``layers`` 'reused' (Table III).
        start: ``'paper'`` or ``'function'``, see ``adjust_layers``.
        facts: where the linear layers are, for blocks that ``hosts`` does not know.

    Returns:
        ``model``. Each container has its ``layer_map`` (``model.blocks.layer_map``); ``model.scale_spec``, and of
        Hugging Face's models ``model.config.scalenet``, tells how to scale a network that was built at the new depth:
        ``rescale``.

    Raises:
        ValueError: before anything is changed, if the network or the arguments do not fit.
    """
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise ValueError(
            'This network is wrapped in DistributedDataParallel, which would not know the new parameters: scale first, '
            'then wrap.'
        )
    if hasattr(model, '_orig_mod'):
        raise ValueError('This network is compiled, and would run as it was compiled: scale first, then compile.')
    everything = blocks_of(model, facts)
    explicit = by_stage(sources) if isinstance(sources, Mapping) else {}
    found, chosen = _stages(list(explicit) if stages is None and explicit else stages, everything)
    names = list(found)
    single = len(names) == 1
    order = order or ('interpolate' if single else 'stack')
    adjust_on = adjust_on or ('reused' if single and not isinstance(layers, str) else 'all')
    if isinstance(sources, Mapping):
        called = dict(enumerate(everything))  # an index is of all containers, as in ``stages``
        explicit = {called.get(stage, stage): layer_map for stage, layer_map in explicit.items()}
        sources = {names.index(n) if n in names else n: layer_map for n, layer_map in explicit.items()}
    elif sources is not None:
        sources = dict.fromkeys(chosen, sources)
    depths = [len(blocks) for blocks in found.values()]
    maps = dict(zip(names, stage_maps(depths, times, order, chosen, layers, sources)))
    periods = {name: period_of(blocks) for name, blocks in found.items()}
    for name, blocks in found.items():
        if len(maps[name]) != len(blocks):
            refuse_by_layer(model, name, [n for n in everything if n != name])
            _require_one_width(name, blocks, facts)
            if len(blocks) == 1 and 2 in periods.values():
                raise ValueError(
                    f'Layers of this {type(model).__name__} shift every second window, and {name!r} has one layer, '
                    'which does not tell how the next would: scale stages of two layers or more.'
                )
        _require(blocks, maps[name], periods[name], adjust, adjust_on, start, facts)

    own_configs(model)
    towers: dict[str, list[str]] = {}  # each with a schedule of its own
    for name in names:
        towers.setdefault(tower(name), []).append(name)
    rates = {t: drop_path([block for name in inside for block in found[name]]) for t, inside in towers.items()}
    for name, layer_map in maps.items():
        alternating = alternation(found[name], periods[name])
        made = _scaled(found[name], layer_map, adjust, adjust_on, start, periods[name], facts)
        place(made, alternating)
        for module, attribute in [(m, a) for m in model.modules() for a, c in m._modules.items() if c is found[name]]:
            setattr(module, attribute, made)  # a network may hold its list by several names
        _take_plain_path(model.get_submodule(name.rpartition('.')[0]), adjust, start)
        tell_depth(model, name, layer_map)
    for t, inside in towers.items():
        set_drop_path([block for name in inside for block in model.get_submodule(name)], rates[t])
    spec = dict(
        layer_maps={name: list(m.sources) for name, m in maps.items()},
        adjust=None if adjust is None else as_data(adjust),
        adjust_on=adjust_on,
        start=start,
    )
    _mark(model, spec, everything)
    if hasattr(getattr(model, 'config', None), 'to_dict'):
        model.config.scalenet = spec
    return model


def rescale(model: nn.Module, spec: Mapping[str, Any], facts: HostFacts | None = None) -> nn.Module:
    """Ties and adjusts a network that its host built at the scaled depth, in place: as ``scale`` makes it.

    >>> source = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> spec = scale(source).scale_spec
    >>> deep = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 6)
    >>> rescale(deep, spec).load_state_dict(source.state_dict())
    <All keys matched successfully>

    Args:
        model: with as many blocks as the maps have instances; its weights are filled afterwards.
        spec: ``scale_spec`` of a scaled network.

    Raises:
        ValueError: before anything is changed, if the blocks or their number are not those of the spec.
    """
    everything = blocks_of(model, facts)
    maps = {name: LayerMap(tuple(sources)) for name, sources in spec['layer_maps'].items()}
    given = {name: len(everything.get(name, ())) for name in maps}
    wanted = {name: len(layer_map) for name, layer_map in maps.items()}
    if given != wanted:
        raise ValueError(
            f'The spec is of a network with these numbers of blocks: {wanted}, {type(model).__name__} has {given}. '
            "Build it at the scaled depth first: from the scaled model's config, or with depth=... of its class."
        )
    how = spec['adjust'], spec['adjust_on'], spec['start']
    periods = {name: period_of(everything[name]) for name in maps}
    for name, layer_map in maps.items():
        require_kinds(model, name, layer_map)
        _require(everything[name], layer_map, periods[name], *how, facts)
    for name, layer_map in maps.items():
        tie(everything[name], layer_map)
        adjust_layers(everything[name], *how, periods[name], facts)
        _take_plain_path(model.get_submodule(name.rpartition('.')[0]), spec['adjust'], spec['start'])
    _mark(model, dict(spec), everything)
    return model


def _take_plain_path(around: nn.Module, adjust: Mapping[str, Any] | None, start: str) -> None:
    """``nn.TransformerEncoder`` packs padded batches for its layers' fast path, which adjusted layers do not take."""
    if getattr(around, 'use_nested_tensor', False) and not (adjust is None and start == 'paper'):
        around.use_nested_tensor = False


def _mark(model: nn.Module, spec: dict[str, Any], everything: Iterable[str]) -> None:
    """Notes what was done, and marks the scaled networks, whose norms ``roles`` counts: without other towers."""
    model.scale_spec = spec
    inside = list(spec['layer_maps'])
    outside = [name for name in everything if name not in inside]
    for path in (name.split('.') for name in inside):
        prefixes = ['.'.join(path[:i]) for i in range(len(path))]
        apart = (p for p in prefixes if not any(name.startswith(f'{p}.' if p else '') for name in outside))
        model.get_submodule(next(apart, '')).scaled_host = True


def _require(
    blocks: nn.Module,
    layer_map: LayerMap,
    period: int,
    adjust: Mapping[str, Any] | None,
    adjust_on: str,
    start: str,
    facts: HostFacts | None,
) -> None:
    """Everything that could fail later, before anything is changed."""
    _require_known(adjust_on, start)
    if 'forward' in vars(blocks):
        raise ValueError(
            'The forward of a list of blocks was replaced (by hooks of accelerate): scale first, then dispatch.'
        )
    if getattr(blocks, '_compiled_call_impl', None) is not None:
        raise ValueError('A list of blocks is compiled, and would run as it was compiled: scale first, then compile.')
    parsed = parse_adjust(adjust)
    if start == 'function':
        layer_map.live(period)
    if parsed is None and start == 'paper':
        return
    for block in blocks:
        known = facts or host_facts(block)
        gates = known.identity_at_zero() if start == 'function' else ()
        for target in (*(parsed[1] if parsed else ()), *gates):
            for holder, name in known.linears(block, target):
                AdaptedLinear.wrap(getattr(holder, name))


def _require_known(adjust_on: str, start: str) -> None:
    for value, choices, what in ((adjust_on, ADJUST_ON, 'adjust_on'), (start, STARTS, 'start')):
        if value not in choices:
            raise ValueError(f'{what} must be one of {choices}, got {value!r}.')


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
        start: ``'paper'`` starts from the plain deep net, ``'function'`` at the pretrained function.
        period: of hosts whose layers alternate, see ``LayerMap.live``.
    """
    _require_known(adjust_on, start)
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
    period: int | None = None,
    facts: HostFacts | None = None,
) -> nn.Module:
    """A tied container made from the layers of a live model of any origin, which it consumes.

    Its blocks are told their new places, and Hugging Face configs that they hold the new depth, in place; what modules
    around them say of their number (``depth``, ``feature_info``) only ``scale`` changes.

    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> encoder.layers = scale_layers(encoder.layers, LayerMap.build(3, 2), dict(type='ParallelAdapter', rank=4))
    >>> len(encoder.layers)
    6

    Args:
        layers: ``nn.Sequential``, ``nn.ModuleList`` or a sequence of blocks; the owners are these very blocks.
        period: see ``LayerMap.live``; by default as the layers have it.

    The other arguments are those of ``adjust_layers``.
    """
    period = period or period_of(layers)
    tell = moving(layers, period)
    made = _scaled(layers, layer_map, adjust, adjust_on, start, period, facts)
    tell(made, layer_map)
    return made


def _scaled(
    layers: nn.Module,
    layer_map: LayerMap,
    adjust: Mapping[str, Any] | None,
    adjust_on: str,
    start: str,
    period: int,
    facts: HostFacts | None,
) -> nn.Module:
    """A tied container; its blocks still say the places that they had."""
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
    container.source_names = list(host._modules)
    tie(container, layer_map)
    adjust_layers(container, adjust, adjust_on, start, period, facts)
    return container


def _copy(block: nn.Module) -> nn.Module:
    """A copy with norms of its own; the tensors and the config it will share are not copied on the way."""
    shared = (t for _, m in shared_modules(block) for t in (*m._parameters.values(), *persistent(m).values()))
    return copy.deepcopy(block, {id(t): t for t in (*shared, *configs_in([block])) if t is not None})
