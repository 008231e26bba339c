"""The same images for every model that is looked at: a seeded draw from a config's data, in batches of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...compat import type_name
from ...core.flops import INPUT_SIZE, image_channels

SPLITS = ('train', 'val', 'test')


class Batches:
    """A fixed random draw of images, the same on every pass, in raw batches as a model's ``data_preprocessor`` takes
    them.

    Augmentation, if the split's pipeline has any, is seeded for every image, whatever the number of workers.

    Args:
        split: whose loader ``<split>_dataloader`` is taken.
        images: how many; fewer where the data set has fewer.
        size: images a batch; the last one may be smaller.

    Raises:
        ValueError: if the config has no such loader.
    """

    def __init__(self, cfg: Config, split: str, images: int, size: int, seed: int = 0):
        loader = deepcopy(cfg.get(f'{split}_dataloader'))
        if not loader:
            there = [s for s in SPLITS if cfg.get(f'{s}_dataloader')]
            raise ValueError(
                f'The config has no {split}_dataloader; choose --split {" or ".join(there) or "(it has none)"}, or '
                '--random for images of noise.'
            )
        if type_name(loader.dataset) != 'SeededDataset':
            loader.dataset = dict(type='SeededDataset', dataset=loader.dataset)
        draw = dict(type='DefaultSampler', shuffle=True)
        loader.sampler = dict(type='SeededSampler', sampler=draw)
        loader.update(persistent_workers=False, drop_last=False)
        self.scope = cfg.get('default_scope') or 'mmengine'
        with DefaultScope.overwrite_default_scope(self.scope):
            self.loader = Runner.build_dataloader(loader, seed=seed)
        self.images, self.size = images, size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with DefaultScope.overwrite_default_scope(self.scope):
            yield from cut(self.loader, self.size, self.images)

    def __len__(self) -> int:
        """Batches at the most."""
        return -(-self.images // self.size)


def random_batches(
    model: nn.Module, images: int, size: int, input_size=None, labels: bool = False, seed: int = 0
) -> Batches:
    """Images of noise, the same for every model of these channels.

    Args:
        input_size: (H, W) in pixels; by default the backbone's ``img_size``, or 224 x 224.
        labels: whether random classes come with them.

    Raises:
        ValueError: if labels are wanted of a model that is no plain classifier.
    """
    backbone = getattr(model, 'backbone', model)
    wanted = input_size or getattr(backbone, 'img_size', INPUT_SIZE)
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    classes = getattr(getattr(model, 'head', None), 'num_classes', None) if labels else None
    if labels and classes is None:
        raise ValueError(
            f'Random labels are made for classifiers, and {type(model).__name__} has no head.num_classes; leave '
            '--random '
            "out and take the config's own data."
        )
    shape = (image_channels(backbone), height, width)
    dataset = dict(type='RandomImages', shape=shape, classes=classes, length=images, seed=seed)
    loader = dict(batch_size=size, num_workers=0, dataset=dataset)
    return Batches(Config(dict(test_dataloader=loader)), 'test', images, size, seed)


@DATASETS.register_module()
class RandomImages(Dataset):
    """Pixels uniform in 0..255, and random labels where ``classes`` are given.

    Args:
        shape: (C, H, W).
    """

    metainfo: dict = {}

    def __init__(self, shape: tuple[int, int, int], classes: int | None, length: int, seed: int = 0):
        self.shape, self.classes, self.length, self.seed = tuple(shape), classes, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.length * self.seed + int(index))
        image = torch.randint(256, self.shape, generator=generator, dtype=torch.uint8)
        if self.classes is None:
            return dict(inputs=image)
        from mmpretrain.structures import DataSample

        label = torch.randint(self.classes, (1,), generator=generator)
        return dict(inputs=image, data_samples=DataSample().set_gt_label(label))


def cut(batches: Iterable[dict], size: int, images: int) -> Iterator[dict[str, Any]]:
    """Joins and cuts batches into such of ``size`` samples until there are ``images``; the last one may be smaller.

    >>> [b['x'] for b in cut([dict(x=[0, 1, 2]), dict(x=[3, 4, 5])], size=2, images=5)]
    [[0, 1], [2, 3], [4]]
    """
    held: dict[str, Any] = {}
    for batch in batches:
        held = {k: _join(held[k], v) if held else v for k, v in batch.items()}
        while images and number(held) >= min(size, images):
            take = min(size, images)
            yield {k: v[:take] for k, v in held.items()}
            held = {k: v[take:] for k, v in held.items()}
            images -= take
        if not images:
            return
    if held and number(held):
        yield held


def number(batch: dict) -> int:
    """Samples in a batch."""
    return len(next(iter(batch.values())))


def _join(a: Tensor | list, b: Tensor | list) -> Tensor | list:
    return torch.cat([a, b]) if isinstance(a, Tensor) else [*a, *b]


def prepared(model: nn.Module, batch: dict, for_loss: bool = False) -> dict[str, Any]:
    """A batch as the model's forward takes it: normalised and on its device, without mixup.

    mmseg pads images and label maps to one size in training alone: ``for_loss`` takes that; else images of several
    sizes are padded to the largest of the batch.
    """
    prepare = model.data_preprocessor
    segments = hasattr(prepare, 'seg_pad_val')
    if not segments or for_loss or len({image.shape for image in batch['inputs']}) == 1:
        return prepare(batch, segments and for_loss)
    from mmseg.utils import stack_batch

    samples = batch['data_samples']
    images = [prepare(dict(inputs=[x], data_samples=[s]), False)['inputs'][0] for x, s in zip(batch['inputs'], samples)]
    largest = tuple(max(image.shape[side] for image in images) for side in (-2, -1))
    return dict(inputs=stack_batch(images, size=largest, pad_val=prepare.pad_val)[0], data_samples=samples)


def loss_of(model: nn.Module, data: dict) -> Tensor:
    """The loss that training would minimise, of a prepared batch."""
    return model.parse_losses(model(**data, mode='loss'))[0]


def see_images(model: nn.Module, batch: dict) -> None:
    """Runs the part of a model that its layers are in: the backbone, where there is one."""
    getattr(model, 'backbone', model)(prepared(model, batch)['inputs'])
