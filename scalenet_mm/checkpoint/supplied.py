"""What files must supply: mmengine loads with ``strict=False``, so a frozen head could stay random.

Whoever freezes a model watches it (`watch`), so the rule holds whatever hooks a config has.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

import torch
from mmengine.logging import print_log
from torch import Size, Tensor, nn

from ..compat import init_cfgs
from ..core.roles import frozen_by_policy
from .dialects import DERIVED
from .strict import CheckpointError, Differences, StrictBackbone, compare, require_values

SUPPLIED = '_supplied_by_a_file'  # on a module that is watched: names of its own parameters


def check_supplied(
    model: nn.Module, state_dict: Mapping[str, Tensor], training: bool, later: Collection[str] = ()
) -> None:
    """Compares a whole model's file with the model, outside scaled backbones (which are strict by themselves).

    In training the file must supply every parameter that a policy froze and no earlier file supplied, and the buffers
    beside such, each in its shape; the rest may be missing or of another shape and is listed in one log line, as is
    what the file has besides. Outside training it must supply everything. ``num_batches_tracked`` and index buffers may
    always be missing.

    Args:
        model: not wrapped by DDP; frozen already, if it is to be trained.
        state_dict: keys of the model.
        training: whether the model is going to be trained.
        later: keys that a delta supplies afterwards.

    Raises:
        CheckpointError: with the keys, and what to do.
    """
    hosts = tuple(
        f'{name}.' if name else '' for name, module in model.named_modules() if isinstance(module, StrictBackbone)
    )

    def counted(key: str) -> bool:
        derived = key.endswith('num_batches_tracked') or DERIVED.fullmatch(key)
        return not derived and not key.startswith(hosts)

    mine = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor) and counted(k)}
    theirs = {k: v for k, v in state_dict.items() if counted(k)}
    require_values(mine, theirs)
    expected = {k: v.shape for k, v in mine.items()}
    found = compare(expected, theirs)
    held = frozen_by_policy(model) & unsupplied(model)
    free = {key for key in expected if key in later or (training and not _held(model, key, held))}
    wrong = Differences(
        missing={k: v for k, v in found.missing.items() if k not in free},
        mis_shaped={k: v for k, v in found.mis_shaped.items() if k not in free},
    )
    if wrong:
        rule = 'everything that stays frozen' if training else 'every tensor of the model'
        raise CheckpointError(
            f'The checkpoint must supply {rule}, each in its shape; nothing was loaded.\n{wrong}\n'
            + '\n'.join(_ways_out(expected, state_dict, wrong, training)),
            found,
        )
    told = {
        'not in the file, so as initialised': modules(found.missing, expected),
        'of another shape in the file, so as initialised': modules(found.mis_shaped, expected),
        'in the file but not used here': modules(found.unexpected, found.unexpected),
    }
    if any(told.values()):
        said = '; '.join(f'{what}: {", ".join(names)}' for what, names in told.items() if names)
        print_log(f'load_from: {said}.', 'current')


def pretrained_files(module: nn.Module) -> list[str]:
    """The files that a module's ``init_cfg`` names."""
    return [cfg['checkpoint'] for cfg in init_cfgs(module)[0]]


def watch(model: nn.Module) -> None:
    """Has a model that is about to be trained, and was frozen, check by itself where its frozen values come from.

    Until its first step of training, it notes what files supply to any part of it, and refuses one that lacks what a
    policy froze. At that step it names what is frozen at values that no file supplied.
    """
    if _warn_of_random in model._forward_pre_hooks.values():
        return
    for module in model.modules():
        module.register_load_state_dict_pre_hook(_note)
    model.register_load_state_dict_pre_hook(_refuse)
    model.register_forward_pre_hook(_warn_of_random)


def unsupplied(model: nn.Module) -> set[str]:
    """Names of the frozen parameters that no file has supplied since the model is watched."""
    supplied = {id(m._parameters[name]) for m in model.modules() for name in getattr(m, SUPPLIED, ())}
    return {name for name, p in model.named_parameters() if not p.requires_grad and id(p) not in supplied}


