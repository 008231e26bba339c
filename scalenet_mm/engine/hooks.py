"""Hooks of the Runner."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..checkpoint.dialects import rewrite
from ..checkpoint.reading import unwrap


@HOOKS.register_module()
class AnyDialectHook(Hook):
    """Lets ``load_from`` take official DeiT and Swin and timm files: rewrites the loaded checkpoint's keys."""

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            return
        checkpoint['state_dict'] = rewrite(unwrap(checkpoint))


@HOOKS.register_module()
class ProgressHook(Hook):
    """One live line on the terminal: what runs, how far it is, the loss, and when it will be done.

    Args:
        what: name of the run.
        every: seconds between lines where the output is no terminal.
    """

    priority = 'VERY_LOW'

    def __init__(self, what: str = 'training', every: float = 10.0):
        self.what, self.every = what, every
        self.shown = 0.0

    def before_train(self, runner) -> None:
        self.begin, self.first = time.time(), runner.iter
        self.total = runner.max_iters

    @master_only
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        done, live = runner.iter + 1, sys.__stdout__.isatty()
        if time.time() - self.shown < (0.2 if live else self.every) and done < self.total:
            return
        self.shown = time.time()
        left = (self.shown - self.begin) / (done - self.first) * (self.total - done)
        loss = float(outputs['loss']) if outputs and 'loss' in outputs else float('nan')
        text = (
            f'  {self.what}: {100 * done // self.total:3d} %, iteration {done} of {self.total}, '
            f'loss {loss:.3f}, {timedelta(seconds=round(left))} left'
        )
        end = '\n' if not live or done == self.total else ''
        print(('\r\x1b[K' if live else '') + text, end=end, file=sys.__stdout__, flush=True)
