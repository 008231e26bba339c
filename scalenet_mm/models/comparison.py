"""Two models on the same images, and ground truth where there is some: panels to draw, differences as numbers."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from torch import nn

from ..runner.config import reads_annotations
from ..runner.preflight_files import misfit
from .inference import TASKS, test_dataset
from .matching import BOTH_WRONG, IGNORE, ONLY_A_RIGHT, ONLY_B_RIGHT, difference_map, match
from .side_by_side import Panel, difference_panel, mark_against, mark_pair

Truth = Callable[[Path, tuple[int, int]], Panel]  # of an image and its size (H, W) as it is read


def task_of(a: nn.Module, b: nn.Module) -> str:
    """``'detection'`` or ``'segmentation'``.

    Raises:
        ValueError: if the models are of different tasks or classes, or classify whole images.
    """
    first, second = (TASKS[m.cfg.default_scope] for m in (a, b))
    if first != second or first == 'classification':
        raise ValueError(f'Compared are two detectors or two segmentors, not {first} with {second}.')
    mine, theirs = (list(m.dataset_meta['classes']) for m in (a, b))
    if mine != theirs:
        at = next((i for i, (x, y) in enumerate(zip(mine, theirs)) if x != y), None)
        differs = f'; the first that differs is {at}: {mine[at]!r} and {theirs[at]!r}' if at is not None else ''
        raise ValueError(
            f'The models know different classes: A has {len(mine)}, B has {len(theirs)}{differs}. Compare models of '
            'the same classes in the same order.'
        )
    return first


def truth_of(model: nn.Module, source: Path | None = None) -> Truth:
    """Ground truth for a model: of its config's test data, or of ``source``.

    Args:
        source: a COCO json for a detector, a folder of label maps for a segmentor (names and
            ``reduce_zero_label`` as in the config's test data).

    Raises:
        FileNotFoundError: if there is none; from what is returned, if there is none for an image.
        ValueError: if its classes are not the model's; from what is returned, if it is of another size than the image.
    """
    detection = TASKS[model.cfg.default_scope] == 'detection'
    dataset = dict(test_dataset(model.cfg), pipeline=[], lazy_init=True)
    if source and not detection:  # whose class may look for files of its own, though it is asked for its suffixes alone
        dataset.update(data_root=None, data_prefix=dict(img_path=str(source), seg_map_path=str(source)))
        dataset.update(ann_file=__file__ if dataset.get('ann_file') else '')
    if not (source and detection):
        with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
            try:
                dataset = DATASETS.build(dataset)  # joins the paths and knows its own suffixes; reads nothing yet
            except AssertionError as error:
                raise FileNotFoundError(f"Config A's test data are not there; give --ann. {dataset}") from error
    if detection:
        return _boxes(Path(source or dataset.ann_file), list(model.dataset_meta['classes']))
    named = source or dataset.data_prefix.get('seg_map_path')
    if not named:
        raise FileNotFoundError("Config A's test data names no label maps (seg_map_path); give --ann FOLDER.")
    folder = Path(named)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder of label maps {folder}.')
    steps = [t for t in test_dataset(model.cfg)['pipeline'] if reads_annotations(t)]
    with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        load = TRANSFORMS.build(steps[0] if steps else dict(type='LoadAnnotations'))
    return lambda image, size: _label_map(image, size, folder, dataset, load)


def compare(a: Panel, b: Panel, truth: Panel | None, classes: Sequence[str]) -> tuple[list[Panel], dict[str, Any]]:
    """Panels in the order ground truth (if given), A, B, difference (of label maps), and what differs."""
    if a.semantic is not None:
        panels = [a, b, difference_panel(a, b, truth)]
        report = _pixels(a.semantic, b.semantic, truth.semantic if truth else None, classes)
    elif truth is None:
        panels, report = list(mark_pair(a, b, classes)), _objects(a, b, classes)
    else:
        panels = [mark_against(truth, x, classes) for x in (a, b)]
        report = _objects(a, b, classes) | _against(truth, a, b, classes)
    return ([truth] if truth else []) + panels, report


def totals(reports: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The numbers of all images added up, nested names joined by a dot, lists counted."""

    def numbers(report, prefix=''):
        for key, value in report.items():
            if isinstance(value, dict):
                yield from numbers(value, f'{prefix}{key}.')
            else:
                yield prefix + key, len(value) if isinstance(value, list) else value

    found: dict[str, int] = {}
    for report in reports:
        for key, value in numbers(report):
            found[key] = found.get(key, 0) + value
    return found


def _objects(a: Panel, b: Panel, classes) -> dict[str, Any]:
    found = match(a.boxes, a.labels, b.boxes, b.labels)
    return {
        'in_both': len(found.same),
        'class_changed': [[_told(a, i, classes), _told(b, j, classes)] for i, j in found.changed],
        'only_a': [_told(a, i, classes) for i in found.only_a],
        'only_b': [_told(b, j, classes) for j in found.only_b],
    }


def _against(truth: Panel, a: Panel, b: Panel, classes) -> dict[str, Any]:
    report, found = {}, []
    for name, x in (('a', a), ('b', b)):
        matching = match(truth.boxes, truth.labels, x.boxes, x.labels)
        found.append({i for i, _ in matching.same})
        report[name] = {
            'found': len(matching.same),
            'wrong_class': len(matching.changed),
            'missed': len(matching.only_a),
            'false': len(matching.only_b),
        }
    report['found_only_by_a'] = [_told(truth, i, classes) for i in sorted(found[0] - found[1])]
    report['found_only_by_b'] = [_told(truth, i, classes) for i in sorted(found[1] - found[0])]
    return report


def _told(panel: Panel, i: int, classes) -> dict[str, Any]:
    told = {'class': classes[panel.labels[i]], 'box': [round(float(v), 2) for v in panel.boxes[i]]}
    return told if panel.scores is None else told | {'score': float(panel.scores[i])}


def _pixels(a: np.ndarray, b: np.ndarray, truth: np.ndarray | None, classes) -> dict[str, Any]:
    """Counts of pixels; those without ground truth are left out where there is some."""
    counted = np.ones(a.shape, bool) if truth is None else truth != IGNORE
    codes = difference_map(a, b, truth)
    report: dict[str, Any] = {'pixels': int(counted.sum()), 'differ': int((counted & (a != b)).sum())}
    if truth is not None:
        for name, code in (('only_a_right', ONLY_A_RIGHT), ('only_b_right', ONLY_B_RIGHT), ('both_wrong', BOTH_WRONG)):
            report[name] = int((codes == code).sum())
    present = np.union1d(a[counted & (a != b)], b[counted & (a != b)])
    report['by_class'] = {
        classes[k]: {
            'only_a': int((counted & (a == k) & (b != k)).sum()),
            'only_b': int((counted & (b == k) & (a != k)).sum()),
        }
        for k in present
    }
    return report


def _boxes(file: Path, classes: list[str]) -> Truth:
    from pycocotools.coco import COCO

    if not file.is_file():
        raise FileNotFoundError(f'There is no annotation file {file}.')
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(file))
        names = {c['id']: c['name'] for c in coco.dataset['categories']}
        by_name = {entry['file_name']: entry for entry in coco.dataset['images']}
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{file} is no COCO json with images, annotations and categories.') from error
    there = set(names.values())
    unknown = sorted(there - set(classes))
    if unknown and len(unknown) == len(there):
        raise ValueError(
            f'{file} has no category that the models know: {unknown[:5]}; their classes are {classes[:5]} ...'
        )
    if unknown:  # mmdet leaves them out as well
        print_log(f'Categories that the models do not know are left out: {unknown}.', 'current', logging.WARNING)

    def truth(image: Path, size: tuple[int, int]) -> Panel:
        parts = image.absolute().parts[1:]
        entry = next(filter(None, (by_name.get('/'.join(parts[i:])) for i in range(len(parts)))), None)
        if entry is None:
            raise FileNotFoundError(f'{file} has no image {image.name}.')
        said = entry.get('height', size[0]), entry.get('width', size[1])
        if wrong := misfit(image, size, said, f'its entry in {file}'):
            raise ValueError(wrong)
        of_image = (x for x in coco.imgToAnns[entry['id']] if not x.get('iscrowd'))
        found = [x for x in of_image if names.get(x['category_id']) in classes]  # mmdet drops the others as well
        boxes = np.array([x['bbox'] for x in found], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([classes.index(names[x['category_id']]) for x in found], int)
        masks = [coco.annToMask(x) for x in found if x.get('segmentation')]
        whole = len(masks) == len(found) > 0
        return Panel(boxes, labels, masks=np.array(masks, bool) if whole else None)

    return truth


def _label_map(image: Path, size: tuple[int, int], folder: Path, dataset: Any, load: Any) -> Panel:
    """The label map of an image, as the pipeline's own step reads it."""
    stem = image.name.removesuffix(dataset.img_suffix)
    stem = image.stem if stem == image.name else stem
    name, above = f'{stem}{dataset.seg_map_suffix}', image.absolute().parts[1:-1]
    places = [folder.joinpath(*above[i:], name) for i in range(len(above) + 1)]  # data sets have folders in folders
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(f'There is no label map {folder / name} for {image}.')
    labels = load(
        dict(
            seg_map_path=str(file),
            reduce_zero_label=dataset.reduce_zero_label,
            label_map=dataset.label_map,
            seg_fields=[],
        )
    )['gt_seg_map']
    if labels.ndim != 2:
        raise ValueError(f'{file} is a colour image {labels.shape}; a label map has one channel, the class number.')
    if wrong := misfit(image, size, labels.shape, f'its label map {file}'):
        raise ValueError(wrong)
    return Panel(semantic=labels.astype(int))
