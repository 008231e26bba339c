"""What a host keeps by the position of a layer rather than by its weights. torch only.

Window shifts, drop-path rates, indices into a key-value cache, and the depth that a config or the network states.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from .layer_map import LayerMap

# Attributes of a block (or of a module in it). Those of window attention alternate.
ALTERNATING = ('shift_size', 'target_shift_size', 'attn_mask')
INDICES = ('layer_idx', 'layer_id')
DEPTHS = ('depth', 'num_layers')  # of the module that holds the blocks
# In the one config of an encoder and a decoder, of each.
SIDES = 'encoder', 'decoder'
SIDES_DEPTHS = (
    ('encoder_layers', 'decoder_layers'),
    ('encoder_num_hidden_layers', 'decoder_num_hidden_layers'),
    ('num_layers', 'num_decoder_layers'),
)
MODULI = ('global_attn_every_n_layers',)  # in a config: every n-th layer is of another kind
LISTS = ('attention_window',)  # one value a layer, in a config, beside those that have `layer` in their names

# Indices of the layers of one kind, in a config or a module around them: an instance is of its source's kind.
KINDS = (
    'window_block_indices',
    'residual_block_indices',
    'fullatt_block_indexes',
    'global_attn_indexes',
    'cross_attention_layers',
    'attn_layer_indices',
    'mlp_only_layers',
    'moe_layers',
)

# What a host keeps for each of its layers, where: no rule could extend it.
AROUND, INSIDE, CONFIG = 'modules around the layers', 'the layers', 'a config of a module around the layers'
TAKEN = 'the layers whose outputs it uses'
LIBRARIES = re.compile(r'builtins$|torch\.|transformers\.(?!models\.)')  # what their own base classes read is no host's
OUTPUTS = 'out_indices', 'stage_names'
BY_LAYER = {
    (AROUND, 'out_indices'): TAKEN,
    (AROUND, 'stage_names'): 'names of the layers whose outputs it returns',
    (CONFIG, 'out_indices'): TAKEN,
    (CONFIG, 'backbone_out_indices'): TAKEN,
    (CONFIG, 'extract_layers'): TAKEN,
    (CONFIG, 'deepstack_visual_indexes'): TAKEN,
    (CONFIG, 'intermediate_layers_indices'): TAKEN,
    (CONFIG, 'intermediate_hidden_state_indices'): TAKEN,
    (CONFIG, 'intermediate_hook_ids'): TAKEN,
    (CONFIG, 'vision_feature_layer'): TAKEN,
    (CONFIG, 'vision_feature_layers'): TAKEN,
    (CONFIG, 'feature_layer'): TAKEN,
    (AROUND, 'local_up_to_layer'): 'the layer at which its class token joins the others',
    (AROUND, 'rope_mixed'): 'learnt frequencies of its rotary embedding',
    (AROUND, 'mid_position_embeddings'): 'position embeddings',
    (AROUND, 'embed_tokens_per_layer'): 'embeddings',
    (AROUND, 'layer_weights'): 'learnt weights of the outputs',
    (INSIDE, 'lambda_init'): 'constants that follow from the place of a layer',
}


def refuse_by_layer(model: nn.Module, name: str, others: Sequence[str]) -> None:
    """Refuses a host that keeps something for each layer of the container ``name``.

    Args:
        others: the other containers of blocks. A module around several of them counts stages, not layers.

    Raises:
        ValueError: naming it and another road.
    """
    around, layers = _around(model, name), model.get_submodule(name)
    own = [module for prefix, module in around.items() if not any(other.startswith(prefix) for other in others)]
    configs = _configs(around.values()) if _stage(model, name) is None else []  # else they count stages
    places: dict[str, list[Any]] = {AROUND: own, INSIDE: list(layers.modules()), CONFIG: configs}

    def used(place: str, attribute: str, value: Any) -> bool:
        if place != CONFIG:
            return True
        if attribute.startswith('vision_') and 'vision' not in name:  # a config of the whole, on another part
            return False
        moves = value in (-1, [-1]) or (attribute in OUTPUTS and value == [len(layers)])  # the last one, alone
        return not moves and any(_reads(m, attribute) for m in around.values())  # not by other models alone

    for (place, attribute), what in BY_LAYER.items():
        for holder in places[place]:
            value = getattr(holder, attribute, None)
            if _is_kept(value) and used(place, attribute, value):
                by_config = ", or take a registered backbone (type='ScaleNetDeiT', 'ScaleNetTimm', 'ScaleNetHF')"
                raise ValueError(
                    f'{type(holder).__name__} keeps {what} ({attribute}) for the layers of {name!r} at their present '
                    'number, which a live network cannot change. Build the host at the scaled depth and call '
                    f'scalenet_mm.rescale on it{by_config if attribute in OUTPUTS else ""}.'
                )


def require_kinds(model: nn.Module, name: str, layer_map: LayerMap) -> None:
    """Refuses a network that was built at its depth from a config by which a layer's kind follows from its number,
    where that is not its source's.

    Raises:
        ValueError: naming the layer.
    """
    for config in _configs(_around(model, name).values()):
        for key in MODULI:
            every = getattr(config, key, None) or 1
            for i, source in enumerate(layer_map.sources):
                if (i % every == 0) != (source % every == 0):
                    raise ValueError(
                        f'{name}.{i} is another kind of layer than its source, layer {source}, since the config says '
                        f'{key}={every}: this network cannot be built from a config at that depth. Build the source, '
                        'scale it with the same arguments, and load the weights into that.'
                    )


def _reads(module: nn.Module, attribute: str) -> bool:
    """Whether the code of a module's class names an attribute; where there is no code to be seen, it may."""
    kinds = [kind for kind in type(module).__mro__ if not LIBRARIES.match(kind.__module__)]
    return any(attribute in _code(kind) for kind in kinds)


