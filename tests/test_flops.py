"""FLOPs counted from a built model, against formulas written here from the architecture."""

import copy
import doctest
from itertools import pairwise
from math import ceil

import pytest
import timm
import torch
from conftest import Encoder, timm_vit

import scalenet_mm
from scalenet_mm import LayerMap, scale_layers
from scalenet_mm.core import flops
from scalenet_mm.core.flops import count_flops, meta_parameters, without_adjustments

UNSCALED = dict(times=1, adjust=None)
DEIT = {'deit_t': 192, 'deit_s': 384, 'deit_b': 768}  # width
SWIN = {'swin_t': (96, (2, 2, 6, 2)), 'swin_s': (96, (2, 2, 18, 2)), 'swin_b': (128, (2, 2, 18, 2))}
CLASSES, RATIO, WINDOW = 1000, 4, 7


def built(name, **kwargs):
    with meta_parameters():
        return scalenet_mm.build(name, **kwargs)


def vit_macs(d, layers, side, rank=0):
    """Patch embedding 16 x 16, ``layers`` blocks on the patches and a class token, head; adapters on fc1 and fc2."""
    patches = (side // 16) ** 2
    n = patches + 1
    attention = (3 + 1) * d * d * n + 2 * n * n * d
    mlp = 2 * RATIO * d * d * n
    adapters = 2 * (1 + RATIO) * rank * d * n
    return 3 * 16 * 16 * d * patches + layers * (attention + mlp + adapters) + d * CLASSES


def swin_macs(dims, depths, height, width, rank=0):
    """Windows are padded, so their linears see more tokens than the MLP does."""
    height, width = ceil(height / 4), ceil(width / 4)
    macs = 3 * 4 * 4 * dims * height * width
    for stage, depth in enumerate(depths):
        d = dims * 2**stage
        if stage:
            height, width = ceil(height / 2), ceil(width / 2)
            macs += (2 * d) * d * height * width  # merging: 4 d/2 -> d
        n = height * width
        padded = ceil(height / WINDOW) * ceil(width / WINDOW) * WINDOW**2
        attention = 4 * d * d * padded + 2 * WINDOW**2 * d * padded
        mlp = 2 * RATIO * d * d * n + 2 * (1 + RATIO) * rank * d * n
        macs += depth * (attention + mlp)
    return macs + 8 * dims * CLASSES


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(flops)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    ('name', 'd'), [pytest.param(*item, marks=[pytest.mark.slow] * (item[0] == 'deit_s')) for item in DEIT.items()]
)
def test_deit_takes_the_multiply_adds_of_its_formula_scaled_or_not(name, d):
    assert count_flops(built(name, scale=UNSCALED)) == vit_macs(d, 12, 224)
    scaled = built(name)
    assert count_flops(scaled) == vit_macs(d, 24, 224, rank=16)
    with without_adjustments(scaled):
        assert count_flops(scaled) == vit_macs(d, 24, 224)


@pytest.mark.parametrize(
    ('name', 'host'), [pytest.param(*item, marks=[pytest.mark.slow] * (item[0] == 'swin_s')) for item in SWIN.items()]
)
def test_swin_takes_the_multiply_adds_of_its_formula_scaled_or_not(name, host):
    dims, depths = host
    deep = (*depths[:3], 2 * depths[3])
    assert count_flops(built(name, scale=UNSCALED)) == swin_macs(dims, depths, 224, 224)
    scaled = built(name)
    assert count_flops(scaled) == swin_macs(dims, deep, 224, 224, rank=16)
    with without_adjustments(scaled):
        assert count_flops(scaled) == swin_macs(dims, deep, 224, 224)


@pytest.mark.parametrize('size', [(256, 320), (225, 330)])
def test_other_input_sizes_cost_what_their_padded_windows_cost(size):
    model = built('swin_t', scale=dict(times=3, adjust=dict(rank=8)), pad_small_map=True)
    assert count_flops(model, size) == swin_macs(96, (2, 2, 6, 6), *size, rank=8)
    assert count_flops(built('deit_t', img_size=384), (384, 384)) == vit_macs(192, 24, 384, rank=16)