def _note(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *args) -> None:
    given = {
        name for name, p in module._parameters.items() if p is not None and _fits(state_dict.get(prefix + name), p)
    }
    if given:
        setattr(module, SUPPLIED, given | getattr(module, SUPPLIED, set()))


def _fits(entry: object, parameter: nn.Parameter) -> bool:
    return isinstance(entry, Tensor) and entry.shape == parameter.shape


def _refuse(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *args) -> None:
    if _warn_of_random in model._forward_pre_hooks.values():  # training has not begun
        entries = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        check_supplied(model, entries, training=True)


def _warn_of_random(model: nn.Module, args) -> None:
    if not (model.training and torch.is_grad_enabled()):
        return
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is _warn_of_random:
            del model._forward_pre_hooks[key]
    lost, by_policy = unsupplied(model), frozen_by_policy(model)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    for kept, way_out in (
        (lost & by_policy, 'Name a checkpoint in load_from, or train them: policy.also, or policy.train=all.'),
        (lost - by_policy, 'The model froze these itself; to train them, name them in policy.also.'),
    ):
        if kept:
            listed = ', '.join(modules(kept, frozen)[:10])
            print_log(
                f'{listed} ({len(kept)} tensors) stay frozen at values that no file supplied. {way_out}',
                'current',
                logging.WARNING,
            )


def modules(keys: Iterable[str], among: Iterable[str]) -> list[str]:
    """The largest modules all of whose keys ``among`` the given ones are in ``keys``.

    >>> modules(['head.a.weight', 'head.b.weight'], ['head.a.weight', 'head.b.weight', 'neck.weight'])
    ['head']
    """
    keys = set(keys)
    others = {p for key in among if key not in keys for p in _paths(key)}
    return sorted({next((p for p in _paths(k) if p not in others), k) for k in keys})


def _paths(key: str) -> list[str]:
    """The modules around a key, from the outside in."""
    parts = key.split('.')
    return ['.'.join(parts[:n]) for n in range(1, len(parts))]


def _held(model: nn.Module, key: str, held: Collection[str]) -> bool:
    """Whether a parameter is one of ``held``, or a buffer stands beside such and none that is trained."""
    path, _, name = key.rpartition('.')
    module = model.get_submodule(path)
    if name in module._parameters:
        return key in held
    while path and not any(True for _ in module.parameters()):
        path = path.rpartition('.')[0]
        module = model.get_submodule(path)
    beside = dict(module.named_parameters(path))
    return not any(p.requires_grad for p in beside.values()) and not held.isdisjoint(beside)


def _ways_out(expected: Mapping[str, Size], got: Mapping[str, Tensor], wrong: Differences, training: bool) -> list[str]:
    by_classes = [k for k, (mine, theirs) in wrong.mis_shaped.items() if mine[1:] == theirs[1:]]
    if not training:
        return ['Evaluate with the config that the checkpoint was trained with.']
    ways = []
    if by_classes:
        ways.append(
            'Only the first axis differs, as it does with another number of classes. To train these layers anew, add '
            f'{_quoted(modules(by_classes, expected))} to policy.also.'
        )
    rest = [k for k in (*wrong.missing, *wrong.mis_shaped) if k not in by_classes]
    parts, theirs, lost = ({key.partition('.')[0] for key in keys} for keys in (expected, got, rest))
    if rest and not parts & theirs:
        others = theirs - {'backbone', 'head'} if 'backbone' in theirs else ()
        holds = f'a model of other parts, {_quoted(others)}' if others else 'a backbone or a classifier'
        ways.append(
            f'The file holds {holds}: nothing in it is of {_quoted(parts)}. Name a checkpoint of '
            "the whole model in load_from, or load this one with model.backbone.init_cfg=dict(type='Pretrained', "
            f'checkpoint=...) and train the rest: add {_quoted(lost)} to policy.also.'
        )
    elif rest:
        ways.append(
            f'The file is of another architecture (it has {_quoted(theirs)}). Name a checkpoint of this one in '
            f'load_from; to train from random values instead, add {_quoted(modules(rest, expected))} to policy.also.'
        )
    return ways


def _quoted(names: Iterable[str]) -> str:
    return ', '.join(repr(name) for name in sorted(names))
