"""Pictures of what was made: read back from the files, with boxes, masks and labels drawn in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from .dataset_layouts import ADE_FOLDERS, COCO_FOLDERS, PALETTE, SUM_CLASSES
from .digits import CLASSES

TILE = 144  # pixels a scene takes in the picture
CAPTION = 16  # pixels above each row
INK = (255, 255, 255)


def _enlarge(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_NEAREST)


def _text(image: np.ndarray, text: str, x: int, y: int) -> None:
    for colour, width in (((0, 0, 0), 3), (INK, 1)):
        cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, width, cv2.LINE_AA)


def _tint(tile: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Mix a colour into the pixels of a mask and outline it, in place."""
    large = _enlarge(mask.astype(np.uint8))
    tile[large > 0] = (0.45 * tile[large > 0] + 0.55 * np.array(colour)).astype(np.uint8)
    outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, outlines, -1, colour, 1)


def _read(path: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def decode_rle(rle: dict) -> np.ndarray:
    """The ``(H, W)`` bool mask of COCO's uncompressed run lengths."""
    values = np.arange(len(rle['counts'])) % 2 == 1
    return np.repeat(values, rle['counts']).reshape(rle['size'], order='F')


def _imagenet_tiles(root: Path, split: str, count: int) -> list[np.ndarray]:
    tiles = []
    for line in (root / 'meta' / f'{split}.txt').read_text().splitlines()[:count]:
        name, label = line.rsplit(' ', 1)
        tile = _enlarge(_read(root / split / name))
        _text(tile, f'sum {SUM_CLASSES[int(label)]}', 4, 14)
        tiles.append(tile)
    return tiles


def _coco_tiles(root: Path, split: str, count: int) -> list[np.ndarray]:
    folder = COCO_FOLDERS[split]
    content = json.loads((root / 'annotations' / f'instances_{folder}.json').read_text())
    tiles = []
    for entry in content['images'][:count]:
        tile = _enlarge(_read(root / folder / entry['file_name']))
        zoom = TILE / entry['width']
        found = [ann for ann in content['annotations'] if ann['image_id'] == entry['id']]
        for ann in found:
            _tint(tile, decode_rle(ann['segmentation']), PALETTE[ann['category_id'] - 1])
        for ann in found:
            x, y, w, h = (round(zoom * value) for value in ann['bbox'])
            cv2.rectangle(tile, (x, y), (x + w - 1, y + h - 1), INK, 1)
            _text(tile, CLASSES[ann['category_id'] - 1], x + 2, max(y, 0) + 12)
        tiles.append(tile)
    return tiles


def _ade_tiles(root: Path, split: str, count: int) -> list[np.ndarray]:
    folder = ADE_FOLDERS[split]
    tiles = []
    for path in sorted((root / 'images' / folder).iterdir())[:count]:
        labels = cv2.imread(str(root / 'annotations' / folder / f'{path.stem}.png'), cv2.IMREAD_GRAYSCALE)
        tile = _enlarge(_read(path))
        for value in np.unique(labels[labels > 1]):
            _tint(tile, labels == value, PALETTE[value - 2])
        tiles.append(tile)
    return tiles


TILES: dict[str, Callable[[Path, str, int], list[np.ndarray]]] = {
    'imagenet': _imagenet_tiles,
    'coco': _coco_tiles,
    'ade': _ade_tiles,
}


def draw_preview(folders: dict[str, Path], path: Path, columns: int = 8) -> None:
    """Draw one row of scenes for each layout and split and save it as a PNG.

    Args:
        folders: The folder of each layout, as ``make_demo_data`` returns them.
        path: Where the picture goes.
        columns: Scenes in a row.
    """
    rows = []
    for layout, root in folders.items():
        for split in ('train', 'val'):
            row = np.full((TILE + CAPTION, TILE * columns, 3), 24, np.uint8)
            for i, tile in enumerate(TILES[layout](Path(root), split, columns)):
                row[CAPTION:, i * TILE : (i + 1) * TILE] = tile
            _text(row, f'{layout} {split}', 4, 12)
            rows.append(row)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.vstack(rows)[..., ::-1]
    if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f'could not write the preview to {path}')
