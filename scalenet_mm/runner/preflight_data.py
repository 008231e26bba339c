"""What `preflight` reads of a data set: its list, loaded by its own class; then labels, and a sample of its files."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmengine.dataset import BaseDataset

from ..compat import type_name
from .config import reads_annotations
from .preflight_files import look_at_files, lost_files
from .preflight_labels import Labels, Note, count, outside, some

OUTSIDE = 0.1  # share of boxes beyond their image from which on it is said


def check_content(
    cfg: dict, dataset: BaseDataset, labelled: bool, number: int | None, ignored: set[int], teaches: list[Labels]
) -> Iterator[str]:
    """Loads a data set's list as a run does, and looks at labels and files.

    Args:
        cfg: config of the data set.
        dataset: built with ``lazy_init`` and without pipeline; its paths exist.
        labelled: whether annotations are needed.
        number: of classes, where the heads say it.
        ignored: numbers in label maps that no loss counts.
        teaches: takes the labels that were found.
    """
    if any(c.__name__ == 'CocoPanopticDataset' for c in type(dataset).__mro__):
        return  # things are instances there, and stuff is not
    owner = next(c for c in type(dataset).__mro__ if 'load_data_list' in vars(c))
    paths = map(str, (dataset.ann_file, dataset.data_root, *dataset.data_prefix.values()))
    remote = any('://' in path for path in paths)  # what lies elsewhere is read by the data set alone
    check = None if remote else CHECKS.get((owner.__module__.partition('.')[0], owner.__name__))
    try:
        wrong = list(check(cfg, dataset, labelled) if check else ())
        yield from wrong
        if any(not isinstance(text, Note) for text in wrong):
            return
        dataset.serialize_data = False
        with contextlib.redirect_stdout(io.StringIO()):
            dataset.full_init()
    except KeyError as e:
        yield f'an entry of {source(dataset)} has no {e}.'
        return
    except Exception as e:
        yield (
            f'{source(dataset)} is not as {type(dataset).__name__} reads it ({type(e).__name__}: {e}); write or fetch '
            'it again.'
        )
        return
    if not dataset.data_list:
        kept = dataset.filter_cfg if not dataset.test_mode else None
        yield f'{source(dataset)} has no sample{f" that filter_cfg={dict(kept)} keeps" if kept else ""}.'
    else:
        yield from _check_samples(cfg, dataset, labelled, number, ignored, teaches)


def _check_samples(
    cfg: dict, dataset: BaseDataset, labelled: bool, number: int | None, ignored: set[int], teaches: list[Labels]
) -> Iterator[str]:
    samples = dataset.data_list
    wrong = list(lost_files(samples, 'img_path', 'check data_prefix and the file names of the annotations'))
    if labelled and any(map(reads_annotations, cfg.get('pipeline') or ())):
        suffix = f' and seg_map_suffix={dataset.seg_map_suffix!r}' if hasattr(dataset, 'seg_map_suffix') else ''
        wrong += lost_files(samples, 'seg_map_path', f'it has the name of its image; check data_prefix{suffix}')
    wrong += _check_masks(cfg, dataset) if labelled else []
    yield from wrong
    if wrong:
        return
    maps = Labels(
        f'the label maps in {dataset.data_prefix.get("seg_map_path")}',
        'pixels',
        reduced=getattr(dataset, 'reduce_zero_label', False),
    )
    yield from look_at_files(cfg, dataset, labelled, ignored, maps)
    found = maps if maps.values else count(dataset, source(dataset))
    if found and labelled:
        yield from _check_range(dataset, found, number)
        teaches.append(found)


def _check_masks(cfg: dict, dataset: BaseDataset) -> Iterator[str]:
    if not any(step.get('with_mask') for step in cfg.get('pipeline') or ()):
        return
    instances = [i for s in dataset.data_list for i in s.get('instances', ())]
    bare = sum('mask' not in i for i in instances)
    if bare:
        yield (
            f'{bare} of {len(instances)} annotations of {source(dataset)} have no segmentation, but the pipeline reads '
            'masks (with_mask=True). Train a detector without masks (such as Faster R-CNN), or add them.'
        )


def _check_range(dataset: BaseDataset, found: Labels, number: int | None) -> Iterator[str]:
    wrong = outside(found, number) if number else []
    if not wrong:
        return
    if not found.values:
        yield (
            f'{found.told} has the labels {some(wrong)}; a label is the number of one of the {number} classes, 0 to '
            f'{number - 1}.'
        )
        return
    advice = (
        'labels in the files start at 1 (0 is ignored)'
        if found.reduced
        else 'if the labels in your files start at 1, set reduce_zero_label=True here and in LoadAnnotations'
    )
    yield (
        f'{found.told} hold {some(wrong)} (with reduce_zero_label={found.reduced}), but {number} classes are 0 to '
        f'{number - 1}. List all classes; {advice}.'
    )


def source(dataset: BaseDataset) -> str:
    """The file, or else the folder, that a data set's list is made of."""
    return str(dataset.ann_file or next(iter(dataset.data_prefix.values()), '') or dataset.data_root)


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
        return
    classes = list(dataset.metainfo.get('classes') or ())
    yield from _check_names(path, classes, lists['categories'])
    if labelled:
        yield from _check_annotations(dataset, classes, content)

    def parsed(_file: str):
        api = type(dataset).COCOAPI()
        api.dataset = content
        api.createIndex()
        api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
        return api

    dataset.COCOAPI = parsed  # large files take their time to parse


