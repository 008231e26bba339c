"""The arguments of mmdet's and mmseg's Swin in mmpretrain's terms, so that a config only changes ``type``."""

from __future__ import annotations

from typing import Any

_BLOCK, _ATTN, _FFN = (f'stage_cfgs.block_cfgs{x}' for x in ('', '.attn_cfgs', '.ffn_cfgs'))
# dense name -> (default, its places in the host's arguments)
PASSED_ON = {
    'pretrain_img_size': (224, 'img_size'),
    'in_channels': (3, 'in_channels'),
    'patch_size': (4, 'patch_size'),
    'window_size': (7, 'window_size'),
    'out_indices': ((0, 1, 2, 3), 'out_indices'),
    'drop_path_rate': (0.1, 'drop_path_rate'),
    'drop_rate': (0.0, 'drop_rate', f'{_ATTN}.proj_drop', f'{_FFN}.ffn_drop'),
    'attn_drop_rate': (0.0, f'{_ATTN}.attn_drop'),
    'use_abs_pos_embed': (False, 'use_abs_pos_embed'),
    'norm_cfg': (
        dict(type='LN'),
        'norm_cfg',
        f'{_BLOCK}.norm_cfg',
        'patch_cfg.norm_cfg',
        'stage_cfgs.downsample_cfg.norm_cfg',
    ),
    'act_cfg': (dict(type='GELU'), f'{_FFN}.act_cfg'),
    'mlp_ratio': (4, f'{_BLOCK}.ffn_ratio'),
    'qkv_bias': (True, f'{_ATTN}.qkv_bias'),
    'qk_scale': (None, f'{_ATTN}.qk_scale'),
    'init_cfg': (None, 'init_cfg'),
}
IGNORED = {'convert_weights', 'pretrained', 'strides'}  # dialects are found by themselves


def from_dense(dense: dict[str, Any]) -> tuple[dict, dict]:
    """Translates keyword arguments of mmdet's ``SwinTransformer``.

    Returns:
        ``arch`` and the other arguments of mmpretrain's ``SwinTransformer``, which then computes the same.

    Raises:
        ValueError: for an argument the host cannot honour.
    """
    given = dict(dense)
    arch = dict(
        embed_dims=given.pop('embed_dims', 96),
        depths=list(given.pop('depths')),
        num_heads=list(given.pop('num_heads', (3, 6, 12, 24))),
    )
    patch_size = given.get('patch_size', 4)
    strides = tuple(given.get('strides') or (patch_size, 2, 2, 2))
    if strides != (patch_size, 2, 2, 2) or given.get('pretrained'):
        raise ValueError(
            f'ScaleNetSwin takes strides=({patch_size}, 2, 2, 2) and no `pretrained`, got strides={strides}, '
            f"pretrained={given.get('pretrained')!r}; use init_cfg=dict(type='Pretrained', checkpoint=...)."
        )
    host: dict[str, Any] = {'pad_small_map': True}  # mmdet and mmseg always pad
    for name, (default, *places) in PASSED_ON.items():
        value = given.pop(name, default)
        for *holders, last in (place.split('.') for place in places):
            at = host
            for holder in holders:
                at = at.setdefault(holder, {})
            at[last] = value
    if not given.pop('patch_norm', True):
        host['patch_cfg']['norm_cfg'] = host['stage_cfgs']['downsample_cfg']['norm_cfg'] = None
    for name in IGNORED:
        given.pop(name, None)
    return arch, {**host, **given}
