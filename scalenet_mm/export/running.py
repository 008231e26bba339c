"""Running a file of ``scalenet onnx``, with the preparation and the result types of the library it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..checkpoint.config_text import registered_only
from ..models.inference import TASKS, as_batch, read_image
from ..version import __version__
from .preparation import Preparation, gives_red_first, preprocessor_of, sides_of

if TYPE_CHECKING:  # it imports all three libraries
    from .network import Network

KEYS = {'scope', 'test_pipeline', 'data_preprocessor', 'classes'}
KNOWN = KEYS | {'step', 'candidates'}


def about(model: nn.Module, network: Network | None = None) -> dict[str, str]:
    """What a file says of itself, each as JSON: library, preparation of images, names of the classes, version; of
    ``network`` what its sides are multiples of, and whether results are candidates.
    """
    cfg = model.cfg
    preparation = preprocessor_of(cfg)
    preparation.pop('batch_augments', None)
    preparation.setdefault('type', type(model.data_preprocessor).__name__)
    said = dict(
        scope=cfg.default_scope,
        task=TASKS[cfg.default_scope],
        classes=list(model.dataset_meta['classes']),
        test_pipeline=[dict(step) for step in cfg.test_pipeline],
        data_preprocessor=preparation,
        scalenet_mm=__version__,
    )
    if network:
        said |= dict(step=network.step, candidates=not network.nms)
    return {key: json.dumps(value) for key, value in said.items()}


def prepared(model: nn.Module, image: str | Path) -> Tensor:
    """An image (1, C, H, W) as the model gets it, without the padding."""
    return _prepare(model, as_batch(model, read_image(model, image)))[0][0]


def pixels_of(model: nn.Module, image: str | Path) -> Tensor:
    """An image (1, H, W, 3) uint8, red first, as the test pipeline resizes it.

    Raises:
        ValueError: if the model's ``data_preprocessor`` does something else with it than ``Preparation`` puts into a
            graph.
    """
    data = as_batch(model, read_image(model, image))
    preparation = Preparation.of(model.cfg)
    pixels = _red_first(preparation.given_red_first, data['inputs'][0])
    theirs, ours = _prepare(model, data)[0][0], preparation(pixels)
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-4):
        raise ValueError(
            f'data_preprocessor ({type(model.data_preprocessor).__name__}) does more with {image} than mean, deviation '
            'and channel order, so --with-preparation is not possible; leave it out.'
        )
    return pixels


def _red_first(is_so: bool, pixels: Tensor) -> Tensor:
    """(3, H, W) as the pipeline gives them, as (1, H, W, 3) of red, green and blue."""
    whole = pixels.to(torch.uint8)
    if not torch.equal(whole.to(pixels), pixels):
        raise ValueError(
            'The test pipeline changes the values of pixels, and --with-preparation takes them as 8-bit colour.'
        )
    whole = whole if is_so else whole.flip(0)
    return whole.permute(1, 2, 0)[None].contiguous()


def _prepare(model: Any, data: dict) -> list[tuple[Tensor, Any]]:
    """Each image of a batch as the model gets it, (1, C, H, W) without the padding, and its data sample."""
    sides = [image.shape[-2:] for image in data['inputs']]
    batch = model.data_preprocessor(data, False)
    return [
        (image[None, :, :high, :wide].float(), sample)
        for image, sample, (high, wide) in zip(batch['inputs'], batch['data_samples'], sides, strict=True)
    ]


def _sizes(node: Any) -> Any:
    """Lists of numbers as tuples, which JSON has none of: mmcv's steps take a size as such."""
    if isinstance(node, dict):
        return {key: _sizes(value) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    numbers = node and all(isinstance(value, (int, float)) for value in node)
    return tuple(node) if numbers else [_sizes(value) for value in node]


def open_session(file: str | Path):
    """onnxruntime's session on the CPU, without a word on constants that it leaves.

    Raises:
        FileNotFoundError, ValueError: if there is no such file, or it is none of ONNX.
    """
    import onnxruntime

    if not Path(file).is_file():
        raise FileNotFoundError(f'There is no file {file}.')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's have no base of their own
        raise ValueError(
            f'{file} cannot be run: it is damaged, or none of ONNX ({str(error).splitlines()[0]}).'
        ) from error


class OnnxModel(nn.Module):
    """A file as a Runner's test loop and ``models.inference`` (``predict``, ``read_image``, ``as_json``) take a model.

    Raises:
        ModuleNotFoundError: without onnxruntime.
        ValueError: if another program wrote the file, it holds a backbone alone, or it gives candidates.
        CheckpointError: if it names other code than registered steps, see ``registered_only``.
    """

    def __init__(self, file: str | Path):
        super().__init__()
        self.file, self.session = file, open_session(file)
        said = {k: json.loads(v) for k, v in self.session.get_modelmeta().custom_metadata_map.items() if k in KNOWN}
        self.names = [output.name for output in self.session.get_outputs()]
        self.takes_pixels = self.session.get_inputs()[0].type == 'tensor(uint8)'
        if not said.keys() >= KEYS or self.names[0].startswith('level_'):
            raise ValueError(
                f'{file} does not say how images are prepared and results are read; give a file that `scalenet onnx` '
                'wrote without --backbone.'
            )
        if said.get('candidates'):
            raise ValueError(
                f'{file} gives candidates before their suppression (--no-nms): suppress them where you run it, or '
                'export without --no-nms.'
            )
        self.step = said.get('step', 1)
        self.cfg = Config(dict(default_scope=said['scope'], test_pipeline=_sizes(said['test_pipeline'])))
        self.dataset_meta = dict(classes=said['classes'])
        built, way_out = (self.cfg.test_pipeline, said['data_preprocessor']), 'export the model again'
        with (
            registered_only(str(file), built, [said['scope']], way_out),
            DefaultScope.overwrite_default_scope(said['scope']),
        ):
            Compose(self.cfg.test_pipeline)  # what is built of it later is known then
            self.red_first = self.takes_pixels and gives_red_first(self.cfg)
            self.data_preprocessor = MODELS.build(said['data_preprocessor'])

    def __deepcopy__(self, memo: dict) -> OnnxModel:
        return self  # of hooks that average weights, which a file has none of

    def run(self, image: Tensor) -> dict[str, np.ndarray]:
        """Outputs by name of a prepared image (1, C, H, W), or of pixels (1, H, W, 3) where the file takes them.

        Raises:
            ValueError: for a size that the file does not take.
        """
        takes, given = (sides_of(i.shape, self.takes_pixels) for i in (self.session.get_inputs()[0], image))
        if any(isinstance(n, int) and n != side for n, side in zip(takes, given)):
            raise ValueError(
                f'{self.file} takes images of {takes[0]} x {takes[1]} pixels; this one is {given[0]} x {given[1]} once '
                f'it is prepared. Export with --dynamic, or with --size {given[0]} {given[1]}.'
            )
        if any(not isinstance(n, int) and side % self.step for n, side in zip(takes, given)):
            raise ValueError(
                f'{self.file} takes images whose sides are multiples of {self.step}; this one is {given[0]} x '
                f'{given[1]} once it is prepared. Resize it so in the test pipeline, or export with --size.'
            )
        return dict(zip(self.names, self.session.run(None, {'image': image.numpy()})))

    def test_step(self, data: dict) -> list:
        """As a model's: the library's results, in pixels of each image's file."""
        raw = [_red_first(self.red_first, i) for i in data['inputs']] if self.takes_pixels else None
        return [
            self._result(image, sample, image if raw is None else raw[i])
            for i, (image, sample) in enumerate(_prepare(self, data))
        ]

    def _result(self, image: Tensor, sample: Any, fed: Tensor) -> Any:
        found, (high, wide) = self.run(fed), sample.metainfo.get('ori_shape', image.shape[-2:])[:2]
        x, y = sample.metainfo.get('scale_factor', (image.shape[-1] / wide, image.shape[-2] / high))

        def resized(mask: np.ndarray, how: int) -> np.ndarray:
            return mask if mask.shape == (high, wide) else cv2.resize(mask, (wide, high), interpolation=how)

        if 'boxes' in found:
            boxes = torch.from_numpy(found['boxes'] / np.float32([x, y, x, y]))
            sample.pred_instances = InstanceData(
                bboxes=boxes, labels=torch.from_numpy(found['labels']), scores=torch.from_numpy(found['scores'])
            )
            if 'masks' in found:
                inside = found['masks'][:, : round(high * y), : round(wide * x)]  # without what the pipeline padded
                masks = [resized(m.astype(np.float32), cv2.INTER_LINEAR) >= 0.5 for m in inside]
                sample.pred_instances.masks = torch.from_numpy(np.array(masks, bool).reshape(-1, high, wide))
        elif 'labels' in found:
            labels = resized(found['labels'][0].astype(np.int32).astype(np.float32), cv2.INTER_NEAREST_EXACT)
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels).long()[None])
        else:
            scores = torch.from_numpy(found['scores'][0])
            sample.set_pred_score(scores).set_pred_label(int(scores.argmax()))
        return sample