@pytest.mark.parametrize('name', ['deit_t', 'swin_t'])
def test_without_adjustments_is_the_network_built_without_them(name):
    adjust = dict(type='LoRA', rank=4)
    model = built(name, scale=dict(adjust=adjust))
    before = count_flops(model)
    with without_adjustments(model):
        plain = count_flops(model)
        assert plain == count_flops(built(name, scale=dict(adjust=None))) < before
    assert count_flops(model) == before


def test_counting_leaves_the_model_its_weights_mode_and_ties():
    model = scalenet_mm.build('deit_t').train()
    weights = {n: (p, p.clone()) for n, p in model.named_parameters()}
    count_flops(model)
    assert model.training
    for name, p in model.named_parameters():
        kept, value = weights[name]
        assert p is kept and p.device.type == 'cpu' and torch.equal(p, value)
    first, second = model.backbone.layers[:2]
    assert first.attn.qkv.weight is second.attn.qkv.weight


def test_a_network_without_storage_has_the_structure_of_the_real_one():
    for name in ('deit_t', 'swin_t'):
        meta, real = built(name), scalenet_mm.build(name)
        assert any(p.device.type == 'meta' for p in meta.parameters())
        assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
        assert count_flops(meta) == count_flops(real)


@pytest.mark.parametrize('on_meta_before', [False, True])
def test_a_view_of_a_parameter_that_goes_to_a_part_is_counted(on_meta_before):
    made = dict(img_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=2, num_classes=3, global_pool='map')
    model = timm.models.VisionTransformer(**made)
    frozen = count_flops(copy.deepcopy(model).requires_grad_(False), (32, 32))
    model = model.to('meta') if on_meta_before else model
    assert count_flops(model, (32, 32)) == frozen > 0
    assert all(p.requires_grad for p in model.parameters())


def test_a_host_that_turns_autocast_off_is_counted():
    class Precise(torch.nn.Linear):
        def forward(self, x):
            with torch.autocast(device_type=x.device.type, enabled=False):
                return super().forward(x)

    autocast = torch.autocast
    assert count_flops(Precise(8, 5), (4, 8)) == 3 * 4 * 8 * 5
    assert torch.autocast is autocast


def test_live_models_of_other_origin_are_counted_attention_included():
    d, n, ratio, patch = 32, 17, 2, 8
    block = 4 * d * d * n + 2 * n * n * d + 2 * ratio * d * d * n
    adapters = 2 * (1 + ratio) * 4 * d * n
    vit = timm_vit(3)
    vit.blocks = scale_layers(vit.blocks, LayerMap.build(3, 2), dict(rank=4))
    ends = 3 * patch * patch * d * (n - 1) + d * 5
    assert count_flops(vit, (32, 32)) == 6 * (block + adapters) + ends
    with without_adjustments(vit):
        assert count_flops(vit, (32, 32)) == 6 * block + ends

    class OnTokens(Encoder):
        def forward(self, images):
            return super().forward(images.new_zeros(1, n, d))

    encoder = OnTokens(3)
    encoder.layers = scale_layers(encoder.layers, LayerMap.build(3, 2), dict(rank=4))
    assert count_flops(encoder) == 6 * (block + adapters)


def test_more_layers_cost_in_proportion_to_the_added_depth():
    costs = [count_flops(built('deit_t', scale=dict(times=t, adjust=None))) for t in (1, 2, 3)]
    steps = {b - a for a, b in pairwise(costs)}
    assert len(steps) == 1 and costs[1] < 2 * costs[0]


# Swin only: fvcore leaves the attention of mmpretrain's ViT out.
@pytest.mark.parametrize(
    ('name', 'printed'),
    [
        ('swin_t', '4.5'),
        pytest.param('swin_s', '8.8', marks=pytest.mark.slow),
        pytest.param('swin_b', '15.5', marks=pytest.mark.slow),
    ],
)
def test_fvcore_counts_the_same_and_the_printed_figure_with_norms(name, printed):
    from fvcore.nn import FlopCountAnalysis

    model = scalenet_mm.build(name, scale=UNSCALED)
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    found = analysis.by_operator()
    assert count_flops(model) == found['conv'] + found['linear'] + found['matmul']
    assert f'{analysis.total() / 1e9:.1f}' == printed
