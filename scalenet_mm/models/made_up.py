"""Made-up images with annotations, as each library packs them: for one trial step of any config's model."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from ..compat import type_name
from ..runner.built import typed

SIZES = {'mmpretrain': 224, 'mmdet': 256, 'mmseg': 128}  # pixels: whole windows in every stage, 900 queries


def made_up(cfg: Config, size: int) -> tuple[list[Tensor], list]:
    """Two images of noise with two objects, a label map or a class each, as the config's library packs them."""
    generator = torch.Generator().manual_seed(0)
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    shape = (backbone.get('in_channels', 3), size, size)
    images = [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for _ in range(2)]
    loaded = [node for _, node in typed(cfg.get('train_dataloader') or {}, '') if type_name(node) == 'LoadAnnotations']
    masks = not loaded or any(node.get('with_mask') for node in loaded)  # of a detector; some take either
    return images, [SAMPLES[cfg.default_scope](i, size, masks) for i in range(2)]


def _detection(i: int, size: int, with_masks: bool):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    boxes = np.array([[8, 8, 60, 70], [40 + i, 30, 120, 110]], np.float32)
    masks = np.zeros((2, size, size), np.uint8)
    for mask, (x, y, right, bottom) in zip(masks, boxes.astype(int)):
        mask[y:bottom, x:right] = 1
    # Detectors that are told their classes in words read those
    sample = DetDataSample(metainfo=dict(**_meta(size), text=('one', 'two'), custom_entities=True))
    sample.gt_instances = InstanceData(bboxes=torch.from_numpy(boxes), labels=torch.zeros(2, dtype=torch.long))
    if with_masks:
        sample.gt_instances.masks = BitmapMasks(masks, size, size)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, size, size, dtype=torch.long))
    return sample


def _segmentation(i: int, size: int, with_masks: bool):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.zeros(1, size, size, dtype=torch.long)
    labels[:, :, size // 2 + i :] = 1
    sample = SegDataSample(metainfo=_meta(size))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def _classification(i: int, size: int, with_masks: bool):
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_meta(size)).set_gt_label(i)


def _meta(size: int) -> dict:
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (size, size))
    return dict(**shapes, scale_factor=(1.0, 1.0))


SAMPLES = {'mmdet': _detection, 'mmseg': _segmentation, 'mmpretrain': _classification}
