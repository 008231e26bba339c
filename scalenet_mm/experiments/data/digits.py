"""The digits behind every scene: scikit-learn's 1,797 handwritten ones (UCI) of 8 x 8 pixels, in two disjoint sets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

CLASSES = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
SPLITS = ('train', 'val')
NUM_DIGITS = 1797
NUM_TRAIN_DIGITS = 1400
SPLIT_SEED = 20241  # one split for all seeds: any validation scene is unseen by any training scene
GLYPH_SIDE = 80  # pixels; digits are enlarged once, with a frame, and warped from this size
DIGIT_SIDE = 64  # pixels of GLYPH_SIDE that the 8 x 8 image itself takes


@dataclass(frozen=True)
class DigitSet:
    """The N digit images one split may use."""

    indices: np.ndarray  # (N,): positions in ``load_digits``
    labels: np.ndarray  # (N,)
    glyphs: np.ndarray  # (N, GLYPH_SIDE, GLYPH_SIDE) float32: opacity of the enlarged strokes in 0..1
    by_class: tuple[np.ndarray, ...]  # for each class the rows of this set that show it


def load_raw() -> tuple[np.ndarray, np.ndarray]:
    """All digits: images (1797, 8, 8) in 0..1, and their classes.

    Raises:
        ImportError: if scikit-learn is missing; the message names the remedy.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the demo data set is made from the digits inside scikit-learn, which is not '
            'installed here; run `python -m pip install scikit-learn` in this environment'
        ) from error
    digits = load_digits()
    assert digits.images.shape == (NUM_DIGITS, 8, 8), digits.images.shape
    return digits.images.astype(np.float32) / 16.0, digits.target.astype(np.int64)


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Split the digits, stratified by class, into disjoint sorted index arrays for each split."""
    rng = np.random.default_rng(SPLIT_SEED)
    exact = np.bincount(labels, minlength=len(CLASSES)) * (NUM_TRAIN_DIGITS / len(labels))
    quota = np.floor(exact).astype(int)
    # Largest remainders get the digits that rounding down left over.
    for cls in np.argsort(quota - exact, kind='stable')[: NUM_TRAIN_DIGITS - quota.sum()]:
        quota[cls] += 1
    train = np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(labels == cls))[: quota[cls]] for cls in range(len(CLASSES))])
    )
    return {'train': train, 'val': np.setdiff1d(np.arange(len(labels)), train)}


def _enlarge(images: np.ndarray) -> np.ndarray:
    """Turn 8 x 8 grey values into crisp strokes: cubic enlargement, then a soft threshold.

    A frame of one empty pixel keeps strokes that touch the border from ending in a straight cut.
    """
    side = (GLYPH_SIDE, GLYPH_SIDE)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    large = np.stack([cv2.resize(image, side, interpolation=cv2.INTER_CUBIC) for image in framed])
    ramp = np.clip((large - 0.3) / 0.35, 0.0, 1.0)
    return (ramp * ramp * (3.0 - 2.0 * ramp)).astype(np.float32)


@lru_cache(maxsize=len(SPLITS))
def digit_set(split: str) -> DigitSet:
    """The digits of ``'train'`` (1,400) or ``'val'`` (the other 397).

    Raises:
        ValueError: If ``split`` is another name.
        ImportError: If scikit-learn is missing; the message names the remedy.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    images, labels = load_raw()
    indices = split_indices(labels)[split]
    labels = labels[indices]
    by_class = tuple(np.flatnonzero(labels == cls) for cls in range(len(CLASSES)))
    return DigitSet(indices, labels, _enlarge(images[indices]), by_class)
