"""Lets optimizer constructors with an ``add_params`` of their own (layer-wise decay) train tied layers.

They list a tensor for every module that holds it, which torch refuses. Of a tensor of tied layers the first place
counts, as in ``model.parameters()``: its owner's. Everything else is the constructor's business.
"""

from __future__ import annotations

from functools import wraps

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from ..core.tying import TiedLayers, ties


def list_tied_once() -> None:
    """Replaces ``__call__`` of mmengine's constructor by one that knows tied layers; may run again."""
    host = DefaultOptimWrapperConstructor.__call__
    if hasattr(host, 'knows_scaled_layers'):
        return

    @wraps(host)
    def call(self, model: nn.Module) -> OptimWrapper:
        layers = [m for m in model.modules() if isinstance(m, TiedLayers)]
        tied = {id(place.tensor) for m in layers for place, _ in ties(m)}

        def add_params(params: list[dict], *args, **kwargs) -> None:
            del self.add_params  # the constructor's own again, which calls itself for what is inside
            self.add_params(params, *args, **kwargs)
            _keep_first(params, tied)

        self.add_params = add_params
        try:
            return host(self, model)
        finally:
            vars(self).pop('add_params', None)  # not asked without a paramwise_cfg

    call.knows_scaled_layers = True
    DefaultOptimWrapperConstructor.__call__ = call


def _keep_first(params: list[dict], tied: set[int]) -> None:
    """Leaves of each tied tensor the first entry."""
    seen: set[int] = set()
    for group in params:
        again = {id(p) for p in group['params']} & seen
        group['params'] = [p for p in group['params'] if id(p) not in again]
        seen |= {id(p) for p in group['params']} & tied
    params[:] = [group for group in params if group['params']]
