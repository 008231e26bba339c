"""Random depth in a run, so that a scaled network works at every depth."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..elastic import RandomDepth, depth_range, set_depth
from .delta_hook import bare


@HOOKS.register_module()
class RandomDepthHook(Hook):
    """Trains every iteration at a depth drawn at random; validation and checkpoints are of the full depth.

    Args:
        full: the probability of the full depth, see ``elastic.RandomDepth``.
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
