"""Scaled backbones as ONNX: shared tensors stored once, checked in onnxruntime before the file is there.

Only backbones: whole detectors and segmentors (box decoding, NMS, mask pasting) are mmdeploy's business.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import AdaptivePadding
from mmpretrain.models.backbones import SwinTransformer, VisionTransformer
from mmpretrain.models.utils.attention import ShiftWindowMSA
from torch import Tensor, nn

from ..core.flops import INPUT_SIZE, image_channels
from ..core.roles import unique_bytes
from ..file_names import require_suffix
from ..ops import set_ops

TOLERANCE = 1e-4  # of the largest value, where that is above 1
NEEDED = ('onnx', 'onnxscript', 'onnxruntime')
SCALARS = 0.001  # share of the bytes that constants of the graph may take beside the model's tensors
LARGEST = 8192  # pixels of a side, where the size is free


@dataclass(frozen=True)
class Exported:
    """What was written and checked.

    Attributes:
        initializers: tensors in the file.
        nbytes: their bytes.
        unique: bytes of the backbone's own tensors, each shared one counted once.
        difference: the largest between onnxruntime and torch, over all outputs and inputs.
        shapes: inputs that were checked.
    """

    initializers: int
    nbytes: int
    unique: int
    difference: float
    shapes: list[tuple[int, ...]]


def export_backbone(
    backbone: nn.Module,
    path: str | Path,
    size: Sequence[int] | None = None,
    dynamic: bool = False,
    metadata: dict[str, str] | None = None,
) -> Exported:
    """Writes a backbone whose input is a batch of prepared images, (B, C, H, W) float32: the backbone's own
    channels, B free.

    The outputs are those of ``forward``, named ``level_<out index>``.

    Args:
        backbone: ``ScaleNetSwin``, ``ScaleNetDeiT``, or mmpretrain's Swin or ViT.
        path: the file; written only if its outputs are those of torch.
        size: (H, W), by default the ``img_size`` of a ViT, 224 x 224 of a Swin.
        dynamic: leave H and W free as well: any for Swin from 33 on (one more than the last stage's stride), multiples
            of the patch size for a ViT.
        metadata: texts that go into the file.

    Raises:
        ModuleNotFoundError: if onnx, onnxscript or onnxruntime is missing.
        ValueError: for another kind of backbone, one whose image size cannot be free, or a name without ``.onnx``.
        RuntimeError: if a tensor would be stored twice, or outputs differ.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'ONNX export needs: pip install {" ".join(missing)}')
    size = tuple(size or getattr(backbone, 'img_size', INPUT_SIZE))
    channels = image_channels(backbone)
    _require_exportable(backbone, size, dynamic)
    path = require_suffix(path, '.onnx')
    path.parent.mkdir(parents=True, exist_ok=True)
    reference = copy.deepcopy(backbone).cpu().float()
    reference.eval()
    unit, least = _sides(backbone)
    traced = _generic_size(backbone, size) if dynamic else size
    shapes: dict[int, torch.export.Dim] = {0: torch.export.Dim('batch')}
    if dynamic:
        for axis, name in ((2, 'height'), (3, 'width')):
            count = torch.export.Dim(name, min=-(-least // unit), max=LARGEST // unit)
            shapes[axis] = count if unit == 1 else unit * count
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        program = torch.onnx.export(
            _traceable(reference),
            (torch.randn(2, channels, *traced),),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=['image'],
            output_names=[f'level_{i}' for i in _levels(backbone)],
            optimize=False,  # its folded transposes are a copy of a shared weight for each layer instance
            verbose=False,
        )
        for key, value in (metadata or {}).items():
            program.model.metadata_props[key] = value
        file = Path(folder) / path.name
        program.save(file)
        sides = [traced]
        if dynamic:
            sides += [size, (2 * size[0], max(size[1] // 2 // unit * unit, least))]
        checked = [(batch, channels, *s) for s, batch in zip(sides, (3, 1, 2))]
        report = _check(file, reference, checked)
        for part in Path(folder).iterdir():  # the graph, and the tensors of a model beyond 2 GB
            os.replace(part, path.parent / part.name)
    return report


def _sides(backbone: nn.Module) -> tuple[int, int]:
    """The unit of an image's sides, and the least free one: torch.export takes a side of one for a constant."""
    stride = backbone.patch_embed.projection.stride[0]
    if isinstance(backbone, VisionTransformer):
        return stride, 2 * stride
    return 1, stride * 2 ** (len(backbone.stages) - 1) + 1


def _generic_size(backbone: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """The least size from ``size`` on that is no special case, for torch.export takes a coincidence for a rule.

    Not square, not that of the position embedding; in each stage more than a window, never whole windows.
    """
    unit, _ = _sides(backbone)
    if unit > 1:
        return size[0] + unit, size[1] + 2 * unit
    stride = backbone.patch_embed.projection.stride[0]
    steps = [stride * 2**i for i in range(len(backbone.stages))]
    window = next(m.window_size for m in backbone.modules() if isinstance(m, ShiftWindowMSA))

    def generic(side: int) -> bool:
        return all(-(-side // s) > window and -(-side // s) % window for s in steps)

    high = next(n for n in range(size[0] + 1, LARGEST) if generic(n))
    apart = max(high, size[1]) + steps[-1] * window  # another number of windows in each stage
    return high, next(n for n in range(apart, LARGEST) if generic(n))


def _levels(backbone: nn.Module) -> list[int]:
    depth = len(backbone.stages if isinstance(backbone, SwinTransformer) else backbone.layers)
    indices = backbone.out_indices
    return [i % depth for i in ([indices] if isinstance(indices, int) else indices)]


def _require_exportable(backbone: nn.Module, size: tuple[int, ...], dynamic: bool) -> None:
    if not isinstance(backbone, (SwinTransformer, VisionTransformer)):
        raise ValueError(
            f'{type(backbone).__name__} cannot be exported; it must be ScaleNetSwin or ScaleNetDeiT, or their hosts in '
            'mmpretrain. Whole detectors and segmentors, and other backbones: use mmdeploy.'
        )
    if isinstance(backbone, VisionTransformer):
        patch = backbone.patch_embed.projection.stride[0]
        if any(side % patch for side in size):
            raise ValueError(f'The size {size} must be multiples of the patch size {patch}.')
        return
    if getattr(backbone, 'use_abs_pos_embed', False) and dynamic:
        raise ValueError('A Swin with absolute position embeddings has one image size; leave dynamic out.')
    windows = [m for m in backbone.modules() if isinstance(m, ShiftWindowMSA)]
    if dynamic and not all(w.pad_small_map for w in windows):
        raise ValueError(
            'The image size of this Swin cannot be free: with pad_small_map=False (classification) it looks at the '
            'size to decide whether windows are shifted, and a graph has one of the two. Give size=(H, W) (--size H '
            'W) without dynamic, or build it with pad_small_map=True, as for detection and segmentation.'
        )


def _check(file: Path, reference: nn.Module, shapes: list[tuple[int, ...]]) -> Exported:
    import onnx
    import onnxruntime

    stored = [onnx.numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer]
    nbytes, unique = sum(t.nbytes for t in stored), unique_bytes(reference)
    if nbytes > unique * (1 + SCALARS):
        raise RuntimeError(
            f'The graph holds {nbytes:,} bytes and the backbone {unique:,}: a shared tensor is stored more than once, '
            'and nothing was written. Please report the versions of torch and onnxscript.'
        )
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    worst = 0.0
    for shape in shapes:
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        outputs = reference(image)
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        for ours, theirs in zip(outputs, session.run(None, {'image': image.numpy()}), strict=True):
            if tuple(ours.shape) != theirs.shape:
                raise RuntimeError(f'At {shape} the graph gives {theirs.shape}, torch {tuple(ours.shape)}.')
            difference = float(np.abs(ours.numpy() - theirs).max())
            worst = max(worst, difference)
            if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
                raise RuntimeError(
                    f'onnxruntime differs from torch by {difference:.2e} at {shape}, more than {TOLERANCE:.0e}; '
                    'nothing was written. Please report the versions of torch, onnxscript and onnxruntime.'
                )
    return Exported(len(stored), nbytes, unique, worst, shapes)


def _up(side, unit: int):
    """The next multiple of ``unit``, also of a symbolic size, without a branch."""
    return unit * ((side + unit - 1) // unit)


class _Windows(ShiftWindowMSA):
    """Pads to whole windows before the host does: its branches on the size then go one way for every size."""

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        (h, w), (b, _, c) = hw_shape, query.shape
        high, wide = _up(h, self.window_size), _up(w, self.window_size)
        padded = F.pad(query.view(b, h, w, c), (0, 0, 0, wide - w, 0, high - h))
        out = super().forward(padded.flatten(1, 2), (high, wide))
        out = out.view(b, high, wide, c)
        for axis, side in ((1, h), (2, w)):  # torch.export would take a slice's size for a new unknown
            out = out.index_select(axis, torch.arange(side, device=out.device))
        return out.flatten(1, 2)

    @staticmethod
    def get_attn_mask(hw_shape: tuple, window_size: int, shift_size: int, device=None) -> Tensor | None:
        """As the host's, whose slices are empty at some sizes: -100 between what the cyclic shift brought together."""
        if not shift_size:
            return None
        rows, columns = (torch.arange(n, device=device) >= n - shift_size for n in hw_shape)
        regions = (2 * rows[:, None].int() + columns)[None, :, :, None]
        windows = ShiftWindowMSA.window_partition(regions, window_size).view(-1, window_size**2)
        return torch.where(windows.unsqueeze(1) != windows.unsqueeze(2), -100.0, 0.0)

    @staticmethod
    def window_reverse(windows: Tensor, H, W, window_size: int) -> Tensor:
        """As the host's, whose ``int(...)`` makes the traced batch size a constant."""
        c = windows.shape[-1]
        x = windows.view(-1, H // window_size, W // window_size, window_size, window_size, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, c)


class _Padding(AdaptivePadding):
    """Bottom and right to multiples of the stride, also if there is nothing to pad."""

    def forward(self, x: Tensor) -> Tensor:
        high, wide = (_up(n, s) for n, s in zip(x.shape[-2:], self.stride))
        return F.pad(x, (0, wide - x.shape[-1], 0, high - x.shape[-2]))


class _Unfold(nn.Unfold):
    """Patches side by side, whose number torch's own leaves open while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), (high, wide) = x.shape, self.kernel_size
        cut = x.view(b, c, h // high, high, w // wide, wide).permute(0, 1, 3, 5, 2, 4)
        return cut.reshape(b, c * high * wide, (h // high) * (w // wide))


SIZE_FREE = {ShiftWindowMSA: _Windows, AdaptivePadding: _Padding, nn.Unfold: _Unfold}


def _traceable(backbone: nn.Module) -> nn.Module:
    """A copy with the same tensors and outputs, whose modules compute the same for every size without branches."""
    made = set_ops(copy.deepcopy(backbone), 'plain')
    for module in made.modules():
        module.__class__ = SIZE_FREE.get(type(module), module.__class__)
    return made
