"""Other libraries' tools on scaled networks: offloading, quantisers, layer-wise learning rates."""

import mmpretrain.engine  # noqa: F401 - its constructor
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from conftest import DEIT, SWIN, perturb, timm_vit
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from timm.optim import param_groups_layer_decay
from torch import nn

import scalenet_mm

ADAPTER = dict(type='ParallelAdapter', rank=2)


def scaled_vit(**how) -> nn.Module:
    torch.manual_seed(0)
    return perturb(scalenet_mm.scale(timm_vit(3), times=2, **{'adjust': ADAPTER, **how})).eval()


# ------------------------------------------------------------------------------- accelerate


def some_on_disk(model, folder):
    places = {f'blocks.{i}': 'disk' if i in (1, 4) else 'cpu' for i in range(6)}
    rest = [name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False)) if name != 'blocks']
    return dispatch_model(model, {**places, **dict.fromkeys(rest, 'cpu')}, main_device='cpu', offload_dir=folder)


OFFLOAD = {
    'all on the CPU': lambda model, folder: cpu_offload(model, 'cpu', offload_buffers=True),
    'all on the disk': lambda model, folder: disk_offload(model, folder, 'cpu'),
    'some layers on the disk': some_on_disk,
}


@pytest.mark.parametrize('way', OFFLOAD)
@pytest.mark.parametrize('start', ['paper', 'function'])
def test_a_scaled_network_is_offloaded_as_a_plain_one(way, start, tmp_path):
    model, x = scaled_vit(start=start), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        OFFLOAD[way](model, str(tmp_path))
        assert model.blocks[1].mlp.fc1.adapter.down.is_meta
        for _ in range(2):
            assert torch.allclose(model(x), before, atol=1e-6)


def test_a_hook_on_an_adapter_is_called():
    model, x = scaled_vit(), torch.randn(2, 3, 32, 32)
    seen = []
    with torch.no_grad():
        before = model(x)
        handle = model.blocks[1].mlp.fc1.adapter.register_forward_hook(lambda *a: seen.append(a[2]))
        torch.testing.assert_close(model(x), before)
        handle.remove()
        model(x)
    assert len(seen) == 1


# ------------------------------------------------------------------------------- quantisers


class Rounded(nn.Parameter):
    """What a quantiser puts in the place of a weight, layer by layer."""


def test_tying_again_joins_what_a_tool_replaced_layer_by_layer():
    model, x = scaled_vit(), torch.randn(2, 3, 32, 32)
    unique = len(list(model.parameters()))
    model.blocks[1].probe, model.blocks[2].probe = nn.Linear(2, 2), nn.Linear(2, 2)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.ndim == 2:
            module.weight = Rounded((module.weight * 64).round() / 64)
    expected = model(x)
    assert len(list(model.parameters())) == unique + 4 + 3 * 4
    scalenet_mm.tie(model.blocks, model.blocks.layer_map)
    assert len(list(model.parameters())) == unique + 4
    assert model.blocks[1].attn.qkv.weight is model.blocks[0].attn.qkv.weight
    assert torch.equal(model(x), expected)


def test_torchaos_quantised_weights_are_saved_once_after_tying_again():
    quantization = pytest.importorskip('torchao.quantization')
    model, x = scaled_vit(), torch.randn(2, 3, 32, 32)
    plain = model(x)
    for twin in (model, other := scaled_vit()):
        quantization.quantize_(twin, quantization.Int8WeightOnlyConfig())
        scalenet_mm.tie(twin.blocks, twin.blocks.layer_map)
    torch.testing.assert_close(model(x), plain, rtol=0.1, atol=0.2)
    assert 'blocks.1.mlp.fc1.weight' not in model.state_dict()
    perturb(other.norm)
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(other(x), model(x))


# ------------------------------------------------------------------------------- layer-wise learning rates

BACKBONES = {
    'VisionTransformer': dict(type='VisionTransformer', arch={**DEIT, 'num_layers': 6}, img_size=32, patch_size=8),
    'ScaleNetDeiT': dict(type='ScaleNetDeiT', arch=DEIT, img_size=32, patch_size=8),
    'ScaleNetSwin': dict(type='ScaleNetSwin', arch=SWIN, img_size=64),
}


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('more', [{}, dict(bypass_duplicate=True)])
def test_mmpretrains_layer_decay_has_each_tensor_once_at_its_first_layers_rate(name, more):
    head = dict(type='LinearClsHead', num_classes=3, in_channels=32)
    made = dict(type='mmpretrain.ImageClassifier', backbone=dict(BACKBONES[name]), head=head)
    made['backbone']['type'] = name if name.startswith('Scale') else f'mmpretrain.{name}'
    model = MODELS.build(made)
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            optim_wrapper_cfg=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)),
            paramwise_cfg=dict(layer_decay_rate=0.5, **more),
        )
    )
    for _ in range(2):  # the constructor is as it was afterwards
        groups = constructor(model).optimizer.param_groups
        listed = {id(p): group for group in groups for p in group['params']}
        assert sum(len(group['params']) for group in groups) == len(listed) == len(list(model.parameters()))
    for place, p in model.named_parameters():  # of a shared tensor the first place
        depth, depths = model.get_layer_depth(place)
        assert listed[id(p)]['lr'] == pytest.approx(0.5 ** (depths - depth - 1))


def test_timms_layer_decay_has_each_tensor_once_at_its_first_layers_rate():
    model = scaled_vit()
    groups = param_groups_layer_decay(model, 0.05, layer_decay=0.5)
    rates = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))
    first = [rates[id(model.blocks[i].attn.qkv.weight)] for i in range(6)]
    assert first == [0.5**6, 0.5**6, 0.5**4, 0.5**4, 0.5**2, 0.5**2]
    assert rates[id(model.blocks[1].norm1.weight)] == 0.5**5
