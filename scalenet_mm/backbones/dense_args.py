"""The arguments of mmdet's and mmseg's Swin and of mmseg's ViT in mmpretrain's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .arguments import OtherClass

_BLOCK, _ATTN, _FFN = (f'stage_cfgs.block_cfgs{x}' for x in ('', '.attn_cfgs', '.ffn_cfgs'))

SWIN_DEFAULTS = dict(
    pretrain_img_size=224,
    in_channels=3,
    embed_dims=96,
    patch_size=4,
    window_size=7,
    mlp_ratio=4,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    strides=(4, 2, 2, 2),
    out_indices=(0, 1, 2, 3),
    qkv_bias=True,
    qk_scale=None,
    patch_norm=True,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.1,
    use_abs_pos_embed=False,
    act_cfg=dict(type='GELU'),
    norm_cfg=dict(type='LN'),
    with_cp=False,
    pretrained=None,
    convert_weights=False,
    frozen_stages=-1,
    init_cfg=None,
)
SWIN_PLACES = {  # in the host's arguments
    'in_channels': ('in_channels',),
    'patch_size': ('patch_size',),
    'window_size': ('window_size',),
    'out_indices': ('out_indices',),
    'drop_path_rate': ('drop_path_rate',),
    'drop_rate': ('drop_rate', f'{_ATTN}.proj_drop', f'{_FFN}.ffn_drop'),
    'attn_drop_rate': (f'{_ATTN}.attn_drop',),
    'use_abs_pos_embed': ('use_abs_pos_embed',),
    'norm_cfg': ('norm_cfg', f'{_BLOCK}.norm_cfg'),
    'act_cfg': (f'{_FFN}.act_cfg',),
    'mlp_ratio': (f'{_BLOCK}.ffn_ratio',),
    'qkv_bias': (f'{_ATTN}.qkv_bias',),
    'qk_scale': (f'{_ATTN}.qk_scale',),
}
SWIN_START = [  # as mmdet's and mmseg's classes initialise themselves where no init_cfg is given
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
]

VIT_DEFAULTS = dict(
    img_size=224,
    patch_size=16,
    patch_pad='corner',
    in_channels=3,
    embed_dims=768,
    num_layers=12,
    num_heads=12,
    mlp_ratio=4,
    out_origin=False,
    out_indices=-1,
    qkv_bias=True,
    drop_rate=0.0,
    attn_drop_rate=0.0,
    drop_path_rate=0.0,
    with_cls_token=True,
    output_cls_token=False,
    norm_cfg=dict(type='LN'),
    act_cfg=dict(type='GELU'),
    patch_norm=False,
    patch_bias=False,
    pre_norm=False,
    final_norm=False,
    interpolate_mode='bicubic',
    num_fcs=2,
    norm_eval=False,
    with_cp=False,
    frozen_exclude=['all'],
    pretrained=None,
    init_cfg=None,
)
VIT_PLACES = {
    'patch_size': ('patch_size',),
    'patch_pad': ('patch_cfg.padding',),
    'patch_bias': ('patch_cfg.bias',),
    'in_channels': ('in_channels',),
    'out_indices': ('out_indices',),
    'drop_rate': ('drop_rate',),
    'attn_drop_rate': ('layer_cfgs.attn_drop_rate',),
    'drop_path_rate': ('drop_path_rate',),
    'with_cls_token': ('with_cls_token',),
    'norm_cfg': ('norm_cfg',),
    'act_cfg': ('layer_cfgs.act_cfg',),
    'num_fcs': ('layer_cfgs.num_fcs',),
    'pre_norm': ('pre_norm',),
    'final_norm': ('final_norm',),
    'interpolate_mode': ('interpolate_mode',),
}
VIT_FIXED = dict(out_origin=False, output_cls_token=False, qkv_bias=True, frozen_exclude=['all'])


def read_swin(given: dict[str, Any]) -> tuple[dict, dict]:
    """``arch`` and the other arguments of mmpretrain's ``SwinTransformer``, which then computes the same."""
    depths, strides, patch = list(given['depths']), given['strides'], given['patch_size']
    if len(strides) < len(depths):
        raise ValueError(f'strides={strides} is too short for depths={depths}, one a stage.')
    if strides[0] != patch:
        raise ValueError(
            f'Use non-overlapping patch embed: strides[0]={strides[0]} must equal patch_size={patch}; write '
            f'strides={(patch, *strides[1:])}.'
        )
    host = _placed(given, SWIN_PLACES)
    norm = given['norm_cfg'] if given['patch_norm'] else None
    merging = [dict(downsample_cfg=dict(norm_cfg=norm, stride=stride)) for stride in strides[1 : len(depths)]]
    host |= dict(
        pad_small_map=True,  # mmdet and mmseg always pad
        img_size=_whole_patches(given['pretrain_img_size'], patch, 'pretrain_img_size'),
        patch_cfg=dict(norm_cfg=norm),
        stage_cfgs=[host['stage_cfgs'] | last for last in (*merging, {})],
        init_cfg=_init_cfg(given) or SWIN_START,
    )
    return dict(embed_dims=given['embed_dims'], depths=depths, num_heads=list(given['num_heads'])), host


