"""timm's and Hugging Face's networks as scaled backbones: outputs, loading, frameworks, a whole run."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import perturb
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModel, ViTConfig

import scalenet_mm
from scalenet_mm.backbones import ScaleNetHF, ScaleNetTimm
from scalenet_mm.checkpoint.assemble import assemble
from scalenet_mm.checkpoint.delta_file import SUFFIX, apply_delta
from scalenet_mm.checkpoint.live_delta import delta_of
from scalenet_mm.checkpoint.loading import build_model, for_model
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.models.counts import inspect
from scalenet_mm.runner.config import build_runner

ROOT = Path(__file__).parents[1]
HOSTS = ROOT / 'configs' / 'hosts'
UNSCALED = dict(times=1, adjust=None)
DINO = 'vit_small_patch14_dinov2'
TINY_VIT = dict(embed_dim=32, depth=3, num_heads=2)
# name -> (timm's arguments, those by which timm itself takes other sizes, an image of another size than its own)
TIMM = {
    DINO: (dict(TINY_VIT, img_size=28), dict(dynamic_img_size=True), (56, 42)),
    'vit_small_patch14_reg4_dinov2': (dict(TINY_VIT, img_size=28), dict(dynamic_img_size=True), (42, 56)),
    'swin_tiny_patch4_window7_224': (
        dict(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2), img_size=64, window_size=4),
        dict(strict_img_size=False),
        (96, 64),
    ),
    'convnext_tiny': (dict(depths=(1, 1, 2, 2), dims=(8, 16, 32, 32)), {}, (96, 64)),
}
DINO_HF = dict(
    model_type='dinov2',
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    mlp_ratio=2,
    image_size=28,
    patch_size=14,
)
SWIN_HF = dict(
    model_type='swin', embed_dim=16, depths=[2, 1, 2, 2], num_heads=[1, 1, 2, 2], image_size=64, window_size=2
)


def timm_host(name: str, **changes) -> nn.Module:
    arguments, any_size, _ = TIMM[name]
    host = timm.create_model(name, num_classes=0, **{**arguments, **any_size, **changes})
    return perturb(host, std=0.05).eval()


def backbone(name: str, **kwargs) -> ScaleNetTimm:
    return ScaleNetTimm(name, **{'ops': 'plain', **TIMM[name][0], **kwargs})


def filled(net: nn.Module, source: nn.Module) -> nn.Module:
    net.load_state_dict(source.state_dict())
    net.eval()
    return net


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- outputs


@pytest.mark.parametrize('name', TIMM)
@torch.no_grad()
def test_times_1_gives_timms_own_intermediates_bit_for_bit(name):
    host, image = timm_host(name), torch.randn(2, 3, *TIMM[name][2])
    net = filled(backbone(name, scale=UNSCALED, out_indices=(0, 2)), host)
    theirs = host.forward_intermediates(image, [0, 2], norm=True, intermediates_only=True)
    assert same(net(image), theirs)
    raw = filled(backbone(name, scale=UNSCALED, out_indices=(0, 2), out_norm=False), host)
    assert same(raw(image), host.forward_intermediates(image, [0, 2], intermediates_only=True))


@pytest.mark.parametrize('name', TIMM)
@torch.no_grad()
def test_times_2_gives_the_intermediates_of_timms_deep_network_of_copied_layers(name):
    """A ViT interpolates, and counts its scaled layers; a hierarchical host stacks its last stage, and counts
    stages.
    """
    host, image = timm_host(name), torch.randn(2, 3, *TIMM[name][2])
    vit = name.startswith('vit')
    deep = timm_host(name, **(dict(depth=6) if vit else dict(depths=(*TIMM[name][0]['depths'][:3], 4))))
    source = host.state_dict()

    def origin(key: str) -> str:
        parts = key.split('.')
        if vit and parts[0] == 'blocks':
            parts[1] = str(int(parts[1]) // 2)
        elif not vit and parts[1:3] == ['3', 'blocks']:
            parts[3] = str(int(parts[3]) % 2)
        return '.'.join(parts)

    deep.load_state_dict({k: source[origin(k)] for k in deep.state_dict()})
    indices = [1, 4, 5] if vit else [0, 1, 2, 3]
    net = filled(backbone(name, scale=dict(times=2), out_indices=indices), host)
    assert [len(m) for m in net.layer_maps().values()][-1] == (6 if vit else 4)
    theirs = deep.forward_intermediates(image, indices, norm=True, intermediates_only=True)
    assert same(net(image), theirs)


@torch.no_grad()
def test_the_outputs_are_those_of_the_live_network_that_scale_makes():
    live = perturb(scalenet_mm.scale(timm_host(DINO), times=2), seed=1, std=0.05)
    net, image = filled(backbone(DINO), live), torch.randn(2, 3, 42, 56)
    theirs = live.forward_intermediates(image, [5], norm=True, intermediates_only=True)
    assert same(net(image), theirs)


@pytest.mark.parametrize(('height', 'width'), [(50, 33), (14, 71), (28, 28)])
@torch.no_grad()
def test_images_of_any_size_are_padded_to_whole_patches(height, width):
    host, image = timm_host(DINO, dynamic_img_pad=True), torch.randn(1, 3, height, width)
    (ours,) = filled(backbone(DINO, scale=UNSCALED), host)(image)
    assert ours.shape == (1, 32, -(-height // 14), -(-width // 14))
    # timm pads as well where it is told to
    tokens = host.forward_features(image)[:, 1:]
    assert torch.equal(ours.flatten(2).transpose(1, 2), tokens)


@torch.no_grad()
def test_each_output_type_is_what_its_name_says():
    name, image = 'vit_small_patch14_reg4_dinov2', torch.randn(2, 3, 42, 56)
    host = timm_host(name)
    tokens = host.forward_features(image)  # class, 4 registers, 3 x 4 patches
    made = {
        kind: filled(backbone(name, scale=UNSCALED, out_type=kind), host)(image)[0]
        for kind in ('featmap', 'cls_token', 'avg_featmap', 'raw')
    }
    assert torch.equal(made['raw'], tokens) and tokens.shape[1] == 1 + 4 + 12
    assert torch.equal(made['cls_token'], tokens[:, 0])
    torch.testing.assert_close(made['avg_featmap'], tokens[:, 5:].mean(1))
    assert torch.equal(made['featmap'].flatten(2).transpose(1, 2), tokens[:, 5:])


@torch.no_grad()
def test_the_mean_passes_the_norm_of_a_host_that_has_it_there():
    host, image = timm_host('convnext_tiny'), torch.randn(2, 3, 64, 96)
    (ours,) = filled(backbone('convnext_tiny', scale=UNSCALED, out_type='avg_featmap'), host)(image)
    torch.testing.assert_close(ours, host.forward_head(host.forward_features(image), pre_logits=True))


# Attention on maps with channels last, which no attribute says; the first maps have as many channels as rows and
# columns.
MAPS = {
    'tiny_vit_5m_224': dict(
        embed_dims=(8, 8, 16, 32), depths=(1, 1, 1, 2), num_heads=(1, 1, 1, 2), window_sizes=(4, 4, 4, 2)
    ),
    'swinv2_cr_tiny_224': dict(embed_dim=16, depths=(1, 1, 1, 2), num_heads=(1, 1, 2, 2), img_size=64, window_size=2),
    'convnext_tiny': dict(depths=(1, 1, 2, 2), dims=(16, 16, 32, 32)),
}


@pytest.mark.parametrize('name', MAPS)
@torch.no_grad()
def test_the_channels_of_a_map_are_found_where_its_layers_put_them(name):
    host = perturb(timm.create_model(name, num_classes=0, **MAPS[name]), std=0.05).eval()
    stages = [1, 2, 3] if name.startswith('tiny') else [0, 1, 2, 3]  # the first one is convolutions
    net = ScaleNetTimm(name, scale=UNSCALED, out_indices=range(len(stages)), out_norm=False, ops='plain', **MAPS[name])
    image = torch.randn(2, 3, 64, 64)
    theirs = host.forward_intermediates(image, stages, intermediates_only=True)
    assert theirs[0].shape[1] == theirs[0].shape[2] == theirs[0].shape[3]
    assert same(filled(net, host)(image), theirs)


def test_layers_that_put_out_no_map_of_the_image_are_refused():
    image = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"'mobilevit_xxs' put out \(8, .*scalenet_mm.scale"):
        ScaleNetTimm('mobilevit_xxs', scale=UNSCALED)(image)  # patches in the batch
    nest = dict(model_name='nest_tiny', img_size=64, scale=UNSCALED)
    with pytest.raises(ValueError, match=r"'nest_tiny' put out \(2, 1, 16, 384\).*'avg_featmap'"):
        ScaleNetTimm(**nest)(image)
    (mean,) = ScaleNetTimm(out_type='avg_featmap', **nest)(image)
    assert mean.shape == (2, 384)


# name -> (the path of a layer, (height, width) of an image, of the grid of tokens that the layer puts out)
GRIDS = {
    'pvt_v2_b0': ('stages.3.blocks.1', (96, 160), (3, 5)),  # a kernel of 7, a stride of 4
    'pit_ti_224': ('transformers.2.blocks.3', (224, 224), (7, 7)),  # a kernel of 16, a stride of 8: begins with 27 x 27
    'coat_lite_tiny': ('serial_blocks4.1', (224, 224), (7, 7)),  # four class tokens, one of them in each stage
    'vit_tiny_r_s16_p8_224': ('blocks.11', (224, 224), (7, 7)),  # runs its stem while it is built
}


@pytest.mark.parametrize('name', GRIDS)
@torch.no_grad()
def test_the_map_is_the_hosts_own_grid_of_tokens(name):
    path, size, grid = GRIDS[name]
    net = ScaleNetTimm(name, scale=UNSCALED, out_norm=False).eval()
    seen = []
    net.net.get_submodule(path).register_forward_hook(lambda m, x, y: seen.append(y))
    (found,) = net(torch.randn(1, 3, *size))
    (tokens,) = seen
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    assert found.shape[-2:] == grid
    assert torch.equal(found.flatten(2).transpose(1, 2), tokens[:, -grid[0] * grid[1] :])
    assert tokens.shape[1] - grid[0] * grid[1] in (0, 1), 'nothing but a class token is left out'


@pytest.mark.parametrize('out_type', ['featmap', 'avg_featmap'])
@torch.no_grad()
def test_tokens_that_are_no_grid_of_the_image_are_refused(out_type):
    image = torch.randn(1, 3, 112, 112)  # 28, 14, 7 and, rounded down, 3
    net = ScaleNetTimm('twins_svt_small', scale=UNSCALED, out_type=out_type).eval()
    with pytest.raises(ValueError, match=r"'twins_svt_small' put out 9 tokens for images of 112 x 112.*'raw'"):
        net(image)
    (tokens,) = ScaleNetTimm('twins_svt_small', scale=UNSCALED, out_type='raw').eval()(image)
    assert tokens.shape == (1, 9, 512)


@torch.no_grad()
def test_channels_of_the_images_are_the_hosts_unless_they_are_given():
    image = torch.randn(1, 4, 28, 28)
    for net in (
        ScaleNetHF(dict(DINO_HF, num_channels=4)),
        ScaleNetHF(DINO_HF, in_channels=4),
        backbone(DINO, in_chans=4),
        backbone(DINO, in_channels=4),
    ):
        assert net.eval()(image)[0].shape == (1, 32, 2, 2)
    with pytest.raises(ValueError, match=r"\['in_chans'\] are timm's names .* give one"):
        backbone(DINO, in_chans=4, in_channels=3)


@torch.no_grad()
def test_clips_class_embedding_is_no_part_of_the_map():
    size = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    config = dict(model_type='clip_vision_model', image_size=32, patch_size=8, **size)
    net, image = ScaleNetHF(config, scale=UNSCALED, out_norm=False).eval(), torch.randn(2, 3, 32, 32)
    (found,) = net(image)
    tokens = net.net(pixel_values=image, output_hidden_states=True).hidden_states[-1]
    assert found.shape == (2, 32, 4, 4) and torch.equal(found.flatten(2).transpose(1, 2), tokens[:, 1:])
    torch.manual_seed(0)
    (token,) = ScaleNetHF(config, scale=UNSCALED, out_norm=False, out_type='cls_token').eval()(image)
    torch.manual_seed(0)
    (tokens,) = ScaleNetHF(config, scale=UNSCALED, out_norm=False, out_type='raw').eval()(image)
    assert torch.equal(token, tokens[:, 0])


TOWER = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)
TOWERS = {
    'clip': lambda **more: ScaleNetHF(dict(TOWER, model_type='clip_vision_model', patch_size=8), **more),
    'siglip': lambda **more: ScaleNetHF(dict(TOWER, model_type='siglip_vision_model', patch_size=8), **more),
    'idefics': lambda **more: ScaleNetHF(dict(TOWER, model_type='idefics3_vision', patch_size=8), **more),
    'timm siglip': lambda **more: ScaleNetTimm(
        'vit_base_patch16_siglip_224', img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, **more
    ),
    'timm sam': lambda **more: ScaleNetTimm('samvit_base_patch16_224', depth=2, embed_dim=32, num_heads=2, **more),
}


@pytest.mark.parametrize('out_type', ['featmap', 'avg_featmap', 'cls_token'])
@pytest.mark.parametrize('tower', TOWERS)
def test_all_that_is_trained_of_an_image_tower_gets_a_gradient(tower, out_type):
    if out_type == 'cls_token' and tower != 'clip':
        pytest.skip('it has no class token')
    net = TOWERS[tower](out_type=out_type)
    trained = TrainPolicy('increments').apply(net)
    net.train()(torch.randn(2, 3, *2 * [224 if 'sam' in tower else 32]))[0].square().mean().backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == set(trained)


def its_host(net: ScaleNetHF) -> torch.nn.Module:
    """The library's own network with the weights of an unscaled one; what that has left out is as at the start."""
    from transformers import AutoModel

    host = AutoModel.from_config(net.net.config).eval()
    told = host.load_state_dict(net.net.state_dict(), strict=False)
    assert not told.unexpected_keys and not [k for k in told.missing_keys if 'encoder.' in k or 'embeddings' in k]
    return host


