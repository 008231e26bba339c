"""Scaling a live network of any origin (timm, Hugging Face, plain torch) in one call. torch only.

``scaling.scale_layers`` makes tied layers; what is left is what a host knows about the *position* of a layer rather than
about its weights: window shifts, drop-path rates, indices into a key-value cache, the depth in a config.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from .adapters import ADAPTER_RANK, parse_adjust
from .hosts import HostFacts, holds_blocks, host_facts
from .layer_map import LayerMap, stage_maps
from .scaling import ADJUST_ON, STARTS, MappedLayers, adjust_layers, scale_layers, tie

ADJUST = dict(type='ParallelAdapter', rank=ADAPTER_RANK)

# Attributes of a block (or of a module in it) that go with its position. Those of window attention alternate.
ALTERNATING = ('shift_size', 'target_shift_size', 'attn_mask')
INDEX = 'layer_idx'


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
        order: ``'interpolate'`` or ``'stack'``; by default the first for one container, the second for stages (Sec. IV).
        layers: the layers that are reused, ``'all'`` or 0-based indices, in each scaled container.
        stages: of several containers, those that are scaled, by index or name, or ``'all'``; the last by default.
        sources: the whole layer map, of several stages ``{stage: map}``; replaces ``times``, ``order`` and ``layers``.
        adjust: ``dict(type='ParallelAdapter'|'LoRA', rank=..., targets=...)`` or None.
        adjust_on: ``'all'`` instances or the ``'reused'`` ones; by default 'all', of a single container with
            partial ``layers`` 'reused' (Table III).
        start: ``'paper'`` or ``'function'``, see ``scaling.adjust_layers``.
        facts: where the linear layers are, for blocks that ``hosts`` does not know.

    Returns:
        ``model``. Each container has its ``layer_map`` (``model.blocks.layer_map``); ``model.scale_spec``, and of Hugging
        Face's models ``model.config.scalenet``, tells how to scale a network that was built at the new depth: ``rescale``.

    Raises:
        ValueError: before anything is changed, if the network or the arguments do not fit.
    """
    found = blocks_of(model, facts)
    names = list(found)
    chosen = _stages(stages, names, found)
    single = len(names) == 1
    order = order or ('interpolate' if single else 'stack')
    adjust_on = adjust_on or ('reused' if single and layers != 'all' else 'all')
    if sources is not None and not isinstance(sources, Mapping):
        sources = dict.fromkeys(chosen, sources)
    depths = [len(found[name]) for name in names]
    maps = dict(zip(names, stage_maps(depths, times, order, chosen, layers, sources)))
    periods = {name: _period(found[name]) for name in names}
    _require(model, found, maps, adjust, adjust_on, start, facts, periods)

    rates = _drop_path(found)
    for name, layer_map in maps.items():
        blocks, period = found[name], periods[name]
        alternating = [_positional(block) for block in blocks[:period]]
        made = scale_layers(blocks, layer_map, adjust, adjust_on, start, period, facts)
        for i, block in enumerate(made):
            for path, value in alternating[i % period].items() if period > 1 else ():
                _set(block, path, value)
            for module in block.modules():
                if isinstance(getattr(module, INDEX, None), int):
                    setattr(module, INDEX, i)
        parent, _, attribute = name.rpartition('.')
        setattr(model.get_submodule(parent), attribute, made)
        _tell(model, name, layer_map)
    _set_drop_path([b for name in names for b in model.get_submodule(name)], rates)
    spec = dict(
        layer_maps={name: list(m.sources) for name, m in maps.items()},
        adjust=None if adjust is None else dict(adjust),
        adjust_on=adjust_on,
        start=start,
    )
    model.scale_spec = spec
    if hasattr(getattr(model, 'config', None), 'to_dict'):
        model.config = _replaced(model, model.config, copy.deepcopy(model.config))
        model.config.scalenet = spec
    return model


