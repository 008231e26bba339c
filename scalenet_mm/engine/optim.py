"""The optimizer-wrapper constructor: freezes by policy, groups what is left, prints one table."""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..compat import quiet
from ..core.adapters import Gate
from ..core.roles import Role, TrainPolicy, frozen_by_model, roles
from ..tables import format_table
from .tied_groups import group_tied_layers, keep_first
from .wrapper import freeze

FROM_CONFIG = dict(train='config')  # stands for the config's top-level policy, see runner.config.share_policy
FROZEN, FROZEN_ITSELF = 'frozen', 'frozen by the model'  # the second: by no policy
PARAMWISE_KEYS = {
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
}


group_tied_layers()


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ScaleNetOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Trains what the policy says, each shared tensor once, in one group for each (lr, weight decay).

    Args:
        optim_wrapper_cfg: as the default constructor's.
        paramwise_cfg: as the default constructor's (its keys are honoured), and ``policy=dict(train='increments'|
            'adjustments'|'all', also=[patterns])``, see ``roles.TrainPolicy``. Gates are never decayed.

    Raises:
        ValueError: for a key of another constructor, or a policy outside its rules.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        paramwise = dict(paramwise_cfg or {})
        policy = paramwise.pop('policy', None)
        if policy == FROM_CONFIG:
            raise ValueError(
                "paramwise_cfg.policy has train='config', the config's top-level policy, which a ScaleNetRunner puts "
                'there. Build it with RUNNERS.build(cfg), not with Runner.from_cfg(cfg).'
            )
        self.policy = TrainPolicy.from_cfg(policy)
        unknown = sorted(set(paramwise) - PARAMWISE_KEYS)
        if unknown:
            raise ValueError(
                f'paramwise_cfg has {unknown}, which {type(self).__name__} does not honour; it takes '
                f"{sorted(PARAMWISE_KEYS)} and 'policy'. Remove it (an inherited config: add _delete_=True)."
            )
        paramwise.setdefault('bypass_duplicate', False)  # not empty, so that add_params below is asked
        super().__init__(optim_wrapper_cfg, paramwise)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = freeze(model, self.policy)
        with quiet():
            wrapper = super().__call__(model)
        print_log('What is trained:\n' + self.table(model, wrapper), 'current')
        return wrapper

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module=None) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            keep_first(params)
            gates = {id(m.scale) for m in module.modules() if isinstance(m, Gate)}
            params[:] = _merge(params, gates, self.base_lr, self.base_wd)

    def table(self, model: nn.Module, wrapper: OptimWrapper) -> str:
        """Role, tensors, parameters, learning rate and weight decay of every group."""
        settings = {
            id(p): (f'{g["lr"]:.3g}', f'{g.get("weight_decay", 0):.3g}')
            for g in wrapper.optimizer.param_groups
            for p in g['params']
        }
        found, own = roles(model), frozen_by_model(model)
        rows: dict[tuple, list[int]] = {}
        for name, p in model.named_parameters():
            lr, decay = settings.get(id(p), (FROZEN_ITSELF if name in own else FROZEN, ''))
            row = rows.setdefault((found[name], lr, decay), [0, 0])
            row[0] += 1
            row[1] += p.numel()
        order = sorted(rows, key=lambda k: (list(Role).index(k[0]), k[1] in (FROZEN, FROZEN_ITSELF), k))
        body = [(str(role), rows[role, lr, d][0], rows[role, lr, d][1], lr, d) for role, lr, d in order]
        trained = [r for r in body if r[3] not in (FROZEN, FROZEN_ITSELF)]
        body.append(('trained', sum(r[1] for r in trained), sum(r[2] for r in trained), '', ''))
        return format_table(('role', 'tensors', 'parameters', 'lr', 'decay'), body)


def _merge(params: list[dict], gates: set[int], lr: float | None, decay: float | None) -> list[dict]:
    """One group for each distinct setting."""
    defaults = {k: v for k, v in (('lr', lr), ('weight_decay', decay)) if v is not None}
    merged: dict[str, dict] = {}
    for group in params:
        (p,) = group['params']
        setting = {**defaults, **{k: v for k, v in group.items() if k != 'params'}}
        if id(p) in gates:
            setting['weight_decay'] = 0.0
        merged.setdefault(repr(sorted(setting.items())), {**setting, 'params': []})['params'].append(p)
    return list(merged.values())
