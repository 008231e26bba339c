"""Hooks of the Runner."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from ..checkpoint.delta import read_delta
from ..checkpoint.reading import unwrap
from ..checkpoint.whole import for_model
from .delta_hook import ApplyDeltaHook, bare
from .load_rule import check_supplied, warn_of_random


@HOOKS.register_module()
class AnyDialectHook(Hook):
    """Lets ``load_from`` take official DeiT and Swin and timm files, and requires what would stay frozen (`load_rule`).

    Raises:
        CheckpointError: before anything is loaded, if the file lacks what it must supply.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        if not (runner._load_from or runner._resume):
            warn_of_random(bare(runner.model))

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = bare(runner.model)
        if not runner._resume:
            checkpoint['state_dict'] = for_model(unwrap(checkpoint), model)
        # the optimizer wrapper is built, and the model frozen, before Runner.train() loads
        training = isinstance(runner.optim_wrapper, OptimWrapper) and not runner._resume
        deltas = [read_delta(h.delta) for h in runner.hooks if isinstance(h, ApplyDeltaHook)]
        later = {key for delta in deltas for key in delta.tensors}
        check_supplied(model, checkpoint['state_dict'], training, later)
