"""What would fail or silently go wrong later, found in a config and its data before anything is built or trained."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from ..checkpoint.strict import CheckpointError
from ..checkpoint.whole import require_whole
from .config import walk
from .continuing import require_continuable
from .preflight_data import check_content, some

# Their num_classes is not that of the data set: objectness, and stuff maps beside the boxes.
OTHER_CLASSES = {'rpn_head', 'semantic_head'}


def preflight(cfg: Config, stages: tuple[str, ...] = ('train', 'val')) -> None:
    """Checks paths, annotations, classes, checkpoints, seed and work dir of a run.

    Args:
        cfg: as read, before `make_resumable`.
        stages: the dataloaders that the run uses, of ``'train'``, ``'val'``, ``'test'``.

    Raises:
        SystemExit: with everything found, and what to do about each.
    """
    found: dict[str, list[str]] = {}
    for where, text in problems(cfg, stages):
        found.setdefault(text, []).append(where)
    if found:
        listed = [f'{i}. {", ".join(at)}: {text}' for i, (text, at) in enumerate(found.items(), 1)]
        raise SystemExit(
            f'Not started: {len(found)} thing(s) to put right first.\n'
            + '\n'.join(listed)
            + '\nIf a check is wrong about your data, --no-preflight leaves the checks out.'
        )


def problems(cfg: Config, stages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Where in the config something is wrong, and what."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for stage in stages:
            loader = cfg.get(f'{stage}_dataloader')
            if loader and isinstance(loader.get('dataset'), dict):
                yield from _check_stage(cfg, stage, loader.dataset)
    yield from _check_checkpoints(cfg, 'train' in stages)
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        yield 'randomness.seed', f'{seed!r} is no integer from 0 to 2**32 - 1.'
    yield from _check_work_dir(Path(cfg.work_dir))


def leaves(dataset: dict, where: str) -> Iterator[tuple[str, dict]]:
    """The data sets inside wrappers (ConcatDataset, RepeatDataset, ...), each with its key in the config."""
    for i, inner in enumerate(dataset.get('datasets') or ()):
        yield from leaves(inner, f'{where}.datasets.{i}')
    if isinstance(dataset.get('dataset'), dict):
        yield from leaves(dataset['dataset'], f'{where}.dataset')
    elif 'datasets' not in dataset:
        yield where, dataset


def head_classes(cfg: Config) -> dict[str, int]:
    """``num_classes`` of every head (lists of heads too) and of the preprocessor, by its key in the config."""
    model = cfg.get('model') or {}
    if 'language_model' in model or 'detector' in model:  # open vocabulary; trackers
        return {}
    found = {}
    for top in ('model', 'data_preprocessor'):
        for path, value in walk(cfg.get(top) or {}):
            where, name = (top, *map(str, path[:-1])), path[-1]
            if OTHER_CLASSES & set(where) or not isinstance(value, int):
                continue
            if 'panoptic_fusion_head' in model and 'roi_head' in where:  # things only
                continue
            if name == 'num_classes':
                found['.'.join((*where, name))] = value
            elif name in ('num_things_classes', 'num_stuff_classes'):  # Mask2Former: their sum
                key = '.'.join((*where, 'num_things_classes + num_stuff_classes'))
                found[key] = found.get(key, 0) + value
    return found


def _check_stage(cfg: Config, stage: str, dataset: dict) -> Iterator[tuple[str, str]]:
    evaluators = cfg.get(f'{stage}_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    labelled = not any(e.get('format_only') for e in evaluators)
    read = []
    for where, leaf in leaves(dataset, f'{stage}_dataloader.dataset'):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(leaf['type']) if isinstance(leaf['type'], str) else leaf['type']
        if kind is None:
            yield (where, f'there is no data set type {leaf["type"]!r}; import it with custom_imports.')
        elif issubclass(kind, BaseDataset) and not leaf.get('backend_args'):
            try:
                built = DATASETS.build({**leaf, 'lazy_init': True, 'pipeline': []})
            except Exception as e:
                paths = [leaf.get(k) for k in ('data_root', 'ann_file') if leaf.get(k)]
                yield where, f'cannot be built from {paths}: {type(e).__name__}: {e}'
                continue
            read.append(built)
            paths = [] if getattr(built, 'download', False) else _missing_paths(cfg, where, leaf, built)
            found = [*_check_classes(cfg, leaf, built), *paths]
            yield from ((where, text) for text in found)
            if all(os.path.exists(p) for p in _paths(built).values()):
                yield from ((where, t) for t in check_content(leaf, built, labelled))
    if all(os.path.isdir(d.data_root or '.') for d in read):
        yield from _check_evaluators(cfg, stage, evaluators, [d.ann_file for d in read])


def _check_evaluators(
    cfg: Config, stage: str, evaluators: list[dict], ann_files: list[str]
) -> Iterator[tuple[str, str]]:
    where = f'{stage}_evaluator.ann_file'
    local = [e for e in evaluators if _local(e.get('ann_file')) and not e.get('backend_args')]
    for path in (e['ann_file'] for e in local):
        if not os.path.isfile(path):
            yield where, f'there is no file {path}. {_ways(cfg, where)}'
        elif len(ann_files) == 1 == len(local) and os.path.realpath(path) != os.path.realpath(ann_files[0]):
            yield (
                where,
                f'{path} is not what the data set of {stage}_dataloader reads, {ann_files[0]}: predictions would be '
                'compared with the annotations of other images. Set both to the same file.',
            )


def _check_classes(cfg: Config, leaf: dict, dataset: BaseDataset) -> Iterator[str]:
    classes = dataset.metainfo.get('classes')
    if isinstance(classes, str):
        yield (
            f'metainfo.classes is the text {classes!r}, no list of names; one class is written with a comma: '
            f'classes=({classes!r},).'
        )
    elif classes is not None:
        wrong = [f'{key} = {n}' for key, n in head_classes(cfg).items() if n != len(classes)]
        own = (leaf.get('metainfo') or {}).get('classes')
        source = 'metainfo' if own else f"{leaf['type']}'s own, as metainfo names none"
        if wrong:
            yield (
                f'there are {len(classes)} classes ({source}: {some(list(classes))}), but {", ".join(wrong)}. Set '
                'metainfo=dict(classes=(...)) of every data set to the names of your classes, and num_classes of every '
                'head to their number.'
            )


def _missing_paths(cfg: Config, where: str, leaf: dict, dataset: BaseDataset) -> Iterator[str]:
    root = dataset.data_root
    used = any(path.startswith(root) for path in _paths(dataset).values()) if root else False
    if _local(root) and used and not os.path.isdir(root):
        yield f'there is no folder {root} (data_root; looked for from {Path.cwd()}). {_ways(cfg)}'
        return
    for key, path in _paths(dataset).items():
        if not os.path.exists(path):
            made = f'data_root {root!r} + {key}' if root else f'{key}, without data_root'
            yield f'there is no {path} ({made}). {_ways(cfg, f"{where}.{key}")}'


def _paths(dataset: BaseDataset) -> dict[str, str]:
    """The local files and folders that a data set reads, by their key in its config."""
    paths = {f'data_prefix.{key}': path for key, path in dataset.data_prefix.items()}
    paths = {'ann_file': dataset.ann_file, **paths}
    return {key: path for key, path in paths.items() if _local(path)}


def _local(path: str | None) -> bool:
    return bool(path) and '://' not in path


def _ways(cfg: Config, key: str = '') -> str:
    """How a path can be set in this config: variables that it reads, a folder of all data sets, or the key itself."""
    variables = sorted(set(re.findall(r'\$(\w*ROOT\w*)\s*:', getattr(cfg, 'text', None) or '')))
    ways = [f'export {name}=FOLDER' for name in variables]
    ways += ['--cfg-options data_root=FOLDER', *([f'--cfg-options {key}=PATH'] if key else [])]
    return f'Set it with {", or ".join(ways)}.'


def _check_checkpoints(cfg: Config, training: bool) -> Iterator[tuple[str, str]]:
    if cfg.get('resume') and cfg.get('load_from'):
        try:
            require_continuable(cfg, cfg.load_from)
        except (CheckpointError, FileNotFoundError) as e:
            yield '--resume', str(e)
    wanted = {} if cfg.get('resume') else {'load_from': cfg.get('load_from')}
    for path, value in walk((cfg.get('model') or {}) if training else {}):
        if path[-1] == 'checkpoint' and isinstance(value, str):
            wanted['.'.join(map(str, ('model', *path)))] = value
    for key, path in wanted.items():
        if not _local(path):
            continue
        file = Path(path).expanduser()
        if file.is_file():
            try:
                require_whole(file)
            except CheckpointError as e:
                yield key, str(e)
        else:
            yield (
                key,
                f'there is no checkpoint {path} (looked for from {Path.cwd()}). Give its path or address with '
                f'--cfg-options {key}=FILE.',
            )


def _check_work_dir(folder: Path) -> Iterator[tuple[str, str]]:
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as e:
        yield ('work_dir', f'{folder} cannot be written ({nearest}: {e.strerror}). Choose another with --work-dir DIR.')
