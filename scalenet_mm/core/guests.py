"""Has PEFT ask a rule before it merges adapters into weights, from its import on. torch only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from types import ModuleType

from torch import nn

Rule = Callable[[nn.Module], None]
NAME = 'peft.tuners.tuners_utils'


class PeftFinder:
    """Waits for the import of PEFT's tuners: finds them as the other finders do, and adds the rule."""

    def __init__(self, rule: Rule):
        self.rule = rule

    def find_spec(self, name: str, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _add(self.rule, module)

        spec.loader.exec_module = exec_module
        return spec


def guard_merging(rule: Rule) -> None:
    """Has ``rule`` called with the model before PEFT merges; PEFT itself is not imported. Idempotent."""
    if NAME in sys.modules:
        _add(rule, sys.modules[NAME])
    elif not any(isinstance(finder, PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PeftFinder(rule))


def _add(rule: Rule, tuners: ModuleType) -> None:
    host = tuners.BaseTuner._check_merge_allowed
    if getattr(host, 'rule', None) is rule:
        return

    @wraps(host)
    def check(self) -> None:
        rule(self.model)
        host(self)

    check.rule = rule
    tuners.BaseTuner._check_merge_allowed = check