def rescale(model: nn.Module, spec: Mapping[str, Any], facts: HostFacts | None = None) -> nn.Module:
    """Ties and adjusts a network that its host built at the scaled depth, in place: the other road to what ``scale`` makes.

    Args:
        model: with as many blocks as the maps have instances; its weights are filled afterwards.
        spec: ``scale_spec`` of a scaled network.

    Raises:
        ValueError: if the numbers of blocks are not the maps'.
    """
    containers = {name: model.get_submodule(name) for name in spec['layer_maps']}
    periods = {name: _period(layers) for name, layers in containers.items()}
    for name, layers in containers.items():
        tie(layers, LayerMap(tuple(spec['layer_maps'][name])))
        adjust_layers(
            layers, spec['adjust'], spec['adjust_on'], spec['start'], periods[name], facts
        )
    model.scale_spec = dict(spec)
    return model


def blocks_of(model: nn.Module, facts: HostFacts | None = None) -> dict[str, nn.Module]:
    """The containers of blocks of a network, by name: one, or one a stage.

    Raises:
        ValueError: if there is none, or a network is scaled already.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, MappedLayers):
            raise ValueError(
                f'{name} of this {type(model).__name__} is scaled already; scale the source network once, with the whole '
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
        lists = {
            n: type(m[0])
            for n, m in model.named_modules()
            if n and isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m)
        }
        hint = next(
            (f'{n} holds {k.__module__}.{k.__qualname__}' for n, k in lists.items()),
            'it has no nn.ModuleList or nn.Sequential at all',
        )
        raise ValueError(
            f'No list of blocks of a known host was found in {type(model).__name__} ({hint}). Name where a block keeps its '
            "linear layers: scalenet_mm.register_host(HostFacts('my host', qkv='attn.qkv', proj='attn.proj', fc1='mlp.fc1', "
            "fc2='mlp.fc2')); docs/hosts.md tells how."
        )
    return found


def _stages(
    stages: str | Iterable[int | str] | None, names: list[str], found: dict[str, nn.Module]
) -> list[int]:
    """Indices of the containers that are scaled."""
    if len(names) == 1:
        return [0]
    if stages is None:
        kinds = {type(block) for layers in found.values() for block in layers}
        if len(kinds) > 1:
            raise ValueError(
                f'This network has several lists of blocks, of different kinds: '
                f'{ {n: f"{len(b)} x {type(b[0]).__name__}" for n, b in found.items()} }. Say which are scaled: '
                f'stages=[{names[0]!r}].'
            )
        return [len(names) - 1]
    if stages == 'all':
        return list(range(len(names)))
    given = [stages] if isinstance(stages, (str, int)) else list(stages)
    wrong = [s for s in given if s not in names and s not in range(len(names))]
    if wrong or not given:
        raise ValueError(
            f"stages must be 'all', or indices or names out of {dict(enumerate(names))}, got {wrong or given}."
        )
    return [names.index(s) if isinstance(s, str) else s for s in given]


def _require(model, found, maps, adjust, adjust_on, start, facts, periods) -> None:
    """Everything that could fail later, before anything is changed."""
    for value, choices, what in ((adjust_on, ADJUST_ON, 'adjust_on'), (start, STARTS, 'start')):
        if value not in choices:
            raise ValueError(f'{what} must be one of {choices}, got {value!r}.')
    parsed = parse_adjust(adjust)
    for name, layers in found.items():
        parent = model.get_submodule(name.rpartition('.')[0])
        if len(maps[name]) != len(layers):
            _refuse_by_depth(parent, name)
        known = facts or host_facts(layers[0])
        if start == 'function':
            maps[name].live(periods[name])
            known.identity_at_zero()
        for block in layers:
            for target in parsed[1] if parsed else ():
                known.linears(block, target)


# What a host keeps for each of its layers outside of them: no rule could extend it.
BY_DEPTH = {
    'out_indices': "build it by config, type='ScaleNetDeiT', 'ScaleNetSwin' or 'ScaleNetTimm'",
    'rope_mixed': 'its rotary embedding holds learnt frequencies for each layer; choose a host without',
}


def _refuse_by_depth(parent: nn.Module, name: str) -> None:
    stages = isinstance(getattr(parent, name, None), MappedLayers)
    for attribute, instead in BY_DEPTH.items():
        if getattr(parent, attribute, None) and not stages:
            raise ValueError(
                f'{type(parent).__name__} counts the layers of {name!r} in its {attribute}, which a live network cannot '
                f'change: {instead}.'
            )


def _positional(block: nn.Module) -> dict[str, Any]:
    """Values of ``ALTERNATING`` in a block, by path."""
    return {
        f'{name}.{attribute}'.lstrip('.'): getattr(module, attribute)
        for name, module in block.named_modules()
        for attribute in ALTERNATING
        if hasattr(module, attribute)
    }


def _period(layers: nn.Module) -> int:
    """2 where every second block shifts its windows, else 1."""
    values = [
        {k: v for k, v in _positional(b).items() if not k.endswith('attn_mask')} for b in layers
    ]
    return 1 if all(v == values[0] for v in values) else 2


def _set(block: nn.Module, path: str, value: Any) -> None:
    parent, _, attribute = path.rpartition('.')
    setattr(block.get_submodule(parent), attribute, value)


def _drop_path(found: Mapping[str, nn.Module]) -> dict[str, list[tuple[float, nn.Module | None]]]:
    """Path in a block -> (rate, module) of every block of the network, for the paths that drop anywhere."""
    blocks = [block for layers in found.values() for block in layers]
    paths = dict.fromkeys(
        name
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(getattr(module, 'drop_prob', None), float)
    )
    rates: dict[str, list[tuple[float, nn.Module | None]]] = {}
    for path in paths:
        modules = [b.get_submodule(path) if _has(b, path) else None for b in blocks]
        rates[path] = [(float(getattr(m, 'drop_prob', 0.0) or 0.0), m) for m in modules]
    return rates


def _set_drop_path(blocks: Sequence[nn.Module], rates) -> None:
    """The host's schedule over the depth, drawn out to the new depth, as a host built that deep has it."""
    for path, was in rates.items():
        pattern = next(m for _, m in reversed(was) if hasattr(m, 'drop_prob'))
        for i, block in enumerate(blocks):
            at = i * (len(was) - 1) / max(1, len(blocks) - 1)
            low = min(int(at), len(was) - 2) if len(was) > 1 else 0
            high = min(low + 1, len(was) - 1)
            rate = was[low][0] + (at - low) * (was[high][0] - was[low][0])
            if rate > 0 or hasattr(block.get_submodule(path), 'drop_prob'):
                module = copy.deepcopy(pattern)
                module.drop_prob = rate
                _set(block, path, module.train(block.training))


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True