@torch.no_grad()
@pytest.mark.parametrize('tower', ['siglip', 'idefics'])
def test_the_map_of_an_image_tower_is_its_last_hidden_state(tower):
    net, image = perturb(TOWERS[tower](scale=UNSCALED)).eval(), torch.randn(2, 3, 32, 32)
    tokens = its_host(net)(pixel_values=image).last_hidden_state[:, -16:]
    assert torch.allclose(net(image)[0].flatten(2).transpose(1, 2), tokens, atol=1e-6)


@torch.no_grad()
def test_the_class_token_of_clip_is_what_its_host_pools():
    net, image = perturb(TOWERS['clip'](scale=UNSCALED, out_type='cls_token')).eval(), torch.randn(2, 3, 32, 32)
    assert torch.allclose(net(image)[0], its_host(net)(pixel_values=image).pooler_output, atol=1e-6)


@torch.no_grad()
def test_patches_that_are_no_squares_make_a_map_of_both_their_sides():
    config = dict(TOWER, model_type='vit', patch_size=[8, 4])
    assert ScaleNetHF(config, run=dict(interpolate_pos_encoding=False)).eval()(torch.randn(1, 3, 32, 32))[0].shape == (
        *(1, 32, 4, 8),
    )
    net = ScaleNetTimm('vit_tiny_patch16_224', img_size=32, patch_size=(8, 4), embed_dim=16, depth=2, num_heads=2)
    image = torch.randn(1, 3, 30, 36)  # padded to 32 x 36
    assert net.eval()(image)[0].shape == (1, 16, 4, 9)


