"""Three lines from a config and a checkpoint to results, for classifiers, detectors and segmentors.

>>> model = load_model('config.py', 'checkpoint.pth', delta='increments.safetensors')  # doctest: +SKIP
>>> result = predict(model, 'image.jpg')  # doctest: +SKIP
>>> as_json(model, result)  # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from glob import glob, has_magic
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.fileio import list_from_file
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from ..checkpoint.loading import build_model, load_weights
from ..compat import read_config, scope_of, type_class, type_name
from ..ops import deploy
from ..runner.config import innermost, reads_annotations, reads_pixels
from .side_by_side import Panel

TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}
SCORE = 0.3
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
TOP = 5  # classes of an image that are told


def load_model(
    config: str | Path | Config,
    checkpoint: str | Path,
    delta: str | Path | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Builds the model of a config in eval mode with the weights of a checkpoint.

    mmdet's ``inference_detector``, mmseg's ``inference_model``, mmpretrain's ``ImageClassificationInferencer`` take it.

    Args:
        config: file of mmpretrain, mmdet or mmseg (``mmdet::...`` too), or the config.
        checkpoint: file of any dialect, ``http(s)://`` or ``hf://owner/repo/file``; with ``delta``, its base.
        delta: file of increments, see ``checkpoint.delta_file``.
        device: by default a GPU where there is one.

    Raises:
        ValueError: if the config is of no known task.
        FileNotFoundError: if a file is not there.
        CheckpointError: if a file does not fit the model.
    """
    cfg = read_config(config)
    cfg.default_scope = scope = scope_of(cfg)
    if scope not in TASKS:
        raise ValueError(
            f'The config has default_scope={scope!r}, which says no task; it must be one of {sorted(TASKS)}.'
        )
    dataset = test_dataset(cfg)
    model = revert_sync_batchnorm(build_model(cfg))
    stored = load_weights(model, checkpoint, delta)
    steps = [copy.deepcopy(t) for t in dataset['pipeline'] if not reads_annotations(t)]
    cfg.test_pipeline = steps  # where mmseg's inference_model looks
    model.cfg = model._config = cfg
    model.dataset_meta = model._dataset_meta = _metainfo(stored, dataset, model, scope)
    model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    model.eval()
    return deploy(model)


def predict(model: nn.Module, image: str | Path | np.ndarray | Sequence) -> Any:
    """The result of an image, or of each of a list.

    Args:
        model: from ``load_model``.
        image: a path, read by the loading step of the config's test pipeline; or (H, W, 3) uint8 in BGR as
            ``cv2.imread`` gives it, where that step reads 8-bit colour; or what ``read_image`` gave, which is used up.

    Returns:
        mmpretrain's ``DataSample``, mmdet's ``DetDataSample`` or mmseg's ``SegDataSample``.

    Raises:
        FileNotFoundError, TypeError, ValueError: if a file is not there or is no image, or an array is another one;
            before anything is computed.
    """
    if isinstance(image, (list, tuple)):
        for i in image:
            if not isinstance(i, dict):
                read_image(model, i)
        return [predict(model, i) for i in image]
    data = image if isinstance(image, dict) else read_image(model, image)
    with DefaultScope.overwrite_default_scope(model.cfg.default_scope), torch.inference_mode():
        return model.test_step(as_batch(model, data))[0]


def as_batch(model: nn.Module, data: dict[str, Any]) -> dict[str, Any]:
    """What ``read_image`` gave, after the other steps of the test pipeline, as a loader gives it to ``test_step``."""
    with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        steps = [t for t in model.cfg.test_pipeline if not reads_pixels(t)]
        return pseudo_collate([Compose(steps)(data)])


