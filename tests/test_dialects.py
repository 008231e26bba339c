"""Weights saved by each library in its own layout give the library's own outputs in our backbones.

Distances are the largest absolute difference over the largest absolute value of the library's output,
float32. timm resamples position embeddings with antialiasing and OpenMMLab does not, so that its DeiT
is built at the size it is fed with. timm's Swin drops the window shift of small maps unless told
`always_partition=True`, as mmpretrain's does unless told `pad_small_map=True`; and it pads maps after
the shift where all others pad before, so that only sizes of whole windows can be compared with it.
"""

import argparse
import re
from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.models.backbones import SwinTransformer, VisionTransformer
from mmpretrain.registry import MODELS
from mmseg.models.backbones import VisionTransformer as SegmentorViT
from safetensors.torch import save_file
from yacs.config import CfgNode

from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.checkpoint import CheckpointError, read_checkpoint, recognise, rewrite, split, to_host, unwrap
from scalenet_mm.ops import set_ops

CLASSES = 10
TOLERANCE = 1e-5
UNSCALED = dict(times=1, adjust=None)
ALL_STAGES = dict(out_indices=(0, 1, 2, 3), pad_small_map=True)
NAMES = {'t': 'tiny', 's': 'small', 'b': 'base'}
SIZES = ['t', pytest.param('s', marks=pytest.mark.slow), pytest.param('b', marks=pytest.mark.slow)]
VIT = {'t': (192, 3), 's': (384, 6), 'b': (768, 12)}  # width, heads
SWIN = {  # width, depths, heads
    't': (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    's': (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    'b': (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values of usual size for every parameter, none trivial: norms, biases, tables too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(('bias_table', 'pos_embed', 'cls_token')):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise + name.endswith('weight'))
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    model.eval()  # mmpretrain's returns None
    return model


def image(*size: int) -> torch.Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


# ------------------------------------------------------------------------------- library models


def timm_swin(size: str, **kwargs) -> torch.nn.Module:
    name = f'swin_{NAMES[size]}_patch4_window7_224'
    return shaken(timm.create_model(name, num_classes=CLASSES, weight_init='skip', **kwargs))


def timm_deit(size: str, **kwargs) -> torch.nn.Module:
    return shaken(
        timm.create_model(f'deit_{NAMES[size]}_patch16_224', num_classes=CLASSES, weight_init='skip', **kwargs)
    )


def dense_swin(library: str, size: str) -> torch.nn.Module:
    width, depths, heads = SWIN[size]
    return shaken(
        MODELS.build(
            dict(type=f'{library}.SwinTransformer', embed_dims=width, depths=depths, num_heads=heads, init_cfg=None)
        )
    )


def classifier(backbone: torch.nn.Module, host: str) -> ImageClassifier:
    width = backbone.num_features[-1] if host == 'swin' else backbone.embed_dims
    head = 'LinearClsHead' if host == 'swin' else 'VisionTransformerClsHead'
    return ImageClassifier(
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling') if host == 'swin' else None,
        head=dict(type=head, num_classes=CLASSES, in_channels=width),
    ).eval()


# -------------------------------------------------------- older layouts, from today's timm names


def official_index(window: int) -> torch.Tensor:
    offsets = torch.tensor([[i, j] for i in range(window) for j in range(window)])
    relative = offsets[:, None] - offsets[None] + window - 1
    return relative[..., 0] * (2 * window - 1) + relative[..., 1]


def official_swin(state: dict) -> OrderedDict:
    """microsoft/Swin-Transformer's layout of a timm state dict, buffers included."""
    layout = OrderedDict()
    for key, value in state.items():
        parts = key.split('.')
        if parts[0] == 'layers' and parts[2] == 'downsample':
            parts[1] = str(int(parts[1]) - 1)
        if parts[:2] == ['head', 'fc']:
            del parts[1]
        layout['.'.join(parts)] = value
        if parts[-1] == 'relative_position_bias_table':
            layout['.'.join([*parts[:-1], 'relative_position_index'])] = official_index(7)
            stage, block = int(parts[1]), int(parts[3])
            if block % 2 and stage < 3:
                windows = (8 // 2**stage) ** 2
                layout[f'layers.{stage}.blocks.{block}.attn_mask'] = torch.zeros(windows, 49, 49)
    return layout


def early_mmcls_swin(state: dict) -> OrderedDict:
    """Before version 2 of the class: `norm` and masks."""
    layout = OrderedDict((re.sub(r'^norm3\.', 'norm.', k), v) for k, v in state.items())
    layout['stages.0.blocks.1.attn.attn_mask'] = torch.zeros(64, 49, 49)
    return layout


def swin_training_file(state: dict) -> dict:
    config = CfgNode({'MODEL': {'TYPE': 'swin', 'DROP_PATH_RATE': 0.2}})
    return {'model': state, 'optimizer': {}, 'epoch': 299, 'config': config}


def deit_training_file(state: dict) -> dict:
    return {'model': state, 'args': argparse.Namespace(model='deit', lr=5e-4), 'model_ema': None}


# --------------------------------------------------------------------------------------- parity


def swin_logits(path, size: str, reads: torch.Tensor, **host) -> torch.Tensor:
    model = classifier(ScaleNetSwin(NAMES[size], scale=UNSCALED, **host), 'swin')
    model.load_state_dict(rewrite(unwrap(read_checkpoint(path))))
    return model(reads, mode='tensor')


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('layout', ['timm', 'safetensors', 'official'])
@torch.no_grad()
def test_timm_and_official_swin_give_timms_logits(layout, size, tmp_path):
    library = timm_swin(size)
    path = tmp_path / ('model.safetensors' if layout == 'safetensors' else 'model.pth')
    if layout == 'safetensors':
        save_file(library.state_dict(), path)
    elif layout == 'timm':
        torch.save(library.state_dict(), path)
    else:
        torch.save(swin_training_file(official_swin(library.state_dict())), path)
    pixels = image(224, 224)
    assert distance(swin_logits(path, size, pixels), library(pixels)) <= TOLERANCE


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('pixels', [(224, 224), (224, 448)], ids=str)
@torch.no_grad()
def test_timm_swin_gives_timms_features_and_logits_at_sizes_of_whole_windows(pixels, size, tmp_path):
    library = timm_swin(size, img_size=pixels, always_partition=True)
    torch.save(library.state_dict(), tmp_path / 'timm.pth')
    ours = ScaleNetSwin(NAMES[size], scale=UNSCALED, init_cfg=pretrained(tmp_path / 'timm.pth'), **ALL_STAGES)
    ours.init_weights()
    ours.eval()
    # timm normalises none but the last stage
    for i in range(3):
        setattr(ours, f'norm{i}', torch.nn.Identity())
    expected = library.forward_intermediates(image(*pixels), norm=True, intermediates_only=True)
    got = ours(image(*pixels))
    assert max(distance(g, e) for g, e in zip(got[:3], expected)) <= TOLERANCE
    last = library.forward_features(image(*pixels)).permute(0, 3, 1, 2)
    assert distance(got[3], last) <= TOLERANCE
    logits = swin_logits(tmp_path / 'timm.pth', size, image(*pixels), pad_small_map=True)
    assert distance(logits, library(image(*pixels))) <= TOLERANCE


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('library', ['mmpretrain', 'mmpretrain early', 'mmdet', 'mmseg'])
@torch.no_grad()
def test_openmmlab_swin_gives_the_librarys_features_bit_for_bit(library, size, tmp_path):
    if library.startswith('mmpretrain'):
        reference = shaken(SwinTransformer(NAMES[size], **ALL_STAGES))
    else:
        reference = dense_swin(library, size)
    state = reference.state_dict()
    if library == 'mmpretrain early':
        state = early_mmcls_swin(state)
    under = {f'backbone.{key}': value for key, value in state.items()}
    torch.save({'state_dict': under if library == 'mmdet' else state}, tmp_path / 'mm.pth')
    ours = ScaleNetSwin(NAMES[size], scale=UNSCALED, init_cfg=pretrained(tmp_path / 'mm.pth'), **ALL_STAGES)
    ours.init_weights()
    set_ops(ours.eval(), 'plain')
    for pixels in [(64, 64), (125, 167)]:
        for got, expected in zip(ours(image(*pixels)), reference(image(*pixels))):
            assert torch.equal(got, expected)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('host', ['swin', 'deit'])
@torch.no_grad()
def test_an_mmpretrain_classifier_gives_its_logits_bit_for_bit(host, size, tmp_path):
    stock, ours, arch = {
        'swin': (SwinTransformer, ScaleNetSwin, NAMES[size]),
        'deit': (VisionTransformer, ScaleNetDeiT, f'deit-{NAMES[size]}'),
    }[host]
    reference = shaken(classifier(stock(arch), host))
    torch.save({'meta': {}, 'state_dict': reference.state_dict()}, tmp_path / 'mm.pth')
    model = classifier(ours(arch, scale=UNSCALED), host)
    model.load_state_dict(rewrite(unwrap(read_checkpoint(tmp_path / 'mm.pth'))))
    set_ops(model, 'plain')
    for pixels in [(224, 224), (250, 333)]:
        assert torch.equal(model(image(*pixels), mode='tensor'), reference(image(*pixels), mode='tensor'))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('built, fed', [((224, 224), (224, 224)), ((80, 112), (70, 101))])
@pytest.mark.parametrize('layout', ['official', 'safetensors'])
@torch.no_grad()
def test_timm_and_official_deit_give_timms_features_and_logits(layout, built, fed, size, tmp_path):
    library = timm_deit(size, img_size=built, dynamic_img_size=True, dynamic_img_pad=True)
    path = tmp_path / ('model.safetensors' if layout == 'safetensors' else 'model.pth')
    if layout == 'safetensors':
        save_file(library.state_dict(), path)
    else:
        torch.save(deit_training_file(library.state_dict()), path)
    build = partial(ScaleNetDeiT, f'deit-{NAMES[size]}', scale=UNSCALED, img_size=built)
    model = classifier(build(), 'deit')
    model.load_state_dict(rewrite(unwrap(read_checkpoint(path))))
    assert distance(model(image(*fed), mode='tensor'), library(image(*fed))) <= TOLERANCE
    ours = build(out_type='featmap', out_indices=(2, 5, 8, 11), init_cfg=pretrained(path))
    ours.init_weights()
    ours.eval()
    expected = library.forward_intermediates(image(*fed), indices=(2, 5, 8), norm=False, intermediates_only=True)
    last = library.forward_intermediates(image(*fed), indices=(11,), norm=True, intermediates_only=True)
    for got, wanted in zip(ours(image(*fed)), [*expected, *last]):
        assert distance(got, wanted) <= TOLERANCE


@pytest.mark.parametrize('size', SIZES)
@torch.no_grad()
def test_mmseg_vit_without_patch_bias_gives_mmsegs_features(size, tmp_path):
    width, heads = VIT[size]
    indices = (2, 5, 8, 11)
    library = SegmentorViT(
        embed_dims=width, num_heads=heads, out_indices=indices, final_norm=True, norm_cfg=dict(type='LN', eps=1e-6)
    )
    shaken(library)
    under = {f'backbone.{key}': value for key, value in library.state_dict().items()}
    torch.save({'state_dict': under}, tmp_path / 'mmseg.pth')
    ours = ScaleNetDeiT(
        f'deit-{NAMES[size]}',
        scale=UNSCALED,
        out_type='featmap',
        out_indices=indices,
        init_cfg=pretrained(tmp_path / 'mmseg.pth'),
    )
    ours.init_weights()
    ours.eval()
    for pixels in [(224, 224), (150, 233)]:
        for got, expected in zip(ours(image(*pixels)), library(image(*pixels)), strict=True):
            assert distance(got, expected) <= TOLERANCE


# ------------------------------------------------------------------------------------- at times=2


def pretrained(path) -> dict:
    return dict(type='Pretrained', checkpoint=str(path))


def deepened(state: dict, container: str, sources: list[int]) -> OrderedDict:
    """Copies of layers: the deep net's layer i is the shallow net's layer `sources[i]`."""
    deep = OrderedDict((k, v) for k, v in state.items() if not k.startswith(container))
    for target, source in enumerate(sources):
        prefix = f'{container}{source}.'
        for key, value in state.items():
            if key.startswith(prefix):
                deep[f'{container}{target}.{key[len(prefix) :]}'] = value.clone()
    return deep


def swin_files() -> dict:
    library, dense = timm_swin('t'), dense_swin('mmdet', 't')
    return {
        'timm': library.state_dict(),
        'official': swin_training_file(official_swin(library.state_dict())),
        'mmpretrain early': {'state_dict': early_mmcls_swin(dense.state_dict())},
        'mmdet': {'state_dict': {f'backbone.{k}': v for k, v in dense.state_dict().items()}},
    }


@pytest.mark.parametrize('dialect', ['timm', 'official', 'mmpretrain early', 'mmdet'])
@torch.no_grad()
def test_scaled_swin_equals_the_deep_host_of_copied_layers_in_each_dialect(dialect, tmp_path):
    torch.save(swin_files()[dialect], tmp_path / 'swin.pth')
    init = pretrained(tmp_path / 'swin.pth')
    shallow = ScaleNetSwin('tiny', scale=UNSCALED, init_cfg=init, pad_small_map=True)
    shallow.init_weights()
    for order, sources in (('stack', [0, 1, 0, 1]), ('interpolate', [0, 0, 1, 1])):
        scale = dict(times=2, order=order, stages=(3,), adjust=None)
        ours = ScaleNetSwin('tiny', scale=scale, init_cfg=init, pad_small_map=True)
        ours.init_weights()
        arch = {**SwinTransformer.arch_zoo['tiny'], 'depths': [2, 2, 6, 4]}
        deep = SwinTransformer(arch, pad_small_map=True)
        deep.load_state_dict(deepened(shallow.state_dict(), 'stages.3.blocks.', sources))
        for pixels in [(64, 64), (95, 133)]:
            got = set_ops(ours.eval(), 'plain')(image(*pixels))
            expected = deepcall(deep, image(*pixels))
            assert torch.equal(got[0], expected[0])


def deepcall(model: torch.nn.Module, pixels: torch.Tensor):
    model.eval()  # mmpretrain's returns None
    return model(pixels)


@pytest.mark.parametrize('dialect', ['official', 'mmpretrain', 'mmseg'])
@torch.no_grad()
def test_scaled_deit_equals_the_deep_host_of_copied_layers_in_each_dialect(dialect, tmp_path):
    state = {
        'official': lambda: deit_training_file(timm_deit('t').state_dict()),
        'mmpretrain': lambda: {'state_dict': shaken(classifier(VisionTransformer('deit-tiny'), 'deit')).state_dict()},
        'mmseg': lambda: shaken(SegmentorViT(embed_dims=192, num_heads=3, final_norm=True)).state_dict(),
    }[dialect]()
    torch.save(state, tmp_path / 'deit.pth')
    init = pretrained(tmp_path / 'deit.pth')
    shallow = ScaleNetDeiT('deit-tiny', scale=UNSCALED, init_cfg=init)
    shallow.init_weights()
    layers = list(range(12))
    for order, sources in (('stack', layers + layers), ('interpolate', [i for i in layers for _ in range(2)])):
        ours = ScaleNetDeiT('deit-tiny', scale=dict(times=2, order=order, adjust=None), init_cfg=init)
        ours.init_weights()
        deep = VisionTransformer({**VisionTransformer.arch_zoo['deit-tiny'], 'num_layers': 24})
        deep.load_state_dict(deepened(shallow.state_dict(), 'layers.', sources))
        for pixels in [(64, 64), (95, 133)]:
            got = set_ops(ours.eval(), 'plain')(image(*pixels))
            expected = deepcall(deep, image(*pixels))
            assert torch.equal(got[0], expected[0])


# ------------------------------------------------------------------------- the functions themselves


def empty(**shapes: tuple[int, ...]) -> OrderedDict:
    return OrderedDict((key, torch.zeros(shape)) for key, shape in shapes.items())


def small_timm_swin() -> dict:
    model = timm.models.SwinTransformer(
        img_size=32, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=2, num_classes=3
    )
    return shaken(model).state_dict()


def test_patch_merging_is_permuted_so_that_unfold_and_concatenation_agree():
    features = torch.randn(1, 6, 6, 5)  # (B, H, W, C)
    concatenated = torch.cat([features[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    unfolded = torch.nn.functional.unfold(features.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    weight, norm = torch.randn(10, 20), torch.randn(20)
    state = {
        'layers.0.blocks.0.attn.qkv.weight': torch.zeros(1),
        'layers.0.downsample.reduction.weight': weight,
        'layers.0.downsample.norm.weight': norm,
    }
    host = to_host(state, 'swin')
    expected = (concatenated.flatten(1, 2) * norm) @ weight.T
    got = (unfolded * host['stages.0.downsample.norm.weight']) @ host['stages.0.downsample.reduction.weight'].T
    torch.testing.assert_close(got, expected)


def test_to_host_changes_neither_the_dict_nor_its_tensors():
    state = official_swin(timm_swin('t').state_dict())
    state.pop('head.weight'), state.pop('head.bias')
    before = OrderedDict((k, v.clone()) for k, v in state.items())
    to_host(state, 'swin')
    assert list(state) == list(before)
    assert all(torch.equal(state[k], v) for k, v in before.items())


def test_translating_twice_is_translating_once():
    once = to_host(split(small_timm_swin())[0], 'swin')
    twice = to_host(once, 'swin')
    assert list(once) == list(twice) and all(torch.equal(once[k], twice[k]) for k in once)


def test_keys_of_scaled_files_pass_through_untouched():
    ours = ScaleNetSwin('tiny', scale=dict(times=2, start='function'))
    state = ours.state_dict()
    assert any('adapter' in key for key in state)
    derived = {key for key in state if key.endswith('relative_position_index')}
    translated = to_host(state, 'swin')
    assert set(translated) == set(state) - derived
    assert all(translated[key] is state[key] for key in translated)
    assert translated._metadata == state._metadata


def test_each_dialect_is_recognised_by_its_keys_alone():
    swin, vit = small_timm_swin(), timm.create_model('test_vit').state_dict()
    for state, name in (
        (swin, 'timm Swin'),
        (official_swin(swin), 'official Swin'),
        (to_host(split(swin)[0], 'swin'), 'OpenMMLab Swin'),
        (vit, 'official DeiT'),
        (to_host(split(vit)[0], 'deit'), 'mmpretrain DeiT'),
        (SegmentorViT(embed_dims=8, num_layers=1, num_heads=1).state_dict(), 'mmseg ViT'),
    ):
        assert recognise(state).name == name
        assert recognise({f'backbone.{k}': v for k, v in state.items()}).host == recognise(state).host


@pytest.mark.parametrize('key', ['stages.0.blocks.0.attn.w_msa.qkv.weight', 'layers.0.downsample.reduction.weight'])
def test_absolute_position_embeddings_of_mmdet_and_of_swins_own_detectors_become_tokens(key):
    tall = torch.randn(1, 4, 2, 3)
    state = {**empty(**{key: (1, 4)}), 'absolute_pos_embed': tall}
    tokens = to_host(state, 'swin')['absolute_pos_embed']
    assert tokens.shape == (1, 6, 4)
    assert torch.equal(tokens[0, 4], tall[0, :, 1, 1])  # row 1, column 1


@pytest.mark.parametrize(
    'state, host, message',
    [
        (empty(**{'conv1.weight': (2,), 'layer1.0.bias': (2,)}), 'swin', r'conv1\.weight.*known are'),
        (empty(**{'blocks.0.attn.qkv.weight': (2,)}), 'swin', 'holds a deit backbone'),
        (empty(**{'layers.0.blocks.0.attn.qkv.weight': (2,)}), 'deit', 'holds a swin backbone'),
        (
            empty(**{'blocks.0.attn.qkv.weight': (2,), 'dist_token': (1,)}),
            'deit',
            'distilled DeiT .*without distillation',
        ),
        (
            empty(**{'layers.0.blocks.0.attn.qkv.weight': (2,), 'layers.0.blocks.0.attn.logit_scale': (1,)}),
            'swin',
            'Swin V2',
        ),
        (
            {
                'stages.0.blocks.0.attn.w_msa.qkv.weight': torch.zeros(1),
                'stages.0.blocks.0.attn.w_msa.relative_position_index': official_index(3).T,
            },
            'swin',
            'another order',
        ),
        (
            empty(**{'stages.0.blocks.0.attn.w_msa.qkv.weight': (1,), 'norm.bias': (1,), 'norm0.bias': (1,)}),
            'swin',
            'two keys of the checkpoint mean norm0.bias',
        ),
    ],
)
def test_foreign_files_are_refused_by_name(state, host, message):
    with pytest.raises(CheckpointError, match=re.compile(message, re.DOTALL)):
        to_host(state, host)


def test_a_detectors_neck_and_heads_are_kept_as_they_are():
    backbone = official_swin(small_timm_swin())
    state = OrderedDict((f'backbone.{k}', v) for k, v in backbone.items() if not k.startswith('head'))
    state['neck.lateral_convs.0.conv.weight'] = torch.randn(3)
    state['bbox_head.head.weight'] = torch.randn(3)
    state._metadata = OrderedDict({'': {'version': 1}, 'bbox_head': {'version': 2}})
    rewritten = rewrite(state)
    for key in ('neck.lateral_convs.0.conv.weight', 'bbox_head.head.weight'):
        assert rewritten[key] is state[key]
    assert 'backbone.stages.1.blocks.1.attn.w_msa.qkv.weight' in rewritten
    assert rewritten._metadata['bbox_head'] == {'version': 2}


@pytest.mark.parametrize('classifier_name, expected', [(None, 'head.fc'), ('head.layers.head', 'head.layers.head')])
def test_the_classifier_goes_where_the_models_head_has_it(classifier_name, expected):
    state = small_timm_swin()
    for layout in (state, official_swin(state)):
        rewritten = rewrite(layout, classifier_name)
        assert rewritten[f'{expected}.weight'] is state['head.fc.weight']
        assert not [k for k in rewritten if not k.startswith(('backbone.', f'{expected}.'))]
