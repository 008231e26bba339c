"""Networks as ONNX files: shared tensors stored once, checked in onnxruntime before the file is there."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.roles import unique_bytes
from ..file_names import require_suffix
from .graphs import Backbone, network_of
from .network import Network

NEEDED = ('onnx', 'onnxscript', 'onnxruntime')
CHECKED = 8  # images


@dataclass(frozen=True)
class Exported:
    """What was written and checked.

    Attributes:
        initializers: tensors in the file.
        nbytes: their bytes.
        unique: bytes of the model's own tensors that are used, each shared one counted once.
        difference: the largest between onnxruntime and torch, over all outputs and inputs.
        shapes: inputs that were checked.
        found: objects that torch found in them, of a detector.
    """

    initializers: int
    nbytes: int
    unique: int
    difference: float
    shapes: list[tuple[int, ...]]
    found: int | None = None


def export_model(model: nn.Module, path: str | Path, *args, **options) -> Exported:
    """Writes a classifier, detector or segmentor; the rest as of ``write``, the outputs in ``graphs``."""
    return write(network_of(model), path, *args, **options)


def export_backbone(backbone: nn.Module, path: str | Path, *args, **options) -> Exported:
    """Writes ``ScaleNetSwin``, ``ScaleNetDeiT``, or mmpretrain's Swin or ViT; the rest as of ``write``."""
    return write(Backbone(backbone), path, *args, **options)


def write(
    network: Network,
    path: str | Path,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
    metadata: Mapping[str, str] | None = None,
    images: Sequence[Tensor] = (),
) -> Exported:
    """Writes a network whose input ``image`` is prepared images, (B, C, H, W) float32.

    Args:
        network: what is written.
        path: the file; written only if its outputs are those of torch.
        size: (H, W), by default the ``img_size`` of a ViT, 224 x 224 of a Swin.
        dynamic: leave H and W free as well: any from the last stage's stride on for Swin, multiples of the patch size
            for a ViT.
        metadata: texts that go into the file.
        images: prepared images (1, C, H, W) that are checked besides made-up ones.

    Raises:
        ModuleNotFoundError: if onnx, onnxscript or onnxruntime is missing.
        ValueError: for a size that cannot be, one that cannot be free, or a name without ``.onnx``.
        RuntimeError: if a tensor would be stored twice, or outputs differ.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'ONNX export needs: pip install {" ".join(missing)}')
    size = tuple(size or network.default_size)
    network.require(size, dynamic)
    path = require_suffix(path, '.onnx')
    path.parent.mkdir(parents=True, exist_ok=True)
    traced = network.trace_size(size) if dynamic else size
    example = torch.randn(2 if network.free_batch else 1, network.channels, *traced)
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch's own functions
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=(network.dimensions(dynamic),),
            input_names=['image'],
            output_names=list(network.names),
            optimize=False,  # its folded transposes are a copy of a shared weight for each layer instance
            verbose=False,
        )
        for key, value in (metadata or {}).items():
            program.model.metadata_props[key] = value
        file = Path(folder) / path.name
        program.save(file)
        report = _check(file, network, [*_made_up(network, size, traced, dynamic), *images])
        for part in Path(folder).iterdir():  # the graph, and the tensors of a model beyond 2 GB
            os.replace(part, path.parent / part.name)
    return report


def _made_up(network: Network, size: tuple[int, int], traced: tuple[int, int], dynamic: bool) -> list[Tensor]:
    """Images of noise at several sizes and batches, one of one colour."""
    step, least = network.step, network.least
    sides = [size] * (CHECKED - 1)
    if dynamic:
        wide = 2 * size[0], max(size[1] // 2 // step * step, least)
        up = (-(-least // step) * step,) * 2
        sides = [traced, size, wide, wide[::-1], up, (up[0], 3 * up[0]), (size[0] + step, size[1])]
    make = torch.Generator().manual_seed(0)
    found = []
    for i, side in enumerate(sides):
        batch = (3, 1, 2)[i % 3] if network.free_batch else 1
        found.append(torch.randn(batch, network.channels, *side, generator=make))
    return [*found, torch.zeros(1, network.channels, *size)]


def _check(file: Path, network: Network, images: Sequence[Tensor]) -> Exported:
    import onnx
    import onnxruntime

    stored = [onnx.numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer]
    nbytes, unique = sum(t.nbytes for t in stored), unique_bytes(network.traced)
    if nbytes > unique * (1 + network.spare):
        raise RuntimeError(
            f'The graph holds {nbytes:,} bytes and the model {unique:,}: a shared tensor is stored more than once, '
            'and nothing was written. Please report the versions of torch and onnxscript.'
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # without a word on constants that it leaves
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    worst, found = 0.0, None
    for image in images:
        ours = network.reference(image)
        theirs = [torch.from_numpy(t) for t in session.run(None, {'image': image.numpy()})]
        difference, wrong = network.compare(ours, theirs)
        if wrong:
            raise RuntimeError(
                f'onnxruntime differs from torch at {tuple(image.shape)}: {wrong}; nothing was written. Please report '
                'the versions of torch, onnxscript and onnxruntime.'
            )
        worst = max(worst, difference)
        if 'boxes' in network.names:
            found = (found or 0) + len(ours[0])
    return Exported(len(stored), nbytes, unique, worst, [tuple(i.shape) for i in images], found)