def as_panel(result: Any, score_thr: float = SCORE) -> Panel:
    """What ``models.side_by_side`` draws, in pixels of the image; objects of a lower score are left out.

    Raises:
        ValueError: for a result that holds neither objects, nor a label map, nor a class.
    """
    if 'pred_sem_seg' in result:
        return Panel(semantic=result.pred_sem_seg.data.squeeze(0).cpu().numpy())
    if 'pred_instances' in result:
        found = result.pred_instances
        found = found[found.scores >= score_thr].cpu()
        masks = found.masks.numpy().astype(bool) if 'masks' in found else None
        boxes = getattr(found.bboxes, 'tensor', found.bboxes)
        if masks is not None and not (boxes[:, 2:] > boxes[:, :2]).any():  # of detectors without boxes, as SOLO
            from mmdet.structures.mask import mask2bbox

            boxes = mask2bbox(found.masks.bool())
        return Panel(boxes.numpy(), found.labels.numpy(), found.scores.numpy(), masks)
    if 'pred_score' in result:
        scores, labels = result.pred_score.cpu().topk(min(TOP, len(result.pred_score)))
        return Panel(labels=labels.numpy(), scores=scores.numpy())
    raise ValueError(
        f'The result holds {sorted(result.keys())}; read are pred_instances (boxes and masks), pred_sem_seg and '
        'pred_score.'
    )


def as_json(model: nn.Module, result: Any, score_thr: float = SCORE) -> list[dict[str, Any]]:
    """Objects, classes of the image or of its pixels, as plain values.

    Each has ``label`` and ``class``; besides, ``score``, ``box`` (x1, y1, x2, y2), ``mask`` (COCO's compressed run
    lengths, ``pycocotools.mask.decode``) and ``pixels``, as far as the task has them.
    """
    from pycocotools import mask as coco

    def run_lengths(mask: np.ndarray) -> dict:
        rle = coco.encode(np.asfortranarray(mask, np.uint8))
        return dict(size=list(rle['size']), counts=rle['counts'].decode())

    panel, classes = as_panel(result, score_thr), model.dataset_meta['classes']
    if panel.semantic is not None:
        return [
            {
                'label': int(k),
                'class': classes[k],
                'pixels': int((panel.semantic == k).sum()),
                'mask': run_lengths(panel.semantic == k),
            }
            for k in np.unique(panel.semantic)
        ]
    found = [{'label': int(k), 'class': classes[k], 'score': float(s)} for k, s in zip(panel.labels, panel.scores)]
    for entry, box in zip(found, [] if panel.boxes is None else panel.boxes):
        entry['box'] = [round(float(v), 2) for v in box]
    for entry, mask in zip(found, [] if panel.masks is None else panel.masks):
        entry['mask'] = run_lengths(mask)
    return found


def find_images(names: Sequence[str | Path]) -> list[Path]:
    """The files that names, folders (not those below them) and glob patterns stand for, each once.

    Raises:
        FileNotFoundError: if one of them stands for no image.
    """
    found: dict[Path, None] = {}
    for name in map(str, names):
        files, where = [Path(name)], f'in {name}'
        if Path(name).is_dir():
            files = [p for p in Path(name).iterdir() if p.suffix.lower() in SUFFIXES]
        elif has_magic(name) and not Path(name).exists():
            files = [Path(p) for p in glob(name, recursive=True)]
        else:
            where = name
        files = [p for p in files if p.is_file()]
        if not files:
            raise FileNotFoundError(
                f'There is no image {where}; give files, a folder of {", ".join(SUFFIXES)}, or a quoted pattern.'
            )
        found.update(dict.fromkeys(sorted(files)))
    return list(found)


def read_image(model: nn.Module, image: str | Path | np.ndarray) -> dict[str, Any]:
    """A sample with its image, ``img``, as the loading step of the model's test pipeline makes it of a file.

    Depth, channels, orientation and decoder are those of training; nothing else reads images here.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if it is neither a path nor an array.
        ValueError: if it is no image, or an array has another shape or type than the loading step gives.
    """
    loaders = [t for t in model.cfg.test_pipeline if reads_pixels(t)]
    if isinstance(image, np.ndarray):
        return _of_array(image, loaders)
    if not loaders:
        raise ValueError(
            "The config's test pipeline has no loading step, so it does not say how a file is read; give the array "
            'that its data set gives.'
        )
    if not isinstance(image, (str, PathLike)):
        raise TypeError(
            'An image is the path of a file, or an array of (H, W, 3) uint8 in BGR as cv2.imread gives it, got '
            f'{type(image).__module__}.{type(image).__qualname__}; save it, or convert it to such an array.'
        )
    if not Path(image).is_file():
        raise FileNotFoundError(f'There is no image {image}.')
    data = dict(img_path=str(image), img_id=0)
    with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        try:
            return Compose(loaders)(data)
        except Exception as e:
            raise ValueError(
                f'{image} cannot be read as an image by {loaders[0]}: {str(e) or type(e).__name__}. Check that it is '
                'a whole file of that kind.'
            ) from e


