"""Scaling a live network of any origin (timm, Hugging Face, plain torch) in one call. torch only.

``scaling.scale_layers`` makes tied layers, ``positions`` tells each of them where it stands now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from .adapters import ADAPTER_RANK, AdaptedLinear, parse_adjust
from .hosts import HostFacts, holds_blocks, host_facts, unknown
from .layer_map import LayerMap, stage_maps
from .positions import alternation, drop_path, own_configs, period, place, refuse_by_layer, set_drop_path, tell_depth
from .scaling import ADJUST_ON, STARTS, MappedLayers, adjust_layers, scale_layers, tie

ADJUST = dict(type='ParallelAdapter', rank=ADAPTER_RANK)


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
        stages: of several containers, those that are scaled, by index or name, or ``'all'``; the last by default. Where
            a network has several towers (an image and a text encoder), only those that are named are touched.
        sources: the whole layer map, of several stages ``{stage: map}``, by index or name; replaces ``times``,
            ``order`` and ``layers``.
        adjust: ``dict(type='ParallelAdapter'|'LoRA', rank=..., targets=...)`` or None.
        adjust_on: ``'all'`` instances or the ``'reused'`` ones; by default 'all', of a single container with
            partial ``layers`` 'reused' (Table III).
        start: ``'paper'`` or ``'function'``, see ``scaling.adjust_layers``.
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
    everything = blocks_of(model, facts)
    found, chosen = _stages(stages, everything)
    names = list(found)
    single = len(names) == 1
    order = order or ('interpolate' if single else 'stack')
    adjust_on = adjust_on or ('reused' if single and layers != 'all' else 'all')
    if isinstance(sources, Mapping):
        sources = {names.index(k) if k in names else k: v for k, v in sources.items()}
    elif sources is not None:
        sources = dict.fromkeys(chosen, sources)
    depths = [len(blocks) for blocks in found.values()]
    maps = dict(zip(names, stage_maps(depths, times, order, chosen, layers, sources)))
    periods = {name: period(blocks) for name, blocks in found.items()}
    for name, blocks in found.items():
        if len(maps[name]) != len(blocks):
            refuse_by_layer(model, name, [n for n in everything if n != name])
            _require_one_width(name, blocks, facts)
            if len(blocks) == 1 and 2 in periods.values():
                raise ValueError(
                    f'Layers of this {type(model).__name__} shift every second window, and {name!r} has one layer, '
                    'which does '
                    'not tell how the next would: scale stages of two layers or more.'
                )
        _require(blocks, maps[name], periods[name], adjust, adjust_on, start, facts)

    own_configs(model)
    rates = drop_path([block for blocks in found.values() for block in blocks])
    for name, layer_map in maps.items():
        alternating = alternation(found[name], periods[name])
        made = scale_layers(found[name], layer_map, adjust, adjust_on, start, periods[name], facts)
        place(made, alternating)
        parent, _, attribute = name.rpartition('.')
        setattr(model.get_submodule(parent), attribute, made)
        tell_depth(model, name, layer_map)
    set_drop_path([block for name in names for block in model.get_submodule(name)], rates)
    spec = dict(
        layer_maps={name: list(m.sources) for name, m in maps.items()},
        adjust=None if adjust is None else dict(adjust),
        adjust_on=adjust_on,
        start=start,
    )
    _mark(model, spec, everything)
    if hasattr(getattr(model, 'config', None), 'to_dict'):
        model.config.scalenet = spec
    return model


def rescale(model: nn.Module, spec: Mapping[str, Any], facts: HostFacts | None = None) -> nn.Module:
    """Ties and adjusts a network that its host built at the scaled depth, in place: the other road to what ``scale``
    makes.

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
            f'The spec is of a network with these numbers of blocks: {wanted}, and this {type(model).__name__} has '
            f'{given}. Build '
            "it at the scaled depth first: from the scaled model's config, or with depth=... of its class."
        )
    how = spec['adjust'], spec['adjust_on'], spec['start']
    periods = {name: period(everything[name]) for name in maps}
    for name, layer_map in maps.items():
        _require(everything[name], layer_map, periods[name], *how, facts)
    for name, layer_map in maps.items():
        tie(everything[name], layer_map)
        adjust_layers(everything[name], *how, periods[name], facts)
    _mark(model, dict(spec), everything)
    return model


