"""Suppression of overlapping boxes."""

import torch
import torchvision
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (int64) of the boxes (N, 4) that stay, by falling score; of equal scores the first one goes first.

    ``offset`` is 1 where a box from 0 to 9 is 10 pixels wide.
    """
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), 1)
    # mmcv compares in float32, torchvision's CPU kernel in float64: an overlap of 0.6 is not above 0.6
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), threshold)


def _overlaps(one: Tensor, others: Tensor, offset: int = 0) -> Tensor:
    """Intersection over union of a box (4,) with boxes (N, 4); 0 of two without area."""
    sides = (torch.minimum(one[2:], others[:, 2:]) - torch.maximum(one[:2], others[:, :2]) + offset).clamp(min=0)
    inter = sides.prod(1)
    area, areas = (one[2:] - one[:2] + offset).prod(), (others[:, 2:] - others[:, :2] + offset).prod(1)
    return (inter / (area + areas - inter)).nan_to_num(0.0)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Writes boxes and their lowered scores into ``dets`` (N, 5), best first; returns the indices of those that stay.

    Methods: 0 removes what overlaps, 1 lowers its score by the overlap, 2 by a Gaussian of it.
    """
    left, scores, kept = torch.arange(len(boxes)), scores.clone(), []
    while len(left):
        best = int(scores[left].argmax())
        index = left[best]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[index], scores[index]
        kept.append(index)
        left = torch.cat((left[:best], left[best + 1 :]))
        overlap = _overlaps(boxes[index], boxes[left], offset)
        if method == 2:
            weight = torch.exp(-(overlap * overlap) / sigma)
        else:
            lowered = torch.zeros_like(overlap) if method == 0 else 1 - overlap
            weight = torch.where(overlap >= iou_threshold, lowered, torch.ones_like(overlap))
        scores[left] *= weight
        left = left[~(scores[left] < min_score)]
    return torch.stack(kept) if kept else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices of ``dets`` (N, 5): a box that stays, then those that it removes, by falling score."""
    left, groups = dets[:, 4].sort(descending=True, stable=True)[1], []
    while len(left):
        first, rest = left[0], left[1:]
        removed = _overlaps(dets[first, :4], dets[rest, :4]) >= iou_threshold
        groups.append([int(first), *rest[removed].tolist()])
        left = rest[~removed]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Overlaps of boxes (M, 4) and (N, 4) into ``ious``: mode 0 over the union, 1 over the first box's area."""
    one, two = (bboxes1, bboxes2) if aligned else (bboxes1[:, None], bboxes2[None])
    sides = torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2]) + offset
    inter = sides.clamp(min=0).prod(-1)
    first, second = ((b[..., 2:] - b[..., :2] + offset).prod(-1) for b in (one, two))
    base = first + second - inter if mode == 0 else first
    ious.copy_(inter / base)
