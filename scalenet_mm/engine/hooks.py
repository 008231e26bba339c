"""Hooks of the Runner."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from ..checkpoint.delta_file import read_delta
from ..checkpoint.loading import for_model
from ..checkpoint.reading import unwrap
from ..checkpoint.supplied import check_supplied
from ..compat import bare
from ..core.depth import RandomDepth, depth_range, set_depth
from .delta_hook import ApplyDeltaHook


@HOOKS.register_module()
class AnyDialectHook(Hook):
    """Lets ``load_from`` take official DeiT and Swin and timm files; of a file to evaluate or to resume from it
    requires every tensor. (What training requires of a file, the frozen model asks: `checkpoint.supplied.watch`.)

    Raises:
        CheckpointError: before anything is loaded, if the file lacks what it must supply.
    """

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = bare(runner.model)
        if not runner._resume:
            checkpoint['state_dict'] = for_model(unwrap(checkpoint), model)
        # the optimizer wrapper is built, and the model frozen, before Runner.train() loads
        if isinstance(runner.optim_wrapper, OptimWrapper) and not runner._resume:
            return
        deltas = [read_delta(h.delta) for h in runner.hooks if isinstance(h, ApplyDeltaHook)]
        later = {key for delta in deltas for key in delta.tensors}
        check_supplied(model, checkpoint['state_dict'], False, later)


@HOOKS.register_module()
class RandomDepthHook(Hook):
    """Trains every iteration at a depth drawn at random; validation and checkpoints are of the full depth.

    Args:
        full: the probability of the full depth, see ``core.depth.RandomDepth``.
        seed: of the draws.

    Raises:
        ValueError: for a probability outside 0..1; at the start, for a model without tied layers.
    """

    def __init__(self, full: float = 0.5, seed: int = 0):
        if not 0 <= full <= 1:
            raise ValueError(f'full is a probability, from 0 to 1, got {full!r}.')
        self.full, self.seed = full, seed

    def before_train(self, runner) -> None:
        self.draw = RandomDepth(bare(runner.model), self.full, self.seed)
        low, high = depth_range(self.draw.model)
        runner.logger.info(f'Every iteration trains a depth of {low} to {high} layer instances.')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.draw(runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        set_depth(self.draw.model)
