"""The arguments of mmpretrain's, mmdet's and mmseg's classes mean the same below the types of ours."""

import re
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import mmdet.models.backbones.swin as det
import mmpretrain.models.backbones as cls
import mmseg.models.backbones as seg
import pytest
import torch
from conftest import perturb
from mmengine.registry import DefaultScope
from torch import nn

from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin, ScaleNetTimm, dense_args
from scalenet_mm.backbones.arguments import arguments_of
from scalenet_mm.backbones.swin import _LinspaceOnCpu
from scalenet_mm.ops import set_ops

UNSCALED = dict(times=1, adjust=None)
LN = dict(type='LN', eps=1e-3)
DENSE_SWIN = dict(
    pretrain_img_size=(30, 34),
    in_channels=4,
    embed_dims=24,
    patch_size=2,
    window_size=3,
    mlp_ratio=2,
    depths=(2, 1, 2),
    num_heads=(1, 2, 4, 8),
    strides=(2, 2, 1, 2),
    out_indices=(0, 2),
    qkv_bias=False,
    qk_scale=0.3,
    patch_norm=False,
    drop_rate=0.1,
    attn_drop_rate=0.2,
    drop_path_rate=0.3,
    use_abs_pos_embed=True,
    act_cfg=dict(type='ReLU'),
    norm_cfg=LN,
    with_cp=True,
    pretrained=None,
    convert_weights=True,
    frozen_stages=-1,
    init_cfg=dict(type='Constant', layer='Linear', val=0.5),
)


@dataclass
class Case:
    """A host's class and ours.

    Attributes:
        values: of every argument, another than the default wherever there is a choice.
        close: how far outputs may be apart, relative.
    """

    scope: str
    host: type
    ours: type
    values: dict
    size: str
    close: float = 0.0


CASES = {
    'mmdet Swin': Case('mmdet', det.SwinTransformer, ScaleNetSwin, DENSE_SWIN, 'pretrain_img_size'),
    'mmseg Swin': Case(
        'mmseg',
        seg.SwinTransformer,
        ScaleNetSwin,
        {k: v for k, v in DENSE_SWIN.items() if k != 'convert_weights'},
        'pretrain_img_size',
    ),
    'mmpretrain Swin': Case(
        'mmpretrain',
        cls.SwinTransformer,
        ScaleNetSwin,
        dict(
            arch=dict(embed_dims=8, depths=[2, 1, 2], num_heads=[1, 2, 4]),
            img_size=(33, 47),
            patch_size=2,
            in_channels=4,
            window_size=3,
            drop_rate=0.1,
            drop_path_rate=0.3,
            out_indices=(0, 2),
            out_after_downsample=True,
            use_abs_pos_embed=True,
            interpolate_mode='bilinear',
            with_cp=True,
            frozen_stages=-1,
            norm_eval=True,
            pad_small_map=True,
            norm_cfg=LN,
            stage_cfgs=[
                dict(block_cfgs=[dict(ffn_ratio=2), dict(ffn_ratio=3)], downsample_cfg=dict(bias=True)),
                dict(block_cfgs=dict(attn_cfgs=dict(qkv_bias=False))),
                {},
            ],
            patch_cfg=dict(norm_cfg=None),
            init_cfg=dict(type='Constant', layer='Linear', val=0.5),
        ),
        'img_size',
    ),
    'mmpretrain ViT': Case(
        'mmpretrain',
        cls.VisionTransformer,
        ScaleNetDeiT,
        dict(
            arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=24),
            img_size=(33, 47),
            patch_size=5,
            in_channels=4,
            out_indices=[0, -1],
            drop_rate=0.1,
            drop_path_rate=0.3,
            qkv_bias=False,
            norm_cfg=LN,
            final_norm=False,
            out_type='raw',
            with_cls_token=False,
            frozen_stages=-1,
            interpolate_mode='bilinear',
            layer_scale_init_value=0.5,
            patch_cfg=dict(padding='same'),
            layer_cfgs=[dict(num_heads=4), dict(drop_path_rate=0.2), dict(act_cfg=dict(type='ReLU'))],
            pre_norm=True,
            init_cfg=dict(type='Constant', layer='Linear', val=0.5),
        ),
        'img_size',
    ),
    'mmseg ViT': Case(
        'mmseg',
        seg.VisionTransformer,
        ScaleNetDeiT,
        dict(
            img_size=(31, 47),
            patch_size=5,
            patch_pad='same',
            in_channels=4,
            embed_dims=16,
            num_layers=3,
            num_heads=2,
            mlp_ratio=2,
            out_origin=False,
            out_indices=(0, 2),
            qkv_bias=True,
            drop_rate=0.1,
            attn_drop_rate=0.2,
            drop_path_rate=0.3,
            with_cls_token=False,
            output_cls_token=False,
            norm_cfg=LN,
            act_cfg=dict(type='ReLU'),
            patch_norm=True,
            patch_bias=True,
            pre_norm=True,
            final_norm=True,
            interpolate_mode='bilinear',
            num_fcs=3,
            norm_eval=True,
            with_cp=True,
            frozen_exclude=['all'],
            pretrained=None,
            init_cfg=dict(type='Constant', layer='Linear', val=0.5),
        ),
        'img_size',
        close=1e-5,  # in float64: theirs attends by torch.nn.MultiheadAttention, ours resizes positions in float32
    ),
}
FIXED = {'frozen_stages', 'pretrained', 'out_origin', 'output_cls_token', 'frozen_exclude'}  # only the default is taken
# What the host's own class cannot be built with: left out of all the others, and given alone.
REFUSED = {
    'mmdet Swin': ({'patch_size', 'strides', 'out_indices'}, {'patch_size', 'strides', 'depths'}),
    'mmseg Swin': ({'patch_size', 'strides', 'out_indices'}, {'patch_size', 'strides', 'depths'}),
    'mmpretrain Swin': ({'arch', 'out_indices'}, {'arch', 'stage_cfgs'}),
    'mmpretrain ViT': ({'arch', 'out_type'}, {'with_cls_token', 'layer_cfgs'}),
    'mmseg ViT': ({'num_heads'}, {'embed_dims'}),
}
LEFT_OUT = [(kind, name) for kind, case in CASES.items() for name in arguments_of(case.host)]


