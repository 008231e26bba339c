"""A fair sample of images and label maps, opened by the loading steps of the data set's own pipeline."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from .config import reads_annotations, reads_pixels
from .preflight_labels import SHOWN, Labels, counted_from_0

LOOKED_AT = 32  # images or label maps that are opened
AT_MOST = 1000  # label maps, while all that were opened show one class, or all classes but the last
LIMIT = 255  # mmseg keeps the lowest eight bits of a label map


def missing(paths: Iterable[str]) -> list[str]:
    """The paths at which there is no file: each folder is listed once."""
    there: dict[str, set[str]] = {}
    lost = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in there:
            there[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name not in there[folder]:
            lost.append(path)
    return lost


def drawn(number: int) -> list[int]:
    """Indices of a fair sample, the same in every call: one of each of `LOOKED_AT` equal parts, then others at random.

    >>> drawn(3)
    [0, 1, 2]
    """
    if number <= LOOKED_AT:
        return list(range(number))
    rng = random.Random(0)
    spread = list(dict.fromkeys(int((i + rng.random()) * number / LOOKED_AT) for i in range(LOOKED_AT)))
    rest = sorted(set(range(number)) - set(spread))
    return spread + rng.sample(rest, min(len(rest), AT_MOST - len(spread)))


def look_at_files(cfg: dict, dataset: BaseDataset, labelled: bool, ignored: set[int], labels: Labels) -> Iterator[str]:
    """Opens a sample of the files.

    Args:
        cfg: of the data set.
        dataset: loaded.
        labelled: whether annotations are read.
        ignored: numbers in label maps that no loss counts.
        labels: takes what the label maps hold.
    """
    pipeline = cfg.get('pipeline') or ()
    steps = [TRANSFORMS.build(s) for s in pipeline if reads_pixels(s) or (labelled and reads_annotations(s))]
    keys = ('img_path', 'seg_map_path') if labelled else ('img_path',)
    bad, sizes, looked = [], [], 0
    for i in drawn(len(dataset)) if steps else ():
        suspicious = len(labels.counts) < 2 or counted_from_0([labels], len(dataset.metainfo.get('classes') or ()))
        if looked >= LOOKED_AT and not (labels.values and suspicious):
            break
        info = dataset.get_data_info(i)
        paths = [info[k] for k in keys if isinstance(info.get(k), str) and '://' not in info[k]]
        looked += 1
        faults = [f'{p} ({fault})' for p in paths if (fault := fault_of(p))]
        result = {} if faults else _loaded(steps, info, faults)
        bad += faults
        if faults:
            continue
        size = _other_size(result)
        sizes += [size] if size else []
        if 'gt_seg_map' in result:
            wrong = _labels_of_map(result, ignored, labels)
            if wrong:
                yield wrong
                return
    if looked and labels.values:
        labels.told += f' ({looked:,} of {len(dataset):,} looked at)'
    if bad:
        yield (
            f'{len(bad)} file(s) of the {looked} samples looked at cannot be read: {", ".join(bad[:SHOWN])}. Write or '
            'fetch them again.'
        )
    if sizes:
        yield f'{len(sizes)} of the {looked} looked at do not fit their annotations: {sizes[0]}'


def _loaded(steps: list, info: dict, faults: list[str]) -> dict:
    """What loading steps make of a sample; a file that one of them cannot read is one of the faults."""
    for step in steps:
        name = type(step).__name__
        path = info.get('seg_map_path' if 'Annotation' in name else 'img_path') or info.get('img_path')
        try:
            info = step(info)
        except Exception as e:
            faults.append(f'{path} ({name}: {e or type(e).__name__})')
            return {}
    return info


def fault_of(path: str) -> str:
    """Why a local file is no whole image; empty where it is one, or of a format that only the pipeline knows."""
    if not os.path.isfile(path):
        return 'there is no such file'
    if not os.path.getsize(path):
        return 'the file is empty'
    try:
        with Image.open(path) as picture:
            if picture.format in ('JPEG', 'PNG'):  # of which OpenCV fills up the rest in grey, without a word
                picture.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return ''
    except (OSError, SyntaxError) as e:
        return str(e)
    return ''


def _other_size(result: dict) -> str:
    """Where image and annotation are of different sizes (H, W)."""
    image = tuple(result.get('img_shape', ())[:2])
    if 'gt_seg_map' in result:
        other, what = result['gt_seg_map'].shape[:2], f'its label map {result.get("seg_map_path")}'
    elif 'instances' in result and 'height' in result:
        other, what = (result['height'], result['width']), 'its entry in the annotations'
    else:
        return ''
    return misfit(result.get('img_path'), image, other, what) if image else ''


def misfit(path: str | Path, image: tuple[int, int], other: Sequence[int], what: str) -> str:
    """What is wrong where an image is read with another size (H, W) than ``what`` has; empty where it is not."""
    if tuple(other) == image:
        return ''
    turned = image == tuple(other)[::-1] and image[0] != image[1]
    hint = (
        " If its EXIF entry turns it, LoadImageFromFile(color_type='color_ignore_orientation') leaves it as it lies."
        if turned
        else ''
    )
    return (
        f'{path} is {image[0]} x {image[1]} (height x width) as the pipeline reads it, '
        f'{what} says {other[0]} x {other[1]}.{hint}'
    )


def _labels_of_map(result: dict, ignored: set[int], labels: Labels) -> str:
    """Adds a label map to the counts; says what is wrong with it."""
    seg_map, path = result['gt_seg_map'], result['seg_map_path']
    try:
        with Image.open(path) as picture:
            mode, raw = picture.mode, np.asarray(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, FileNotFoundError):  # not Pillow's, or not here
        mode, raw = '', (seg_map.astype(int) + 1) % (LIMIT + 1) if labels.reduced else seg_map  # as in the file
    if seg_map.ndim != 2:
        equal = seg_map.ndim == 3 and (seg_map[..., :3] == seg_map[..., :1]).all()
        hint = {True: ' Its channels are equal: save one of them.', False: ''}[bool(equal)]
        if mode == 'P':
            hint = " It has a palette, whose numbers are read by LoadAnnotations(imdecode_backend='pillow')."
        return f'{path} is a colour image {seg_map.shape}; a label map has one channel, the class number.{hint}'
    if raw.ndim == 2 and raw.max(initial=0) > LIMIT:
        return (
            f'{path} holds numbers up to {raw.max()}; mmseg reads eight bits, so that {raw.max()} would be '
            f'{int(raw.max()) % (LIMIT + 1)}. Write maps of 0 to {LIMIT}.'
        )
    numbers, pixels = np.unique(seg_map, return_counts=True)
    for number, n in zip(numbers.tolist(), pixels.tolist()):
        if number in ignored:
            labels.ignored += n
        else:
            labels.counts[number] += n
    labels.values |= set(np.unique(raw).tolist() if raw.ndim == 2 else numbers.tolist())
    return ''


def lost_files(samples: list[dict], key: str, advice: str) -> Iterator[str]:
    """Says which of the files that a data set's list names are not there."""
    paths = [s[key] for s in samples if isinstance(s.get(key), str) and '://' not in s[key]]
    lost = missing(paths)
    if lost:
        what = 'image' if key == 'img_path' else 'label map'
        yield f'there is no {what} {lost[0]} ({len(lost):,} of {len(paths):,} are not there); {advice}.'
