"""DeiT, scaled: mmpretrain's ``VisionTransformer`` at a greater depth with shared layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmengine.registry import MODELS
from mmpretrain.models.backbones.vision_transformer import VisionTransformer

from ..checkpoint.strict import CheckpointError
from ..ops import Ops
from .scaled import ScaledBackbone


@MODELS.register_module()
class ScaleNetDeiT(ScaledBackbone, VisionTransformer):
    """A DeiT (or any ViT of mmpretrain) scaled in depth by shared layers.

    Args:
        arch: as the host's, of the *pretrained* network; ``out_indices`` and other depths count scaled layers.
        scale: ``dict(times=2, order='interpolate', layers='all', sources=None,
            adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all', start='paper')``; what is left out is the
            paper's. With only some ``layers`` reused, ``adjust_on`` is 'reused' unless said otherwise (Table III).
            ``growth`` with ``new_layers`` or ``times`` grows by independent layers instead, see ``growth.GROWTH``.
        with_cp: recompute the blocks' activations in the backward pass.
        ops: fast paths, ``None`` (defaults), ``'plain'`` or a dict of switches, see ``ops.SWITCHES``.
        frozen_stages: refused.
        host: the host's other arguments.

    Raises:
        ValueError: for a ``scale`` outside its rules, naming rule, value and way out.
    """

    host = 'deit'
    scale_defaults = dict(ScaledBackbone.scale_defaults, order='interpolate', adjust_on=None)

    def __init__(
        self,
        arch: str | dict = 'deit-base',
        *,
        scale: dict | None = None,
        out_indices: int | Sequence[int] = -1,
        with_cp: bool = False,
        ops: str | dict | None = None,
        frozen_stages: int = -1,
        **host,
    ):
        scale, ops = self._read_scale(scale, frozen_stages), Ops.read(ops)
        if scale['adjust_on'] is None:
            scale['adjust_on'] = 'all' if scale['layers'] == 'all' else 'reused'
        source = self._source_arch(arch)
        layer_map = self._placing(scale)(
            source['num_layers'], scale['times'], scale['order'], scale['layers'], scale['sources']
        )
        out_indices = out_indices if isinstance(out_indices, int) else list(out_indices)  # the host writes into it
        super().__init__({**source, 'num_layers': len(layer_map)}, out_indices=out_indices, **host)
        self._scale([layer_map], scale, with_cp, ops)

    def _containers(self):
        return [('layers', self.layers)]

    def _adapt(self, entries):
        embed = entries.get('pos_embed')
        if embed is None:
            return
        fits = embed.ndim == 3 and embed.shape[2] == self.embed_dims
        patches = (embed.shape[1], embed.shape[1] - 1) if fits else ()  # without and with a class token
        same = fits and embed.shape[1] - self.pos_embed.shape[1] in (0, 1)  # no resizing: any grid, not only squares
        if not same and not any(math.isqrt(n) ** 2 == n for n in patches):
            raise CheckpointError(
                f'pos_embed {tuple(embed.shape)} is no square of patches with {self.embed_dims} channels beside a '
                f'class token; this model has {tuple(self.pos_embed.shape)}. Is the file of this architecture?'
            )

    def optional_keys(self):
        may_extra = {f'{n}.{p}' for n in ('ln1', 'ln2') for p in ('weight', 'bias')}
        if self.cls_token is None:
            may_extra.add('cls_token')
        return {'ln2.weight', 'ln2.bias'}, may_extra  # ln2 exists only for out_type='avg_featmap'
