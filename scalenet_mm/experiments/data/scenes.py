"""Cluttered scenes of digits; each depends on ``(seed, split, index, size, style)`` and on nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from .background import ANY, DARK, draw_background
from .digits import CLASSES, DIGIT_SIDE, SPLITS, DigitSet, digit_set

MASK_OPACITY = 0.5  # a pixel belongs to a digit from this opacity on
MIN_CONTRAST = 80.0  # least luminance difference of a digit to what it is drawn on, of 255
MIN_COLOUR_DISTANCE = 60.0  # least distance of two digits' RGB colours
MIN_HEIGHT = 5.0  # pixels; no digit is drawn smaller
GRID_JITTER = 0.06  # of a cell, to either side
SHRINK = tuple(0.97**i for i in range(30))  # each new layout of a scene is a little smaller
PLACEMENT_TRIES = 40  # positions tried for a digit before the scene is laid out again
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class SceneStyle:
    """What a scene may look like: pairs are least and greatest, single numbers greatest values."""

    digits: tuple[int, int] = (3, 6)
    scale: tuple[float, float] = (0.22, 0.42)  # height of a digit, of the image side
    angle: float = 30.0  # degrees to either side; 6 and 9 need less than 90
    max_covered: float = 0.2  # of a digit's pixels, by later digits
    max_box_iou: float = 0.2  # of two digits
    strokes: tuple[int, int] = (2, 8)  # behind the digits
    noise: float = 14.0  # standard deviation, of 255
    light_digits: bool = False  # on a dark background; otherwise either may be the lighter one
    grid: int = 0  # cells a side of a loose grid whose cells hold one digit at most; 0 for anywhere


class Instance(NamedTuple):
    """One visible digit: class 0..9, visible pixels ``(H, W)`` bool, tight box (x, y, w, h)."""

    label: int
    mask: np.ndarray
    bbox: tuple[int, int, int, int]


class _Placed(NamedTuple):
    label: int
    alpha: np.ndarray  # (h, w) opacity in 0..1, cropped to the digit's pixels
    x: int
    y: int


def _warp_glyph(rng: np.random.Generator, glyph: np.ndarray, height: float, angle: float):
    """Scale, shear and rotate one glyph; crop to its pixels. Returns (h, w) opacity."""
    side = glyph.shape[0]
    factor = height / DIGIT_SIDE
    theta = np.deg2rad(rng.uniform(-angle, angle))
    shear = rng.uniform(-0.2, 0.2)
    stretch = rng.uniform(0.85, 1.15)
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    matrix = turn @ np.array([[stretch, shear], [0.0, 1.0]]) * factor
    canvas = int(np.ceil(2.2 * height)) + 4
    shift = (canvas - 1) / 2 - matrix @ np.full(2, (side - 1) / 2)
    if factor < 0.5:  # OpenCV's warp does not filter; blur what would alias
        glyph = cv2.GaussianBlur(glyph, (0, 0), 0.35 / factor)
    alpha = cv2.warpAffine(glyph, np.column_stack([matrix, shift]), (canvas, canvas))
    rows = np.flatnonzero((alpha > 0.02).any(1))
    cols = np.flatnonzero((alpha > 0.02).any(0))
    return alpha[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box (x, y, w, h) in pixels that just holds the True pixels of an ``(H, W)`` mask."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1))


def _box_iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


class _Layout:
    """Digits placed so far with their visible masks; later digits lie on top of earlier ones."""

    def __init__(self, size: int, style: SceneStyle) -> None:
        self.size, self.style = size, style
        self.placed: list[_Placed] = []
        self.visible: list[np.ndarray] = []
        self.full_area: list[int] = []

    def try_place(self, label: int, alpha: np.ndarray, x: int, y: int) -> bool:
        """Place a digit unless it hides too much of another or crowds its box."""
        solid = np.zeros((self.size, self.size), bool)
        solid[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha >= MASK_OPACITY
        area = int(solid.sum())
        if not area:
            return False
        box = tight_box(solid)
        remaining = [mask & ~solid for mask in self.visible]
        for mask, full in zip(remaining, self.full_area):
            if mask.sum() < (1.0 - self.style.max_covered) * full:
                return False
            if _box_iou(tight_box(mask), box) > self.style.max_box_iou:
                return False
        self.visible = [*remaining, solid]
        self.full_area.append(area)
        self.placed.append(_Placed(label, alpha, x, y))
        return True


def _position(rng: np.random.Generator, size: int, shape: np.ndarray, cell: np.ndarray | None, grid: int) -> np.ndarray:
    """A top left corner (y, x) for a digit of ``shape`` (h, w): anywhere, or in about a cell."""
    room = size - shape
    if cell is None:
        return rng.integers(room + 1)
    centre = (cell + 0.5 + rng.uniform(-GRID_JITTER, GRID_JITTER, 2)) * (size / grid)
    return np.clip(np.rint(centre - shape / 2), 0, room).astype(int)


def _lay_out(
    rng: np.random.Generator, digits: DigitSet, size: int, style: SceneStyle, labels: Sequence[int], shrink: float
) -> _Layout | None:
    """Place one digit for each label; None where one finds no room."""
    layout = _Layout(size, style)
    cells: Iterable[np.ndarray | None] = itertools.repeat(None)
    if style.grid:
        cells = rng.permutation(np.argwhere(np.ones((style.grid, style.grid))))
    for label, cell in zip(labels, cells):
        for _ in range(PLACEMENT_TRIES):
            glyph = digits.glyphs[rng.choice(digits.by_class[label])]
            height = max(rng.uniform(*style.scale) * shrink * size, MIN_HEIGHT)
            alpha = _warp_glyph(rng, glyph, height, style.angle)
            if max(alpha.shape) > size:
                continue
            y, x = _position(rng, size, np.array(alpha.shape), cell, style.grid)
            if layout.try_place(label, alpha, int(x), int(y)):
                break
        else:
            return None
    return layout


def _pick_colour(rng: np.random.Generator, under: np.ndarray, taken: list[np.ndarray], light: bool) -> np.ndarray:
    """A random RGB colour that stands out from ``under`` (N, 3) and from the colours taken."""
    below = float((under @ LUMA).mean())
    for _ in range(200):
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        apart = all(np.linalg.norm(colour - other) >= MIN_COLOUR_DISTANCE for other in taken)
        gap = float(colour @ LUMA) - below
        if apart and (gap if light else abs(gap)) >= MIN_CONTRAST:
            return colour
    return np.full(3, 255.0 if light or below < 128 else 0.0, np.float32)


def _paint(rng: np.random.Generator, canvas: np.ndarray, placed: list[_Placed], light: bool) -> None:
    """Blend the digits into the (H, W, 3) float canvas in their order, in place."""
    background, taken = canvas.copy(), []
    for digit in placed:
        rows = slice(digit.y, digit.y + digit.alpha.shape[0])
        cols = slice(digit.x, digit.x + digit.alpha.shape[1])
        under = background[rows, cols][digit.alpha >= MASK_OPACITY]
        taken.append(_pick_colour(rng, under, taken, light))
        canvas[rows, cols] += digit.alpha[..., None] * (taken[-1] - canvas[rows, cols])


def render_scene(
    seed: int,
    split: str,
    index: int,
    size: int = 128,
    style: SceneStyle = SceneStyle(),
    labels: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[Instance]]:
    """Draw one scene.

    Args:
        split: ``'train'`` or ``'val'``: which of the two disjoint sets of digits to use.
        size: Side of the square image in pixels, at least 24.
        labels: Classes of the digits in the order they are placed; None for random ones.

    Returns:
        The image ``(size, size, 3)`` uint8 in RGB order and its instances. Masks hold visible
        pixels only and never overlap.

    Raises:
        ValueError: If the split is unknown, the image is too small to hold legible digits, or
            the digits do not fit in.
    """
    if size < 24:
        raise ValueError(f'a scene needs at least 24 pixels a side to be legible, got {size}')
    digits = digit_set(split)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    if labels is None:
        count = int(rng.integers(style.digits[0], style.digits[1] + 1))
        labels = rng.integers(len(CLASSES), size=count).tolist()
    if style.grid and len(labels) > style.grid**2:
        raise ValueError(f'{len(labels)} digits need as many cells, but grid={style.grid} has {style.grid**2}')
    for shrink in SHRINK:
        layout = _lay_out(rng, digits, size, style, labels, shrink)
        if layout is not None:
            break
    else:
        raise ValueError(f'{len(labels)} digits find no room in {size} pixels; ask for fewer')
    canvas = draw_background(rng, size, style.strokes, DARK if style.light_digits else ANY)
    _paint(rng, canvas, layout.placed, style.light_digits)
    canvas += rng.normal(0.0, rng.uniform(0.0, style.noise), canvas.shape)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    instances = [Instance(digit.label, mask, tight_box(mask)) for digit, mask in zip(layout.placed, layout.visible)]
    return image, instances
