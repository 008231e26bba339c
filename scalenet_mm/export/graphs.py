"""What a file computes: a network whose input is one prepared image and whose outputs are results in its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmpretrain.models.backbones import SwinTransformer, VisionTransformer
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.models.heads import ClsHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..models.distill import DistilledClassifier
from .detection import Detector, OneStage, TwoStage
from .network import Agreement, Network, not_covered

AREA = 1e-3  # share of the pixels


class Backbone(Network):
    """The levels that a detector or segmentor reads."""

    task, spare = 'backbone', 0.001

    def __init__(self, model: nn.Module):
        if not isinstance(model, (SwinTransformer, VisionTransformer)):
            raise ValueError(
                f'{type(model).__name__} cannot be exported as a backbone; it must be ScaleNetSwin or ScaleNetDeiT, or '
                'their hosts in mmpretrain.'
            )
        super().__init__(model)
        depth = len(model.stages if isinstance(model, SwinTransformer) else model.layers)
        indices = model.out_indices
        self.names = tuple(f'level_{i % depth}' for i in ([indices] if isinstance(indices, int) else indices))

    @property
    def backbone(self) -> nn.Module:
        return self.model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return _tuple(self.traced(image))

    def reference(self, image: Tensor) -> tuple[Tensor, ...]:
        return _tuple(self.model(image))


class Classifier(Network):
    """``scores`` (B, classes), which add up to 1."""

    task, names = 'classification', ('scores',)

    def __init__(self, model: ImageClassifier):
        _require_type(model, (ImageClassifier, DistilledClassifier))
        head = model.head
        if not isinstance(head, ClsHead) or type(head)._get_predictions is not ClsHead._get_predictions:
            raise not_covered(
                'model.head', head, 'heads whose scores are a softmax (LinearClsHead, VisionTransformerClsHead)'
            )
        if getattr(model.data_preprocessor, 'pad_size_divisor', 1) > 1:
            raise ValueError(
                f'model.data_preprocessor.pad_size_divisor is {model.data_preprocessor.pad_size_divisor}, which is not '
                'covered by the export of a classifier; pad in the test pipeline.'
            )
        super().__init__(model)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.traced(image).softmax(-1),)

    def reference(self, image: Tensor) -> tuple[Tensor]:
        return (torch.stack([s.pred_score for s in self.model.predict(image)]),)


class Segmentor(Network):
    """``labels`` (B, H, W): the class of each pixel."""

    task, names = 'segmentation', ('labels',)

    def __init__(self, model: EncoderDecoder):
        _require_type(model, (EncoderDecoder,))
        if (model.test_cfg or {}).get('mode', 'whole') != 'whole':
            raise ValueError(
                f'model.test_cfg.mode is {model.test_cfg.mode!r}: the file takes an image as a whole, so set '
                "model.test_cfg.mode='whole', or cut and join the windows where the file is run."
            )
        head = model.decode_head
        own = isinstance(head, BaseDecodeHead) and all(
            getattr(type(head), name) is getattr(BaseDecodeHead, name) for name in ('predict', 'predict_by_feat')
        )
        if not own:
            raise not_covered(
                'model.decode_head', head, 'heads that predict as BaseDecodeHead does (UPerHead, FCNHead)'
            )
        padding = getattr(model.data_preprocessor, 'test_cfg', None) or {}
        if padding.get('size'):
            raise ValueError(
                f'model.data_preprocessor.test_cfg.size is {padding["size"]}, which is not covered by the export; use '
                'size_divisor, or pad in the test pipeline.'
            )
        super().__init__(model)
        self.unit = padding.get('size_divisor') or 1
        self.pad_value = float(getattr(model.data_preprocessor, 'pad_val', 0))
        self.traced.auxiliary_head = None  # of training

    def forward(self, image: Tensor) -> tuple[Tensor]:
        head, padded = self.traced.decode_head, self.padded(image)
        logits = head(self.traced.extract_feat(padded))
        logits = F.interpolate(logits, size=padded.shape[-2:], mode='bilinear', align_corners=head.align_corners)
        for axis in (2, 3) if self.unit > 1 else ():
            logits = logits.index_select(axis, torch.arange(image.shape[axis], device=image.device))
        if head.out_channels == 1:
            return ((logits.sigmoid() > head.threshold)[:, 0].long(),)
        return (logits.argmax(1),)

    def reference(self, image: Tensor) -> tuple[Tensor]:
        padded, sides = self.padded(image), tuple(image.shape[-2:])
        right, below = (padded.shape[axis] - image.shape[axis] for axis in (3, 2))
        shape = tuple(padded.shape[-2:])
        told = dict(
            ori_shape=sides,
            img_shape=shape,
            pad_shape=shape,
            padding_size=[0] * 4,
            img_padding_size=[0, right, 0, below],
        )
        samples = self.model.predict(padded, [SegDataSample(metainfo=told) for _ in padded])
        return (torch.cat([s.pred_sem_seg.data for s in samples]).long(),)

    def compare(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Agreement:
        if ours[0].shape != theirs[0].shape:
            return super().compare(ours, theirs)
        share = float((ours[0] != theirs[0]).float().mean())
        return Agreement(share, f'{share:.2%} of the pixels have another class' if share > AREA else '')


KINDS = (
    (ImageClassifier, Classifier),
    (EncoderDecoder, Segmentor),
    (TwoStageDetector, TwoStage),
    (SingleStageDetector, OneStage),
)


def network_of(model: nn.Module, nms: bool = True) -> Network:
    """The network that computes what a library's model does.

    Args:
        nms: whether the last suppression of a detector is in it. Without, every candidate above the config's score
            comes out and no masks do; the suppression of a two-stage detector's proposals is a part of the network.

    Raises:
        ValueError: if the model, a head or an option of one is not covered; it is named.
    """
    for kind, network in KINDS:
        if isinstance(model, kind) and type(model).predict is kind.predict:  # panoptic ones do more
            if nms:
                return network(model)
            if not issubclass(network, Detector):
                raise ValueError(f'nms=False (--no-nms) is of detectors; this model is of {network.task}.')
            return network(model, nms=False)
    covered = 'ImageClassifier, EncoderDecoder (UPerNet ...), Faster, Mask and Cascade R-CNN, RetinaNet'
    raise not_covered('model', model, f'{covered}; its backbone alone can be exported (--backbone)')


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _require_type(model: nn.Module, kinds: Sequence[type]) -> None:
    if type(model) not in kinds:
        raise not_covered('model', model, ', '.join(k.__name__ for k in kinds))
