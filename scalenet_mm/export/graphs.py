"""What a file computes: a network whose input is one prepared image and whose outputs are results in its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmpretrain.models.backbones import SwinTransformer, VisionTransformer
from mmpretrain.models.classifiers import ImageClassifier
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

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
        _require_type(model, (ImageClassifier,))
        head = model.head
        if not hasattr(head, 'loss_module') or getattr(head, 'multi_label', False) or not callable(head):
            raise not_covered(
                'model.head', head, 'heads whose scores are a softmax (LinearClsHead, VisionTransformerClsHead)'
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
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise ValueError(
                f'model.test_cfg.mode is {model.test_cfg.mode!r}: the file takes an image as a whole, so set '
                "model.test_cfg.mode='whole', or cut and join the windows where the file is run."
            )
        super().__init__(model)
        self.traced.auxiliary_head = None  # of training

    def forward(self, image: Tensor) -> tuple[Tensor]:
        head = self.traced.decode_head
        logits = head(self.traced.extract_feat(image))
        logits = F.interpolate(logits, size=image.shape[-2:], mode='bilinear', align_corners=head.align_corners)
        if head.out_channels == 1:
            return ((logits.sigmoid() > head.threshold)[:, 0].long(),)
        return (logits.argmax(1),)

    def reference(self, image: Tensor) -> tuple[Tensor]:
        return (torch.cat([s.pred_sem_seg.data for s in self.model.predict(image)]).long(),)

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
        if isinstance(model, kind):
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
