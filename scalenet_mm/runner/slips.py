"""Slips in a config: what nothing reads and what looks like something that is read is refused with the nearest.

mmengine keeps every key, so ``trian_cfg = ...`` would change nothing without a word.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..backbones.arguments import nearest, unknown
from ..compat import TYPE_KEYS, type_name
from .built import A_TYPE, ALIKE, Known, dicts, names_taken

# The top level of a config: what the Runner reads, and our commands and the libraries' tools besides; then with the
# variables that most of the libraries' configs have.
RUNS = {
    *inspect.signature(Runner.__init__).parameters,
    *('runner_type', 'policy', 'find_unused_parameters', 'model_wrapper_cfg', 'compile', 'strategy', 'custom_imports'),
    *('tta_model', 'tta_pipeline', 'data_root', 'efficient_conv_bn_eval', 'gallery_dataloader', 'sync_bn'),
    *('activation_checkpointing',),
}
READ = {*RUNS, 'train_pipeline', 'val_pipeline', 'test_pipeline'}
# Where the settings are that other versions and other tools of the field have at the top level, by that name
ELSEWHERE = {
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper',
    'optimizer_config.grad_clip': 'optim_wrapper.clip_grad',
    **dict.fromkeys(('lr', 'learning_rate'), 'optim_wrapper.optimizer.lr'),
    'weight_decay': 'optim_wrapper.optimizer.weight_decay',
    'lr_config': 'param_scheduler',
    **dict.fromkeys(('fp16', 'amp'), 'optim_wrapper.type=AmpOptimWrapper or --amp'),
    **dict.fromkeys(('epochs', 'max_epochs', 'total_epochs', 'runner.max_epochs'), 'train_cfg.max_epochs'),
    **dict.fromkeys(('iters', 'max_iters', 'total_iters', 'runner.max_iters'), 'train_cfg.max_iters'),
    **dict.fromkeys(('val_interval', 'evaluation.interval'), 'train_cfg.val_interval'),
    **dict.fromkeys(('runner', 'workflow'), 'train_cfg'),
    'evaluation': 'val_evaluator',
    **{f'data.{stage}': f'{stage}_dataloader.dataset' for stage in ('train', 'val', 'test')},
    **dict.fromkeys(('batch_size', 'samples_per_gpu', 'data.samples_per_gpu'), 'train_dataloader.batch_size'),
    **dict.fromkeys(('num_workers', 'workers_per_gpu', 'data.workers_per_gpu'), 'train_dataloader.num_workers'),
    'data': 'train_dataloader',
    **dict.fromkeys(('log_interval', 'log_config.interval'), 'default_hooks.logger.interval'),
    'log_config': 'default_hooks.logger',
    'checkpoint_config': 'default_hooks.checkpoint',
    **{name: f'randomness.{name}' for name in ('seed', 'deterministic', 'diff_rank_seed')},
    'resume_from': 'load_from with resume=True',
    'cudnn_benchmark': 'env_cfg.cudnn_benchmark',
    'dist_params': 'env_cfg.dist_cfg',
    **{part: f'model.{part}' for part in ('backbone', 'neck', 'head', 'decode_head', 'bbox_head', 'roi_head')},
}


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
    own = [key for key in cfg if key not in READ]
    said = [_top(path, key, near) for key in own if (near := resembled(key, RUNS)) and not _used(key, cfg)]
    said += [line for key, value in options.items() for line in _of_option(cfg, path, key, value)]
    if said:
        raise SystemExit('\n'.join(said))


def _used(name: str, cfg: Config) -> bool:
    """Whether a top-level key is a variable: the config's own text names it again after it was set, or what is read
    holds its value. (A config as a run writes it sets each name once, and a pure Python one has its own file's text.)
    """
    value = cfg._cfg_dict[name]
    if len(re.findall(rf'\b{name}\b', getattr(cfg, 'text', None) or '')) > 1:
        return True
    if not value or not isinstance(value, (str, Mapping, list, tuple)):
        return False  # a number or a flag is found anywhere
    found = list(_values({key: v for key, v in cfg._cfg_dict.items() if key in RUNS}))
    entries = [value] if isinstance(value, str) else list(value.items() if isinstance(value, Mapping) else value)
    return value in found or all(entry in found for entry in entries)


def _values(node: Any) -> Iterator[Any]:
    """Every value in a config, the items of its dicts as pairs."""
    items = node.items() if isinstance(node, Mapping) else ()
    yield from items
    for value in [v for _, v in items] or (node if isinstance(node, (list, tuple)) else ()):
        yield value
        yield from _values(value)


def _top(where: str, key: str, near: str) -> str:
    return (
        f'{where}: nothing reads a top-level {key!r}, and {near!r} is near. Write {near!r}; '
        f'a variable of your own may begin with an underscore, {"_" + key!r}.'
    )


def _of_option(cfg: Config, path: str, option: str, value: Any) -> Iterator[str]:
    """What is wrong with a key of ``--cfg-options``; empty where nothing is."""
    where, node, parts = f'--cfg-options {option}={value}', cfg._cfg_dict, option.split('.')
    for i, part in enumerate(parts):
        holder = '.'.join(parts[:i])
        if isinstance(node, (list, tuple)):
            if not (part.isdigit() and int(part) < len(node)):
                yield f'{where}: {holder} of {path} is a list of {len(node)}; its entries are 0 to {len(node) - 1}.'
                return
            node = node[int(part)]
            continue
        if not isinstance(node, Mapping):
            return
        if part in node and (i or part in READ or part not in ELSEWHERE):
            node = node[part]
            continue
        near = resembled(part, node if i or 'type' in node else READ)
        if not i and 'type' not in node:
            yield from _of_top(where, path, parts, near)
        elif near and 'type' in node and part in names_taken(holder, node, Known(cfg.get('default_scope')))[0]:
            return  # an argument of its own that the config left out
        elif near and (i <= 1 or 'type' in node):  # deeper ones without a type are free-form, such as custom_keys
            yield (
                f'{where}: {holder or "the top level"} of {path} has no {part!r}, and {near!r} is near. '
                f'Write {near!r}; what is meant so goes into a config file of your own.'
            )
        return


def _of_top(where: str, path: str, parts: list[str], near: str) -> Iterator[str]:
    """What is wrong with an option whose first part the config has not, or as a variable alone."""
    known = next((n for n in range(len(parts), 0, -1) if '.'.join(parts[:n]) in ELSEWHERE), 0)
    if known:
        right = '.'.join((ELSEWHERE['.'.join(parts[:known])], *parts[known:]))
        yield f'{where}: nothing that {path} builds reads a top-level {parts[0]!r}. Write {right}.'
    elif near:
        yield _top(f'{where}, for {path}', parts[0], near)
    elif parts[0] not in READ:
        yield (
            f'{where}: nothing that {path} builds reads a top-level {parts[0]!r}. Name a key of the config, '
            'with what it lies in: model.head.num_classes, not num_classes.'
        )


def misspelt_arguments(cfg: Config) -> Iterator[tuple[str, str]]:
    """Where a dict of a config has a name that its class does not take and that is a slip of one, and what; likewise
    where a ``type`` is registered nowhere and is a slip of one that is.
    """
    known = Known(cfg.get('default_scope'))
    for where, node in dicts({key: cfg[key] for key in cfg if key in RUNS}):
        for key in TYPE_KEYS:
            kind = node.get(key)
            if not isinstance(kind, str) or known.classes(kind):
                continue
            if near := resembled(kind.rpartition('.')[2], known.names(kind), A_TYPE):
                yield f'{where}.{key}'.lstrip('.'), f'there is no {kind!r}, and {near!r} is near. Write {near!r}.'
        taken, cutoff = names_taken(where, node, known)
        slips = [name for name in node if resembled(str(name), taken, cutoff)]
        if slips:
            yield where, f'{type_name(node) or "this dict"} takes no {unknown(slips, taken)}.'


def refuse_misspelt_arguments(cfg: Config, path: str) -> None:
    """Refuses `misspelt_arguments`.

    Raises:
        SystemExit: with file, key, the nearest argument and the way out.
    """
    if said := [f'{path}: {where}: {text}' for where, text in misspelt_arguments(cfg)]:
        raise SystemExit('\n'.join(said))
