"""Lets mmengine's own constructor, and those that extend it, group the parameters of tied layers.

With a ``paramwise_cfg`` it lists a shared tensor for every module that holds it, which torch refuses: the first
instance counts, as in ``model.parameters()``. And ``custom_keys`` of stock configs name the layers of the unscaled
network, so every instance takes its source's settings. Other modules are mmengine's business, as before.
"""

from __future__ import annotations

from functools import wraps

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..core.tying import MappedLayers


def group_tied_layers() -> None:
    """Replaces ``add_params`` of mmengine's constructor by one that knows scaled layers; may run again."""
    host = DefaultOptimWrapperConstructor.add_params
    if getattr(host, 'knows_scaled_layers', False):
        return

    @wraps(host)
    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        if not isinstance(module, MappedLayers):
            host(self, params, module, prefix, is_dcn_module)
            return
        before = len(params)
        for source, layer in zip(module.layer_map.sources, module.children()):
            self.add_params(params, layer, f'{prefix}.{source}'.lstrip('.'), False)
        params[before:] = once(params[before:])

    add_params.knows_scaled_layers = True
    DefaultOptimWrapperConstructor.add_params = add_params


def once(groups: list[dict]) -> list[dict]:
    """Groups of one tensor each, without those of a tensor that an earlier group has."""
    first = {id(group['params'][0]): group for group in reversed(groups)}
    return [group for group in groups if first[id(group['params'][0])] is group]
