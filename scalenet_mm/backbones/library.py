"""Any network of timm or Hugging Face that ``scalenet_mm.scale`` can scale, as a backbone of OpenMMLab."""

from __future__ import annotations

import logging
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from importlib import import_module
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..checkpoint.reading import strip_prefix
from ..checkpoint.strict import CheckpointError, require_values
from ..core.scale import ADJUST
from ..core.scale import scale as scale_live
from ..core.spread import expand
from ..core.tying import MappedLayers, is_norm, scaled_layers
from ..ops import Ops, set_ops
from .outputs import Layout
from .scaled import ScaledBackbone

OUT_TYPES = ('featmap', 'cls_token', 'avg_featmap', 'raw')  # as mmpretrain's ViT
TOKEN_NORMS = ('norm', 'layernorm', 'post_layernorm')  # over all tokens, behind the last layer
POOLED_NORMS = ('fc_norm', 'head.norm')  # over their mean
CLASS_NORMS = ('vision_model.post_layernorm',)  # over the class token; over all tokens where there is none
# what no output passes, with norms of its own
BEHIND = ('attn_pool', 'vision_model.head', 'neck', 'vision_encoder.neck')
TOKENS = re.compile(r'(.*\.)?((cls|dist|distillation|reg|register)_tokens?_?\d*|class_embedding)')  # before the image's
# What a file may hold besides: heads, a teacher's mask token, norms of outputs that were not asked for.
UNUSED = re.compile(
    r'(.*\.)?mask_token|((vision_model|vision_encoder)\.)?'
    r'(head|head_dist|attn_pool|neck|fc|classifier|pooler|decoder|fc_norm|norm|(post_)?layernorm)\..*'
)