@torch.no_grad()
def test_a_host_without_an_image_size_is_told_what_it_lacks():
    sizes = dict(hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 3, 4], decoder_hidden_size=16)
    with pytest.raises(ValueError, match='No list of blocks of a known host was found in SegformerModel'):
        ScaleNetHF(dict(model_type='segformer', depths=[1, 1, 1, 1], **sizes))


def test_a_masked_autoencoder_gives_its_weights_to_a_plain_vit(tmp_path):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    size |= dict(image_size=32, patch_size=8)
    with pytest.raises(ValueError, match="ViTMAEModel drops and shuffles tokens .*model_type='vit'"):
        ScaleNetHF(dict(size, model_type='vit_mae'))
    source = perturb(ViTMAEForPreTraining(ViTMAEConfig(decoder_num_hidden_layers=1, **size)), std=0.1)
    save_file(dict(source.state_dict()), tmp_path / 'mae.safetensors')
    net = ScaleNetHF(
        dict(size, model_type='vit'), init_cfg=dict(type='Pretrained', checkpoint=f'{tmp_path}/mae.safetensors')
    )
    net.is_init = False
    net.init_weights()
    ours, theirs = net.net.encoder.layer[2], source.vit.encoder.layer[1]
    assert torch.equal(ours.intermediate.dense.weight, theirs.intermediate.dense.weight)


