"""Detectors as they go into a file: what the library's ``predict`` does, for one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead, ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.structures import DetDataSample
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .boxes import decode, paste, pool, several, suppress, where
from .network import VALUES, Agreement, Network, not_covered

PIXELS = 1e-2  # of a box's corners
AREA = 1e-3  # share of the masks' pixels
OTHER_CLASS = 1e6  # pixels between objects of two classes
EVERY = 10**9  # objects of an image


class Detector(Network):
    """Objects by falling score: ``boxes`` (n, 4) of x1, y1, x2, y2 in pixels, ``labels``, ``scores``, and ``masks`` (n,
    H, W) where the model has them.
    """

    task, names, free_batch = 'detection', ('boxes', 'labels', 'scores'), False

    def __init__(self, model: nn.Module, nms: bool = True):
        super().__init__(model)
        given = model.data_preprocessor
        self.unit, self.pad_value = getattr(given, 'pad_size_divisor', 1), float(getattr(given, 'pad_value', 0))
        self.nms = nms
        if not nms:
            self.last.nms.iou_threshold, self.last.max_per_img = 1.0, EVERY  # of the reference: nothing is above

    @property
    def last(self) -> Any:
        """What the config says of results."""
        return self.model.bbox_head.test_cfg

    @property
    def most(self) -> int:
        """Objects of an image."""
        return self.last.max_per_img

    def keep(self, boxes: Tensor, labels: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is left of the candidates, by falling score."""
        if self.nms:
            at = suppress(boxes, scores, labels, self.last.nms.iou_threshold, self.most)
        else:
            at = scores.argsort(descending=True)
        return boxes[at], labels[at], scores[at]

    def reference(self, image: Tensor) -> tuple[Tensor, ...]:
        shape = tuple(image.shape[-2:])
        sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
        found = self.model.predict(self.padded(image), [sample], rescale=False)[0].pred_instances
        return tuple(found[{'boxes': 'bboxes'}.get(name, name)] for name in self.names)

    def compare(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Agreement:
        """Objects are paired by their boxes, for two of nearly equal scores may have changed places."""
        if len(ours[0]) != len(theirs[0]):
            return Agreement(float('inf'), f'{len(theirs[0])} objects are found, torch finds {len(ours[0])}')
        if not len(ours[0]):
            return Agreement(0.0)
        apart = torch.cdist(ours[0].double(), theirs[0].double(), p=float('inf'))
        apart = apart + OTHER_CLASS * (ours[1][:, None] != theirs[1])
        rows, columns = map(torch.as_tensor, linear_sum_assignment(apart.numpy()))
        pixels, scores = float(apart[rows, columns].max()), float((ours[2] - theirs[2]).abs().max())
        own = float((ours[2] - theirs[2][columns]).abs().max())
        if pixels >= OTHER_CLASS:
            return Agreement(float('inf'), 'a class differs')
        if pixels > PIXELS:
            return Agreement(pixels, f'a box differs: {pixels:.2e} pixels, more than {PIXELS:.0e}')
        if max(scores, own) > VALUES:
            return Agreement(pixels, f'a score or the order differs: {max(scores, own):.2e}, more than {VALUES:.0e}')
        if len(ours) > 3:
            share = float((ours[3] != theirs[3][columns]).float().mean())
            if share > AREA:
                return Agreement(share, f"{share:.2%} of the masks' pixels differ")
        return Agreement(pixels)

    @staticmethod
    def priors(head: nn.Module, scores: Sequence[Tensor]) -> list[Tensor]:
        sizes = [s.shape[-2:] for s in scores]
        return head.prior_generator.grid_priors(sizes, dtype=scores[0].dtype, device=scores[0].device)


class OneStage(Detector):
    """RetinaNet."""

    def __init__(self, model: SingleStageDetector, nms: bool = True):
        _require_heads({'model.bbox_head': (model.bbox_head, (RetinaHead,))})
        _require_coder('model.bbox_head', model.bbox_head)
        _require_nms('model.test_cfg', model.test_cfg)
        super().__init__(model, nms)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        model, cfg, shape = self.traced, self.last, image.shape[-2:]
        head = model.bbox_head
        scores, deltas = head(model.extract_feat(self.padded(image)))
        found = []
        for s, d, priors in zip(scores, deltas, self.priors(head, scores)):
            s, d = _flat(s, head.cls_out_channels), _flat(d, 4)
            s = (s.sigmoid() if head.use_sigmoid_cls else s.softmax(-1)[:, :-1]).flatten()
            at = where(s > cfg.get('score_thr', 0))
            s, order = s[at].sort(descending=True)
            count = cfg.get('nms_pre', -1)
            at, s = at[order][:count], s[:count]  # -1 is without the last, as in mmdet's filter_scores_and_topk
            several(at.shape[0])
            place, label = at // head.num_classes, at % head.num_classes
            found.append((decode(head.bbox_coder, priors[place], d[place], shape), label, s))
        boxes, labels, scores = map(torch.cat, zip(*found))
        return self.keep(*_of_some_size(cfg, boxes, labels, scores))


class TwoStage(Detector):
    """Faster, Mask and Cascade R-CNN."""

    def __init__(self, model: TwoStageDetector, nms: bool = True):
        heads = model.roi_head
        extractors = {
            f'model.roi_head.{part}_roi_extractor ({i})': extractor
            for part in ('bbox', 'mask')
            for i, extractor in enumerate(_list(getattr(heads, f'{part}_roi_extractor', None)))
        }
        _require_heads(
            {
                'model.rpn_head': (getattr(model, 'rpn_head', None), (RPNHead,)),  # FastRCNN has none
                'model.roi_head': (heads, (StandardRoIHead, CascadeRoIHead)),
                **{
                    f'model.roi_head.bbox_head ({i})': (
                        head,
                        (BBoxHead, ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead),
                    )
                    for i, head in enumerate(_list(heads.bbox_head))
                },
                **{name: (extractor, (SingleRoIExtractor,)) for name, extractor in extractors.items()},
                **{
                    f'model.roi_head.mask_head ({i})': (head, (FCNMaskHead,))
                    for i, head in enumerate(_list(getattr(heads, 'mask_head', None)))
                },
            }
        )
        for name, layer in ((name, layer) for name, found in extractors.items() for layer in found.roi_layers):
            if type(layer) is not RoIAlign or layer.pool_mode != 'avg':
                raise not_covered(f'{name}.roi_layer', layer, "RoIAlign with pool_mode='avg'")
        if heads.with_shared_head:
            raise not_covered('model.roi_head.shared_head', heads.shared_head, 'heads without one')
        for name, head in (
            ('model.rpn_head', model.rpn_head),
            *(('model.roi_head.bbox_head', h) for h in _list(heads.bbox_head)),
        ):
            _require_coder(name, head)
        _require_nms('model.test_cfg.rpn', model.test_cfg.rpn)
        _require_nms('model.test_cfg.rcnn', model.test_cfg.rcnn)
        super().__init__(model, nms)
        if not nms:  # masks are of the objects that are left
            self.model.roi_head.mask_head = self.traced.roi_head.mask_head = None
        elif heads.with_mask:
            self.names = (*Detector.names, 'masks')

    @property
    def last(self) -> Any:
        return self.model.roi_head.test_cfg

    @property
    def most(self) -> int:
        return self.last.max_per_img if self.last.max_per_img > 0 else EVERY

    @contextmanager
    def without_ties(self) -> Iterator[None]:
        """Logits of proposals a sixteenth: near 1 many have one probability in float, whose order is that of places."""
        head = self.model.rpn_head
        handle = head.register_forward_hook(lambda head, args, out: ([s / 16 for s in out[0]], out[1]))
        try:
            yield
        finally:
            handle.remove()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        heads, cfg, shape = self.traced.roi_head, self.last, image.shape[-2:]
        levels = self.traced.extract_feat(self.padded(image))
        boxes, total = self._proposals(levels, shape), 0.0
        stages = list(zip(_list(heads.bbox_head), _list(heads.bbox_roi_extractor), strict=True))
        for i, (head, extractor) in enumerate(stages):
            scores, deltas = head(pool(extractor, levels, boxes))
            classes = 1 if head.reg_class_agnostic else head.num_classes
            deltas = deltas.view(-1, classes, 4)
            total = total + scores
            if i + 1 < len(stages):  # a cascade goes on with the box of the best class
                best = scores[:, :-1].argmax(1)
                one = deltas[:, 0] if classes == 1 else deltas.gather(1, best[:, None, None].expand(-1, 1, 4))[:, 0]
                boxes = decode(head.bbox_coder, boxes, one, shape)
        scores = (total / len(stages)).softmax(-1)[:, :-1]
        boxes = decode(head.bbox_coder, boxes[:, None], deltas, shape)
        boxes = boxes.expand(-1, head.num_classes, 4).reshape(-1, 4)
        labels = torch.arange(head.num_classes, device=boxes.device).expand_as(scores).reshape(-1)
        scores = scores.reshape(-1)
        at = where(scores > cfg.score_thr)
        boxes, labels, scores = self.keep(boxes[at], labels[at], scores[at])
        return (boxes, labels, scores, *(self._masks(levels, boxes, labels, shape) if heads.with_mask else ()))

    def _proposals(self, levels: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        head, cfg = self.traced.rpn_head, self.model.test_cfg.rpn
        scores, deltas = head(levels)
        found = []
        for i, (s, d, priors) in enumerate(zip(scores, deltas, self.priors(head, scores))):
            s, d = _flat(s, head.cls_out_channels), _flat(d, 4)
            # by logits, whose order is that of the probabilities: onnxruntime's of below 1e-7 are in none
            s = s[:, 0] if head.use_sigmoid_cls else s[:, 0] - s[:, 1]
            s, at = s.sort(descending=True)
            count = cfg.get('nms_pre', -1)
            s, at = (s[:count], at[:count]) if count > 0 else (s, at)
            found.append((decode(head.bbox_coder, priors[at], d[at], shape), torch.full_like(at, i), s))
        boxes, groups, scores = map(torch.cat, zip(*found))
        boxes, groups, scores = _of_some_size(cfg, boxes, groups, scores)
        return boxes[suppress(boxes, scores, groups, cfg.nms.iou_threshold, cfg.max_per_img)]

    def _masks(self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor, shape: Sequence[int]) -> tuple[Tensor]:
        heads, total = self.traced.roi_head, 0.0
        extractors = _list(getattr(heads, 'mask_roi_extractor', None) or heads.bbox_roi_extractor)
        stages = list(zip(_list(heads.mask_head), extractors, strict=True))
        for head, extractor in stages:
            masks = head(pool(extractor, levels, boxes)).sigmoid()
            if head.class_agnostic:
                total = total + masks[:, 0]
            else:
                total = total + masks[torch.arange(masks.shape[0], device=masks.device), labels]
        return (paste(total / len(stages), boxes, shape) >= self.last.mask_thr_binary,)


def _list(part: Any) -> list:
    """Stages of a cascade, or the one part that there is, or none."""
    return [] if part is None else list(part) if isinstance(part, nn.ModuleList) else [part]


def _flat(level: Tensor, values: int) -> Tensor:
    """(1, A * values, H, W) as (H * W * A, values)."""
    return level[0].permute(1, 2, 0).reshape(-1, values)


def _of_some_size(cfg: Any, boxes: Tensor, groups: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    """Without boxes of no side, or of the least one that the config asks for."""
    least = cfg.get('min_bbox_size', -1)
    if least < 0:
        return boxes, groups, scores
    at = where((boxes[:, 2:] - boxes[:, :2] > least).all(1))
    return boxes[at], groups[at], scores[at]


def _require_heads(heads: dict[str, tuple[nn.Module, Sequence[type]]]) -> None:
    for name, (part, kinds) in heads.items():
        if type(part) not in kinds:
            raise not_covered(name, part, ', '.join(k.__name__ for k in kinds))


def _require_coder(name: str, head: nn.Module) -> None:
    if type(head.bbox_coder) is not DeltaXYWHBBoxCoder:
        raise not_covered(f'{name}.bbox_coder', head.bbox_coder, 'DeltaXYWHBBoxCoder')
    for part, option, value in (
        (head.bbox_coder, 'add_ctr_clamp', False),
        (head, 'custom_activation', False),
        (head, 'with_reg', True),
    ):
        if getattr(part, option, value) != value:
            raise ValueError(f'{name} has {option}={not value}, which is not covered by the export.')


def _require_nms(name: str, cfg: Any) -> None:
    nms = cfg.get('nms') or {}
    other = sorted(set(nms) - {'type', 'iou_threshold', 'split_thr'})
    if nms.get('type', 'nms') != 'nms' or other or not nms:
        raise ValueError(
            f'{name}.nms is {dict(nms) or None}; the export covers dict(type="nms", iou_threshold=...), which ONNX has '
            'an operator for.'
        )