def read_vit(given: dict[str, Any]) -> tuple[dict, dict]:
    """``arch`` and the other arguments of mmpretrain's ``VisionTransformer``, which then computes the same."""
    for name, value in VIT_FIXED.items():
        if given[name] != value:
            raise ValueError(
                f"ScaleNetDeiT takes {name}={value!r} alone of mmseg's ViT, got {given[name]!r}: leave it out, or "
                "write the config for mmpretrain's class (arch, out_type, qkv_bias); what is trained, `policy` says."
            )
    width, heads = given['embed_dims'], given['num_heads']
    if width % heads:
        raise ValueError(f'embed_dim must be divisible by num_heads, got embed_dims={width}, num_heads={heads}.')
    host = _placed(given, VIT_PLACES)
    host['patch_cfg']['norm_cfg'] = given['norm_cfg'] if given['patch_norm'] else None
    host |= dict(
        out_type='featmap',
        img_size=_whole_patches(given['img_size'], given['patch_size'], 'img_size'),
        init_cfg=_init_cfg(given),
    )
    return dict(
        embed_dims=width,
        num_layers=given['num_layers'],
        num_heads=heads,
        feedforward_channels=int(given['mlp_ratio'] * width),
    ), host


def _placed(given: dict[str, Any], places: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """``given`` where the host takes it, in nested dicts."""
    host: dict[str, Any] = {}
    for name, where in places.items():
        for *holders, last in (place.split('.') for place in where):
            at = host
            for holder in holders:
                at = at.setdefault(holder, {})
            at[last] = given[name]
    return host


def _whole_patches(size: int | Sequence[int], patch: int | Sequence[int], name: str) -> tuple[int, ...]:
    """The size of an image, of one number or two, without the rest that fills no patch: theirs embed no such rest."""
    sides = [size] if isinstance(size, int) else list(size)
    if len(sides) not in (1, 2):
        raise ValueError(f'The size of image should have length 1 or 2, but got {len(sides)}: {name}={size}.')
    patches = [patch] * 2 if isinstance(patch, int) else list(patch)
    return tuple(side // p * p for side, p in zip(sides * (3 - len(sides)), patches))


def _init_cfg(given: dict[str, Any]) -> dict | list | None:
    init_cfg, pretrained = given['init_cfg'], given['pretrained']
    if not isinstance(pretrained, (str, type(None))):
        raise TypeError(f'pretrained must be a str or None, got {pretrained!r}.')
    if init_cfg and pretrained:
        raise ValueError(
            f'init_cfg and pretrained cannot be specified at the same time; leave pretrained={pretrained!r} out.'
        )
    return dict(type='Pretrained', checkpoint=pretrained) if pretrained else init_cfg


SWIN = OtherClass(('mmdet', 'mmseg'), SWIN_DEFAULTS, 'depths=(2, 2, 6, 2)', read_swin)
VIT = OtherClass(('mmseg',), VIT_DEFAULTS, 'num_layers=12', read_vit)
