"""Growth by independent layers: the baselines of Table I and zero-initialised blocks. torch only.

A grown network is the same deep host as a scaled one, filled from the pretrained layers and *not* tied. Each method is
two facts: where the new layers lie and what they hold at the start (``GROWTH``).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .hosts import host_facts
from .layer_map import LayerMap, selected
from .positions import configs_in, moving
from .positions import period as period_of
from .tying import MappedLayers, mapped


@dataclass(frozen=True)
class Growth:
    """How the new layers of a network start.

    Attributes:
        type: a key of ``GROWTH``.
        samples: pretrained layers that each new layer of ``'swa'`` averages; by default half of them. The paper does
            not say.
        seed: of their choice.
    """

    type: str
    samples: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.type not in GROWTH:
            raise ValueError(
                f'growth must be one of {sorted(GROWTH)}, got {self.type!r}; leave it out to share layers (ScaleNet).'
            )
        if self.samples is not None and (not isinstance(self.samples, int) or self.samples < 1):
            raise ValueError(f'growth samples must be a whole number >= 1, got {self.samples!r}.')
        if self.samples is not None and self.type != 'swa':
            raise ValueError(f"growth samples={self.samples} are of 'swa', and {self.type!r} averages no layers.")

    @classmethod
    def from_cfg(cls, growth: str | Mapping[str, Any] | Growth) -> Growth:
        """Reads ``'swa'`` or ``dict(type='swa', samples=3)``.

        Raises:
            ValueError: for a method or a key that does not exist.
        """
        if isinstance(growth, Growth):
            return growth
        given = dict(growth) if isinstance(growth, Mapping) else dict(type=growth)
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown or 'type' not in given:
            raise ValueError(
                f'growth takes a name of {sorted(GROWTH)} or a dict with type, samples, seed; got {growth!r}.'
            )
        return cls(**given)

    def layer_map(self, depth: int, new_layers: int | None = None, times: float = 2, layers='all') -> LayerMap:
        """Where the new layers lie: ``new_layers`` of them, or as many as ``times`` asks for.

        >>> Growth('interpolate').layer_map(4, new_layers=2).sources
        (0, 0, 1, 2, 2, 3)
        >>> Growth('zero').layer_map(4, new_layers=2).sources
        (0, 1, 1, 2, 3, 3)
        """
        if new_layers is not None:
            if isinstance(new_layers, bool) or not isinstance(new_layers, int) or new_layers < 0:
                raise ValueError(f'new_layers must be a whole number >= 0, got {new_layers!r}.')
            chosen = len(selected(depth, layers))
            times = (chosen + new_layers) / chosen
        return GROWTH[self.type].place(depth, times, layers)


Fill = Callable[['GrownLayers', int, Mapping[int, Tensor], str], Tensor | None]


def _copied(layers: GrownLayers, instance: int, by_source: Mapping[int, Tensor], name: str) -> Tensor:
    return by_source[layers.layer_map.sources[instance]].clone()


def _as_initialised(layers, instance, by_source, name) -> Tensor | None:
    return layers[instance].state_dict().get(name)


def _averaged(layers: GrownLayers, instance: int, by_source: Mapping[int, Tensor], name: str) -> Tensor:
    own = _copied(layers, instance, by_source, name)
    if not own.is_floating_point():
        return own
    sampled = [by_source[s] for s in layers.sampled(instance) if s in by_source]
    if not sampled or len({t.shape for t in sampled}) > 1:
        return own  # the strict load names what is wrong
    return torch.stack(sampled).mean(0)


def _zeroed(layers: GrownLayers, instance: int, by_source: Mapping[int, Tensor], name: str) -> Tensor:
    own = _copied(layers, instance, by_source, name)
    return torch.zeros_like(own) if name in layers.writes(instance) else own


def _on_top(depth: int, times: float, layers) -> LayerMap:
    """New layers on top of as many equal groups, each a copy of its group's last (LLaMA Pro, arXiv 2401.02415)."""
    stacked = LayerMap.build(depth, times, 'stack', layers)
    chosen = selected(depth, layers)
    new = len(stacked) - depth
    tops = [chosen[-(-(g + 1) * len(chosen) // new) - 1] for g in range(new)]
    return LayerMap(tuple(s for s in range(depth) for _ in range(1 + tops.count(s))))


def _ordered(order: str) -> Callable[..., LayerMap]:
    return lambda depth, times, layers: LayerMap.build(depth, times, order, layers)


@dataclass(frozen=True)
class Method:
    """Where new layers lie, what they hold at the start, and whether the function stays the source's."""

    place: Callable[[int, float, Any], LayerMap]
    fill: Fill
    keeps_function: bool = False


GROWTH = {
    'random': Method(_ordered('stack'), _as_initialised),
    'stack': Method(_ordered('stack'), _copied),  # StackBERT, Eq. 6
    'interpolate': Method(_ordered('interpolate'), _copied),  # Eq. 3
    'swa': Method(_ordered('stack'), _averaged),  # Sec. IV-A2
    'zero': Method(_on_top, _zeroed, keeps_function=True),
}


class GrownLayers(MappedLayers):
    """Mixed into the class of a layer container by ``grow``: every instance holds tensors of its own."""

    growth: Growth

    def fill(self, instance: int, name: str, by_source: Mapping[int, Tensor]) -> Tensor | None:
        """Entry ``name`` of a new layer, from those of the pretrained layers."""
        return GROWTH[self.growth.type].fill(self, instance, by_source, name)

    def sampled(self, instance: int) -> list[int]:
        """The pretrained layers that a new layer of ``'swa'`` averages."""
        depth = self.layer_map.depth
        number = self.growth.samples or -(-depth // 2)
        return sorted(random.Random(f'{self.growth.seed} {instance}').sample(range(depth), number))

    def writes(self, instance: int) -> set[str]:
        """Entries of a block whose zeros make it the identity."""
        facts = host_facts(self[0])
        paths = [p for target in facts.identity_at_zero() for p in facts.paths(target)]
        return {f'{path}.{p}' for path in paths for p in ('weight', 'bias')}

    @property
    def new(self) -> tuple[int, ...]:
        """The instances that are not the pretrained layers themselves."""
        return tuple(i for i in range(len(self)) if self.layer_map.owner(i) != i)


def own_start(model: nn.Module) -> set[str]:
    """The entries that no file of the unscaled network fills: new layers as their host initialised them."""
    grown = [(n, m) for n, m in model.named_modules() if isinstance(m, GrownLayers)]
    grown = [(n, m) for n, m in grown if GROWTH[m.growth.type].fill is _as_initialised]
    return {f'{n}.{i}.{k}'.lstrip('.') for n, m in grown for i in m.new for k in m[i].state_dict()}


def grow(layers: nn.Module, layer_map: LayerMap, growth: str | Mapping | Growth, period: int = 1) -> nn.Module:
    """Makes a container of ``len(layer_map)`` blocks one that a file of the unscaled network fills by ``growth``.

    Nothing is tied. Until a file is loaded all blocks are as their host initialises them.

    Args:
        layers: blocks of one structure, at the grown depth.
        period: of hosts whose layers alternate, see ``LayerMap.live``.

    Raises:
        ValueError: if the number of blocks is not the map's, or the method does not fit the map.
    """
    growth = Growth.from_cfg(growth)
    if len(layer_map) > layer_map.depth < (growth.samples or 1):
        raise ValueError(
            f'growth samples={growth.samples} are more than the {layer_map.depth} pretrained layers; use at most those.'
        )
    moved = any((at - source) % period for source, at in enumerate(layer_map.owners))
    if moved and GROWTH[growth.type].keeps_function:
        raise ValueError(
            f'growth={growth.type!r} keeps the pretrained function only where each pretrained layer stays at a '
            f'position of its own parity, in {list(layer_map.sources)} it does not; new_layers=1 lies at the tail, '
            'or choose another growth.'
        )
    mapped(layers, layer_map, GrownLayers)
    layers.growth = growth
    return layers


def grow_layers(
    layers: nn.Module, layer_map: LayerMap, growth: str | Mapping | Growth, period: int | None = None
) -> nn.Module:
    """A grown container made from the layers of a live model of any origin, which it consumes.

    New layers of ``'random'`` keep the values of a copy that ran its own ``reset_parameters``. Blocks are told their
    places, and Hugging Face configs that they hold the new depth, as by ``scale_layers``.

    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> encoder.layers = grow_layers(encoder.layers, Growth('stack').layer_map(3, 1, 2), 'stack')
    >>> len(encoder.layers)
    4

    Args:
        layers: ``nn.Sequential``, ``nn.ModuleList`` or a sequence of blocks.
        period: see ``LayerMap.live``; by default as the layers have it.
    """
    if len(layers) != layer_map.depth:
        raise ValueError(
            f'The layer map names {layer_map.depth} source layers, but the network has {len(layers)}; '
            'build the map with Growth(...).layer_map(len(layers), ...).'
        )
    if isinstance(layers, MappedLayers):
        raise ValueError('These layers are tied or grown already; grow the source layers instead.')
    period = period or period_of(layers)
    tell, configs = moving(layers, period), configs_in(layers)
    blocks = [
        layers[s] if layer_map.owner(i) == i else copy.deepcopy(layers[s], {id(c): c for c in configs})
        for i, s in enumerate(layer_map.sources)
    ]
    kind = type(layers) if isinstance(layers, nn.Module) else nn.ModuleList
    container = kind(*blocks) if issubclass(kind, nn.Sequential) else kind(blocks)
    source = {f'{s}.{k}': v.clone() for s, block in enumerate(layers) for k, v in block.state_dict().items()}
    for i in (i for i in range(len(layer_map)) if layer_map.owner(i) != i):
        for module in blocks[i].modules():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            elif hasattr(module, '_reset_parameters'):
                module._reset_parameters()
    container.source_names = list(getattr(layers, '_modules', ()))
    grow(container, layer_map, growth, period).load_state_dict(source)
    tell(container, layer_map)
    return container


def layers_to_reach(params: int, layer_params: int, target: int) -> int:
    """Number of new layers: "adding layers one by one until" the size of ScaleNet's model is reached (Sec. IV-A2).

    >>> layers_to_reach(5_717_416, 444_864, 6_463_912)  # DeiT-T: 6.61 M
    2
    """
    return max(0, -(-(target - params) // layer_params))
