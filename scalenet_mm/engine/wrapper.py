"""DDP that freezes before it builds its buckets (decision 7)."""

from __future__ import annotations

from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from ..roles import TrainPolicy


@MODEL_WRAPPERS.register_module()
class ScaleNetDistributedDataParallel(MMDistributedDataParallel):
    """Freezes by ``policy``, then wraps: only trainable tensors are reduced.

    Args:
        module: the model.
        policy: as in ``paramwise_cfg`` of ``ScaleNetOptimWrapperConstructor``.
    """

    def __init__(self, module: nn.Module, *args, policy: dict | None = None, **kwargs):
        TrainPolicy.from_cfg(policy).apply(module)
        if next(module.parameters()).device.type == 'cpu':
            kwargs['device_ids'] = (
                None  # what DDP wants there; mmengine always passes the local rank
            )
        super().__init__(module, *args, **kwargs)