def _check_names(path: str, classes: list[str], categories: list[dict]) -> Iterator[str]:
    names = [c['name'] for c in categories]
    unknown = [c for c in classes if c not in names]
    double = [n for n in dict.fromkeys(classes) if names.count(n) > 1]
    if double:
        ids = [c['id'] for c in categories if c['name'] == double[0]]
        yield (
            f'{path} has {names.count(double[0])} categories of the name {double[0]!r}, with the ids {ids}. mmdet '
            f'makes a class of each of them, so that labels and names no longer fit: give each name one id.'
        )
    elif unknown:
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


def _check_annotations(dataset: BaseDataset, classes: list[str], content: dict) -> Iterator[str]:
    """What mmdet's own rule drops, without a word, though nobody asked for it."""
    owner = next(c for c in type(dataset).__mro__ if 'parse_data_info' in vars(c))
    if not owner.__module__.startswith('mmdet.'):
        return
    path, annotations = dataset.ann_file, content['annotations']
    sizes = {i['id']: (i['width'], i['height']) for i in content['images']}
    names = {c['id']: c['name'] for c in content['categories']}
    reasons: Counter = Counter()
    beyond = 0
    for a in annotations:
        x, y, w, h = a['bbox']
        width, height = sizes.get(a['image_id'], (0, 0))
        if a['image_id'] not in sizes:
            reasons[f'have an image_id that no image has, such as {a["image_id"]!r}'] += 1
        elif a['category_id'] not in names:
            reasons[f'have a category_id that no category has, such as {a["category_id"]!r}'] += 1
        elif names[a['category_id']] not in classes or a.get('ignore'):
            continue  # as it was asked for
        elif w < 1 or h < 1:
            reasons['are less than one pixel wide or high (bbox is x, y, width, height in pixels)'] += 1
        elif a['area'] <= 0:
            reasons['have no area (area <= 0)'] += 1
        elif min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            reasons['lie outside of their image'] += 1
        beyond += x + w > width + 1 or y + h > height + 1
    if reasons:
        told = ', '.join(f'{n:,} {reason}' for reason, n in reasons.items())
        yield Note(f'mmdet drops {sum(reasons.values()):,} of {len(annotations):,} annotations of {path}: {told}.')
    if beyond > OUTSIDE * len(annotations):
        yield Note(
            f'{beyond:,} of {len(annotations):,} boxes of {path} reach beyond their image; a bbox of COCO is '
            '[x, y, width, height], not [x1, y1, x2, y2].'
        )


def check_seg(cfg: dict, dataset: BaseDataset, labelled: bool) -> Iterator[str]:
    """mmseg's settings that must agree, and the two ways in which its list is empty."""
    folder = dataset.data_prefix.get('img_path')
    loads = [s for s in cfg.get('pipeline') or () if type_name(s) == 'LoadAnnotations']
    given = loads[0].get('reduce_zero_label') if loads and labelled else None
    if given is not None and given != dataset.reduce_zero_label:
        yield (
            f'reduce_zero_label is {dataset.reduce_zero_label}, but LoadAnnotations in its pipeline has {given}; '
            'they must be equal.'
        )
    if not os.path.isfile(dataset.ann_file or '') and not dataset.load_data_list():
        yield f'no file in {folder} ends in {dataset.img_suffix!r}. Give the ending of your images with img_suffix.'


def check_cls(cfg: dict, dataset: BaseDataset, labelled: bool) -> Iterator[str]:
    """mmpretrain's list of images and labels, or a folder for each class."""
    classes, folder = dataset.metainfo.get('classes'), dataset.img_prefix
    if dataset.ann_file:
        lines = Path(dataset.ann_file).read_text().splitlines()
        if not any(line.strip() for line in lines):
            yield f'{dataset.ann_file} is empty; it has a line "image label" for each image.'
            return
        bad = next((i for i, line in enumerate(lines, 1) if not _is_labelled(line)), None)
        if dataset.with_label and bad:
            yield (
                f'{dataset.ann_file}, line {bad}: {lines[bad - 1]!r}; each line is "image label", an image, a space '
                'and the number of its class.'
            )
    elif dataset.with_label:
        found = sorted(e.name for e in os.scandir(folder) if e.is_dir())
        if not found or (classes is not None and len(found) != len(classes)):
            wanted = f', but the config has {len(classes)} classes' if classes is not None else ''
            yield f'{folder} has {len(found)} folders{wanted}; it must have one folder a class.'
        elif classes is not None and sorted(classes) == found != list(classes):
            yield (
                f'metainfo.classes lists {some(list(classes))}, but the folders of {folder} are numbered by their '
                f'names, {some(found)}: list the classes in this order.'
            )
        else:
            bare = [n for n in found if not _has_file(Path(folder, n), dataset.is_valid_file)]
            if bare:
                yield f'{folder}/{bare[0]} has no image ({", ".join(dataset.extensions)}); empty are {some(bare)}.'


def _has_file(folder: Path, valid) -> bool:
    return any(valid(name) for _, _, names in os.walk(folder) for name in names)


def _is_labelled(line: str) -> bool:
    _, _, label = line.strip().rpartition(' ')
    return label.lstrip('+-').isdigit() and line.strip() != label


# By library and name of the class whose load_data_list the data set uses.
CHECKS = {
    ('mmdet', 'CocoDataset'): check_coco,
    ('mmseg', 'BaseSegDataset'): check_seg,
    ('mmpretrain', 'CustomDataset'): check_cls,
}
