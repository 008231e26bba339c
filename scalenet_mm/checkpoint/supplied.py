"""What ``load_from`` must supply: mmengine loads with ``strict=False``, so a frozen head could stay random."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from mmengine.logging import print_log
from torch import Size, Tensor, nn

from .dialects import DERIVED
from .strict import CheckpointError, Differences, StrictBackbone, compare, require_values


def check_supplied(
    model: nn.Module, state_dict: Mapping[str, Tensor], training: bool, later: Collection[str] = ()
) -> None:
    """Compares a whole model's file with the model, outside scaled backbones (which are strict by themselves).

    In training the file must supply every frozen parameter, and the buffers of modules without a trainable one, each in
    its shape; what is trained may be missing or of another shape and is listed in one log line, as is what the file has
    besides. Outside training it must supply everything. ``num_batches_tracked`` and index buffers may always be
    missing.

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
    free = {key for key in expected if key in later or (training and _trained(model, key))}
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


def warn_of_random(model: nn.Module) -> None:
    """Says which frozen parameters nothing has supplied, where a run starts without ``load_from``."""
    names = [name for name, _ in model.named_parameters()]
    given = tuple(
        f'{name}.' if name else ''
        for name, module in model.named_modules()
        if getattr(module, 'scaled_host', False) and getattr(module, 'init_cfg', None)
    )
    lost = [n for n, p in model.named_parameters() if not p.requires_grad and not n.startswith(given)]
    if lost:
        print_log(
            f'This run has no load_from, and {", ".join(modules(lost, names)[:10])} ({len(lost)} tensors) stay frozen '
            'at random values. Name a checkpoint in load_from, or train them: policy.also, or policy.train=all.',
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


def _trained(model: nn.Module, key: str) -> bool:
    """Whether a parameter is trained, or a buffer stands beside one of its module (or the module around) that is."""
    path, _, name = key.rpartition('.')
    module = model.get_submodule(path)
    if name in module._parameters:
        return module._parameters[name].requires_grad
    while path and not any(True for _ in module.parameters()):
        path = path.rpartition('.')[0]
        module = model.get_submodule(path)
    return any(p.requires_grad for p in module.parameters())


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
    parts, theirs = ({key.partition('.')[0] for key in keys} for keys in (expected, got))
    if rest and not parts & theirs:
        ways.append(
            f'The file holds a backbone or a classifier: nothing in it is of {_quoted(parts)}. Name a checkpoint of '
            "the whole model in load_from, or load this one with model.backbone.init_cfg=dict(type='Pretrained', "
            f'checkpoint=...) and train the rest: add {_quoted(parts)} to policy.also.'
        )
    elif rest:
        ways.append(
            f'The file is of another architecture (it has {_quoted(theirs)}). Name a checkpoint of this one in '
            f'load_from; to train from random values instead, add {_quoted(modules(rest, expected))} to policy.also.'
        )
    return ways


def _quoted(names: Iterable[str]) -> str:
    return ', '.join(repr(name) for name in sorted(names))
