"""Whether data loading keeps up with training in the shipped configs (pair 'data')."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from ...compat import configs_dir, quiet, with_preprocessor
from ...runner.config import complete, innermost
from ..data import SceneStyle, render_scene
from .startup import make_row, spread

# Family -> (leaf config, variable that names its data, width and height of a typical image of the data set)
FAMILIES = {
    'classification': ('scalenet_swin_t_100e.py', 'SCALENET_IMAGENET_ROOT', (500, 375)),
    'detection': ('mask_rcnn_scalenet_swin_t_1x.py', 'SCALENET_COCO_ROOT', (640, 480)),
    'segmentation': ('upernet_scalenet_swin_t_40k.py', 'SCALENET_ADE_ROOT', (683, 512)),
}
DEMO = {'detection': 'demo/mask_rcnn_scalenet_swin_digits.py', 'segmentation': 'demo/upernet_scalenet_swin_digits.py'}
STYLE = SceneStyle(digits=(6, 8), scale=(0.1, 0.25))  # COCO has 7 objects an image
QUALITY = 95  # gives about 100 to 170 KB a file, as ImageNet and COCO have
LISTED = 4096  # samples that one epoch lists; the files repeat
CPU_BATCH = 8  # images of a step on CPU, at most


def make_images(root: Path, family: str, files: int) -> float:
    """Writes JPEG scenes of digits in the layout and image size of a family's data set.

    Returns:
        Mean size of a file in KB.
    """
    width, height = FAMILIES[family][2]
    records = []
    for i in range(files):
        image, instances = render_scene(0, 'train', i, width, STYLE)
        image, masks = image[:height], [(x.label, x.mask[:height]) for x in instances]
        path = root / IMAGE_FOLDERS[family] / f'{i:08d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        records.append((path, [(label, mask) for label, mask in masks if mask.any()]))
    INDICES[family](root, records, (width, height))
    return sum(path.stat().st_size for path, _ in records) / len(records) / 1e3


def _imagenet_index(root: Path, records: list, size: tuple[int, int]) -> None:
    lines = [f'{records[i % len(records)][0].name} {i % 1000}\n' for i in range(LISTED)]
    (root / 'meta').mkdir()
    (root / 'meta' / 'train.txt').write_text(''.join(lines))


def _coco_index(root: Path, records: list, size: tuple[int, int]) -> None:
    from mmdet.datasets import CocoDataset

    images, annotations = [], []
    for i in range(LISTED):
        path, masks = records[i % len(records)]
        images.append(dict(id=i, file_name=path.name, width=size[0], height=size[1]))
        for label, mask in masks:
            outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            polygons = [p.reshape(-1).tolist() for p in outlines if len(p) > 2]
            if polygons:
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=label + 1,
                        bbox=list(cv2.boundingRect(mask.astype(np.uint8))),
                        area=int(mask.sum()),
                        segmentation=polygons,
                        iscrowd=0,
                    )
                )
    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    (root / 'annotations').mkdir()
    (root / 'annotations' / 'instances_train2017.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def _ade_index(root: Path, records: list, size: tuple[int, int]) -> None:
    folder = root / 'annotations' / 'training'
    folder.mkdir(parents=True)
    for path, masks in records:
        labels = np.ones(size[::-1], np.uint8)
        for label, mask in masks:
            labels[mask] = label + 2
        cv2.imwrite(str(folder / f'{path.stem}.png'), labels)


IMAGE_FOLDERS = {'classification': 'train', 'detection': 'train2017', 'segmentation': 'images/training'}
INDICES = {'classification': _imagenet_index, 'detection': _coco_index, 'segmentation': _ade_index}


def read_leaf(family: str, root: Path, name: str | None = None) -> Config:
    """A family's config as a run completes it, with its data at ``root``, by the variable that users set."""
    leaf, variable, _ = FAMILIES[family]
    before = os.environ.get(variable)
    os.environ[variable] = str(root)
    try:
        return complete(Config.fromfile(configs_dir() / (name or leaf)))
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def shrink(cfg: Config, height: int, width: int) -> Config:
    """The same config for images of a smaller size, in its pipeline and its preprocessor; in place."""
    for transform in innermost(cfg.train_dataloader.dataset).pipeline:
        if transform.type in ('Resize', 'RandomResize'):
            transform.scale = (width, height)
        elif transform.type == 'RandomCrop':
            transform.crop_size = (height, width)
        elif transform.type == 'RandomResizedCrop':
            transform.scale = height
    for preprocessor in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')):
        if preprocessor and 'size' in preprocessor:
            preprocessor.size = (height, width)
    return cfg


