"""Whether data loading keeps up with training in the shipped configs (pair 'data')."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import cv2
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from ...compat import configs_dir, quiet, with_preprocessor
from ...cores import at_once
from ...runner.config import complete_config, innermost
from ..data import CLASSES, LAYOUTS, SceneStyle, render_scene
from ..data.dataset_layouts import imagenet_scene
from ..data.scenes import Instance, tight_box
from .cases import Case, Figure
from .settings import Settings
from .timing import Spread, seconds

Trainer = tuple[nn.Module, OptimWrapper]
STYLE = SceneStyle(digits=(6, 8), scale=(0.1, 0.25))  # COCO has 7 objects an image
REPEATED = 1000  # times that an epoch has every file
CPU_BATCH = 8  # images of a step on CPU, at most


class Family(NamedTuple):
    """A shipped config, the variable that names its data, their layout, and the size of a typical image."""

    leaf: str
    variable: str
    layout: str
    width: int
    height: int


FAMILIES = {
    'classification': Family('scalenet_swin_t_100e.py', 'SCALENET_IMAGENET_ROOT', 'imagenet', 500, 375),
    'detection': Family('mask_rcnn_scalenet_swin_t_1x.py', 'SCALENET_COCO_ROOT', 'coco', 640, 480),
    'segmentation': Family('upernet_scalenet_swin_t_40k.py', 'SCALENET_ADE_ROOT', 'ade', 683, 512),
}
DEMO = {'detection': 'demo/mask_rcnn_scalenet_swin_digits.py', 'segmentation': 'demo/upernet_scalenet_swin_digits.py'}


def make_images(root: Path, family: str, files: int) -> float:
    """Writes JPEG scenes of digits in the layout and image size of a family's data set.

    Returns:
        Mean size of a file in KB.
    """
    _, _, name, width, height = FAMILIES[family]
    layout = LAYOUTS[name]
    write = partial(imagenet_scene, suffix='.jpg') if name == 'imagenet' else layout.write_scene
    records = []
    for i in range(files):
        image, instances = render_scene(0, 'train', i, width, STYLE)
        cut = [(x.label, x.mask[:height]) for x in instances]
        seen = [Instance(label, mask, tight_box(mask)) for label, mask in cut if mask.any()]
        records.append(write(root, 'train', i, image[:height], seen))
    layout.write_index(root, 'train', records)
    return sum(path.stat().st_size for path in root.rglob('*.jpg')) / files / 1e3


def read_leaf(family: str, root: Path, name: str | None = None) -> Config:
    """A family's config as a run completes it, with its data at ``root``, by the variable that users set."""
    with mock.patch.dict(os.environ, {FAMILIES[family].variable: str(root)}):
        return complete_config(Config.fromfile(configs_dir() / (name or FAMILIES[family].leaf)))


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
    """The config's training loader with some settings changed, on digits; its workers end with the context."""
    cv2.setNumThreads(cfg.env_cfg.mp_cfg.opencv_num_threads)
    init_default_scope(cfg.default_scope)
    settings = {**deepcopy(cfg.train_dataloader), **changes}
    if cfg.default_scope == 'mmdet':
        innermost(settings['dataset']).metainfo = dict(classes=CLASSES)
    settings['dataset'] = dict(type='RepeatDataset', times=REPEATED, dataset=settings['dataset'])
    batches = iter(Runner.build_dataloader(settings, seed=0))
    try:
        yield batches
    finally:
        if hasattr(batches, '_shutdown_workers'):
            batches._shutdown_workers()


def first_batch(cfg: Config, size: int) -> Mapping[str, Any]:
    with loader(cfg, batch_size=size, num_workers=0, persistent_workers=False) as batches:
        return next(batches)


def loading_seconds(cfg: Config, batch_size: int, rounds: int) -> list[float]:
    """Seconds an image that one worker takes, collation and its road to this process included."""
    found = []
    with loader(cfg, batch_size=batch_size, num_workers=1, persistent_workers=False) as batches:
        next(batches)  # the worker's start; from here on it is busy without a break
        for _ in range(rounds):
            start = time.perf_counter()
            next(batches)
            found.append((time.perf_counter() - start) / batch_size)
    return found


def build_trainer(cfg: Config, device: str = 'cpu') -> Trainer:
    """The config's model in training mode, with random weights, and its optimizer wrapper."""
    init_default_scope(cfg.default_scope)
    with quiet():
        model = MODELS.build(with_preprocessor(cfg.model, cfg)).to(device)
        model.train()
        return model, build_optim_wrapper(model, cfg.optim_wrapper)


def training_step(trainer: Trainer, batch: Mapping) -> Callable[[], object]:
    """Forward, backward and update; on a copy, as preprocessors pad in place."""
    model, wrapper = trainer
    return lambda: model.train_step(deepcopy(batch), wrapper)


def keeping_up(s: Settings, family: str, files: int = 32, size: tuple[int, int] | None = None) -> list[Figure]:
    """Seconds an image of a family's loader over those of its training step.

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
        batch = settings.batch_size if s.device != 'cpu' else min(settings.batch_size, CPU_BATCH)
        load = Spread.of(loading_seconds(cfg, settings.batch_size, s.rounds))
        run = training_step(build_trainer(cfg, s.device), first_batch(cfg, batch))
        step = median([seconds(run, 1, s.device) / batch for _ in range(1 + max(1, s.rounds // 2))][1:])
    worker, workers = load.median, settings.num_workers
    used = at_once(workers)
    note = (
        f'{1 / worker:.0f} images/s a worker (one in {load.low:.3g} to {load.high:.3g} s; files of {kilobytes:.0f} '
        f'KB); {workers} workers, {used} cores counted; with a core each they feed {workers / worker:.0f} images/s a '
        f'GPU, which needs {1000 * worker:.1f} for every 1000; the step takes {1 / step:.1f} on {s.device}; persistent '
        f'{settings.get("persistent_workers", False)}, pinned {settings.get("pin_memory", False)}'
    )
    told = dict(step=step, worker=worker, used=used)
    return [Figure(worker / used / step, f'{Path(FAMILIES[family].leaf).stem}: loader', None, told, note, bound=1.0)]


def cases(s: Settings) -> list[Case]:
    """A case a family; at a smaller size of less files, and of small images in detection and segmentation."""
    small = {} if s.size == 'full' else dict(files=8)
    sizes = {family: (96, 128) if small and family in DEMO else None for family in FAMILIES}
    return [Case('data', 'data', '', partial(keeping_up, s, f, size=size, **small)) for f, size in sizes.items()]
