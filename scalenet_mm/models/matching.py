"""What two results on one image agree and differ in: objects matched one to one, label maps pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

AGREE, DIFFER, ONLY_A_RIGHT, ONLY_B_RIGHT, BOTH_WRONG = range(5)
IGNORE = 255  # label of pixels without ground truth


@dataclass(frozen=True)
class Matching:
    """Objects of two results, as indices into each.

    Attributes:
        same: pairs of one class at one place.
        changed: pairs of different classes at one place.
        only_a: the rest of the first.
        only_b: the rest of the second.
    """

    same: list[tuple[int, int]]
    changed: list[tuple[int, int]]
    only_a: list[int]
    only_b: list[int]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes ``x1, y1, x2, y2``: (N, 4), (M, 4) -> (N, M)."""
    a, b = np.asarray(a, float).reshape(-1, 1, 4), np.asarray(b, float).reshape(1, -1, 4)
    corners = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = corners.clip(0).prod(-1)
    area_a, area_b = ((x[..., 2:] - x[..., :2]).clip(0).prod(-1) for x in (a, b))
    return shared / np.maximum(area_a + area_b - shared, np.finfo(float).tiny)


def match(
    boxes_a: np.ndarray, labels_a: np.ndarray, boxes_b: np.ndarray, labels_b: np.ndarray, min_iou: float = 0.5
) -> Matching:
    """Pairs objects so that the sum of IoUs is greatest: first within a class, then what is left across classes.

    Args:
        boxes_a: (N, 4) of ``x1, y1, x2, y2``.
        labels_a: (N,) class indices.
        boxes_b: (M, 4).
        labels_b: (M,).
        min_iou: pairs below it are at different places.
    """
    iou = box_iou(boxes_a, boxes_b)
    iou[iou < min_iou] = 0
    one_class = np.asarray(labels_a).reshape(-1, 1) == np.asarray(labels_b).reshape(1, -1)
    same = _pairs(iou * one_class)
    iou[[i for i, _ in same]] = 0
    iou[:, [j for _, j in same]] = 0
    changed = _pairs(iou * ~one_class)
    paired_a, paired_b = ({pair[k] for pair in same + changed} for k in (0, 1))
    only_a = [i for i in range(iou.shape[0]) if i not in paired_a]
    only_b = [j for j in range(iou.shape[1]) if j not in paired_b]
    return Matching(same, changed, only_a, only_b)


def _pairs(gain: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns) if gain[i, j] > 0]


def difference_map(a: np.ndarray, b: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """Where two label maps (H, W) differ, as a (H, W) uint8 map.

    Without ``truth``: ``AGREE`` or ``DIFFER``. With it: ``AGREE`` (both right, or ``truth`` is ``IGNORE``),
    ``ONLY_A_RIGHT``, ``ONLY_B_RIGHT`` or ``BOTH_WRONG``.

    Raises:
        ValueError: if the maps are of different sizes.
    """
    shapes = {np.shape(m) for m in (a, b, truth) if m is not None}
    if len(shapes) > 1:
        raise ValueError(f'The label maps are of different sizes (H, W): {sorted(shapes)}.')
    if truth is None:
        return np.where(a == b, AGREE, DIFFER).astype(np.uint8)
    right_a, right_b = a == truth, b == truth
    cases = [truth == IGNORE, right_a & right_b, right_a, right_b]
    codes = [AGREE, AGREE, ONLY_A_RIGHT, ONLY_B_RIGHT]
    return np.select(cases, codes, BOTH_WRONG).astype(np.uint8)
