"""What a resumed run takes from a checkpoint beside the weights: the states of its optimizers and schedulers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoint.strict import SHOWN, CheckpointError
from ..compat import bare
from .continuing import weights_only

# Kernels of a device, which shapes without values do not have.
ANY_KERNEL = dict(fused=False, foreach=False, capturable=False)


def require_states(runner, file: str | Path, content: Mapping[str, Any]) -> None:
    """Refuses states of optimizers and schedulers that this run cannot continue with; changes nothing.

    A parameter without a state is one that never had a gradient, or whose state was lost; no file says which, so it is
    logged and not refused.

    Args:
        runner: with its optimizers and schedulers built; one that does not train has none.

    Raises:
        CheckpointError: naming the file and each state.
    """
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        return
    names = {id(p): name for name, p in bare(runner.model).named_parameters()}
    try:
        faults = [*_optimizers(runner.optim_wrapper, content, names, file)]
        faults += _schedulers(runner.param_schedulers, content)
    except (AttributeError, KeyError, TypeError) as error:  # a list where a dict is, and the like
        faults = [f'they are built otherwise ({type(error).__name__}: {error})']
    if faults:
        more = [f'... and {len(faults) - SHOWN} more'] * (len(faults) > SHOWN)
        raise CheckpointError(
            f'{file} does not hold the states of optimizer and schedulers that this run continues from, and nothing '
            f'was loaded; they are finite numbers, as many as the run keeps: {"; ".join([*faults[:SHOWN], *more])}. '
            f'Continue from an earlier checkpoint, with the config it was written by. {weights_only(file)}'
        )


def _optimizers(wrapper: OptimWrapper, content: Mapping, names: Mapping[int, str], file: str | Path) -> Iterator[str]:
    if 'optimizer' not in content:
        return
    several = isinstance(wrapper, OptimWrapperDict)
    own = dict(wrapper.items()) if several else {'optimizer': wrapper}
    saved = content['optimizer'] if several else {'optimizer': content['optimizer']}
    if saved.keys() != own.keys():
        yield f'optimizers {[*saved]}, where this run has {[*own]}'
        return
    for name, one in own.items():
        yield from (f'{name}: {fault}' for fault in _optimizer(one.optimizer, saved[name], names, file))
        yield from (f'{name}: {fault}' for fault in _numbers_that_differ({}, saved[name].get('loss_scaler') or {}))


def _optimizer(optimizer: Optimizer, saved: Mapping, names: Mapping[int, str], file: str | Path) -> Iterator[str]:
    own, groups, state = optimizer.param_groups, saved.get('param_groups') or (), saved.get('state') or {}
    sizes, there = ([len(g.get('params', ())) for g in gs] for gs in (own, groups))
    if there != sizes:
        yield f'parameter groups of {there} parameters, where this run has {sizes}'
        return
    for i, (mine, other) in enumerate(zip(own, groups)):
        settings = {**dict.fromkeys(optimizer.defaults), **other, 'params': None}
        yield from (f'group {i} has {fault}' for fault in _numbers_that_differ({**mine, 'params': None}, settings))
    kept, without = _kept(optimizer, groups), []
    params = [p for group in own for p in group['params']]
    for number, param, expected in zip((i for g in groups for i in g['params']), params, kept):
        name = names.get(id(param), f'parameter {number}')
        if found := state.get(number):
            yield from (f'{fault} of {name}' for fault in _state(found, expected))
        elif expected and param.requires_grad:
            without.append(name)
    if without and state:
        print_log(
            f'{file}: {len(without)} of {len(params)} parameters have no state in its optimizer, as those that never '
            f'had a gradient: {", ".join(without[:SHOWN])}{", ..." * (len(without) > SHOWN)}',
            'current',
        )


def _state(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    """What the state of one parameter holds instead of what its optimizer keeps."""
    yield from (f'no {key}' for key in expected if key not in found)
    for key, value in found.items():
        like = expected.get(key)
        if isinstance(value, Tensor) and isinstance(like, Tensor):
            alike = value.is_floating_point() or not like.is_floating_point()
            if not (value.numel() == like.numel() == 1 or (value.shape == like.shape and alike)):
                yield f'{key} of {value.dtype} {tuple(value.shape)} for {like.dtype} {tuple(like.shape)}'
        if any(not _finite(v) for v in _leaves(value)):
            yield f'{key} with NaN or infinity'


def _kept(optimizer: Optimizer, groups: list[Mapping]) -> list[Mapping[str, Any]]:
    """What an optimizer keeps of each parameter: it takes one step on shapes without values (torch's meta device).

    Args:
        groups: of the file, whose settings replace those of the run at the load.

    Returns:
        The state of each parameter; empty for an optimizer that cannot step without values.
    """
    twin = type(optimizer).__new__(type(optimizer))
    pairs = zip(optimizer.param_groups, groups)
    own = [{**mine, **other, 'params': [*map(_shape, mine['params'])]} for mine, other in pairs]
    for group in own:
        group.update((k, v) for k, v in ANY_KERNEL.items() if k in group)
    params = [p for group in own for p in group['params']]
    try:
        twin.__setstate__(dict(defaults=optimizer.defaults, state=defaultdict(dict), param_groups=own))
        twin.step()
    except Exception:  # whatever an optimizer of any library raises; its states are then only required to be finite
        return [{} for _ in params]
    return [twin.state.get(p, {}) for p in params]


def _shape(param: Tensor) -> nn.Parameter:
    shape = nn.Parameter(torch.empty_like(param, device='meta'), requires_grad=False)
    shape.grad = torch.empty_like(shape) if shape.is_floating_point() else None
    return shape


def _schedulers(own: list | dict | None, content: Mapping) -> Iterator[str]:
    if own is None or 'param_schedulers' not in content:
        return
    run, file = ({k: [*v] for k, v in _by_optimizer(s).items()} for s in (own, content['param_schedulers']))
    counts = [{k: len(v) for k, v in s.items()} for s in (run, file)]
    if counts[0] != counts[1]:
        has, wanted = (' and '.join(f'{n} {k}'.strip() for k, n in c.items()) for c in reversed(counts))
        yield f'{has or "no"} param_schedulers, where this run has {wanted}'
        return
    for name, schedulers in run.items():
        for i, (mine, other) in enumerate(zip(schedulers, file[name])):
            place = f'param_schedulers{[name] if name else ""}[{i}]'
            yield from (f'{place} has {fault}' for fault in _numbers_that_differ(mine.state_dict(), other))


def _by_optimizer(schedulers: list | Mapping) -> Mapping[str, list]:
    return schedulers if isinstance(schedulers, Mapping) else {'': schedulers}


def _numbers_that_differ(own: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a file that are no number where the run's is one, or none that is finite where the run's is."""
    for key, value in saved.items():
        wanted, got = _numbers(own.get(key)), _numbers(value)
        if (wanted and not got) or (all(map(math.isfinite, wanted)) and not all(map(math.isfinite, got))):
            yield f'{key}={value!r}'


def _numbers(value: Any) -> list[float]:
    return [float(v) for v in _leaves(value) if not isinstance(v, Tensor) or v.numel() == 1]


def _finite(value: float | Tensor) -> bool:
    return bool(value.isfinite().all()) if isinstance(value, Tensor) else math.isfinite(value)


def _leaves(value: Any) -> Iterator[float | Tensor]:
    """The tensors and numbers in a value."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, (int, float, Tensor)) and not isinstance(value, bool):
        yield value