@torch.no_grad()
def test_a_config_of_a_segmentor_gives_its_encoder():
    beit = dict(model_type='beit', hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64)
    net = ScaleNetHF(dict(beit, image_size=32, patch_size=8, out_indices=[1, 2, 3, 4]), out_indices=(1, 7)).eval()
    assert [y.shape for y in net(torch.randn(1, 3, 32, 32))] == [(1, 32, 4, 4)] * 2


@torch.no_grad()
def test_hugging_faces_outputs_are_its_own_hidden_states_at_either_depth():
    for changes, scale in (({}, UNSCALED), (dict(num_hidden_layers=6), dict(times=2))):
        torch.manual_seed(0)
        source = AutoModel.from_config(AutoConfig.for_model(**DINO_HF)).eval()
        deep = AutoModel.from_config(AutoConfig.for_model(**{**DINO_HF, **changes})).eval()
        copied = {
            k: source.state_dict()[k.replace(f'layer.{i}.', f'layer.{i // 2 if changes else i}.')]
            for k in deep.state_dict()
            for i in [int(k.split('.')[2]) if k.startswith('encoder') else 0]
        }
        deep.load_state_dict(copied)
        image, last = torch.randn(2, 3, 42, 56), deep.config.num_hidden_layers - 1
        net = filled(ScaleNetHF(DINO_HF, scale=scale, out_indices=(1, last), out_type='raw', ops='plain'), source)
        told = deep(image, output_hidden_states=True)
        assert same(net(image), [deep.layernorm(told.hidden_states[2]), told.last_hidden_state])


@torch.no_grad()
def test_hugging_faces_swin_gives_its_stages_before_they_are_merged():
    source = AutoModel.from_config(AutoConfig.for_model(**SWIN_HF)).eval()
    net = filled(ScaleNetHF(SWIN_HF, out_indices=(0, 1, 2, 3), scale=UNSCALED, ops='plain'), source)
    image = torch.randn(1, 3, 96, 72)  # stages of 24 x 18, 12 x 9, 6 x 5 and 3 x 3
    maps = net(image)
    assert [m.shape[1:] for m in maps] == [(16, 24, 18), (32, 12, 9), (64, 6, 5), (128, 3, 3)]
    told = source(image, output_hidden_states=True)
    for stage, merged in zip(range(3), told.hidden_states[1:]):
        tokens = maps[stage].flatten(2).transpose(1, 2)
        size = tuple(maps[stage].shape[2:])
        assert torch.equal(source.encoder.layers[stage].downsample(tokens, size), merged)
    assert torch.equal(maps[3].flatten(2).transpose(1, 2), told.last_hidden_state)


@torch.no_grad()
def test_copies_and_pickles_give_the_same_outputs_and_catch_their_own_layers():
    net, image = (perturb(backbone(DINO, out_indices=(2, 5)), std=0.05).eval(), torch.randn(1, 3, 28, 28))
    ours = net(image)
    net.net.forward_features(image)  # the host by itself
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad():
            other.net.norm.weight.zero_(), other.net.norm.bias.fill_(3.0)
        assert same(net(image), ours) and all((y == 3).all() for y in other(image))


def test_the_libraries_checks_of_the_number_of_classes_pass_over_a_live_backbone():
    """They ask each module that has ``num_classes`` for that of the data."""
    assert not [name for name, m in backbone(DINO).named_modules() if hasattr(m, 'num_classes')]


def test_recomputed_layers_give_the_same_gradients():
    image, found = torch.randn(2, 3, 28, 28), []
    for name in (DINO, 'swin_tiny_patch4_window7_224'):
        for with_cp in (False, True):
            torch.manual_seed(0)
            net = perturb(backbone(name, with_cp=with_cp, out_indices=(0, -1)), std=0.05).train()
            calls, mlp = [], next(m for k, m in net.named_modules() if k.endswith('mlp'))
            mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(0))
            sum(y.square().mean() for y in net(image)).backward()
            assert len(calls) == 1 + with_cp
            found.append({k: p.grad for k, p in net.named_parameters() if p.grad is not None})
    for plain, recomputed in (found[:2], found[2:]):
        assert len(plain) > 30 and plain.keys() == recomputed.keys()
        assert all(torch.equal(plain[k], recomputed[k]) for k in plain)


# --- what is trained


@pytest.mark.parametrize('name', TIMM)
@pytest.mark.parametrize('out_type', ['featmap', 'avg_featmap'])
@pytest.mark.parametrize('out_norm', [True, False])
def test_every_trained_parameter_gets_a_gradient(name, out_type, out_norm):
    """DDP waits for each of them: find_unused_parameters is False."""
    net = backbone(name, out_type=out_type, out_norm=out_norm, scale=dict(stages='all'))
    trained = TrainPolicy().apply(net)
    net.train()
    net(torch.randn(2, 3, *TIMM[name][2]))[0].square().mean().backward()
    given = {k for k, p in net.named_parameters() if p.grad is not None}
    assert given == set(trained) and any('adapter' in k for k in trained)


def test_a_whole_hugging_face_network_is_trained_without_a_parameter_to_spare():
    net = ScaleNetHF(DINO_HF)  # whose mask token and pooling no output passes
    trained = TrainPolicy('all').apply(net)
    net.train()(torch.randn(2, 3, 28, 28))[0].square().mean().backward()
    assert {k for k, p in net.named_parameters() if p.grad is not None} == set(trained)


