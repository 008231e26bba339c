"""Gradient norms of the source layers while a model trains, as curves."""

from __future__ import annotations

from functools import wraps

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS

from ..compat import bare
from ..core.layers import layer_tensors, norms

PREFIX = 'gradient_norm'


@HOOKS.register_module()
class GradientNormHook(Hook):
    """Logs the l2 norm of the gradient of every source layer, at the optimizer's steps.

    Measured is what a step is about to use: accumulated over iterations, averaged over processes, without the loss
    scale of mixed precision, before clipping. A tied tensor counts once, with the sum over its instances. Names are
    ``gradient_norm/<container>.<source layer>``: in the message hub, in ``vis_data/scalars.json`` and in TensorBoard;
    the console's line stays short.

    Args:
        interval: steps of the optimizer between two measurements; the first step is one.
        tensors: ``'all'`` trained tensors of a layer (norms and adjustments of all its instances included), or those
            that are ``'shared'``, see ``core.layers.TENSORS``.
        layers: containers of layers of a model without a known host, as patterns.

    Raises:
        ValueError: at the start, for a value outside these rules, or if nothing of what is asked for is trained.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 50, tensors: str = 'all', layers: tuple[str, ...] = ()):
        if interval < 1:
            raise ValueError(f'interval must be at least 1 step, got {interval}.')
        self.interval, self.tensors, self.names = interval, tensors, tuple(layers)

    def before_train(self, runner) -> None:
        model = bare(runner.model)
        found = layer_tensors(model, self.tensors, self.names)
        self.params = {
            name: trained for name, params in found.items() if (trained := [p for p in params if p.requires_grad])
        }
        if not self.params:
            raise ValueError(
                f'GradientNormHook(tensors={self.tensors!r}): none of these tensors is trained, so they have no '
                "gradient; use tensors='all', or train them (policy.train='all')."
            )
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict) or not isinstance(wrapper, OptimWrapper):
            raise ValueError(
                f'GradientNormHook needs one optimizer wrapper, got {type(wrapper).__name__}; leave the hook out.'
            )
        step, self.steps = wrapper.step, runner.iter // wrapper._accumulative_counts  # more than 0 where it resumes

        @wraps(step)
        def measured(**kwargs):
            if self.steps % self.interval == 0:
                self.measure(runner)
            self.steps += 1
            return step(**kwargs)

        wrapper.step = measured  # no point of a Hook lies between the backward pass and zero_grad

    def measure(self, runner) -> None:
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        values = {f'{PREFIX}/{n}': v / scale for n, v in norms(self.params).items()}
        runner.message_hub.update_scalars(values)
        runner.visualizer.add_scalars(values, step=runner.iter + 1)

    def after_train(self, runner) -> None:
        runner.optim_wrapper.__dict__.pop('step', None)
