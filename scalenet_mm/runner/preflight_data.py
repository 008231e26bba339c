"""What `preflight` reads of the data: a COCO json, label maps, a list or folder of classified images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS

from ..compat import type_name

SHOWN = 5  # names that a message prints
LOOKED_AT = 8  # images or label maps that are opened


def check_content(cfg: dict, dataset: BaseDataset, labelled: bool) -> Iterator[str]:
    """The checks of the library that the data set's loader comes from; a class with a loader of its own has none.

    Args:
        cfg: config of the data set.
        dataset: built with ``lazy_init``; its paths exist.
        labelled: whether annotations are needed.
    """
    owner = next(c for c in type(dataset).__mro__ if 'load_data_list' in vars(c))
    check = CHECKS.get((owner.__module__.partition('.')[0], owner.__name__))
    if any(c.__name__ == 'CocoPanopticDataset' for c in type(dataset).__mro__):
        return  # a json of another kind, read through CocoDataset
    try:
        yield from check(cfg, dataset, labelled) if check else ()
    except KeyError as e:
        yield f'an entry of {dataset.ann_file} has no {e}.'
    except (TypeError, AttributeError, UnicodeDecodeError) as e:
        yield f'{dataset.ann_file} is not as its format says ({e}); write or fetch it again.'


def check_coco(cfg: dict, dataset: BaseDataset, labelled: bool) -> Iterator[str]:
    """A COCO json: mmdet drops, without a word, annotations whose category or image it does not find."""
    path = dataset.ann_file
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as e:
        yield f'{path} is no JSON ({e}); write or fetch it again.'
        return
    wanted = ('images', 'annotations', 'categories') if labelled else ('images', 'categories')
    lists = content if isinstance(content, dict) else {}
    empty = [key for key in wanted if not lists.get(key)]
    if empty:
        yield (
            f'{path} has no {", no ".join(empty)}; a COCO json is an object with the lists images, annotations '
            'and categories, none of them empty.'
        )
    classes = list(dataset.metainfo.get('classes') or ())
    names = [c['name'] for c in lists.get('categories') or ()]
    yield from _check_names(path, classes, names)
    images = {image['id']: image['file_name'] for image in lists.get('images') or ()}
    ids = {c['id'] for c in lists.get('categories') or () if c['name'] in classes}
    annotations = lists.get('annotations') or []
    used = [a for a in annotations if a['category_id'] in ids and a['image_id'] in images]
    if annotations and ids and not used:
        yield (
            f'none of the {len(annotations)} annotations of {path} has the id of one of its categories and of one '
            'of its images, so nothing would be learnt.'
        )
    masks = any(step.get('with_mask') for step in cfg.get('pipeline') or ())
    kept = [a for a in used if not a.get('ignore') and min(a['bbox'][2:]) > 0]  # mmdet's rule
    bare = [a for a in kept if not a.get('segmentation')]
    if masks and bare and labelled:
        yield (
            f'{len(bare)} of {len(kept)} annotations of {path} have no segmentation, but the pipeline reads masks '
            '(with_mask=True). Train a detector without masks (such as Faster R-CNN), or add them.'
        )
    folder = dataset.data_prefix.get('img') or ''
    yield from _check_images([os.path.join(folder, name) for name in images.values()])


def _check_names(path: str, classes: list[str], names: list[str]) -> Iterator[str]:
    unknown = [c for c in classes if c not in names]
    if not names:
        return
    if unknown:
        yield (
            f'metainfo.classes has {some(unknown)}, which {path} has not; its categories are {some(names)}. '
            'mmdet drops every annotation of another name without a word: write metainfo=dict(classes=(...)) with the '
            'names of the file, in its order.'
        )
    elif classes != [n for n in names if n in classes]:
        yield (
            f'metainfo.classes lists {some(classes)}, but {path} has them in the order '
            f'{some([n for n in names if n in classes])}. mmdet numbers labels in the order of the file, so the names '
            "would be mixed up: list them in the file's order."
        )


def check_seg(cfg: dict, dataset: BaseDataset, labelled: bool) -> Iterator[str]:
    """Pairs of image and label map (mmseg), and the labels of a few maps, read as the pipeline reads them."""
    folder = dataset.data_prefix.get('img_path')
    samples = dataset.load_data_list()
    if not samples:
        yield (f'no file in {folder} ends in {dataset.img_suffix!r}. Give the ending of your images with img_suffix.')
        return
    yield from _check_images([s['img_path'] for s in samples])
    loads = [s for s in cfg.get('pipeline') or () if type_name(s) == 'LoadAnnotations']
    if not (loads and labelled and 'seg_map_path' in samples[0]):
        return
    given = loads[0].get('reduce_zero_label')
    if given is not None and given != dataset.reduce_zero_label:
        yield (
            f'reduce_zero_label is {dataset.reduce_zero_label}, but LoadAnnotations in its pipeline has {given}; '
            'they must be equal.'
        )
        return
    load = TRANSFORMS.build(loads[0])
    classes = dataset.metainfo.get('classes')
    outside: Counter = Counter()
    for sample in _spread(samples):
        path = sample['seg_map_path']
        if not os.path.isfile(path):
            yield (
                f'{sample["img_path"]} has no label map {path} (same name, ending in '
                f'seg_map_suffix={dataset.seg_map_suffix!r}).'
            )
            return
        labels = load(dict(sample))['gt_seg_map']
        if labels.ndim != 2:
            yield f'{path} is a colour image {labels.shape}; a label map has one channel, the class number.'
            return
        bad = set(np.unique(labels).tolist()) - {dataset.ignore_index}
        outside.update(v for v in bad if classes is not None and v >= len(classes))
    if outside:
        advice = (
            'labels in the files start at 1 (0 is ignored)'
            if dataset.reduce_zero_label
            else 'if the labels in your files start at 1, set reduce_zero_label=True here and in LoadAnnotations'
        )
        yield (
            f'the label maps in {dataset.data_prefix.get("seg_map_path")} hold {sorted(outside)[:SHOWN]} '
            f'(with reduce_zero_label={dataset.reduce_zero_label}), but {len(classes)} classes are 0 to '
            f'{len(classes) - 1}, and {dataset.ignore_index} is ignored. List all classes; {advice}.'
        )


def check_cls(cfg: dict, dataset: BaseDataset, labelled: bool) -> Iterator[str]:
    """mmpretrain's list of images and labels, or a folder for each class."""
    classes, folder = dataset.metainfo.get('classes'), dataset.img_prefix
    if dataset.ann_file:
        lines = [x for x in Path(dataset.ann_file).read_text().splitlines() if x.strip()]
        if not lines:
            yield f'{dataset.ann_file} is empty; it has a line "image label" for each image.'
            return
        pairs = [x.strip().rsplit(' ', 1) if dataset.with_label else [x.strip()] for x in lines]
        yield from _check_images([os.path.join(folder, pair[0]) for pair in pairs])
        labels = {pair[-1] for pair in pairs} if dataset.with_label else set()
        good = {str(i) for i in range(len(classes))} if classes is not None else labels
        if labels - good:
            yield (
                f'{dataset.ann_file} has the labels {some(sorted(labels - good))}; a label is the number of one '
                f'of the {len(classes)} classes, 0 to {len(classes) - 1}.'
            )
    elif dataset.with_label:
        found = sorted(e.name for e in os.scandir(folder) if e.is_dir())
        if not found or (classes is not None and len(found) != len(classes)):
            wanted = f', but the config has {len(classes)} classes' if classes is not None else ''
            yield f'{folder} has {len(found)} folders{wanted}; it must have one folder a class.'
        elif not any(dataset.is_valid_file(name) for _, _, names in os.walk(Path(folder, found[0])) for name in names):
            yield f'{folder}/{found[0]} has no image ({", ".join(dataset.extensions)}).'


def _check_images(paths: list[str]) -> Iterator[str]:
    lost = next((p for p in _spread(paths) if not os.path.isfile(p)), None)
    if lost:
        yield f'there is no image {lost}, which the annotations name; check data_prefix and the file names.'


def _spread(items: list) -> list:
    """A few items, evenly spread, the first one among them."""
    return items[:: max(1, len(items) // LOOKED_AT)][:LOOKED_AT]


def some(names: list) -> str:
    """The first few names, and how many there are."""
    shown = ', '.join(repr(n) for n in names[:SHOWN])
    return f'[{shown}{f", ... {len(names)} in all" if len(names) > SHOWN else ""}]'


# By library and name of the class whose load_data_list the data set uses.
CHECKS = {
    ('mmdet', 'CocoDataset'): check_coco,
    ('mmseg', 'BaseSegDataset'): check_seg,
    ('mmpretrain', 'CustomDataset'): check_cls,
}