def test_initialisation_leaves_what_the_library_drew():
    net = backbone(DINO)
    before = copy.deepcopy(net.state_dict())
    net.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_drop_path_schedule_is_drawn_out_over_the_scaled_layers():
    net = backbone(DINO, drop_path_rate=0.5, scale=dict(times=2))
    rates = [getattr(b.drop_path1, 'drop_prob', 0.0) for b in net.net.blocks]
    torch.testing.assert_close(rates, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_drop_path_that_the_host_does_not_have_is_refused():
    vit = dict(DINO_HF, model_type='vit')
    with pytest.raises(ValueError, match=r'ViTConfig has no drop_path_rate'):
        ScaleNetHF({k: v for k, v in vit.items() if hasattr(ViTConfig(), k) or k == 'model_type'}, drop_path_rate=0.5)
    with pytest.raises(ValueError, match=r"no \['out_indicess'\] \(near are: out_indices"):
        ScaleNetHF(DINO_HF, out_indicess=(0,))


# --- loading


def dinov2_file(host: nn.Module) -> dict[str, torch.Tensor]:
    """The official layout: one position for class token and patches, a mask token; registers apart."""
    state = {k: v.clone() for k, v in host.state_dict().items()}
    if 'reg_token' in state:
        state['register_tokens'] = state.pop('reg_token')
        first = torch.full_like(state['cls_token'], 0.25)
        state['cls_token'] = state['cls_token'] - first
        state['pos_embed'] = torch.cat([first, state['pos_embed']], 1)
    return {**state, 'mask_token': torch.zeros(1, 32)}


@pytest.mark.parametrize('kind', ['timm', 'safetensors', 'official', 'TIMMBackbone', 'in a model'])
def test_an_unscaled_file_loads_by_itself(kind, tmp_path):
    name = 'vit_small_patch14_reg4_dinov2'
    host, path = timm_host(name), str(tmp_path / 'f.pth')
    state = host.state_dict()
    if kind == 'safetensors':
        path = str(tmp_path / 'f.safetensors')
        save_file(state, path)
    elif kind == 'official':
        torch.save(dinov2_file(host), path)
    elif kind == 'TIMMBackbone':
        torch.save({'state_dict': {f'backbone.timm_model.{k}': v for k, v in state.items()}}, path)
    elif kind == 'in a model':
        torch.save({'model': {f'encoder.{k}': v for k, v in state.items()}}, path)
    else:
        heads = {'head.weight': torch.zeros(5, 32), 'head.bias': torch.zeros(5)}
        torch.save({'state_dict': {**state, **heads}}, path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    if kind == 'in a model':
        init_cfg['prefix'] = 'encoder'
    net = backbone(name, init_cfg=init_cfg)
    net.init_weights()
    ours = net.net.state_dict()
    for i in range(6):
        assert torch.equal(net.net.blocks[i].attn.qkv.weight, host.blocks[i // 2].attn.qkv.weight)
        assert torch.equal(ours[f'blocks.{i}.norm1.weight'], host.blocks[i // 2].norm1.weight)
    for key in ('cls_token', 'reg_token', 'pos_embed', 'norm.bias', 'patch_embed.proj.weight'):
        torch.testing.assert_close(ours[key], state[key])


def test_positions_are_resampled_as_timm_does_it(tmp_path):
    torch.save(timm_host(DINO).state_dict(), tmp_path / 'f.pth')
    wanted = timm.create_model(
        DINO,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'f.pth'), num_classes=0),
        num_classes=0,
        **{**TIMM[DINO][0], 'img_size': 56},
    )
    net = backbone(DINO, img_size=56, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'f.pth')))
    net.init_weights()
    assert net.net.pos_embed.shape == (1, 17, 32)
    assert torch.equal(net.net.pos_embed, wanted.pos_embed)
    scaled = backbone(DINO, img_size=28)  # and those of a scaled file of another size
    torch.save(scaled.state_dict(), tmp_path / 'scaled.pth')
    net.load_pretrained(str(tmp_path / 'scaled.pth'))
    assert net.net.pos_embed.shape == (1, 17, 32)
    assert torch.equal(net.net.blocks[0].mlp.fc1.adapter.down, scaled.net.blocks[0].mlp.fc1.adapter.down)


def test_pretrained_names_the_librarys_own_address(tmp_path):
    net = backbone(DINO, pretrained=True)
    assert net.init_cfg == dict(type='Pretrained', checkpoint=f'hf://timm/{DINO}.lvd142m/model.safetensors')
    source = perturb(AutoModel.from_config(AutoConfig.for_model(**DINO_HF)), std=0.1)
    source.save_pretrained(tmp_path)
    net = ScaleNetHF(str(tmp_path), pretrained=True)
    net.init_weights()
    ours, theirs = net.net.encoder.layer[5], source.encoder.layer[2]
    assert all(map(torch.equal, ours.attention.parameters(), theirs.attention.parameters()))
    assert torch.equal(ours.norm2.weight, theirs.norm2.weight)
    with pytest.raises(ValueError, match='leave one of them out'):
        ScaleNetHF(str(tmp_path), pretrained=True, init_cfg=dict(type='Pretrained', checkpoint='f'))
    with pytest.raises(ValueError, match='a config was given'):
        ScaleNetHF(DINO_HF, pretrained=True)


@pytest.mark.parametrize('prefix', ['', 'dinov2.'])
@pytest.mark.parametrize(
    ('change', 'told'),
    [(lambda t: t.to(torch.int8), 'torch.int8 values'), (lambda t: t[1:].clone(), r'expected \(64, 32\)')],
)
def test_a_file_of_hugging_face_that_is_quantised_or_mis_shaped_is_refused(change, told, prefix, tmp_path):
    state = AutoModel.from_config(AutoConfig.for_model(**DINO_HF)).state_dict()
    state['encoder.layer.1.mlp.fc1.weight'] = change(state['encoder.layer.1.mlp.fc1.weight'])
    save_file({prefix + k: v for k, v in state.items()}, tmp_path / 'f.safetensors', dict(format='pt'))
    with pytest.raises(CheckpointError, match=rf'layer\.1\.mlp\.fc1\.weight: {told}') as caught:
        ScaleNetHF(DINO_HF).load_pretrained(str(tmp_path / 'f.safetensors'))
    assert str(tmp_path / 'f.safetensors') in str(caught.value)


def test_hugging_faces_files_of_earlier_releases_load(tmp_path):
    """Query, key and value had other names in transformers 4, and a classifier lies around the network."""
    source = perturb(AutoModel.from_config(AutoConfig.for_model(**DINO_HF)), std=0.1)
    old = {}
    for key, value in source.state_dict().items():
        for new, before in (('q', 'query'), ('k', 'key'), ('v', 'value')):
            key = key.replace(f'attention.{new}_proj', f'attention.attention.{before}')
        old['dinov2.' + key.replace('attention.o_proj', 'attention.output.dense')] = value
    torch.save({**old, 'classifier.weight': torch.zeros(5, 64)}, tmp_path / 'f.bin')
    net = ScaleNetHF(DINO_HF, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'f.bin')))
    net.init_weights()
    for part, theirs in source.encoder.layer[1].named_parameters():
        assert torch.equal(net.net.encoder.layer[3].get_parameter(part), theirs), part