@contextmanager
def loader(cfg: Config, **changes) -> Iterator:
    """The config's training loader with some settings changed; its workers end with the context."""
    cv2.setNumThreads(cfg.env_cfg.mp_cfg.opencv_num_threads)
    init_default_scope(cfg.default_scope)
    built = Runner.build_dataloader({**deepcopy(cfg.train_dataloader), **changes}, seed=0)
    batches = iter(built)
    try:
        yield batches
    finally:
        if hasattr(batches, '_shutdown_workers'):
            batches._shutdown_workers()


def loading_seconds(cfg: Config, batch_size: int, rounds: int) -> list[float]:
    """Seconds an image that one worker takes, collation and its road to this process included."""
    seconds = []
    with loader(cfg, batch_size=batch_size, num_workers=1, persistent_workers=False) as batches:
        next(batches)  # the worker's start; from here on it is busy without a break
        for _ in range(rounds):
            start = time.perf_counter()
            next(batches)
            seconds.append((time.perf_counter() - start) / batch_size)
    return seconds


def build_trainer(cfg: Config, device: str = 'cpu') -> tuple[torch.nn.Module, object]:
    """The config's model in training mode, with random weights, and its optimizer wrapper."""
    init_default_scope(cfg.default_scope)
    with quiet():
        model = MODELS.build(with_preprocessor(cfg.model, cfg)).to(device)
        model.train()
        return model, build_optim_wrapper(model, cfg.optim_wrapper)


def step_seconds(cfg: Config, batch_size: int, rounds: int, device: str = 'cpu') -> list[float]:
    """Seconds an image that a training step of the config takes, forward, backward and update."""
    with loader(cfg, batch_size=batch_size, num_workers=0, persistent_workers=False) as batches:
        batch = next(batches)
    model, wrapper = build_trainer(cfg, device)
    seconds = []
    for _ in range(1 + rounds):
        data = deepcopy(batch)  # the preprocessors pad in place
        start = time.perf_counter()
        model.train_step(data, wrapper)
        if device != 'cpu':
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / batch_size)
    return seconds[1:]


def family_row(
    family: str, rounds: int, files: int = 32, size: tuple[int, int] | None = None, device: str = 'cpu'
) -> dict:
    """Seconds an image of a family's loader (ours) beside those of its training step (peer).

    Args:
        files: images made and read in turn.
        size: (height, width) of the pipeline's output; by default the config's.
    """
    with tempfile.TemporaryDirectory() as folder:
        kilobytes = make_images(Path(folder), family, files)
        cfg = read_leaf(family, Path(folder))
        if size:
            shrink(cfg, *size)
        settings = cfg.train_dataloader
        batch = settings.batch_size if device != 'cpu' else min(settings.batch_size, CPU_BATCH)
        load = loading_seconds(cfg, settings.batch_size, rounds)
        step = median(step_seconds(cfg, batch, max(1, rounds // 2), device))
    worker, workers = median(load), settings.num_workers
    used = min(workers, os.cpu_count() or 1)
    note = (
        f'{1 / worker:.0f} images/s a worker (one in {spread(load)}; files of {kilobytes:.0f} KB); {workers} workers, '
        f'{used} cores counted; with a core each they feed {workers / worker:.0f} images/s a GPU, which needs '
        f'{1000 * worker:.1f} for every 1000; the step takes {1 / step:.1f} on {device}; persistent '
        f'{settings.get("persistent_workers", False)}, pinned {settings.get("pin_memory", False)}'
    )
    leaf = FAMILIES[family][0].removesuffix('.py')
    return make_row('data', f'{leaf}: loader', step, worker / used, 1.0, 's an image', note)


def rows(
    quick: bool = False, rounds: int = 7, progress: Callable[[str], None] = print, device: str = 'cpu'
) -> list[dict]:
    """One row a family, see ``family_row``; ``quick`` reads less files, and trains detection and segmentation on small
    images.
    """
    made = []
    for family in FAMILIES:
        progress(family)
        size = (96, 128) if quick and family != 'classification' else None
        made.append(family_row(family, rounds, 8 if quick else 32, size, device))
    return made