@contextmanager
def scope(name: str | None):
    before = DefaultScope.get_current_instance()
    assert before is None, 'a test before left its scope'
    try:
        if name:
            DefaultScope.get_instance(f'test {name}', scope_name=name)
        yield
    finally:
        DefaultScope._instance_dict.clear()


def drops(net: nn.Module) -> list[tuple[str, float]]:
    """Kinds and rates of drop-out, in order."""
    found = [(m, type(m).__name__) for m in net.modules() if type(m).__name__ in ('Dropout', 'DropPath')]
    return [(kind, round(float(getattr(m, 'p', getattr(m, 'drop_prob', None))), 6)) for m, kind in found]


def drops_of_mmsegs_vit(net: nn.Module) -> list[list[float]]:
    """Rates of drop-out, in the attention, and of the MLPs' paths; mmseg's own class drops no path of an attention."""
    attention = [
        layer.attn.attn.dropout if hasattr(layer.attn, 'attn') else layer.attn.attn_drop for layer in net.layers
    ]
    paths = [getattr(layer.ffn.dropout_layer, 'drop_prob', 0.0) for layer in net.layers]
    plain = [rate for kind, rate in drops(net) if kind == 'Dropout' and rate]
    return [plain, attention, [round(float(rate), 6) for rate in paths]]


