"""Swin, scaled: mmpretrain's ``SwinTransformer`` at a greater depth with shared layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones.swin_transformer import SwinTransformer
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..checkpoint.dialects import relative_position_index
from ..checkpoint.strict import CheckpointError
from ..core.layer_map import LayerMap, stage_maps
from ..ops import Ops
from .arguments import in_hosts_terms, per_source, taken_by
from .dense_args import SWIN
from .scaled import ScaledBackbone


@MODELS.register_module()
class ScaleNetSwin(ScaledBackbone, SwinTransformer):
    """A Swin Transformer scaled in depth by shared layers.

    Args:
        arch: as the host's, of the *pretrained* network. The arguments of mmdet's and mmseg's Swin (``embed_dims``,
            ``depths``, ``num_heads``, ...), with its defaults, are understood instead; where only arguments are given
            that both classes have, the scope of the config tells which class is meant.
        scale: ``dict(times=2, order='stack', stages=None, layers='all', sources=None,
            adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all', start='paper')``; what is left out is the
            paper's, which scales the last stage. ``times`` may be a list with one factor a stage; ``sources`` is
            ``{stage: [...]}``. ``growth`` with ``new_layers`` (in each of ``stages``) or ``times`` grows by independent
            layers instead, see ``growth.GROWTH``.
        with_cp: recompute the blocks' activations in the backward pass.
        ops: fast paths, ``None`` (defaults), ``'plain'`` or a dict of switches, see ``ops.SWITCHES``.
        frozen_stages: refused.
        host: the class's other arguments; lists of configs count the layers of the pretrained network.

    Raises:
        ValueError: for a ``scale`` or value outside the rules, naming rule, value and way out.
        TypeError: for an argument that neither class takes, naming the nearest.
    """

    host = 'swin'
    alternating = 2  # every second block shifts its windows
    scale_defaults = dict(ScaledBackbone.scale_defaults, order='stack', stages=None, adjust_on='all')

    def __init__(
        self,
        arch: str | dict | None = None,
        *,
        scale: dict | None = None,
        with_cp: bool = False,
        ops: str | dict | None = None,
        frozen_stages: int = -1,
        **host,
    ):
        scale, ops = self._read_scale(scale, frozen_stages), Ops.read(ops)
        given = host if arch is None else dict(host, arch=arch)
        arch, host = in_hosts_terms(ScaleNetSwin, SwinTransformer, SWIN, given)
        source = self._source_arch(arch)
        if len(source['num_heads']) < len(source['depths']):
            raise ValueError(
                f'num_heads={source["num_heads"]} is too short for depths={source["depths"]}, one a stage.'
            )
        stages = len(source['depths'])
        if isinstance(cfgs := host.get('stage_cfgs'), Sequence) and len(cfgs) < stages:
            raise ValueError(f'stage_cfgs has {len(cfgs)} entries for {stages} stages, depths={source["depths"]}.')
        outs = host.get('out_indices', (3,))  # the host's default
        if away := [i for i in outs if not 0 <= i < stages]:
            raise ValueError(f'out_indices={outs} names {away}; depths={source["depths"]} have stages 0..{stages - 1}.')
        maps = stage_maps(
            source['depths'],
            scale['times'],
            scale['order'],
            scale['stages'],
            scale['layers'],
            scale['sources'],
            self._placing(scale),
        )
        if 'stage_cfgs' in host:
            host['stage_cfgs'] = _stage_cfgs(host['stage_cfgs'], maps)
        with _LinspaceOnCpu():
            super().__init__({**source, 'depths': [len(m) for m in maps]}, **host)
        self._scale(maps, scale, with_cp, ops)

    @classmethod
    def arguments_taken(cls) -> set[str]:
        return taken_by(ScaleNetSwin, SwinTransformer, SWIN)

    def _containers(self):
        return [(f'stages.{i}.blocks', stage.blocks) for i, stage in enumerate(self.stages)]

    def optional_keys(self):
        norms = [{f'norm{i}.weight', f'norm{i}.bias'} for i in range(len(self.stages))]
        return set().union(*norms[:-1]), set().union(*norms)  # a classifier has the last stage's only

    def _adapt(self, entries: dict[str, Tensor]) -> None:
        tables = {k: v.shape[0] for k, v in entries.items() if k.endswith('.relative_position_bias_table')}
        if len(set(tables.values())) > 1:
            few = min(tables, key=lambda k: list(tables.values()).count(tables[k]))
            raise CheckpointError(
                f'The bias tables of the file are of different windows: {few} has {tables[few]} rows.'
            )
        embed, own = (found.get('absolute_pos_embed') for found in (entries, self._parameters))
        other = embed is not None and own is not None and embed.shape != own.shape
        if other and (embed.ndim != 3 or math.isqrt(embed.shape[1]) ** 2 != embed.shape[1]):  # the host resizes squares
            raise CheckpointError(
                f'absolute_pos_embed {tuple(embed.shape)} is no square of patches, so it cannot be resized to '
                f'{tuple(own.shape)}. Is the file of this architecture?'
            )
        for key in self.state_dict():
            module, _, name = key.rpartition('.')
            if name == 'relative_position_index':
                entries[key] = relative_position_index(self.get_submodule(module).window_size[0])
            elif key in tables:
                try:
                    entries[key] = resize_bias_table(entries[key], self.get_submodule(module).window_size[0])
                except ValueError as e:
                    raise CheckpointError(f'{key}: {e}') from e


def _stage_cfgs(cfgs: dict | Sequence[dict], maps: Sequence[LayerMap]) -> list[dict]:
    """One config a stage, with ``block_cfgs`` for its instances."""
    stages = [cfgs] * len(maps) if isinstance(cfgs, Mapping) else list(cfgs)
    return [
        dict(cfg, block_cfgs=per_source(cfg.get('block_cfgs', {}), m.sources, m.depth, f'block_cfgs of stage {i}'))
        for i, (cfg, m) in enumerate(zip(stages, maps))
    ]


class _LinspaceOnCpu(TorchFunctionMode):
    """The host reads its drop-path rates from a tensor, which it could not on the meta device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {}, **(dict(device='cpu') if func is torch.linspace else {}))
        return func(*args, **kwargs)


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Resize a Swin bias table to another window size, as Swin's authors do when fine-tuning.

    Bicubic over the two axes of relative offsets, each head on its own.

    Args:
        table: `((2W - 1)^2, heads)`, a table of window size W.
        window: The window size wanted.

    Returns:
        `((2 * window - 1)^2, heads)` in the table's dtype; the table itself when the size is
        the same.

    Raises:
        ValueError: If the table is not the table of a square window.
    """
    side = math.isqrt(table.shape[0]) if table.ndim == 2 else 0
    if table.ndim != 2 or side * side != table.shape[0] or side % 2 == 0:
        raise ValueError(
            'a relative position bias table has shape ((2W - 1)^2, heads) for a square window of '
            f'size W, got {tuple(table.shape)}; tables of non-square windows cannot be resized'
        )
    if window < 1:
        raise ValueError(f'the window size must be at least 1, got {window}')
    size = 2 * window - 1
    if size == side:
        return table
    grid = table.T.reshape(1, -1, side, side)  # (1, heads, 2W - 1, 2W - 1)
    grid = F.interpolate(grid.float(), size=(size, size), mode='bicubic', align_corners=False)
    return grid.flatten(2)[0].T.contiguous().to(table.dtype)