def _of_array(image: np.ndarray, loaders: Sequence[dict]) -> dict[str, Any]:
    if loaders and not all(_reads_colour(t) for t in loaders):
        raise ValueError(
            f'This config reads images by {loaders[0]}, which an array of (H, W, 3) uint8 cannot stand for; give the '
            'path of the file.'
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f'An image is an array of (H, W, 3) uint8 in BGR, as cv2.imread gives it, got {image.shape} {image.dtype}. '
            'Convert it, or give the path of the file.'
        )
    pixels = image.astype(np.float32) if any(t.get('to_float32') for t in loaders) else image
    return dict(img=pixels, img_shape=image.shape[:2], ori_shape=image.shape[:2], img_id=0)


def _reads_colour(step: dict) -> bool:
    known = type_name(step) == 'LoadImageFromFile' and step.get('imdecode_backend') != 'tifffile'
    return known and step.get('color_type', 'color') in ('color', 'color_ignore_orientation')


def as_picture(data: dict[str, Any]) -> np.ndarray:
    """What ``read_image`` gave, to be drawn on: (H, W, 3) uint8 in RGB, the first bands where they are not three."""
    pixels = np.atleast_3d(data['img'])
    if pixels.dtype != np.uint8:
        top = float(pixels.max(initial=1))
        pixels = (pixels / (top / 255 if top > 255 else 1)).clip(0, 255).astype(np.uint8)
    bands = pixels.shape[2]
    return np.ascontiguousarray(pixels[..., [2, 1, 0] if bands >= 3 else [0, 0, 0]])


def test_dataset(cfg: Config) -> dict:
    """The innermost data set of the test loader, the first of several; without a test that of the validation."""
    dataset = innermost((cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}).get('dataset') or {})
    if dataset.get('datasets'):  # several in one; they are prepared alike
        dataset = innermost(dataset['datasets'][0])
    if 'pipeline' not in dataset:
        raise ValueError(
            'The config has no test_dataloader.dataset.pipeline, which says how images are prepared; take the one it '
            'was trained with.'
        )
    return dataset


def _metainfo(stored: dict | None, dataset: dict, model: nn.Module, scope: str | None) -> dict[str, Any]:
    """Names of the classes: of the file, else of the config's data set, else numbers."""
    with DefaultScope.overwrite_default_scope(scope):
        kind = type_class(dataset, DATASETS)
    # all but the preprocessor, whose number is for mixup
    parts = [m for name, m in model.named_modules() if name.partition('.')[0] != 'data_preprocessor']
    count = max((m.num_classes for m in parts if isinstance(getattr(m, 'num_classes', None), int)), default=0)
    known = dict(getattr(kind, 'METAINFO', {}))
    if len(known.get('classes', ())) != count:  # a config of ImageNet with a head of its own
        known = {k: v for k, v in known.items() if k not in ('classes', 'palette')}
    named = dataset.get('classes')  # mmpretrain's: names, or a file of them
    if isinstance(named, str):
        file = Path(named).expanduser()
        named = list_from_file(file) if file.is_file() else None
    meta = {
        **known,
        **({'classes': list(named)} if named else {}),
        **(dataset.get('metainfo') or {}),
        **{k.lower(): v for k, v in (stored or {}).items()},
    }
    names = list(meta.get('classes') or ())
    if len(names) < count:  # what has no name is told by its number
        meta['classes'] = [*names, *map(str, range(len(names), count))]
        meta.pop('palette', None)
    return meta
