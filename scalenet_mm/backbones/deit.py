"""DeiT, scaled: mmpretrain's ``VisionTransformer`` at a greater depth with shared layers."""

from __future__ import annotations

import math

from mmengine.registry import MODELS
from mmpretrain.models.backbones.vision_transformer import VisionTransformer

from ..checkpoint.strict import CheckpointError
from ..ops import Ops
from .arguments import in_hosts_terms, per_source, taken_by
from .dense_args import VIT
from .scaled import ScaledBackbone


@MODELS.register_module()
class ScaleNetDeiT(ScaledBackbone, VisionTransformer):
    """A DeiT (or any ViT of mmpretrain) scaled in depth by shared layers.

    Args:
        arch: as the host's, of the *pretrained* network; ``out_indices`` and other depths count scaled layers. The
            arguments of mmseg's ViT (``embed_dims``, ``num_layers``, ...), with its defaults, are understood instead;
            where only arguments are given that both classes have, the scope of the config tells which is meant.
        scale: ``dict(times=2, order='interpolate', layers='all', sources=None,
            adjust=dict(type='ParallelAdapter', rank=16), adjust_on='all', start='paper')``; what is left out is the
            paper's. With only some ``layers`` reused, ``adjust_on`` is 'reused' unless said otherwise (Table III).
            ``growth`` with ``new_layers`` or ``times`` grows by independent layers instead, see ``growth.GROWTH``.
        with_cp: recompute the blocks' activations in the backward pass.
        ops: fast paths, ``None`` (defaults), ``'plain'`` or a dict of switches, see ``ops.SWITCHES``.
        frozen_stages: refused.
        host: the class's other arguments; a list of ``layer_cfgs`` counts the layers of the pretrained network.

    Raises:
        ValueError: for a ``scale`` or value outside the rules, naming rule, value and way out.
        TypeError: for an argument that neither class takes, naming the nearest.
    """

    host = 'deit'
    scale_defaults = dict(ScaledBackbone.scale_defaults, order='interpolate', adjust_on=None)

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
        if scale['adjust_on'] is None:
            scale['adjust_on'] = 'all' if scale['layers'] == 'all' else 'reused'
        given = host if arch is None else dict(host, arch=arch)
        arch, host = in_hosts_terms(ScaleNetDeiT, VisionTransformer, VIT, given)
        source = self._source_arch(arch)
        layer_map = self._placing(scale)(
            source['num_layers'], scale['times'], scale['order'], scale['layers'], scale['sources']
        )
        if isinstance(host.get('out_indices'), (list, tuple)):
            host['out_indices'] = list(host['out_indices'])  # the host writes into it
        if 'layer_cfgs' in host:
            host['layer_cfgs'] = per_source(host['layer_cfgs'], layer_map.sources, layer_map.depth, 'layer_cfgs')
        super().__init__({**source, 'num_layers': len(layer_map)}, **host)
        self._scale([layer_map], scale, with_cp, ops)

    @classmethod
    def arguments_taken(cls) -> set[str]:
        return taken_by(ScaleNetDeiT, VisionTransformer, VIT)

    def _containers(self):
        return [('layers', self.layers)]

    def _adapt(self, entries):
        bias = entries.get('patch_embed.projection.bias')
        if self.patch_embed.projection.bias is None and bias is not None and not bias.any():
            del entries['patch_embed.projection.bias']  # no bias is a bias of zero
        embed = entries.get('pos_embed')
        if embed is None:
            return
        fits = embed.ndim == 3 and embed.shape[2] == self.embed_dims
        patches = (embed.shape[1], embed.shape[1] - 1) if fits else ()  # without and with a class token
        same = fits and embed.shape[1] - self.pos_embed.shape[1] in (0, 1)  # no resizing: any grid, not only squares
        if not same and self.cls_token is None and patches and math.isqrt(patches[1]) ** 2 == patches[1]:
            entries['pos_embed'] = embed[:, 1:]  # without the class token's, the host resizes it
        elif not same and not any(math.isqrt(n) ** 2 == n for n in patches[self.cls_token is not None :]):
            if patches and math.isqrt(patches[0]) ** 2 == patches[0]:
                raise CheckpointError(
                    f'pos_embed {tuple(embed.shape)} has no place for a class token, as that of DeiT III, and this '
                    f"model {tuple(self.pos_embed.shape)} has one: take timm's host (type='ScaleNetTimm'), or leave "
                    "the token out (with_cls_token=False, out_type='avg_featmap')."
                )
            raise CheckpointError(
                f'pos_embed {tuple(embed.shape)} is no square of patches with {self.embed_dims} channels beside a '
                f'class token; this model has {tuple(self.pos_embed.shape)}. Is the file of this architecture?'
            )

    def optional_keys(self):
        may_extra = {f'{n}.{p}' for n in ('ln1', 'ln2') for p in ('weight', 'bias')}
        if self.cls_token is None:
            may_extra.add('cls_token')
        return {'ln2.weight', 'ln2.bias'}, may_extra  # ln2 exists only for out_type='avg_featmap'