def compare(case: Case, args: dict, size: tuple[int, int]) -> None:
    """Same outputs on the same weights, the same drop-out, the same layers recomputed."""
    dtype = torch.float64 if case.close else torch.float32
    theirs = case.host(**deepcopy(args)).to(dtype)  # mmpretrain's class writes into out_indices
    mine = case.ours(**deepcopy(args), scale=UNSCALED).to(dtype)
    blocks = [m for m in mine.modules() if hasattr(m, 'checkpointed')]
    assert blocks and {m.checkpointed for m in blocks} == {args.get('with_cp', False)}
    perturb(theirs, seed=1, std=0.02 if case.close else 0.2)  # more makes deep ones chaotic
    theirs.eval()
    set_ops(mine, 'plain').eval().load_state_dict(theirs.state_dict())
    x = torch.randn(1, args.get('in_channels', 3), *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        expected, got = theirs(x), mine(x)
    assert len(got) == len(expected)
    for g, e in zip(got, expected):
        assert g.shape == e.shape
        assert (g - e).abs().max() <= case.close * e.abs().max()
    rates = drops_of_mmsegs_vit if case.close else drops
    assert rates(mine) == rates(theirs)


@pytest.mark.parametrize('kind', CASES)
def test_every_argument_of_the_class_is_in_these_tests(kind):
    case = CASES[kind]
    defaults = arguments_of(case.host)
    assert set(case.values) == set(defaults)
    assert not [k for k, v in case.values.items() if v == defaults[k] and k not in FIXED | {'qkv_bias'}]


@pytest.mark.parametrize('kind', ['mmdet Swin', 'mmseg Swin', 'mmseg ViT'])
def test_the_defaults_are_those_of_the_installed_class(kind):
    case = CASES[kind]
    ours = {'Swin': dense_args.SWIN, 'ViT': dense_args.VIT}[kind.split()[1]]
    theirs = arguments_of(case.host)
    assert {k: ours.defaults[k] for k in theirs} == theirs
    assert set(ours.defaults) - set(theirs) <= {'convert_weights'}  # mmdet's alone
    assert case.scope in ours.libraries


@pytest.mark.parametrize('kind, left_out', LEFT_OUT)
def test_each_argument_left_out_alone_means_the_same(kind, left_out):
    case = CASES[kind]
    args = {k: v for k, v in case.values.items() if k != left_out}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            case.host(**deepcopy(args))
    except Exception as e:  # strides without the patch size of theirs, a list of configs without the depth of theirs
        assert left_out in REFUSED[kind][0]
        said = re.escape(str(e).split('.')[0]) if isinstance(e, AssertionError) else None
        with pytest.raises((ValueError, TypeError, AssertionError), match=said):
            case.ours(**deepcopy(args), scale=UNSCALED)
        return
    assert left_out not in REFUSED[kind][0]
    size = args.get(case.size, 224 if args.get('use_abs_pos_embed') else (29, 35))
    compare(case, args, (size, size) if isinstance(size, int) else size)


@pytest.mark.slow
@pytest.mark.parametrize('kind, given', LEFT_OUT)
def test_each_argument_given_alone_means_the_same(kind, given):
    case = CASES[kind]
    args = {given: case.values[given]}
    try:
        case.host(**deepcopy(args))
    except Exception:
        assert given in REFUSED[kind][1]
        with scope(case.scope), pytest.raises((ValueError, TypeError, AssertionError)):
            case.ours(**deepcopy(args), scale=UNSCALED)
        return
    assert given not in REFUSED[kind][1]
    whole = (
        kind == 'mmpretrain Swin' or given == 'use_abs_pos_embed'
    )  # pads no small map; has a position for each place
    with scope(case.scope):
        compare(case, args, (224, 224) if whole else (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize('kind', CASES)
def test_all_arguments_left_out_give_the_outputs_of_the_class(kind):
    with scope(CASES[kind].scope):
        compare(CASES[kind], {}, (61, 90) if kind in ('mmdet Swin', 'mmseg Swin') else (224, 224))


@pytest.mark.parametrize('kind', CASES)
def test_the_scope_tells_whose_defaults_where_every_argument_is_left_out(kind):
    case = CASES[kind]
    with scope(case.scope), torch.device('meta'), _LinspaceOnCpu():
        theirs, mine = case.host(), case.ours(scale=UNSCALED)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert tuple(mine.out_indices) == tuple(theirs.out_indices)
    if not case.close:
        assert {k: v.shape for k, v in mine.named_parameters()} == {k: v.shape for k, v in theirs.named_parameters()}
        assert drops(set_ops(mine, 'plain')) == drops(theirs)


@pytest.mark.parametrize('ours', [ScaleNetSwin, ScaleNetDeiT])
def test_without_a_scope_arguments_that_fit_two_classes_are_refused(ours):
    for args in ({}, dict(patch_size=4), dict(norm_cfg=LN, with_cp=True)):
        with pytest.raises(ValueError, match="cannot tell whose defaults .*Write arch='.*' for the first"):
            ours(**args, scale=UNSCALED)
    with pytest.raises(TypeError, match="'arch'.* belong to mmpretrain's .*'mlp_ratio'.* to the one of"):
        ours('base', mlp_ratio=4)


def test_wrong_values_get_at_least_the_words_of_the_class():
    wrong = {
        'mmdet Swin': [
            dict(pretrain_img_size=(224, 224, 224)),
            dict(patch_size=2),
            dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')),
            dict(pretrained=3),
        ],
        'mmpretrain Swin': [dict(arch=dict(embed_dims=8, num_heads=[1])), dict(arch=5)],
        'mmpretrain ViT': [
            dict(arch=dict(embed_dims=8, num_heads=1, feedforward_channels=8)),
            dict(arch='base', out_type='map'),
            dict(arch='base', out_indices=1.5),
            dict(arch='base', with_cls_token=False),
        ],
    }
    for kind, many in wrong.items():
        case = CASES[kind]
        for args in many:
            known = dict(args, depths=(2, 2, 6, 2)) if kind == 'mmdet Swin' else args
            with pytest.raises(Exception) as theirs:
                case.host(**known)
            words = str(theirs.value).split('{')[0].split('please')[0].strip().rstrip('.')
            with pytest.raises((ValueError, TypeError, AssertionError), match=re.escape(words)):
                case.ours(**known, scale=UNSCALED)
    with pytest.raises(ValueError, match=r"keys \['depths', .* lacks \['depths'\]"):
        ScaleNetSwin(dict(embed_dims=8, num_heads=[1]))
    with pytest.raises(ValueError, match='num_heads=.* is too short for depths'):
        ScaleNetSwin(depths=(2, 2, 2, 2), num_heads=(1, 2, 4))
    with pytest.raises(ValueError, match='layer_cfgs has 2 entries for 12 pretrained layers'):
        ScaleNetDeiT('deit-tiny', layer_cfgs=[{}, {}])
    with pytest.raises(ValueError, match='output_cls_token=False alone'):
        ScaleNetDeiT(num_layers=12, output_cls_token=True)


@pytest.mark.parametrize('build, wrong, right', [
    (lambda **kw: ScaleNetSwin('tiny', **kw), 'window_sise', 'window_size'),
    (lambda **kw: ScaleNetSwin(depths=(2, 2, 6, 2), **kw), 'pretrained_img_size', 'pretrain_img_size'),
    (lambda **kw: ScaleNetSwin('tiny', **kw), 'scales', 'scale'),
    (lambda **kw: ScaleNetDeiT('base', **kw), 'drop_path', 'drop_path_rate'),
    (lambda **kw: ScaleNetDeiT(num_layers=12, **kw), 'mpl_ratio', 'mlp_ratio'),
    (lambda **kw: ScaleNetTimm('vit_tiny_patch16_224', **kw), 'out_indexes', 'out_indices'),
    (lambda **kw: ScaleNetTimm('vit_tiny_patch16_224', **kw), 'init_value', 'init_values'),
    (lambda **kw: ScaleNetSwin('tiny', scale=kw), 'time', 'times'),
])  # fmt: skip
def test_a_misspelt_argument_is_refused_with_the_nearest(build, wrong, right):
    with pytest.raises((TypeError, ValueError), match=rf"\['{wrong}'\] \(near are: .*\b{right}\b"):
        build(**{wrong: 1})


def test_lists_of_configs_count_the_pretrained_layers():
    cfgs = [dict(num_heads=n) for n in (1, 2, 4)]
    arch = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=24)
    net = ScaleNetDeiT(arch, layer_cfgs=cfgs, scale=dict(times=2, order='interpolate'))
    assert [layer.attn.num_heads for layer in net.layers] == [1, 1, 2, 2, 4, 4]
    cfgs = dict(block_cfgs=[dict(ffn_ratio=r) for r in (2, 3)])
    swin = ScaleNetSwin(dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]), out_indices=(1,), stage_cfgs=cfgs,
                        scale=dict(times=2, stages=(1,)))  # fmt: skip
    assert [b.ffn.layers[0][0].out_features for b in swin.stages[1].blocks] == [32, 48, 32, 48]


