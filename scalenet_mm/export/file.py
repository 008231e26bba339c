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
from .network import Agreement, Network
from .preparation import Preparation, sides_of
from .running import open_session
from .weights import STORED, nbytes, quantize, round_to_half, store_half, transpose_once

NEEDED = ('onnx', 'onnxscript', 'onnxruntime')
CHECKED = 8  # images
TRIES, ROUNDING = 16, 1e-6  # images like one that is compared, and by how much they differ


@dataclass(frozen=True)
class Exported:
    """What was written and checked.

    Attributes:
        initializers: tensors in the float32 graph.
        nbytes: their bytes.
        unique: bytes of the model's own tensors that are used, each shared one counted once.
        difference: the largest between onnxruntime and torch, over all outputs and inputs.
        shapes: inputs that were checked.
        found: objects that torch found in them, of a detector.
        stored: bytes of the tensors in the file, fewer than ``nbytes`` with fp16 and int8.
        beyond: of int8, for each input in which it is further from torch than float32 may be, how far.
    """

    initializers: int
    nbytes: int
    unique: int
    difference: float
    shapes: list[tuple[int, ...]]
    found: int | None
    stored: int
    beyond: tuple[str, ...] = ()


def export_model(model: nn.Module, path: str | Path, *args, nms: bool = True, **options) -> Exported:
    """Writes a classifier, detector or segmentor; ``nms`` as of ``network_of``, the rest as of ``write``."""
    return write(network_of(model, nms), path, *args, **options)


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
    store: str = 'float32',
    preparation: Preparation | None = None,
) -> Exported:
    """Writes a network whose input ``image`` is prepared images, (B, C, H, W) float32.

    Args:
        network: what is written.
        path: the file; written only if its outputs are those of torch.
        size: (H, W), by default the ``img_size`` of a ViT, 224 x 224 of a Swin.
        dynamic: leave H and W free as well: any above the last stage's stride for Swin, multiples of the patch size,
            two at least, for a ViT.
        metadata: texts that go into the file.
        images: prepared images (1, C, H, W) that are checked besides made-up ones; with ``preparation`` pixels.
        store: ``'fp16'`` stores matrices and kernels as half floats, rounded before anything is compared; ``'int8'``
            linear layers as integers, after the float graph was checked.
        preparation: goes into the graph, whose ``image`` is then pixels (B, H, W, 3) uint8, red first.

    Raises:
        ModuleNotFoundError: if onnx, onnxscript or onnxruntime is missing.
        ValueError: for a size that cannot be, one that cannot be free, an image of another, a name without ``.onnx``,
            another ``store``, or a value beyond half floats.
        RuntimeError: if a tensor would be stored twice, or outputs differ.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'ONNX export needs: pip install {" ".join(missing)}')
    import onnx_ir  # comes with onnxscript

    if store not in STORED:
        raise ValueError(f'store is {store!r}; it must be one of {", ".join(STORED)}.')
    size = tuple(size or network.default_size)
    network.require(size, dynamic)
    if preparation and network.channels != 3:
        raise ValueError(
            f'The backbone takes {network.channels} channels, and pixels are red, green and blue; leave the '
            'preparation out.'
        )
    path = require_suffix(path, '.onnx')
    for high, wide in (sides_of(image.shape, preparation is not None) for image in images):
        if not dynamic and (high, wide) != size:
            raise ValueError(
                f'An image of {high} x {wide} pixels, once it is resized, cannot be checked in a file for {size}; '
                'leave it out, or let the size be free (--dynamic).'
            )
        network.require((high, wide), dynamic)
    path.parent.mkdir(parents=True, exist_ok=True)
    if store == 'fp16':
        for model in (network.model, network.traced):
            round_to_half(model)
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        traced = network.trace_size(size) if dynamic else size
        program = _trace(network, traced, dynamic)
        initializers, held, unique = _require_once(program, network)
        program.model.metadata_props.update(metadata or {})
        if preparation:
            preparation.prepend(program.model)
        if store == 'fp16':
            store_half(program.model)
        file = Path(folder) / 'float' / path.name
        file.parent.mkdir()
        program.save(file)
        images = [*_made_up(network, size, traced, dynamic, preparation is not None), *images]
        prepared = [preparation(i) if preparation else i for i in images]
        ours = [network.reference(i) for i in prepared]
        given = _outputs(file, images)
        found = [agreement(network, i, own, its) for i, own, its in zip(prepared, ours, given)]
        wrong = [f'{tuple(i.shape)}: {a.wrong}' for i, a in zip(images, found) if a.wrong]
        if wrong:
            raise RuntimeError(
                f'onnxruntime differs from torch at {wrong[0]}; nothing was written. Please report the versions of '
                'torch, onnxscript and onnxruntime.'
            )
        beyond = ()
        if store == 'int8':
            source, file = file, Path(folder) / 'int8' / path.name
            file.parent.mkdir()
            quantize(source, file)
            coarse = (network.compare(own, its) for own, its in zip(ours, _outputs(file, images)))
            beyond = tuple(a.wrong for a in coarse if a.wrong)
        report = Exported(
            initializers,
            held,
            unique,
            max(a.difference for a in found),
            [tuple(i.shape) for i in images],
            sum(len(o[0]) for o in ours) if 'boxes' in network.names else None,
            nbytes(onnx_ir.load(file)),
            beyond,
        )
        for part in file.parent.iterdir():  # the graph, and the tensors of a model beyond 2 GB
            os.replace(part, path.parent / part.name)
    return report


def _trace(network: Network, size: tuple[int, int], dynamic: bool) -> torch.onnx.ONNXProgram:
    example = torch.randn(2 if network.free_batch else 1, network.channels, *size)
    with warnings.catch_warnings():
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
    transpose_once(program.model)
    return program


def _require_once(program: torch.onnx.ONNXProgram, network: Network) -> tuple[int, int, int]:
    """Number and bytes of the graph's tensors, and the bytes of the model's own."""
    held, unique = nbytes(program.model), unique_bytes(network.traced)
    if held > unique * (1 + network.spare):
        raise RuntimeError(
            f'The graph holds {held:,} bytes and the model {unique:,}: a shared tensor is stored more than once, '
            'and nothing was written. Please report the versions of torch and onnxscript.'
        )
    return len(program.model.graph.initializers), held, unique


def _made_up(
    network: Network, size: tuple[int, int], traced: tuple[int, int], dynamic: bool, pixels: bool
) -> list[Tensor]:
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
        if pixels:
            found.append(torch.randint(256, (batch, *side, 3), dtype=torch.uint8, generator=make))
        else:
            found.append(torch.randn(batch, network.channels, *side, generator=make))
    return [*found, torch.zeros_like(found[1 if dynamic else 0][:1])]


def _outputs(file: Path, images: Sequence[Tensor]) -> list[list[Tensor]]:
    """What a file gives for images."""
    session = open_session(file)
    return [[torch.from_numpy(t) for t in session.run(None, {'image': image.numpy()})] for image in images]


def agreement(network: Network, image: Tensor, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Agreement:
    """How far a file's outputs are from torch's, or from those that torch gives for an image that differs by rounding.

    Suppression and the levels that boxes are pooled from turn at ties: there torch does not agree with itself. Of
    proposals whose probabilities are rounded to one number it takes the first.
    """
    found, make = network.compare(ours, theirs), torch.Generator().manual_seed(0)
    for _ in range(TRIES if found.wrong else 0):
        noise = torch.randn(image.shape, generator=make) * ROUNDING * image.abs().max().clamp_min(1)
        with network.without_ties():
            near = network.compare(network.reference(image + noise), theirs)
        if not near.wrong:
            return near
    return found
