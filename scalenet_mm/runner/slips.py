"""Slips in a config: what nothing reads and what looks like something that is read is refused with the nearest.

mmengine keeps every key, so ``trian_cfg = ...`` would change nothing without a word.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from ..backbones.arguments import nearest, unknown
from ..compat import type_class, type_name

# The top level of a config: what the Runner reads, what our commands and the libraries' tools read besides, and names
# that most of the libraries' configs have.
READ = {
    *inspect.signature(Runner.__init__).parameters,
    *('runner_type', 'policy', 'find_unused_parameters', 'model_wrapper_cfg', 'compile', 'strategy', 'custom_imports'),
    *('tta_model', 'tta_pipeline', 'data_root', 'efficient_conv_bn_eval', 'gallery_dataloader'),
    *('train_pipeline', 'val_pipeline', 'test_pipeline'),
}
ALIKE = 0.8  # of difflib: one letter left out, doubled or changed, or two changed about
HANDED_ON = 0.9  # for arguments that a class hands to its bases, of which it may take some out before


def resembled(name: str, names: Iterable[str], cutoff: float = ALIKE) -> str:
    """The one of ``names`` that ``name`` is a slip of; empty where it is none, or begins with ``_``."""
    names = set(names)
    alike = '' if name in names or name.startswith('_') else nearest(name, names, cutoff, most=1)
    return '' if alike == 'none' else alike


def refuse_slips(cfg: Config, path: str, options: Mapping[str, Any]) -> None:
    """Refuses keys of a config and of ``--cfg-options`` that are a slip of one that is there or is read.

    Args:
        cfg: as read, before ``options`` are put in.
        path: its file, for the message.
        options: ``{'model.backbone.depth': 3}``.

    Raises:
        SystemExit: with key, file, the nearest and the way out.
    """
    text = getattr(cfg, 'text', None) or ''
    said = [_top(path, key, near) for key in cfg if (near := resembled(key, READ)) and not _used(key, text)]
    said += [line for key, value in options.items() for line in _of_option(cfg, path, key, value)]
    if said:
        raise SystemExit('\n'.join(said))


def _used(name: str, text: str) -> bool:
    """Whether a config's own text names a variable again after it was set."""
    return len(re.findall(rf'\b{name}\b', text)) > 1


def _top(where: str, key: str, near: str) -> str:
    return (
        f'{where}: nothing reads a top-level {key!r}, and {near!r} is near. Write {near!r}; '
        f'a variable of your own may begin with an underscore, {"_" + key!r}.'
    )


def _of_option(cfg: Config, path: str, option: str, value: Any) -> Iterator[str]:
    """What is wrong with a key of ``--cfg-options``; empty where nothing is."""
    where, node = f'--cfg-options {option}={value}', cfg._cfg_dict
    for i, part in enumerate(option.split('.')):
        if not isinstance(node, Mapping):
            return  # an entry of a list
        if part in node:
            node = node[part]
            continue
        near = resembled(part, node if i else READ)
        if near and not i:
            yield _top(f'{where}, for {path}', part, near)
        elif near and (i == 1 or 'type' in node):  # deeper ones without a type are free-form, such as custom_keys
            holder = '.'.join(option.split('.')[:i])
            yield (
                f'{where}: {holder} of {path} has no {part!r}, and {near!r} is near. Write {near!r}; '
                'what is meant so goes into a config file of your own.'
            )
        return


def misspelt_arguments(cfg: Config) -> Iterator[tuple[str, str]]:
    """Where a part of the model has an argument that its class does not take and that is a slip of one, and what."""
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope')),
        MODELS.switch_scope_and_registry(None) as known,
    ):
        for where, node in typed(cfg.get('model') or {}, 'model'):
            kind = type_class(node, known)
            taken, cutoff = arguments_taken(kind) if isinstance(kind, type) else (set(), ALIKE)
            slips = [key for key in node if resembled(key, taken, cutoff)]
            if slips:
                yield where, f'{type_name(node)} takes no {unknown(slips, taken)}.'


def refuse_misspelt_arguments(cfg: Config, path: str) -> None:
    """Refuses `misspelt_arguments`.

    Raises:
        SystemExit: with file, key, the nearest argument and the way out.
    """
    if said := [f'{path}: {where}: {text}' for where, text in misspelt_arguments(cfg)]:
        raise SystemExit('\n'.join(said))


def arguments_taken(kind: type) -> tuple[set[str], float]:
    """The names that a class takes, those of its bases too where it hands on what it does not know (none where even
    the last of them takes any), and from which likeness on another name is a slip of one.
    """
    if hasattr(kind, 'arguments_taken'):  # ours, which know what their hosts take
        return {'type', *kind.arguments_taken()}, ALIKE
    names, cutoff = {'type'}, ALIKE
    for base in kind.__mro__[:-1]:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters
        names.update(
            name for name, p in list(parameters.items())[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        )
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            return names, cutoff
        cutoff = HANDED_ON
    return set(), cutoff


def typed(node: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    """Every dict with a ``type`` in a model's config, with its key; not losses, whose dicts heads take keys out of."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    if isinstance(node, Mapping) and 'type' in node:
        yield where, node
    for key, value in items:
        if isinstance(value, (Mapping, list, tuple)) and not str(key).startswith('loss'):
            yield from typed(value, f'{where}.{key}')