@pytest.mark.parametrize('own', [True, False])
def test_a_scaled_file_loads_only_into_its_own_layer_map(own, tmp_path):
    """Of this backbone, or of a live network that ``scale`` made."""
    scaled = perturb(backbone(DINO) if own else scalenet_mm.scale(timm_host(DINO)), std=0.05)
    torch.save({'state_dict': scaled.state_dict()}, tmp_path / 'f.pth')
    net = backbone(DINO)
    net.load_pretrained(str(tmp_path / 'f.pth'))
    theirs = scaled.net if own else scaled
    assert {k for k, _ in net.net.named_parameters()} == {k for k, _ in theirs.named_parameters()}
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in net.net.state_dict().items())
    other = backbone(DINO, scale=dict(order='stack'))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match='another layer map'):
        other.load_pretrained(str(tmp_path / 'f.pth'))
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda s: s.pop('blocks.1.mlp.fc1.weight'), 'missing in the file'),
        (lambda s: s.update({'blocks.0.extra': torch.zeros(1)}), 'unexpected in the file'),
        (lambda s: s.update({'cls_token': torch.zeros(1, 1, 16)}), 'of another shape'),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_changes(change, told, tmp_path):
    state = timm_host(DINO).state_dict()
    change(state)
    torch.save(dict(state), tmp_path / 'f.pth')
    net = backbone(DINO)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CheckpointError, match=told):
        net.load_pretrained(str(tmp_path / 'f.pth'))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('adjust', [dict(type='ParallelAdapter', rank=4), None])
def test_a_delta_is_refused_where_the_source_is_the_scaled_network_or_its_tensors(adjust):
    source = timm_host(DINO)
    before, tensors = copy.deepcopy(source), source.state_dict()  # the second is no copy
    model = scalenet_mm.scale(source, times=2, adjust=adjust)
    for wrong in (model, model.state_dict(), tensors):
        with pytest.raises(CheckpointError, match=r'scale works in place.*copy.deepcopy'):
            delta_of(model, wrong)
    if adjust:  # copied too late
        with pytest.raises(CheckpointError, match='is an adjustment in it'):
            delta_of(model, copy.deepcopy(model.state_dict()))
    adapters = {name for name, _ in model.named_parameters() if 'adapter' in name}
    assert set(delta_of(model, before).tensors) == adapters


# --- errors


def test_errors_name_the_rule_the_value_and_the_way_out():
    def error(kind=ScaleNetTimm, name=DINO, **kwargs) -> str:
        with pytest.raises(ValueError) as e:
            kind(name, **{**(TINY_VIT if name == DINO else {}), **kwargs})
        return str(e.value)

    assert DINO in error(name='vit_small_patch14_dinov')
    assert 'dinov2' in error(ScaleNetHF, dict(model_type='dino_v2'))
    assert 'neither a model on the Hugging Face Hub nor a folder' in error(ScaleNetHF, './nowhere')
    assert "Dinov2Config has no ['hiden_size'] (near are: hidden_size" in error(
        ScaleNetHF, {**DINO_HF, 'hiden_size': 32}
    )
    assert "Dinov2Config has no ['hiden_act'] (near are: hidden_act" in error(ScaleNetHF, DINO_HF, hiden_act='gelu')
    assert '0..5, or negative from the end, got [6]' in error(out_indices=(6,))
    assert 'ascending' in error(out_indices=(3, 1))
    assert '0..5, or negative from the end, got [None]' in error(out_indices=None)
    assert "got ['last']" in error(out_indices='last')
    assert 'of the 4 stages' in error(name='convnext_tiny', out_indices=(4,))
    assert 'frozen_stages=1 would freeze' in error(frozen_stages=1)
    assert "scale has no key ['growth']" in error(scale=dict(growth='stack'))
    assert "'avg_featmap', 'raw'), got 'map'" in error(out_type='map')
    assert 'needs a class token' in error(name='convnext_tiny', out_type='cls_token')
    assert 'No list of blocks of a known host' in error(name='resnet18')  # which scalenet_mm.scale cannot scale
    assert 'timm cannot build' in error(embed_dims=3)