def _mark(model: nn.Module, spec: dict[str, Any], everything: Iterable[str]) -> None:
    """Notes what was done, and marks the network whose norms are those of the scaled one (see ``roles``): without
    other towers.
    """
    model.scale_spec = spec
    inside = list(spec['layer_maps'])
    outside = [name for name in everything if name not in inside]
    path = inside[0].split('.')
    prefixes = ['.'.join(path[:i]) for i in range(len(path))]
    apart = (p for p in prefixes if not any(name.startswith(f'{p}.' if p else '') for name in outside))
    network = next(apart, '')
    model.get_submodule(network).scaled_host = True


def blocks_of(model: nn.Module, facts: HostFacts | None = None) -> dict[str, nn.Module]:
    """The containers of blocks of a network, by name: one, or one a stage.

    Raises:
        ValueError: if there is none, or a network is scaled already.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, MappedLayers):
            raise ValueError(
                f'{name} of this {type(model).__name__} is scaled already; scale the source network once, with the '
                'whole '
                'map: sources=[...] or a larger times.'
            )
        if any(name.startswith(f'{outer}.') for outer in found):
            continue
        listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0
        if listed and (all(map(facts.fits, module)) if facts else holds_blocks(module)):
            found[name] = module
    if '' in found:
        raise ValueError('Scale the network that holds these layers, or use scale_layers on them.')
    if not found:
        lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m)]
        largest = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=[model])
        raise unknown(largest[0], f'No list of blocks of a known host was found in {type(model).__name__}')
    return found


def _stages(
    stages: str | int | Iterable[int | str] | None, everything: dict[str, nn.Module]
) -> tuple[dict[str, nn.Module], list[int]]:
    """The containers of the tower (or towers) that ``stages`` names, and the indices in it of those that are scaled.

    Stages of one tower have the same path but for their numbers.
    """
    names = list(everything)
    towers = {name: re.sub(r'\d+', '*', name) for name in names}
    if stages is None and len(set(towers.values())) > 1:
        kinds = {n: f'{len(b)} x {type(b[0]).__name__}' for n, b in everything.items()}
        raise ValueError(
            f'This network has several lists of blocks that are no stages of one another: {kinds}. Say which are '
            'scaled: '
            f'stages=[{names[0]!r}].'
        )
    if stages is None:
        given = names[-1:]
    elif isinstance(stages, str):
        given = names if stages == 'all' else [stages]
    else:
        given = [stages] if isinstance(stages, int) else list(stages)
    wrong = [s for s in given if s not in names and s not in range(len(names))]
    if wrong or not given:
        raise ValueError(
            f"stages must be 'all', or indices or names out of {dict(enumerate(names))}, got {wrong or given}."
        )
    given = [s if isinstance(s, str) else names[s] for s in given]
    touched = {towers[name] for name in given}
    found = {name: everything[name] for name in names if towers[name] in touched}
    return found, [i for i, name in enumerate(found) if name in given]


def _require_one_width(name: str, blocks: nn.Module, facts: HostFacts | None) -> None:
    """A block whose input or output is wider than another's stands at its own place only."""
    widths = {}
    for i, block in enumerate(blocks):
        known = facts or host_facts(block)
        fc1, fc2 = (block.get_submodule(known.paths(t)[0]) for t in ('fc1', 'fc2'))
        widths.setdefault((fc1.in_features, fc2.out_features), i)
    if len(widths) > 1:
        raise ValueError(
            f'The layers of {name!r} change their width (MLPs from and to {list(widths)}, first in layers '
            f'{list(widths.values())}), '
            'so copies of them would not fit one another; only lists of one width can be scaled.'
        )


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
    for value, choices, what in ((adjust_on, ADJUST_ON, 'adjust_on'), (start, STARTS, 'start')):
        if value not in choices:
            raise ValueError(f'{what} must be one of {choices}, got {value!r}.')
    if 'forward' in vars(blocks):
        raise ValueError(
            'The forward of a list of blocks was replaced (by hooks of accelerate): scale first, then dispatch.'
        )
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
