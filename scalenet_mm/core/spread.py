"""The entries of a pretrained network spread over the instances of a scaled one (Sec. III-B). torch only."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from torch import Tensor

from .adapters import Adjustment
from .layer_map import LayerMap

if TYPE_CHECKING:
    from .tying import MappedLayers


def check_stored_map(stored: list[int] | None, layer_map: LayerMap, where: str) -> None:
    """Raises ValueError if a file carries another layer map, since two maps can have the same keys.

    The unscaled network's map, every layer once, passes: such a file is one to be scaled.
    """
    known = (None, layer_map.sources, tuple(range(layer_map.depth)))
    if (None if stored is None else tuple(stored)) not in known:
        raise ValueError(
            f'The checkpoint was saved with another layer map at {where.rstrip(".") or "the top"}: file '
            f'{list(stored)}, model {list(layer_map.sources)}. Build the model with the scale of the file (sources, or '
            'growth and new_layers), or load the unscaled checkpoint.'
        )


def _with_values(adjustment: Adjustment) -> Adjustment:
    """Itself; of one on the meta device a new one, drawn as it is at the start."""
    if not any(p.is_meta for p in adjustment.parameters()):
        return adjustment
    made = copy.deepcopy(adjustment).to_empty(device='cpu')
    made.reset_parameters()
    return made


def expand(state_dict: MutableMapping[str, Tensor], prefix: str, layers: MappedLayers) -> bool:
    """Turns the entries of an unscaled network into those of the scaled one, in place.

    Layers move to their owner's index; every other instance gets what ``layers.fill`` says (a copy of its source's
    norms where layers are tied); adjustments keep the values they have in ``layers``. Entries of a network that is
    scaled already are left alone.

    Returns:
        Whether the entries were those of the unscaled network.
    """
    layer_map = layers.layer_map
    entries = {k: k[len(prefix) :].partition('.')[::2] for k in state_dict if k.startswith(prefix)}
    number = {name: str(i) for i, name in enumerate(layers.source_names)}
    names = {name for name, _ in entries.values()}
    if not (number.keys() <= names and all(n in number for n in names if n.isdecimal())):
        number = {}  # no file of the unscaled network: its layers have the container's own names, 0, 1, ...
    parts = {k: (number.get(name, name), rest) for k, (name, rest) in entries.items()}
    indices = {int(i) for i, _ in parts.values() if i.isdecimal()}
    if indices != set(range(layer_map.depth)):
        return False
    adjustments = {
        f'{name}.{k}': v.detach()
        for name, module in layers.named_modules()
        if isinstance(module, Adjustment)
        for k, v in _with_values(module).named_parameters(recurse=False)
    }
    given = {rest for _, rest in parts.values()}
    plain = not any(f'{i}.{rest}' in adjustments for i, rest in parts.values())
    if not plain or given.isdisjoint(layers.shared_names):  # the second: of what was put on the instances alone
        return False
    by_source: dict[str, dict[int, Tensor]] = {}
    for key, (index, rest) in parts.items():
        if index.isdecimal():
            by_source.setdefault(rest, {})[int(index)] = state_dict.pop(key)
    kept = layers.state_dict().keys()
    for rest, tensors in by_source.items():
        for i, source in enumerate(layer_map.sources):
            own = layer_map.owner(i) == i
            if source not in tensors or not (own or f'{i}.{rest}' in kept):
                continue
            value = tensors[source] if own else layers.fill(i, rest, tensors)
            if value is not None:
                state_dict[f'{prefix}{i}.{rest}'] = value
    state_dict.update({prefix + k: v for k, v in adjustments.items()})
    return True
