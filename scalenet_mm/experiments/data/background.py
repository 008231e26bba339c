"""Backgrounds of the demo scenes: flat, gradient, cloud and stripe textures, distractor strokes."""

from __future__ import annotations

import cv2
import numpy as np

ANY = (20.0, 235.0)  # base colours, of 255
DARK = (10.0, 100.0)


def _flat(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.full((size, size), rng.uniform(0.0, 1.0), np.float32)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / max(size - 1, 1)
    theta = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(theta) * x + np.sin(theta) * y
    return (ramp - ramp.min()) / np.ptp(ramp)


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    cells = int(rng.integers(3, 9))
    coarse = rng.uniform(0, 1, (cells, cells)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    waves = rng.uniform(2, 8)
    return 0.5 + 0.5 * np.sin(2 * np.pi * waves * _gradient(rng, size) + rng.uniform(0, 6.28))


PATTERNS = (_flat, _gradient, _clouds, _stripes)


def _stroke(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Draw one line, arc or blob of a colour near the background's, in place."""
    size = canvas.shape[0]
    near = canvas[tuple(rng.integers(0, size, 2))]
    colour = np.clip(near + rng.uniform(-70, 70, 3), 0, 255).tolist()
    first, second = rng.integers(0, size, (2, 2)).tolist()
    thickness = max(1, round(size * rng.uniform(0.008, 0.025)))
    kind = rng.integers(3)
    if kind == 0:
        cv2.line(canvas, first, second, colour, thickness, cv2.LINE_AA)
        return
    axes = (rng.uniform(0.04, 0.16, 2) * size).astype(int).tolist()
    turn, start, span = rng.uniform(0, 360), rng.uniform(0, 360), rng.uniform(90, 300)
    if kind == 1:
        cv2.ellipse(canvas, first, axes, turn, start, start + span, colour, thickness, cv2.LINE_AA)
    else:
        cv2.ellipse(canvas, first, axes, turn, 0, 360, colour, -1, cv2.LINE_AA)


def draw_background(
    rng: np.random.Generator, size: int, strokes: tuple[int, int], levels: tuple[float, float] = ANY
) -> np.ndarray:
    """Draw ``(size, size, 3)`` float32 in 0..255, RGB; least and greatest number of strokes and base colour."""
    base = rng.uniform(*levels, 3)
    other = np.clip(base + rng.uniform(-60, 60, 3), 0, 255)
    pattern = PATTERNS[rng.integers(len(PATTERNS))](rng, size)[..., None]
    canvas = np.ascontiguousarray(base + (other - base) * pattern, np.float32)
    for _ in range(int(rng.integers(strokes[0], strokes[1] + 1))):
        _stroke(rng, canvas)
    return canvas