def _tell(model: nn.Module, name: str, layer_map: LayerMap) -> None:
    """What the network says of its depth elsewhere: Hugging Face's config, timm's ``feature_info`` and ``depth``."""
    if len(layer_map) == layer_map.depth:
        return
    depth, path = layer_map.depth, name.split('.')
    around = [model.get_submodule('.'.join(path[:i])) for i in range(len(path))]
    parent = around[-1]
    if getattr(parent, 'depth', None) == depth:
        parent.depth = len(layer_map)
    info = getattr(parent, 'feature_info', None)
    if isinstance(info, list) and len(info) == depth:
        entries = [dict(info[s], module=f'{path[-1]}.{i}') for i, s in enumerate(layer_map.sources)]
        parent.feature_info = entries
    old = next((c for m in reversed(around) if (c := getattr(m, 'config', None)) is not None), None)
    if not hasattr(old, 'to_dict'):
        return
    _replaced(model, old, _deeper(old, layer_map, path))


def _replaced(model: nn.Module, old: Any, new: Any) -> Any:
    """``new``, which stands in for ``old`` everywhere in the model: other models may share the old one."""
    for module in model.modules():
        for attribute, value in list(vars(module).items()):
            if value is old:
                setattr(module, attribute, new)
    return new


def _deeper(config: Any, layer_map: LayerMap, path: list[str]) -> Any:
    """A copy of a Hugging Face config that says the new depth."""
    new = copy.deepcopy(config)
    if isinstance(depths := getattr(new, 'depths', None), (list, tuple)):
        stage = next(int(p) for p in reversed(path) if p.isdecimal())
        new.depths = [len(layer_map) if i == stage else n for i, n in enumerate(depths)]
        return new
    if getattr(new, 'num_hidden_layers', None) == layer_map.depth:
        new.num_hidden_layers = len(layer_map)
        for key, value in list(vars(new).items()):  # layer_types and its like: one entry a layer
            if 'layer' in key and isinstance(value, list) and len(value) == layer_map.depth:
                setattr(new, key, [value[s] for s in layer_map.sources])
    return new
