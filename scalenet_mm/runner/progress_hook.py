"""How far a run of the Runner is, and its curves for TensorBoard."""

from __future__ import annotations

import functools
import resource
import sys
from contextlib import ExitStack, redirect_stdout
from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from tqdm.contrib import DummyTqdmFile
from tqdm.contrib.logging import logging_redirect_tqdm

from ..compat import type_name
from ..progress import EVERY, Progress


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows training, validation and test: iteration, loss, peak memory, and when it will be done; rank 0 only.

    The log's lines go above the live bar. When a run ends, by whatever exception, its bars are closed.

    Args:
        what: name of the run.
        every: seconds between lines where the output is no terminal.
    """

    priority = 'VERY_LOW'

    def __init__(self, what: str = 'training', every: float = EVERY):
        self.what, self.every = what, every
        self.open: list[Progress] = []
        self.evaluation: Progress | None = None

    def before_run(self, runner) -> None:
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            if hasattr(loop, 'run') and not hasattr(loop.run, 'closes_bars'):
                loop.run = self._closing(loop.run, runner.logger)

    def _closing(self, run, logger):
        """The loop's ``run`` with its bars closed in the end: hooks are not told of exceptions."""

        @functools.wraps(run)
        def run_and_close():
            outer = len(self.open)
            try:
                with ExitStack() as stack:
                    if outer == 0 and is_main_process() and sys.__stdout__.isatty():
                        loggers = {id(x): x for x in (logger, MMLogger.get_current_instance())}
                        stack.enter_context(logging_redirect_tqdm(list(loggers.values())))
                        if sys.stdout is sys.__stdout__:
                            stack.enter_context(redirect_stdout(DummyTqdmFile(sys.stdout)))
                    return run()
            finally:
                while len(self.open) > outer:
                    self.open.pop().close()

        run_and_close.closes_bars = True
        return run_and_close

    def _begin(self, what: str, total: int, begin: int = 0, keep: bool = True) -> None:
        if is_main_process():
            self.open.append(Progress(what, total, begin, self.every, keep))

    def before_train(self, runner) -> None:
        self._begin(self.what, runner.max_iters, runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        if self.open and self.open[-1].due(done):
            loss = (outputs or {}).get('loss')
            shown = {} if loss is None else {'loss': f'{torch.as_tensor(loss).item():.3f}'}
            self.open[-1].update(done, **shown, memory=peak_memory())

    def before_val_epoch(self, runner) -> None:
        self._evaluate(runner, 'val')

    def before_test_epoch(self, runner) -> None:
        self._evaluate(runner, 'test')

    def _evaluate(self, runner, mode: str) -> None:
        if is_main_process():
            loader = runner.val_dataloader if mode == 'val' else runner.test_dataloader
            self._begin({'val': 'validation'}.get(mode, mode), len(loader), keep=mode == 'test')
            self.evaluation = self.open[-1]

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode='train') -> None:
        if self.evaluation not in self.open:  # a loop that passes its data twice, a teacher's first
            self._evaluate(runner, mode)
        if not self.open:
            return
        self.open[-1].update(batch_idx + 1, memory=peak_memory())
        if batch_idx + 1 == self.open[-1].total:  # what the metrics print finds an empty line
            self.open.pop().close()
            self.evaluation = None
            for outer in self.open:
                outer.bar.clear()


def peak_memory() -> str:
    """The most that tensors took on the GPU, else the most this process took."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f'{torch.cuda.max_memory_allocated() / 2**30:.1f} GB'
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f'{kilobytes / 2**20:.1f} GB'


def show_progress(cfg: Config, what: str = 'training') -> None:
    """Adds ``ProgressHook`` to a config that has none, in place."""
    hooks = list(cfg.get('custom_hooks') or [])
    if ProgressHook.__name__ not in (type_name(hook) for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='ProgressHook', what=what)]


def log_to_tensorboard(cfg: Config) -> None:
    """Adds TensorBoard's files (``<work_dir>/<time>/vis_data``) to what a config writes, in place.

    Raises:
        ModuleNotFoundError: if tensorboard is not installed.
    """
    if find_spec('tensorboard') is None:
        raise ModuleNotFoundError('Curves for TensorBoard need it: pip install tensorboard')
    visualizer = cfg.get('visualizer') or dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    backends = list(visualizer.get('vis_backends') or [])
    if 'TensorboardVisBackend' not in (type_name(backend) for backend in backends):
        backends.append(dict(type='TensorboardVisBackend'))
    cfg.visualizer = {**visualizer, 'vis_backends': backends}
