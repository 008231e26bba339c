"""Lets mmengine's own constructor, and those that extend it, train tied layers.

With a ``paramwise_cfg`` they list a shared tensor for every module that holds it, which torch refuses: of a tensor of
tied layers the first place counts, as in ``model.parameters()``, its owner's. And ``custom_keys`` of stock configs name
the layers of the unscaled network, so every instance takes its source's settings. All else is mmengine's business, as
before.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import wraps

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from ..core.tying import MappedLayers, TiedLayers, ties


def group_tied_layers() -> None:
    """Replaces ``__call__`` and ``add_params`` of mmengine's constructor; may run again."""
    kind = DefaultOptimWrapperConstructor
    if hasattr(kind.__call__, 'knows_scaled_layers'):
        return
    kind.__call__, kind.add_params = _with_tied_once(kind.__call__), _with_settings_of_sources(kind.add_params)


def _with_tied_once(host):
    """Asked once the groups are there, whoever made them: layer-wise decay has an ``add_params`` of its own."""

    @wraps(host)
    def call(self, model: nn.Module) -> OptimWrapper:
        layers = [m for m in model.modules() if isinstance(m, TiedLayers)]
        tied = {id(place.tensor) for m in layers for place, _ in ties(m)}

        def add_params(params: list[dict], *args, **kwargs) -> None:
            del self.add_params  # the constructor's own again, which calls itself for what is inside
            self.add_params(params, *args, **kwargs)
            keep_first(params, tied)

        self.add_params = add_params
        try:
            return host(self, model)
        finally:
            vars(self).pop('add_params', None)  # not asked without a paramwise_cfg

    call.knows_scaled_layers = True
    return call


def _with_settings_of_sources(host):
    @wraps(host)
    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        if not isinstance(module, MappedLayers):
            host(self, params, module, prefix, is_dcn_module)
            return
        for source, layer in zip(module.layer_map.sources, module.children()):
            self.add_params(params, layer, f'{prefix}.{source}'.lstrip('.'), False)

    return add_params


def keep_first(groups: list[dict], among: Collection[int] | None = None) -> None:
    """Leaves of each tensor (of those with an id ``among`` these, where given) the first entry; in place."""
    seen: set[int] = set()
    for group in groups:
        group['params'] = [p for p in group['params'] if id(p) not in seen]
        seen |= {id(p) for p in group['params'] if among is None or id(p) in among}
    groups[:] = [group for group in groups if group['params']]
