"""Deltas of networks that ``scalenet_mm.scale`` made: no config, the source network is the base."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..compat import bare
from ..core.hosts import HostFacts
from ..core.roles import Role, roles
from ..core.spread import expand
from ..core.tying import TiedLayers
from ..ops import scale
from .assemble import base_name, make_delta
from .config_text import is_json, parse_config
from .delta_file import Delta, apply_delta, check, read_delta
from .digests import digests
from .strict import CheckpointError, naming


def delta_of(model: nn.Module, source: nn.Module | Mapping[str, Tensor], base: str | Path = 'the source') -> Delta:
    """What training changed in a scaled live network: its adjustments, and what else differs from its source.

    >>> delta_of(model, source).save('a.delta.safetensors')  # doctest: +SKIP

    Args:
        source: the network before it was scaled, or its state dict; a copy, as ``scale`` works in place.
        base: name or address of the source, for messages.

    Raises:
        CheckpointError: if ``scale`` or ``rescale`` did not make ``model``, or ``source`` is scaled or shares tensors.
    """
    model = bare(model)
    spec = getattr(model, 'scale_spec', None)
    if spec is None:
        raise CheckpointError(
            f'This {type(model).__name__} was not made by scalenet_mm.scale (it has no scale_spec); the delta of a '
            'trained checkpoint with a config is made by scalenet delta export.'
        )
    given = source.state_dict() if isinstance(source, nn.Module) else source
    known = dict(given)
    for name, layers in model.named_modules():
        if isinstance(layers, TiedLayers):
            expand(known, f'{name}.', layers)
    own = {name for name, role in roles(model).items() if role is Role.ADJUSTMENT}
    state = model.state_dict()
    scaled = sorted(own & given.keys())
    same = [n for n, t in state.items() if n in given and t.data_ptr() == given[n].data_ptr() != 0]
    if scaled or same:
        raise CheckpointError(
            f'The source is no network as it was before: {(scaled or same)[0]} is '
            f'{"an adjustment in it" if scaled else "the very tensor of the model"}. scale works in place, so it needs '
            'a copy made before: source = copy.deepcopy(model) or copy.deepcopy(model.state_dict()), then scale(model).'
        )
    theirs = digests(known)
    mine = digests(state)
    changed = [name for name in mine if name in own or mine[name] != theirs.get(name)]
    return make_delta(state, changed, model, base_name(base), f'scale_spec = {spec!r}\n', found=mine)


def scale_by_delta(model: nn.Module, delta: Delta | str | Path, facts: HostFacts | None = None) -> Delta:
    """Scales a source network, in place, as that of a delta was, and puts the delta on it.

    Args:
        model: holds the delta's base, unscaled; a head of another shape is replaced beforehand.
        delta: made by ``delta_of``, or what ``read_delta`` takes.
        facts: as for ``scale``.

    Raises:
        CheckpointError: before anything is changed, see ``read_delta`` and ``check``.
        ValueError: if the network is scaled already.
    """
    if not isinstance(delta, Delta):
        with naming(delta):
            return scale_by_delta(model, read_delta(delta), facts)
    if is_json(delta.config):  # the config that a Hugging Face model wrote
        spec = json.loads(delta.config).get('scalenet')
    else:
        spec = parse_config(delta.config, 'the delta').to_dict().get('scale_spec')
    if not spec:
        raise CheckpointError(
            'This delta holds the config of an OpenMMLab model, not the scale of a live one: use assemble or '
            'scalenet delta apply.'
        )
    maps = spec.pop('layer_maps')

    def scaled(network: nn.Module) -> nn.Module:
        return scale(network, stages=list(maps), sources=maps, facts=facts, **spec)

    tensors: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    check(delta, scaled(copy.deepcopy(model, tensors)).state_dict())  # a copy of the structure only
    return apply_delta(scaled(model), delta)
