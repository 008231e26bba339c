"""Pictures of what was made, with boxes, masks and labels drawn in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .dataset_layouts import LAYOUTS, PALETTE
from .digits import CLASSES, SPLITS
from .manifest import MANIFEST
from .scenes import Instance

TILE = 144  # pixels a scene takes in the picture
CAPTION = 16  # pixels above each row
INK = (255, 255, 255)


def _enlarge(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (TILE, TILE), interpolation=cv2.INTER_NEAREST)


def _text(image: np.ndarray, text: str, x: int, y: int) -> None:
    for colour, width in (((0, 0, 0), 3), (INK, 1)):
        cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, width, cv2.LINE_AA)


def _tile(image: np.ndarray, instances: list[Instance]) -> np.ndarray:
    """An enlarged scene with the mask, the box and the class of every digit."""
    tile, zoom = _enlarge(image), TILE / image.shape[1]
    for instance in instances:
        mask, colour = _enlarge(instance.mask.astype(np.uint8)), PALETTE[instance.label]
        tile[mask > 0] = (0.45 * tile[mask > 0] + 0.55 * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outlines, -1, colour, 1)
    for instance in instances:
        x, y, w, h = (round(zoom * value) for value in instance.bbox)
        cv2.rectangle(tile, (x, y), (x + w - 1, y + h - 1), INK, 1)
        _text(tile, CLASSES[instance.label], x + 2, y + 12)
    return tile


def draw_preview(folders: Mapping[str, Path], path: Path, columns: int = 8) -> None:
    """Save one row of scenes for each layout and split, as the manifests in the folders say, as a PNG of
    256 colours.

    Raises:
        OSError: if it cannot be written.
    """
    rows = []
    for layout, root in folders.items():
        made = json.loads((Path(root) / MANIFEST).read_text())['parameters']
        for split in SPLITS:
            row = np.full((TILE + CAPTION, TILE * columns, 3), 24, np.uint8)
            for i in range(min(columns, made[split])):
                scene = LAYOUTS[layout].scene(made['seed'], split, i, made['size'])
                row[CAPTION:, i * TILE : (i + 1) * TILE] = _tile(*scene)
            _text(row, f'{layout} {split}', 4, 12)
            rows.append(row)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).quantize(256).save(path, optimize=True)