def test_pretrained_names_the_file_as_init_cfg_does(tmp_path):
    source = perturb(det.SwinTransformer(embed_dims=8, depths=(1, 1), num_heads=(1, 2), out_indices=(1,)), seed=3)
    torch.save({f'backbone.{k}': v for k, v in source.state_dict().items()}, tmp_path / 'a.pth')
    net = ScaleNetSwin(
        embed_dims=8, depths=(1, 1), num_heads=(1, 2), out_indices=(1,), pretrained=str(tmp_path / 'a.pth'),
        scale=dict(stages=(1,)),
    )  # fmt: skip
    net.init_weights()
    assert torch.equal(net.patch_embed.projection.weight, source.patch_embed.projection.weight)


def test_an_init_cfg_by_layer_reaches_the_adapted_linears_too():
    cfg = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.7)
    for build in (
        lambda: ScaleNetSwin(dict(embed_dims=32, depths=[1, 1], num_heads=[1, 2]), out_indices=(1,), init_cfg=cfg,
                             scale=dict(stages=(1,))),
        lambda: ScaleNetSwin(embed_dims=32, depths=(1, 1), num_heads=(1, 2), out_indices=(1,), scale=dict(stages=(1,))),
    ):  # fmt: skip
        net = build()
        net.init_weights()
        linears = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
        assert all(0.015 < m.weight.std() < 0.025 for m in linears.values()), 'mmdet draws them so by default'
        assert all(m.up.eq(0).all() for m in net.modules() if hasattr(m, 'up'))
