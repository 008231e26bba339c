"""What PEFT, accelerate and torch's own tools have to know of tied layers, told to them when they are imported.

None is imported here, and networks that are not scaled are treated as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from importlib.util import find_spec
from types import ModuleType

from torch import nn

Change = Callable[[ModuleType], None]
WRITERS = {  # functions that write into the tensors of their first argument, or put views of them there
    'torch.nn.utils.prune': ['remove'],
    'torch.nn.utils.parametrize': ['register_parametrization', 'remove_parametrizations'],
    'torch.nn.utils.weight_norm': ['weight_norm'],
}


def tell_guests(
    refuse_merging: Callable[[nn.Module], None], own_what_is_written: Callable[[nn.Module], AbstractContextManager]
) -> None:
    """Called before layers are tied; idempotent.

    Args:
        refuse_merging: raises for a model, or a layer of one, whose adapters must not be merged.
        own_what_is_written: within it a tool may write into the tensors of a module.
    """

    def ask(peft: ModuleType) -> None:
        _ask_before(peft.BaseTuner, '_check_merge_allowed', refuse_merging)
        _ask_each_layer(peft, refuse_merging)

    def keep(module: ModuleType) -> None:
        for name in WRITERS[module.__name__]:
            _write_within(getattr(module, name), own_what_is_written)

    when_imported('peft.tuners.tuners_utils', ask)
    mixed = 'peft.tuners.mixed.model'
    when_imported(mixed, lambda m: _ask_before(m.MixedModel, '_unload_and_optionally_merge', refuse_merging))
    when_imported('accelerate.hooks', _offload_tied)
    for name in WRITERS:
        when_imported(name, keep)


def when_imported(name: str, change: Change) -> None:
    """Has ``change`` called with the module ``name``, now or when it is imported."""
    if name in sys.modules:
        change(sys.modules[name])
    elif not any(isinstance(finder, Waiting) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, Waiting(name, change))


class Waiting:
    """A finder that waits for one import: the other finders find the module, then it is changed."""

    def __init__(self, name: str, change: Change):
        self.name, self.change = name, change

    def find_spec(self, name: str, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


def _ask_before(tuner: type, method: str, refuse_merging: Callable[[nn.Module], None]) -> None:
    """Of a whole model, so that nothing is merged where one layer cannot be."""
    host = getattr(tuner, method)
    if hasattr(host, 'knows_scaled_layers'):
        return

    @wraps(host)
    def asked(self, *args, **kwargs):
        if kwargs.get('merge', True):
            refuse_merging(self.model)
        return host(self, *args, **kwargs)

    asked.knows_scaled_layers = True
    setattr(tuner, method, asked)


def _ask_each_layer(peft: ModuleType, refuse_merging: Callable[[nn.Module], None]) -> None:
    """Of a layer whose ``merge()`` is called by hand: each asks this function first, under whatever name it has it."""
    host = peft.check_adapters_to_merge
    if hasattr(host, 'knows_scaled_layers'):
        return

    @wraps(host)
    def asked(layer: nn.Module, *args, **kwargs):
        refuse_merging(layer)
        return host(layer, *args, **kwargs)

    _replace(host, asked)


def _write_within(host: Callable, own_what_is_written: Callable[[nn.Module], AbstractContextManager]) -> None:
    if hasattr(host, 'knows_scaled_layers'):
        return

    @wraps(host)
    def within(module: nn.Module, *args, **kwargs):
        with own_what_is_written(module):
            return host(module, *args, **kwargs)

    _replace(host, within)


def _replace(host: Callable, function: Callable) -> None:
    """In every module that has it by now, under whatever name."""
    function.knows_scaled_layers = True
    for module in list(sys.modules.values()):
        for name in [name for name, held in getattr(module, '__dict__', {}).copy().items() if held is host]:
            setattr(module, name, function)


def _offload_tied(accelerate: ModuleType) -> None:
    """Weights that are offloaded are looked up in the state dict, by the name of each layer that holds them.

    Of a tied tensor only the owner's is there. Where a name is missing, the hook keeps the tensors of its module
    itself, as it does where it is given no state dict.
    """
    host = accelerate.AlignDevicesHook.init_hook
    if hasattr(host, 'knows_scaled_layers'):
        return

    @wraps(host)
    def init_hook(self, module: nn.Module) -> nn.Module:
        given = self.weights_map if self.offload else None
        if given is not None:
            held = accelerate.named_module_tensors(module, self.offload_buffers, self.place_submodules, True)
            names, known = {getattr(given, 'prefix', '') + name for name, _ in held}, set(given)
            self.weights_map = given if names <= known else None
        return host(self, module)

    init_hook.knows_scaled_layers = True
    accelerate.AlignDevicesHook.init_hook = init_hook