class LiveBackbone(ScaledBackbone, BaseModule):
    """A network that its library builds at the pretrained depth and ``scalenet_mm.scale`` deepens.

    Outputs are caught behind the layers themselves, so they are those of any host. A subclass names its ``library`` and
    has these methods:
        ``_arguments(img_size, drop_path_rate, in_channels)``: by the library's names; None where it keeps its own,
        ``_build(name, **host)``: a network, and ``_run(x)`` runs it on images,
        ``_sizes()``: of a patch (1 where nothing has to be padded) and of an image (None where it may have any),
        ``_checkpoint_layers()``: has activations computed again in the backward pass,
        ``_converted(entries, scaled)``: a file of any of its dialects by the names and sizes of ``net`` or its source,
        ``_address()``: where pretrained weights are.

    Args:
        name: of the network, as its library calls it.
        scale: ``dict(times=2, order=None, layers='all', stages=None, sources=None,
            adjust=dict(type='ParallelAdapter', rank=16), adjust_on=None, start='paper')``, see ``scalenet_mm.scale``.
        out_indices: of the *scaled* layers where the host has one list of them, of stages where it has several.
        out_type: ``'featmap'`` (B, C, H, W), ``'cls_token'`` (B, C), ``'avg_featmap'`` (B, C) or ``'raw'``, all tokens
            (B, N, C) with those of class and registers first.
        out_norm: whether the host's last norm is applied, to every output that has its channels; of ``'avg_featmap'``
            before or after the mean as the host has it. Norms that no output passes are left out.
        img_size: of the position embedding; by default the host's.
        drop_path_rate: of the last layer, the host's schedule.
        in_channels: of the images; by default the host's.
        with_cp: recompute the layers' activations in the backward pass.
        ops: fast paths, see ``ops.SWITCHES``; of a live host only those of linear layers apply.
        pretrained: sets ``init_cfg`` to the address where the library has the weights.
        frozen_stages: refused.
        host: the library's other arguments.

    Raises:
        ValueError: for a name, ``scale`` or output outside the rules, naming rule, value and way out.
        ImportError: without the library.
    """

    library: str
    scale_defaults = dict(
        times=2, order=None, layers='all', stages=None, sources=None, adjust=ADJUST, adjust_on=None, start='paper'
    )

    def __init__(
        self,
        name: str | Mapping[str, Any],
        *,
        scale: dict | None = None,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        out_norm: bool = True,
        img_size: int | Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        in_channels: int | None = None,
        with_cp: bool = False,
        ops: str | Mapping | None = None,
        pretrained: bool = False,
        frozen_stages: int = -1,
        init_cfg: dict | list | None = None,
        **host,
    ):
        scale, ops = self._read_scale(scale, frozen_stages), Ops.read(ops)
        if out_type not in OUT_TYPES:
            raise ValueError(f'out_type must be one of {OUT_TYPES}, got {out_type!r}.')
        if pretrained and init_cfg:
            raise ValueError('pretrained=True and init_cfg both name weights; leave one of them out.')
        super().__init__(init_cfg)
        sized = self._arguments(img_size, drop_path_rate, in_channels)
        sized = {k: v for k, v in sized.items() if v is not None}
        if twice := sorted(sized.keys() & host.keys()):
            raise ValueError(
                f"{twice} are {self.library}'s names of arguments that are given by ours as well; give one."
            )
        self.source = dict(name=name, **sized, **host)
        self.out_type, self.out_norm = out_type, out_norm
        self.net = self._with_outputs(self._build(**self.source))
        names = {name.rpartition('.')[2] for name, _ in self.net.named_parameters()}
        if out_type == 'cls_token' and not names & {'cls_token', 'class_embedding'}:
            raise ValueError(
                f"out_type='cls_token' needs a class token, and {name!r} has none; use 'featmap' or 'avg_featmap'."
            )
        self.net.is_init = True  # mmengine would have it draw its weights anew
        patch, size = self._sizes()
        self._patch = (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]  # height, width
        self.patch_size = max(self._patch)
        if size is not None:
            self.img_size = size
        conv = self._embedding()
        known = conv is not None and not isinstance(conv.padding, str)
        # of each side of an image: padding, dilation, kernel, stride
        self._first = tuple(zip(conv.padding, conv.dilation, conv.kernel_size, conv.stride)) if known else ()
        tokens = [p for n, p in self.net.named_parameters() if TOKENS.fullmatch(n)]
        self._besides = sum(p.numel() // p.shape[-1] for p in tokens)  # no part of the image; a layer may have fewer
        scale_live(self.net, **scale)
        self.out_indices = self._read_indices(out_indices)
        self._kept: list[Tensor] | None = None
        outputs = self._layers()
        self._layouts = [Layout.of(outputs[i]) for i in self.out_indices]
        for i in self.out_indices:
            outputs[i].register_forward_hook(self._keep)
        set_ops(self, ops)
        if with_cp:
            self._checkpoint_layers()
        if pretrained:
            self.init_cfg = dict(type='Pretrained', checkpoint=self._address())
        self._be_strict()

    def _import(self) -> ModuleType:
        try:
            return import_module(self.library)
        except ImportError as e:
            raise ImportError(
                f'{type(self).__name__} needs the package {self.library}: pip install {self.library}'
            ) from e

    def _embedding(self) -> nn.Conv2d | None:
        """The one convolution that makes the tokens, if the host has it."""

    # --- outputs

    def _with_outputs(self, net: nn.Module) -> nn.Module:
        """Leaves out the norms that no output passes: they would be trained without a gradient."""
        by_class = any(TOKENS.fullmatch(name) for name, _ in net.named_parameters())
        passed = TOKEN_NORMS + (() if by_class and self.out_type != 'cls_token' else CLASS_NORMS)
        passed += POOLED_NORMS if self.out_type == 'avg_featmap' else ()
        unused = [p for p in TOKEN_NORMS + POOLED_NORMS + CLASS_NORMS if not (self.out_norm and p in passed)]
        for path in [p for p in unused if _norm(net, (p,))] + [p for p in BEHIND if _at(net, p) is not None]:
            parent, _, attribute = path.rpartition('.')
            setattr(net.get_submodule(parent), attribute, nn.Identity())
        return net

    def _containers(self) -> list[tuple[str, MappedLayers]]:
        return scaled_layers(self)

    def _layers(self) -> list[nn.Module]:
        """What ``out_indices`` count: the layers of a single container, the last one of each of several."""
        containers = [layers for _, layers in self._containers()]
        return list(containers[0]) if len(containers) == 1 else [c[-1] for c in containers]

    def _read_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        n = len(self._layers())
        several = isinstance(out_indices, Sequence) and not isinstance(out_indices, str)
        given = list(out_indices) if several else [out_indices]
        found = [i % n for i in given if i in range(-n, n)]
        if not found or len(found) < len(given) or found != sorted(set(found)):
            what = 'scaled layers' if len(self._containers()) == 1 else 'stages'
            raise ValueError(
                f'out_indices must be ascending indices of the {n} {what}, 0..{n - 1}, or negative from the end, '
                f'got {given}.'
            )
        return tuple(found)

    def _keep(self, layer: nn.Module, inputs, output) -> None:
        if self._kept is not None:  # None where the host runs by itself
            self._kept.append(output[0] if isinstance(output, tuple) else output)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W), padded with zeros to whole patches -> one output for each of ``out_indices``."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self._patch[1], 0, -height % self._patch[0]))
        self._kept = []
        try:
            self._run(x)
            return tuple(map(partial(self._output, x.shape), self._layouts, self._kept))
        finally:
            self._kept = None

    def _output(self, images: Sequence[int], layout: Layout, y: Tensor) -> Tensor:
        """A layer's (B, N, C), (B, H, W, C) or (B, C, H, W), by ``out_type``."""
        y = layout.channels_last(y, images, self.out_type == 'featmap', self.source['name'])
        y = _normed(self.net, TOKEN_NORMS + CLASS_NORMS, y)  # those that are there still
        if self.out_type == 'featmap':
            return self._grid(y, *images[-2:]).permute(0, 3, 1, 2).contiguous()
        if self.out_type == 'avg_featmap':
            return _normed(self.net, POOLED_NORMS, self._grid(y, *images[-2:]).mean((1, 2)))
        return y[:, 0] if self.out_type == 'cls_token' else y.reshape(len(y), -1, y.shape[-1])

    def _grid(self, y: Tensor, height: int, width: int) -> Tensor:
        """The (B, H, W, C) behind the tokens of class and registers; each stage halves it, odd sizes rounded up.

        Raises:
            ValueError: if the tokens are no such grid.
        """
        if y.ndim == 4:
            return y
        tokens = y.shape[1]
        h, w = grid = self._embedded(height, width)
        while h * w > tokens:
            h, w = (h + 1) // 2, (w + 1) // 2
        if not 0 <= tokens - h * w <= self._besides:
            raise ValueError(
                f'A layer of {self.source["name"]!r} put out {tokens} tokens for images of {height} x {width}: its '
                f'grid of {grid[0]} x {grid[1]}, halved from stage to stage, has {h} x {w}, with up to {self._besides} '
                'tokens of class and registers before it, so no map can be made of them. Choose images of another '
                "size or out_type='raw', or scale the network itself with scalenet_mm.scale."
            )
        return y[:, -h * w :].unflatten(1, (h, w))

    def _embedded(self, height: int, width: int) -> tuple[int, int]:
        """The grid of tokens that an image of this size, padded to whole patches, begins with."""
        patches = [-(-n // patch) for n, patch in zip((height, width), self._patch)]
        sides = zip(patches, self._patch, self._first)
        given = [(n * patch + 2 * p - d * (k - 1) - 1) // s + 1 for n, patch, (p, d, k, s) in sides]
        h, w = given or patches
        return h, w

    # --- loading

    def own_names(self, state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """A file's backbone with its keys under ``net.``; a network that ``scale`` deepened keeps its layer maps."""
        if any(key.startswith('backbone.') for key in state_dict):
            state_dict = strip_prefix(state_dict, 'backbone.')
        if any(key.startswith('timm_model.') for key in state_dict):  # mmpretrain's TIMMBackbone
            state_dict = strip_prefix(state_dict, 'timm_model.')
        if any(key.startswith('net.') for key in state_dict):
            return state_dict
        metadata = getattr(state_dict, '_metadata', {})
        maps = {f'net.{k}': m['layer_map'] for k, m in metadata.items() if 'layer_map' in m}
        named = OrderedDict((f'net.{k}', v) for k, v in state_dict.items())
        named._metadata = OrderedDict({'': dict(layer_maps=maps)})
        return named

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        given = {k: v for k, v in state_dict.items() if k.startswith(prefix)}
        if given and self.only_added(k[len(prefix) :] for k in given):
            return BaseModule._load_from_state_dict(self, state_dict, prefix, local_metadata, *args)
        for key in given:
            del state_dict[key]
        entries = {k[len(prefix) :].removeprefix('net.'): v for k, v in given.items()}
        if not entries:
            raise CheckpointError(
                f'The checkpoint has no key under {prefix!r}, where this model keeps its backbone. A file of '
                f"{self.library} is loaded with init_cfg=dict(type='Pretrained', checkpoint=...)."
            )
        self._check_stored(local_metadata, prefix)
        expected = self.state_dict()
        scaled = {k.removeprefix('net.') for k in expected} <= entries.keys()
        converted = {f'net.{k}': v for k, v in self._converted(entries, scaled).items()}
        for name, layers in self._containers():
            expand(converted, f'{name}.', layers)
        require_values(expected, converted)
        besides = [k for k in converted if k not in expected and UNUSED.fullmatch(k[len('net.') :])]
        if besides:
            print_log(f'{type(self).__name__}: {besides} are not used here.', 'current', logging.WARNING)
        state_dict.update({prefix + k: v for k, v in converted.items() if k not in besides})
        BaseModule._load_from_state_dict(self, state_dict, prefix, local_metadata, *args)


def _norm(net: nn.Module, paths: Sequence[str]) -> nn.Module | None:
    """The normalisation layer at the first of these paths that leads to one."""
    return next((m for p in paths if (m := _at(net, p)) is not None and is_norm(m)), None)


def _at(net: nn.Module, path: str) -> nn.Module | None:
    return reduce(lambda m, name: getattr(m, name, None), path.split('.'), net)


def _normed(net: nn.Module, paths: Sequence[str], y: Tensor) -> Tensor:
    """(..., C) behind a norm of the host, if that has C channels."""
    norm = _norm(net, paths)
    if norm is None or _channels(norm) != y.shape[-1]:
        return y
    if type(norm).__name__.endswith('2d'):  # over the second axis of four
        maps = y.reshape(len(y), -1, 1, y.shape[-1]).permute(0, 3, 1, 2)
        return norm(maps).permute(0, 2, 3, 1).reshape(y.shape)
    return norm(y)


def _channels(norm: nn.Module) -> int:
    weight = getattr(norm, 'weight', None)
    return math.prod(getattr(norm, 'normalized_shape', (0,)) if weight is None else weight.shape)
