"""The three folder layouts: what one scene becomes on disk, and the files that are written last."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .digits import CLASSES, SPLITS
from .scenes import Instance, SceneStyle, render_scene

JPEG_QUALITY = 95
ADE_CLASSES = ('background', *CLASSES)  # label 1 is background, label d + 2 is digit d
COCO_FOLDERS = {'train': 'train2017', 'val': 'val2017'}
ADE_FOLDERS = {'train': 'training', 'val': 'validation'}
# One RGB colour a digit class, for drawings (metainfo `palette`).
PALETTE = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
)

# Small scenes that a small detector learns to the end within half an hour.
LOOSE = SceneStyle(digits=(5, 9), scale=(0.2, 0.3), angle=15.0, max_covered=0.0, strokes=(0, 2), noise=8.0, grid=3)
# The label of a classification scene is the sum of its digits: each must be read, then added.
SUM_DIGITS = 2
SUM_CLASSES = tuple(f'{total:02d}' for total in range(9 * SUM_DIGITS + 1))
ADDITION = SceneStyle(
    digits=(SUM_DIGITS, SUM_DIGITS),
    scale=(0.42, 0.54),
    angle=10.0,
    strokes=(0, 2),
    noise=8.0,
    light_digits=True,
    grid=2,
)


def addition_digits(seed: int, split: str, index: int) -> list[int]:
    """The digits of classification scene ``index``: a random way to make the sum index % 19."""
    total = index % len(SUM_CLASSES)
    rng = np.random.default_rng([seed, SPLITS.index(split), index, SUM_DIGITS])
    ways = np.argwhere(np.indices((10,) * SUM_DIGITS).sum(0) == total)
    return ways[rng.integers(len(ways))].tolist()


@dataclass(frozen=True)
class Layout:
    """One way to store scenes; numbers and size are defaults.

    Attributes:
        labels: Gives the digits of a scene from (seed, split, index); None for random ones.
        write_scene: Writes the files of one scene below a root and returns its record.
        write_index: Writes what needs all records of a split, in the order of the scenes.
    """

    train: int
    val: int
    size: int  # pixels a side
    style: SceneStyle
    labels: Callable[[int, str, int], list[int]] | None
    write_scene: Callable[[Path, str, int, np.ndarray, list[Instance]], dict]
    write_index: Callable[[Path, str, list[dict]], None]

    def scene(self, seed: int, split: str, index: int, size: int):
        """Draw scene ``index`` of a split in this layout's style, see ``render_scene``."""
        labels = self.labels(seed, split, index) if self.labels else None
        return render_scene(seed, split, index, size, self.style, labels)


def encode_rle(mask: np.ndarray) -> dict:
    """Encode an ``(H, W)`` bool mask as COCO's uncompressed run lengths (column by column).

    Counts alternate between runs of False and True, the first one of False (it may be 0).
    """
    flat = np.concatenate([[False], mask.ravel(order='F')])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {'size': list(mask.shape), 'counts': counts.tolist()}


def semantic_map(instances: list[Instance], shape: tuple[int, int]) -> np.ndarray:
    """ADE20K labels ``(H, W)`` uint8: 1 background, d + 2 digit d; 0 (ignored) is not used."""
    labels = np.ones(shape, np.uint8)
    for instance in instances:
        labels[instance.mask] = instance.label + 2
    return labels


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write an RGB ``(H, W, 3)`` or label ``(H, W)`` image; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3:
        image = image[..., ::-1]  # OpenCV stores BGR
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == '.jpg' else []
    if not cv2.imwrite(str(path), image, options):
        raise OSError(f'could not write {path}; is the disk full?')


def imagenet_scene(
    root: Path, split: str, index: int, image: np.ndarray, instances: list[Instance], suffix: str = '.png'
) -> dict:
    label = sum(instance.label for instance in instances)
    name = f'{label:02d}/{split}_{index:06d}{suffix}'
    _write_image(root / split / name, image)
    return {'name': name, 'label': label}


def _imagenet_index(root: Path, split: str, records: list[dict]) -> None:
    (root / 'meta').mkdir(parents=True, exist_ok=True)
    lines = ''.join(f'{record["name"]} {record["label"]}\n' for record in records)
    (root / 'meta' / f'{split}.txt').write_text(lines)


def _coco_scene(root: Path, split: str, index: int, image: np.ndarray, instances: list[Instance]) -> dict:
    name = f'{index + 1:012d}.jpg'
    _write_image(root / COCO_FOLDERS[split] / name, image)
    annotations = [
        {
            'category_id': instance.label + 1,
            'segmentation': encode_rle(instance.mask),
            'area': int(instance.mask.sum()),
            'bbox': list(instance.bbox),
            'iscrowd': 0,
        }
        for instance in instances
    ]
    height, width = image.shape[:2]
    entry = {'id': index + 1, 'file_name': name, 'height': height, 'width': width}
    return {'image': entry, 'annotations': annotations}


def _coco_index(root: Path, split: str, records: list[dict]) -> None:
    annotations = [
        {'image_id': record['image']['id'], **annotation} for record in records for annotation in record['annotations']
    ]
    content = {
        'info': {'description': 'scenes of handwritten digits (scikit-learn load_digits)'},
        'licenses': [],
        'images': [record['image'] for record in records],
        # pycocotools reads annotation id 0 as "no match", so ids start at 1.
        'annotations': [{'id': i, **ann} for i, ann in enumerate(annotations, start=1)],
        'categories': [{'id': i, 'name': name, 'supercategory': 'digit'} for i, name in enumerate(CLASSES, start=1)],
    }
    path = root / 'annotations' / f'instances_{COCO_FOLDERS[split]}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _ade_scene(root: Path, split: str, index: int, image: np.ndarray, instances: list[Instance]) -> dict:
    name = f'ADE_{split}_{index + 1:08d}'
    labels = semantic_map(instances, image.shape[:2])
    _write_image(root / 'images' / ADE_FOLDERS[split] / f'{name}.jpg', image)
    _write_image(root / 'annotations' / ADE_FOLDERS[split] / f'{name}.png', labels)
    return {}


def _ade_index(root: Path, split: str, records: list[dict]) -> None:
    """Write the class names, as ADE20K does beside its folders (the same for both splits)."""
    lines = ['Idx\tName\n', *(f'{i}\t{name}\n' for i, name in enumerate(ADE_CLASSES, 1))]
    (root / 'objectInfo.txt').write_text(''.join(lines))


LAYOUTS = {
    'imagenet': Layout(14000, 1960, 32, ADDITION, addition_digits, imagenet_scene, _imagenet_index),
    'coco': Layout(6000, 400, 96, LOOSE, None, _coco_scene, _coco_index),
    'ade': Layout(6000, 400, 96, LOOSE, None, _ade_scene, _ade_index),
}
