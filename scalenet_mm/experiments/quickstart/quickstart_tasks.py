"""What differs between classification, detection and segmentation: configs, metrics, and how a result is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...models.matching import match
from ...models.side_by_side import Panel, difference_panel, mark_against
from ..data import ADE_CLASSES, CLASSES, SUM_CLASSES

SOURCES = Path(__file__).with_name('sources')
SURE = 0.5  # score from which an object is drawn
BACKGROUND, NOT_DRAWN = 0, 255  # labels of pixels


@dataclass(frozen=True)
class Task:
    """One task of the quickstart.

    Attributes:
        layout: of the demo data.
        source, scaled: names of the configs in configs/demo.
        what: the source and the scaled model in words.
        unit: what the config's training loop counts, ``'epoch'`` or ``'iter'``.
        scenes: on which the quickstart trains.
        source_scenes: on which the source was trained; the quickstart's are among them.
        control_lr: of training the source on, chosen on a seed that is not reported.
        metrics: column of the table -> (key among the evaluator's metrics, factor).
        converged: less than this is gained in the first column by training the source on.
        size: (H, W) of the images.
        minutes: of all runs together on two quiet cores.
        note: what the table's figures are.
        classes: their names.
        columns: heads of the picture's columns.
        panels: (ground truth, before, after) -> a panel for each column.
        read: an evaluated data sample -> (ground truth, prediction).
        right: (ground truth, prediction) -> how much of an image is right, 0..1.
    """

    layout: str
    source: str
    scaled: str
    what: tuple[str, str]
    unit: str
    scenes: int
    source_scenes: int
    control_lr: float
    metrics: Mapping[str, tuple[str, float]]
    converged: float
    size: tuple[int, int]
    minutes: int
    note: str
    classes: list[str]
    columns: tuple[str, ...]
    panels: Callable[[Panel, Panel, Panel, list[str]], list[Panel]]
    read: Callable[[object], tuple[Panel, Panel]]
    right: Callable[[Panel, Panel], float]

    @property
    def weights(self) -> Path:
        """The source's weights, which come with the package; sources/README.md is their card."""
        return SOURCES / f'{Path(self.source).stem}.safetensors'


def objects(instances) -> Panel:
    """Boxes, classes and masks; of predictions those with a score of at least ``SURE``."""
    scores = instances.scores.numpy() if 'scores' in instances else None
    keep = slice(None) if scores is None else scores >= SURE
    masks = instances.masks
    masks = masks.numpy() if hasattr(masks, 'numpy') else masks.masks
    return Panel(
        boxes=instances.bboxes.numpy()[keep],
        labels=instances.labels.numpy()[keep],
        scores=None if scores is None else scores[keep],
        masks=masks.astype(bool)[keep],
    )


def pixels(label_map) -> Panel:
    labels = label_map.data[0].numpy()
    return Panel(semantic=np.where(labels == BACKGROUND, NOT_DRAWN, labels))


def image_class(label) -> Panel:
    return Panel(labels=label.numpy())


def share_of_objects(truth: Panel, predicted: Panel) -> float:
    """F1: twice what was found over what is there and what was predicted."""
    found = match(truth.boxes, truth.labels, predicted.boxes, predicted.labels)
    return 2 * len(found.same) / max(1, len(truth.boxes) + len(predicted.boxes))


def share_of_pixels(truth: Panel, predicted: Panel) -> float:
    """Of those that either says are not background."""
    drawn = (truth.semantic != NOT_DRAWN) | (predicted.semantic != NOT_DRAWN)
    return float((truth.semantic == predicted.semantic)[drawn].mean()) if drawn.any() else 1.0


def same_class(truth: Panel, predicted: Panel) -> float:
    return float(truth.labels[0] == predicted.labels[0])


def against_the_truth(truth: Panel, before: Panel, after: Panel, classes: list[str]) -> list[Panel]:
    return [truth, mark_against(truth, before, classes), mark_against(truth, after, classes)]


def with_difference(truth: Panel, before: Panel, after: Panel, classes: list[str]) -> list[Panel]:
    return [truth, before, after, difference_panel(before, after, truth)]


def right_or_wrong(truth: Panel, before: Panel, after: Panel, classes: list[str]) -> list[Panel]:
    for panel in (before, after):
        panel.marks = ['found' if same_class(truth, panel) else 'false']
    return [truth, before, after]


BEFORE_AFTER = ('ground truth', 'before: source', 'after: ScaleNet x2')

TASKS = {
    'cls': Task(
        layout='imagenet',
        source='deit_micro_digits.py',
        scaled='scalenet_deit_micro_digits.py',
        what=('a DeiT of one layer', 'two layers that share its weights'),
        unit='epoch',
        scenes=40_000,
        source_scenes=160_000,
        control_lr=1e-3,
        metrics={'top-1': ('accuracy/top1', 1)},
        converged=0.3,
        size=(32, 32),
        minutes=5,
        note='Top-1 in %; 95 % interval of the draw of {images:,} images: +- {draw:.0f}. MFLOPs: multiply-adds of a '
        '32 x 32 image.',
        classes=SUM_CLASSES,
        columns=BEFORE_AFTER,
        panels=right_or_wrong,
        read=lambda s: (image_class(s.gt_label), image_class(s.pred_label)),
        right=same_class,
    ),
    'det': Task(
        layout='coco',
        source='mask_rcnn_swin_digits.py',
        scaled='mask_rcnn_scalenet_swin_digits.py',
        what=('a Mask R-CNN on a Swin of 1, 1 and 1 layers', '2, 2 and 2 layers that share them'),
        unit='epoch',
        scenes=6_000,
        source_scenes=6_000,
        control_lr=5e-4,
        metrics={'box AP': ('coco/bbox_mAP', 100), 'mask AP': ('coco/segm_mAP', 100)},
        converged=0.5,
        size=(96, 96),
        minutes=7,
        note='COCO AP (IoU 0.50 to 0.95). MFLOPs: multiply-adds of the backbone alone for one image of 96 x 96.',
        classes=CLASSES,
        columns=BEFORE_AFTER,
        panels=against_the_truth,
        read=lambda s: (objects(s.gt_instances), objects(s.pred_instances)),
        right=share_of_objects,
    ),
    'seg': Task(
        layout='ade',
        source='upernet_swin_digits.py',
        scaled='upernet_scalenet_swin_digits.py',
        what=('a UPerNet on a Swin of 1, 1 and 1 layers', '2, 2 and 2 layers that share them'),
        unit='iter',
        scenes=6_000,
        source_scenes=6_000,
        control_lr=5e-4,
        metrics={'mIoU': ('mIoU', 1)},
        converged=0.5,
        size=(96, 96),
        minutes=7,
        note='Mean IoU in % over background and ten digits. MFLOPs: multiply-adds of the backbone, 96 x 96.',
        classes=ADE_CLASSES,
        columns=(*BEFORE_AFTER, 'difference'),
        panels=with_difference,
        read=lambda s: (pixels(s.gt_sem_seg), pixels(s.pred_sem_seg)),
        right=share_of_pixels,
    ),
}
