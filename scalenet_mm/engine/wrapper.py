"""`freeze` applies a policy to a model, and where DDP wraps it, before its buckets or with new ones."""

from __future__ import annotations

import torch.distributed as dist
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint.supplied import watch
from ..core.roles import TrainPolicy
from ..core.tying import is_sharded, require_tied

REBUILT = (DistributedDataParallel, MMDistributedDataParallel)  # and no subclass
NOT_REBUILT = {  # what these wrappers hold beside their buckets, and would lose or run twice
    '_comm_hooks': 'a communication hook',
    'mixed_precision': 'mixed precision',
    '_delay_all_reduce_params': 'delayed parameters',
    '_accum_grad_hooks': "torch.compile's reducer",
}
REMEDY = (
    "write the policy at the top of the config, runner_type='ScaleNetRunner' beside it, and leave model_wrapper_cfg "
    "out; or use model_wrapper_cfg=dict(type='ScaleNetDistributedDataParallel', policy=<the policy of paramwise_cfg>)"
)


@MODEL_WRAPPERS.register_module()
class ScaleNetDistributedDataParallel(MMDistributedDataParallel):
    """Freezes by ``policy``, then wraps: only trainable tensors are reduced.

    On CPU, SyncBatchNorm becomes BatchNorm, as mmengine does it for a single process: DDP refuses it there.

    Args:
        module: the model.
        policy: as in ``paramwise_cfg`` of ``ScaleNetOptimWrapperConstructor``.
        broadcast_buffers: as DDP's; False as in mmengine's own default.
    """

    def __init__(self, module: nn.Module, *args, policy: dict | None = None, broadcast_buffers: bool = False, **kwargs):
        if next(module.parameters()).device.type == 'cpu':
            kwargs['device_ids'] = None  # mmengine always passes the local rank
            if any(type(m).__name__ == 'SyncBatchNorm' for m in module.modules()):
                print_log('On CPU, SyncBatchNorm is BatchNorm: statistics of a process.', 'current')
                module = revert_sync_batchnorm(module)
        freeze(module, TrainPolicy.from_cfg(policy))
        super().__init__(module, *args, broadcast_buffers=broadcast_buffers, **kwargs)


def freeze(model: nn.Module, policy: TrainPolicy) -> nn.Module:
    """Applies a policy to a model that may be wrapped or sharded, and has it watch what files supply.

    A plain DDP gets new buckets, in place; what was frozen by this policy before passes.

    Returns:
        The model itself, without wrapper.

    Raises:
        RuntimeError: at a wrapper that cannot take the freezing any more, with the remedy; see also ``require_tied``.
    """
    require_tied(model)
    wrapped = is_model_wrapper(model)
    bare = model.module if wrapped else model
    for name, module in bare.named_modules():
        if is_model_wrapper(module):
            raise RuntimeError(
                f'{type(model).__name__} wraps parts of the model ({name!r} and others), whose parameters a policy '
                f'cannot name; {REMEDY}.'
            )
    wanted = set(policy.trainable(bare))
    late = [n for n, p in bare.named_parameters() if p.requires_grad != (n in wanted)]
    differ = f'{len(late)} tensors differ from the policy, first {late[0]!r}' if late else ''
    if late and is_sharded(bare):
        raise RuntimeError(
            f'The model was sharded before it was frozen ({differ}); call TrainPolicy(...).apply(model) before '
            'fully_shard(model), with the policy of paramwise_cfg.'
        )
    if late and wrapped:
        why = _not_rebuilt(model)
        if why:
            raise RuntimeError(
                f'{type(model).__name__} wrapped the model before it was frozen ({differ}), and {why}; {REMEDY}.'
            )
    policy.apply(bare)
    watch(bare)
    if late and wrapped:
        _rebuild(model)
    return bare


def _not_rebuilt(wrapper: nn.Module) -> str:
    """Why a wrapper's buckets are not built again; empty if they can be."""
    if type(wrapper) not in REBUILT:
        return 'only a plain DistributedDataParallel gets new buckets'
    held = [text for name, text in NOT_REBUILT.items() if getattr(wrapper, name, None)]
    if wrapper.process_group != dist.group.WORLD:
        held.append('a process group of its own')
    return f'{", ".join(held)} would be lost' if held else ''


def _rebuild(ddp: DistributedDataParallel) -> None:
    """New buckets for what is trainable now, every option kept: DDP's own way back from a pickle.

    The first reducer, which no gradient has passed yet, goes and takes its hooks with it.
    """
    ddp.__setstate__(ddp.__getstate__())