@pytest.mark.parametrize(('kind', 'name'), [(ScaleNetTimm, DINO), (ScaleNetHF, DINO_HF)])
def test_a_missing_library_is_named_with_its_command(kind, name, monkeypatch):
    monkeypatch.setitem(sys.modules, kind.library, None)
    with pytest.raises(ImportError, match=f'needs .* pip install {kind.library}'):
        kind(name)


@pytest.mark.slow
def test_importing_the_package_needs_neither_library():
    code = (
        'import sys; sys.modules.update({"timm": None, "transformers": None}); '
        # else it imports transformers 4
        'from mmpretrain.utils import dependency; dependency.WITH_MULTIMODAL = False; import scalenet_mm; from '
        'mmengine.registry import MODELS; assert MODELS.get("ScaleNetTimm") and MODELS.get("ScaleNetHF")'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


# --- in the frameworks


def test_mmdets_faster_rcnn_trains_on_the_stages_of_a_convnext(tmp_path):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    (tmp_path / 'c.py').write_text("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'")
    model_cfg = Config.fromfile(tmp_path / 'c.py').model
    host = dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 32))
    model_cfg.backbone = dict(type='ScaleNetTimm', model_name='convnext_tiny', out_indices=(0, 1, 2, 3), **host)
    model_cfg.neck.update(in_channels=[8, 16, 32, 32], out_channels=16)
    model_cfg.rpn_head.update(in_channels=16, feat_channels=16)
    model_cfg.roi_head.bbox_roi_extractor.out_channels = 16
    model_cfg.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
    init_default_scope('mmdet')
    model = MODELS.build(model_cfg)
    trained = TrainPolicy(also=('neck', 'rpn_head', 'roi_head')).apply(model)
    sample = DetDataSample(metainfo=dict(img_shape=(90, 130), ori_shape=(90, 130), pad_shape=(96, 160)))
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[5.0, 5.0, 60.0, 70.0]]), labels=torch.tensor([1]))
    losses = model(torch.randn(1, 3, 96, 160), [sample], mode='loss')
    sum(v if torch.is_tensor(v) else sum(v) for k, v in losses.items() if 'loss' in k).backward()
    given = {n for n, p in model.named_parameters() if p.grad is not None}
    assert {n for n in trained if n.startswith('backbone')} <= given <= set(trained)


