"""What PEFT and accelerate have to know of tied layers, told to them when they are imported. torch only.

Neither is imported here, and networks that are not scaled are treated as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from types import ModuleType

from torch import nn

Change = Callable[[ModuleType], None]


def tell_guests(refuse_merging: Callable[[nn.Module], None]) -> None:
    """Called where layers are tied; idempotent.

    Args:
        refuse_merging: raises for a model whose adapters must not be merged.
    """
    when_imported('peft.tuners.tuners_utils', lambda peft: _ask_before_merging(peft.BaseTuner, refuse_merging))
    when_imported('accelerate.hooks', _offload_tied)


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


def _ask_before_merging(tuner: type, refuse_merging: Callable[[nn.Module], None]) -> None:
    host = tuner._check_merge_allowed
    if hasattr(host, 'knows_scaled_layers'):
        return

    @wraps(host)
    def check(self) -> None:
        refuse_merging(self.model)
        host(self)

    check.knows_scaled_layers = True
    tuner._check_merge_allowed = check


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
