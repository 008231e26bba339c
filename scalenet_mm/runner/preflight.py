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
from ..compat import type_class, type_name
from ..file_names import WEIGHTS
from ..one_run import is_first
from .config import walk
from .continuing import require_continuable
from .preflight_data import check_content
from .preflight_labels import Labels, Note, some, taught

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
    told = {kind: [text for text in found if isinstance(text, Note) == kind] for kind in (True, False)}
    notes = [f'Note: {", ".join(found[text])}: {text}' for text in told[True]]
    if told[False]:
        listed = [f'{i}. {", ".join(found[text])}: {text}' for i, text in enumerate(told[False], 1)]
        raise SystemExit(
            f'Not started: {len(listed)} thing(s) to put right first.\n'
            + '\n'.join(listed + notes)
            + '\nIf a check is wrong about your data, --no-preflight leaves the checks out.'
        )
    for note in notes if is_first() else ():
        print(note)


def problems(cfg: Config, stages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Where in the config something is wrong, and what."""
    read: dict[str, list[BaseDataset]] = {}
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for stage in stages:
            loader = cfg.get(f'{stage}_dataloader')
            if loader and isinstance(loader.get('dataset'), dict):
                read[stage] = []
                yield from _check_stage(cfg, stage, loader.dataset, read[stage])
    yield from _check_order(cfg, read)
    yield from check_weights(cfg)
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


def check_weights(cfg: Config) -> Iterator[tuple[str, str]]:
    """``class_weight`` of every loss of a head: one for each class, and one for the background beside objects."""
    heads = {key.rpartition('.')[0]: n for key, n in head_classes(cfg).items()}
    for path, loss in losses(cfg.get('model') or {}):
        weights, where = loss.get('class_weight'), '.'.join(map(str, ('model', *path)))
        head = max((h for h in heads if where.startswith(f'{h}.')), key=len, default=None)
        if head is None or not isinstance(weights, (list, tuple)):
            continue
        objects = 'loss_cls' in path or str(loss.get('loss_name')).startswith('loss_cls')
        background = objects and not loss.get('use_sigmoid')
        number = heads[head] + background
        if len(weights) != number:
            more = ', and one for what is no object' if background else ''
            yield (
                f'{where}.class_weight',
                f'{len(weights)} weights for {heads[head]} classes; there is one for each class, in their order{more}: '
                f'write {number}, or class_weight=None.',
            )


def losses(node: dict | list, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Every part of a config that has a ``class_weight``, with its path of keys and indices."""
    for key, value in node.items() if hasattr(node, 'items') else enumerate(node):
        if isinstance(value, dict) and 'class_weight' in value:
            yield (*path, key), value
        if isinstance(value, (dict, list, tuple)):
            yield from losses(value, (*path, key))


def _check_order(cfg: Config, read: dict[str, list[BaseDataset]]) -> Iterator[tuple[str, str]]:
    """A label must be the same class in every loader: some data sets number classes by the folders that they find."""
    # Of names of folders, and of classes: neither list says anything of the other.
    firsts: dict[bool, tuple[str, list]] = {}
    for stage, dataset in ((stage, d) for stage, found in read.items() for d in found if head_classes(cfg)):
        folders = getattr(dataset, 'folder_to_idx', None)
        names = list(folders or dataset.metainfo.get('classes') or ())
        first, expected = firsts.setdefault(bool(folders), (stage, names))
        other = next((i for i, (a, b) in enumerate(zip(expected, names)) if a != b), None)
        if len(names) == len(expected) and other is not None:
            yield (
                f'{stage}_dataloader.dataset',
                f'label {other} is {names[other]!r} here and {expected[other]!r} in {first}_dataloader. The classes '
                'of all data sets, or their folders, must be the same in the same order.',
            )


def _check_stage(cfg: Config, stage: str, dataset: dict, read: list[BaseDataset]) -> Iterator[tuple[str, str]]:
    evaluators = cfg.get(f'{stage}_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    labelled = not any(e.get('format_only') for e in evaluators)
    teaches: list[Labels] = []
    numbers = set(head_classes(cfg).values())
    for where, leaf in leaves(dataset, f'{stage}_dataloader.dataset'):
        if 'type' not in leaf:
            yield where, 'the data set has no type (a _delete_=True takes that of the base config away too).'
            continue
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = type_class(leaf, registry)
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
            wrong = []
            if not getattr(built, 'download', False):
                given = built.metainfo.get('classes')
                number = len(given) if given else next(iter(numbers)) if len(numbers) == 1 else None
                wrong = list(_missing_paths(cfg, where, leaf, built)) or list(
                    check_content(leaf, built, labelled, number, _ignored(cfg), teaches)
                )
            yield from ((where, text) for text in [*_check_classes(cfg, leaf, built), *wrong])
    if stage == 'train' and teaches:
        classes = read[0].metainfo.get('classes') or range(max(numbers, default=0))
        yield from ((f'{stage}_dataloader.dataset', text) for text in taught(teaches, list(map(str, classes))))
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
    classes, ignored = dataset.metainfo.get('classes'), _ignored(cfg)
    if leaf.get('ignore_index', 255) not in ignored | {255}:
        yield (
            f'ignore_index={leaf["ignore_index"]} of the data set is read by no loss; the heads ignore '
            f'{sorted(ignored, key=str)}. Set ignore_index of decode_head and auxiliary_head, and of IoUMetric.'
        )
    if isinstance(classes, str):
        yield (
            f'metainfo.classes is the text {classes!r}, no list of names; one class is written with a comma: '
            f'classes=({classes!r},).'
        )
    elif classes is not None:
        wrong = [f'{key} = {n}' for key, n in head_classes(cfg).items() if n != len(classes)]
        own = (leaf.get('metainfo') or {}).get('classes')
        source = 'metainfo' if own else f"{type_name(leaf)}'s own, as metainfo names none"
        if wrong:
            yield (
                f'there are {len(classes)} classes ({source}: {some(list(classes))}), but {", ".join(wrong)}. Set '
                'metainfo=dict(classes=(...)) of every data set to the names of your classes, and num_classes of every '
                'head to their number.'
            )


def _ignored(cfg: Config) -> set[int]:
    """The numbers in label maps that mmseg's heads leave out of their losses."""
    model = cfg.get('model') or {}
    heads = [h for key in ('decode_head', 'auxiliary_head') for h in _listed(model.get(key))]
    return {h.get('ignore_index', 255) for h in heads} or {255}


def _listed(heads) -> list:
    return heads if isinstance(heads, (list, tuple)) else [heads] if heads else []


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
        if not isinstance(value, str):
            continue
        if path[-1] == 'checkpoint' or (path[-1] == 'pretrained' and Path(value).suffix in WEIGHTS):
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