@cache
def _code(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ' '.join(attribute for _, attribute in BY_LAYER)


def _is_kept(value: Any) -> bool:
    return value is not None and (isinstance(value, Tensor) or bool(value))


def period(layers: nn.Module) -> int:
    """2 where every second block shifts its windows, else 1."""
    values = [{k: v for k, v in _alternating(b).items() if not k.endswith('attn_mask')} for b in layers]
    return 1 if all(v == values[0] for v in values) else 2


def alternation(layers: Sequence[nn.Module], period: int) -> list[dict[str, Any]]:
    """Values of ``ALTERNATING``, by path in the block, at each of the alternating positions."""
    return [_alternating(block) for block in layers[:period]] if period > 1 else []


def place(layers: nn.Module, alternating: Sequence[Mapping[str, Any]]) -> None:
    """Tells every block its position."""
    for i, block in enumerate(layers):
        for path, value in alternating[i % len(alternating)].items() if alternating else ():
            _set(block, path, value)
        for module in block.modules():
            for index in INDICES:
                if isinstance(getattr(module, index, None), int):
                    setattr(module, index, i)


def _alternating(block: nn.Module) -> dict[str, Any]:
    return {
        f'{name}.{attribute}'.lstrip('.'): getattr(module, attribute)
        for name, module in block.named_modules()
        for attribute in ALTERNATING
        if hasattr(module, attribute)
    }


Rates = dict[str, list[tuple[float, nn.Module | None]]]


def drop_path(blocks: Sequence[nn.Module]) -> Rates:
    """Path in a block -> (rate, module) of every block of the network, for the paths that drop anywhere."""
    paths = dict.fromkeys(
        name
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(getattr(module, _rate(module), None), float)
    )
    rates: Rates = {}
    for path in paths:
        modules = [dict(b.named_modules()).get(path) for b in blocks]
        rates[path] = [(float(getattr(m, _rate(m), 0.0) or 0.0), m) for m in modules]
    return rates


def _rate(module: nn.Module | None) -> str:
    """Where a module that may drop paths keeps its rate: torchvision's has another name for it."""
    return 'p' if type(module).__name__ == 'StochasticDepth' else 'drop_prob'


def set_drop_path(blocks: Sequence[nn.Module], rates: Rates) -> None:
    """The host's schedule over the depth, drawn out to the new depth, as a host built that deep has it."""
    for path, was in rates.items():
        pattern = next(m for _, m in reversed(was) if hasattr(m, _rate(m)))
        for i, block in enumerate(blocks):
            at = i * (len(was) - 1) / max(1, len(blocks) - 1)
            low = min(int(at), len(was) - 1)
            high = min(low + 1, len(was) - 1)
            rate = was[low][0] * (1 - (at - low)) + was[high][0] * (at - low)
            place = block.get_submodule(path)
            if rate > 0 or hasattr(place, _rate(place)):
                module = copy.deepcopy(pattern)
                setattr(module, _rate(module), rate)
                _set(block, path, module.train(block.training))


def _set(block: nn.Module, path: str, value: Any) -> None:
    parent, _, attribute = path.rpartition('.')
    setattr(block.get_submodule(parent), attribute, value)


def own_configs(model: nn.Module) -> None:
    """Gives a model of Hugging Face configs of its own, since other models may share them.

    They are copied together, so that a part's config stays the one that the config of the whole holds.
    """
    memo: dict[int, Any] = {}
    held = [
        (module, attribute, value)
        for module in model.modules()
        for attribute, value in vars(module).items()
        if _is_config(value)
    ]
    for module, attribute, value in held:
        setattr(module, attribute, copy.deepcopy(value, memo))


def tell_depth(model: nn.Module, name: str, layer_map: LayerMap) -> None:
    """Changes what a network says of its depth: Hugging Face's config, timm's ``feature_info``, ``depth(s)``."""
    depth, path = layer_map.depth, name.split('.')
    if len(layer_map) == depth:
        return
    around = list(_around(model, name).values())
    parent, stage = around[-1], _stage(model, name)
    for attribute in DEPTHS:
        if getattr(parent, attribute, None) == depth:
            setattr(parent, attribute, len(layer_map))
    info = getattr(parent, 'feature_info', None)
    if isinstance(info, list) and len(info) == depth:
        parent.feature_info = [dict(info[s], module=f'{path[-1]}.{i}') for i, s in enumerate(layer_map.sources)]
    configs = _configs(around)[-1:]  # the part's own
    for holder in (*around, *configs):
        depths = getattr(holder, 'depths', None)
        if isinstance(depths, (list, tuple)) and depths[stage or 0] == depth:
            deeper = [len(layer_map) if i == (stage or 0) else n for i, n in enumerate(depths)]
            holder.depths = type(depths)(deeper)
    if stage is None:
        for holder in around:
            _tell_kinds(holder, layer_map)
        side = next((SIDES.index(part) for part in reversed(path) if part in SIDES), None)
        of_both = [
            (config, pair[side])
            for config in _configs(around)
            for pair in (SIDES_DEPTHS if side is not None else ())
            if all(hasattr(config, key) for key in pair) and getattr(config, pair[side]) == depth
        ]
        for config, key in of_both:
            setattr(config, key, len(layer_map))
        for config in configs:
            if not (of_both and config is _configs(around)[0]):  # the one of both has lists of the other side too
                _tell_config(config, layer_map)


def moving(layers: Sequence[nn.Module], period: int) -> Callable[[nn.Module, LayerMap], None]:
    """Reads what the blocks of a list keep by their places; what it returns tells those of a deeper list theirs.

    Configs that the blocks hold, which are those of the network around, learn the new depth as well.
    """
    alternating, rates = alternation(layers, period), drop_path(layers)

    def tell(made: nn.Module, layer_map: LayerMap) -> None:
        place(made, alternating)
        set_drop_path(list(made.children()), rates)
        for config in configs_in(made):
            if _is_config(config) and not isinstance(getattr(config, 'depths', None), (list, tuple)):
                _tell_config(config, layer_map)

    return tell


def configs_in(blocks: Iterable[nn.Module]) -> list[Any]:
    """Every config that a module of the blocks holds, of Hugging Face or of another library, once."""
    held = [c for block in blocks for m in block.modules() if (c := vars(m).get('config')) is not None]
    return list({id(c): c for c in held}.values())


def _tell_config(config: Any, layer_map: LayerMap) -> None:
    depth = layer_map.depth
    if len(layer_map) == depth:
        return
    for attribute in ('num_hidden_layers', *DEPTHS):
        if getattr(config, attribute, None) == depth:
            setattr(config, attribute, len(layer_map))
    for key, value in list(vars(config).items()):  # layer_types and its like
        if key not in KINDS and ('layer' in key or key in LISTS) and isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[s] for s in layer_map.sources])
    _tell_kinds(config, layer_map)
    if len(getattr(config, 'stage_names', None) or ()) == depth + 1:  # a stem, then one a layer
        stem, last = config.stage_names[0], config.out_indices == [depth]
        config.stage_names = [stem, *(f'stage{i + 1}' for i in range(len(layer_map)))]
        if last:
            config.out_indices = [len(layer_map)]


def _tell_kinds(holder: Any, layer_map: LayerMap) -> None:
    for key in KINDS:
        if isinstance(value := getattr(holder, key, None), (list, tuple)):
            setattr(holder, key, [i for i, s in enumerate(layer_map.sources) if s in value])


def _stage(model: nn.Module, name: str) -> int | None:
    """The stage that a container is of, None where its network has no stages. A network of Hugging Face begins at the
    outermost config: what it lies in may be a list as well.
    """
    network = next((prefix for prefix, m in _around(model, name).items() if _configs([m])), '')
    return next((int(p) for p in reversed(name[len(network) :].split('.')) if p.isdecimal()), None)


def _around(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The modules around a container, from the outside in, by the beginning of the paths in them."""
    path = name.split('.')
    prefixes = ['.'.join(path[:i]) for i in range(len(path))]
    return {f'{p}.' if p else '': model.get_submodule(p) for p in prefixes}


def _configs(modules: Iterable[nn.Module]) -> list[Any]:
    return [c for m in modules if _is_config(c := getattr(m, 'config', None))]


def _is_config(value: Any) -> bool:
    return hasattr(value, 'to_dict') and hasattr(value, 'model_type')
