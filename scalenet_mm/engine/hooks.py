"""Hooks of the Runner."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..checkpoint.dialects import rewrite


@HOOKS.register_module()
class AnyDialectHook(Hook):
    """Lets ``load_from`` take official DeiT and Swin and timm files: rewrites the loaded checkpoint's keys."""

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            return
        from ..checkpoint.reading import unwrap

        checkpoint['state_dict'] = rewrite(unwrap(checkpoint))