def tiny(cfg: Config, checkpoint: Path, size: int = 28) -> Config:
    cfg.model.backbone.update(TINY_VIT, img_size=size)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False, batch_size=2)
    return cfg


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    """Generated images in ImageNet's folders; the classes are declared, a few images are there."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    (root / 'meta').mkdir()
    for split, per_class in (('train', 2), ('val', 1)):
        lines = []
        for label, name in enumerate(('n01440764', 'n01443537')):
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (300, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{i}.JPEG')
                lines.append(f'{name}/{i}.JPEG {label}')
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    return root


@pytest.fixture
def source(tmp_path) -> Path:
    """A tiny DINOv2 file in its official layout."""
    host = perturb(timm.create_model(DINO, num_classes=0, img_size=518, **TINY_VIT), std=0.05)
    torch.save(dinov2_file(host), tmp_path / 'dinov2.pth')
    return tmp_path / 'dinov2.pth'


def test_the_classifier_trains_validates_resumes_and_leaves_deltas_that_apply(images, source, tmp_path, monkeypatch):
    monkeypatch.setenv('SCALENET_IMAGENET_ROOT', str(images))

    def config(epochs: int, **changes) -> Config:
        cfg = tiny(Config.fromfile(HOSTS / 'scalenet_dinov2_s_100e.py'), source, size=224)
        cfg.model.head.in_channels = 32
        cfg.train_cfg.max_epochs, cfg.param_scheduler = epochs, None
        cfg.custom_hooks = [dict(type='DeltaHook')]
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / 'run'), **changes))
        return cfg

    runner = build_runner(config(1))
    runner.train()
    assert runner.iter == 2 and 'val/accuracy/top1' in runner.message_hub.log_scalars
    first = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert any(v.any() for k, v in first.items() if k.endswith('adapter.up'))
    resumed = build_runner(config(2, resume=True, load_from=str(tmp_path / 'run' / 'epoch_1.pth')))
    resumed.train()
    assert resumed.iter == 4
    last = torch.load(tmp_path / 'run' / 'epoch_2.pth', weights_only=False)['state_dict']
    trained = set(TrainPolicy.from_cfg(config(2).policy).trainable(resumed.model))
    assert {k for k in last if not torch.equal(first[k], last[k])} == trained
    delta = tmp_path / 'run' / f'epoch_2{SUFFIX}'
    model = build_model(config(2))
    model.backbone.load_pretrained(str(source))
    apply_delta(model, delta)
    assert all(torch.equal(v, last[k]) for k, v in model.state_dict().items())
    whole = assemble(delta, source, config(2))  # by the road of scalenet delta
    assert all(torch.equal(v, last[k]) for k, v in whole.state_dict().items())
    tested = build_runner(config(2, load_from=str(tmp_path / 'run' / 'epoch_2.pth')))
    assert 'accuracy/top1' in tested.test()
    assert all(torch.equal(v, last[k]) for k, v in tested.model.state_dict().items())


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> Path:
    made = make_demo_data(tmp_path_factory.mktemp('data'), ['ade'], train=4, val=2)
    for file in [*made['ade'].rglob('*.jpg'), *made['ade'].rglob('*.png')]:
        Image.open(file).crop((0, 0, 128, 90)).save(file)
    return made['ade']


def test_the_segmentor_trains_and_validates_on_images_of_other_sizes(scenes, source, tmp_path, monkeypatch):
    monkeypatch.setenv('SCALENET_ADE_ROOT', str(scenes))
    cfg = tiny(Config.fromfile(HOSTS / 'upernet_scalenet_dinov2_s_40k.py'), source, size=56)
    cfg.model.backbone.out_indices = (1, 3, 4, 5)
    cfg.model.data_preprocessor.size = (56, 56)
    cfg.model.neck.embed_dim = cfg.model.auxiliary_head.in_channels = 32
    cfg.model.decode_head.update(in_channels=[32] * 4, channels=16)
    cfg.model.auxiliary_head.channels = 16
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[2].scale, pipeline[3].crop_size = (160, 96), (56, 56)
    cfg.val_dataloader.dataset.pipeline[1].scale = (160, 96)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.work_dir, cfg.param_scheduler = str(tmp_path / 'run'), None
    runner = build_runner(cfg)
    runner.train()
    assert runner.iter == 2 and runner.model.backbone.out_indices == (1, 3, 4, 5)
    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)['state_dict']
    assert any(v.any() for k, v in saved.items() if k.endswith('adapter.up'))
    assert for_model(saved, runner.model).keys() == saved.keys()
    assert torch.load(source)['patch_embed.proj.bias'].equal(saved['backbone.net.patch_embed.proj.bias'])


# --- the configs at their size


def test_the_configs_have_the_counts_of_a_vit_small_and_its_increments():
    d, layers, classes = 384, 12, 1000
    adapters = 2 * layers * 2 * 16 * (d + 4 * d)  # fc1 and fc2 of every instance, rank 16
    norms = 2 * layers * 4 * d + 2 * d
    net = scalenet_mm.build(str(HOSTS / 'scalenet_dinov2_s_100e.py'), init_cfg=None)
    policy = TrainPolicy.from_cfg(Config.fromfile(HOSTS / 'scalenet_dinov2_s_100e.py').policy)
    policy.apply(net)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == adapters + norms + (d + 1) * classes
    plain = timm.create_model(DINO, img_size=224, num_classes=0)
    unscaled = sum(p.numel() for p in plain.parameters())
    added = adapters + layers * 4 * d
    assert sum(p.numel() for p in net.parameters()) == unscaled + added + (d + 1) * classes


def test_the_segmentor_reads_the_last_use_of_every_third_layer():
    cfg = Config.fromfile(HOSTS / 'upernet_scalenet_dinov2_s_40k.py')
    sources = [i // 2 for i in range(24)]
    assert [sources[i] for i in cfg.model.backbone.out_indices] == [2, 5, 8, 11]
    assert all(i % 2 for i in cfg.model.backbone.out_indices)
    assert cfg.crop_size == cfg.model.data_preprocessor.size == (518, 518) and 518 % 14 == 0


def test_an_inspected_segmentor_counts_the_unscaled_backbone_at_its_own_depth():
    """``out_indices`` beyond the source's depth are of the scaled layers."""
    d, layers, tokens = 384, 12, 37 * 37 + 1
    a_layer = 12 * tokens * d**2 + 2 * tokens**2 * d
    patches = 37 * 37 * 3 * 14 * 14 * d
    report = inspect(HOSTS / 'upernet_scalenet_dinov2_s_40k.py')
    flops = {name: cost.flops for name, cost in report.networks.items()}
    assert flops['unscaled network'] == layers * a_layer + patches
    assert flops['this network'] == 2 * layers * a_layer + patches


@pytest.mark.parametrize('name', [p.name for p in sorted(HOSTS.glob('*.py'))])
def test_leaf_configs_are_short_and_begin_with_their_command(name):
    lines = (HOSTS / name).read_text().splitlines()
    assert len(lines) <= 55 and lines[0] == f'# python tools/train.py configs/hosts/{name}'


@pytest.mark.slow
@pytest.mark.parametrize('task', ['scalenet_dinov2_s_100e', 'upernet_scalenet_dinov2_s_40k'])
def test_a_config_trains_two_iterations_at_full_size_by_its_command(task, images, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv('SCALENET_IMAGENET_ROOT', str(images))
    monkeypatch.setenv('SCALENET_ADE_ROOT', str(scenes))
    host = timm.create_model(DINO, num_classes=0)
    state = {**host.state_dict(), 'mask_token': torch.zeros(1, 384)}
    torch.save(state, tmp_path / 'dinov2.pth')
    options = [f'model.backbone.init_cfg.checkpoint={tmp_path / "dinov2.pth"}']
    for part in ('train', 'val', 'test'):
        options += [
            f'{part}_dataloader.num_workers=0',
            f'{part}_dataloader.persistent_workers=False',
            f'{part}_dataloader.batch_size=2',
        ]
    if task.startswith('scalenet'):
        options += ['train_cfg.max_epochs=1', 'param_scheduler.0.end=1', 'param_scheduler.1.begin=0']
    else:
        options += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'val_dataloader.batch_size=1']
        options += ['default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1']
    command = [sys.executable, 'tools/train.py', f'configs/hosts/{task}.py', '--work-dir', tmp_path / 'run']
    done = subprocess.run(
        [*map(str, command), '--cfg-options', *options], capture_output=True, text=True, timeout=900, cwd=ROOT
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert 'What is trained:' in output and ('accuracy/top1' in output or 'mIoU' in output)
    (file,) = (tmp_path / 'run').glob('epoch_1.pth' if task.startswith('scalenet') else 'iter_2.pth')
    saved = torch.load(file, weights_only=False)['state_dict']
    assert torch.equal(saved['backbone.net.blocks.22.mlp.fc1.weight'], state['blocks.11.mlp.fc1.weight'])
