"""``scalenet_mm.scale`` on networks that hold more than one list of blocks, that share configs, or that it must
refuse.
"""

import copy
import doctest
import json
import threading

import numpy as np
import pytest
import torch
from conftest import filled, perturb
from host_zoo import LANGUAGE, MIXER, ZOO, Mixer, Mixers, huggingface, timm_model, timm_vit
from torch import nn

from scalenet_mm import HostFacts, Role, TrainPolicy, register_host, rescale, scale, scale_layers
from scalenet_mm.checkpoint.live_delta import delta_of, scale_by_delta
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.core import hosts
from scalenet_mm.core import scale as live
from scalenet_mm.core.adapters import Adjustment, ParallelAdapter
from scalenet_mm.core.hosts import REGISTERED
from scalenet_mm.core.layer_map import LayerMap
from scalenet_mm.core.roles import roles


def made(name: str, **options) -> nn.Module:
    zoo = ZOO[name]
    model = perturb(zoo.make(zoo.depths), std=0.1)
    model.eval()
    return model


def clip() -> nn.Module:
    import transformers as T

    one = dict(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=3)
    text = dict(one, vocab_size=64, max_position_embeddings=16, bos_token_id=1, eos_token_id=2)
    config = T.CLIPConfig(text_config=text, vision_config=dict(one, image_size=32, patch_size=8), projection_dim=8)
    return perturb(T.CLIPModel(config), std=0.1).eval()


def llava(taken: int | list[int] = -2) -> nn.Module:
    """A vision tower of two layers, of whose outputs ``taken`` go to a language model of three."""
    import transformers as T

    vision = T.CLIPVisionConfig(
        hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=2, image_size=32, patch_size=8
    )
    text = T.LlamaConfig(num_hidden_layers=3, **LANGUAGE)
    return T.LlavaForConditionalGeneration(
        T.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5, vision_feature_layer=taken)
    ).eval()


def holds_modules(value) -> bool:
    return isinstance(value, (tuple, list)) and any(isinstance(v, nn.Module) for v in value)


def same(model: nn.Module, before: nn.Module) -> None:
    assert str(model) == str(before)
    mine, theirs = model.state_dict(), before.state_dict()
    assert list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)
    for (name, a), b in zip(model.named_modules(), before.modules()):
        plain = (bool, int, float, str, tuple, list, type(None))
        said = [{k: v for k, v in vars(m).items() if isinstance(v, plain) and not holds_modules(v)} for m in (a, b)]
        assert type(a) is type(b) and said[0] == said[1], name
        if hasattr(getattr(a, 'config', None), 'to_dict'):
            assert a.config.to_dict() == b.config.to_dict()


def test_two_towers_need_stages_and_only_the_named_one_is_touched():
    source = clip()
    vision, text = 'vision_model.encoder.layers', 'text_model.encoder.layers'
    with pytest.raises(ValueError, match=rf"stages=\['{text}'\]"):
        scale(source)
    model = scale(copy.deepcopy(source), stages=[vision])
    assert len(model.get_submodule(vision)) == 6 and len(model.get_submodule(text)) == 3
    assert model.config.vision_config.num_hidden_layers == 6
    assert model.config.text_config.num_hidden_layers == 3
    same(model.text_model, source.text_model)
    found = roles(model)
    norms = [n for n, r in found.items() if r is Role.NORM]
    assert 'vision_model.post_layernorm.weight' in norms
    assert norms and all(n.startswith('vision_model.') for n in norms)
    again = copy.deepcopy(source)
    perturb(model.vision_model.encoder, std=0.05)
    scale_by_delta(again, delta_of(model, source))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        a, b = (m.get_image_features(image) for m in (model, again))
    assert torch.equal(getattr(a, 'pooler_output', a), getattr(b, 'pooler_output', b))
    longer = [0, 1, 2, 2]
    for own in (text, 0):  # a name, or an index of all containers, as in stages
        one = scale(copy.deepcopy(source), sources={own: longer})
        assert (len(one.get_submodule(text)), len(one.get_submodule(vision))) == (4, 3)
        with pytest.raises(ValueError, match='sources of a network of stages must be'):
            scale(copy.deepcopy(source), stages=[vision], sources={own: longer})
    both = scale(copy.deepcopy(source), stages='all')
    assert len(both.get_submodule(vision)) == len(both.get_submodule(text)) == 6


def test_layers_of_two_kinds_need_stages():
    cait = timm_model('cait_xxs24_224', img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    with pytest.raises(ValueError, match='blocks_token_only'):
        scale(cait)
    assert len(scale(cait, stages=['blocks']).blocks) == 4
    assert len(cait.blocks_token_only) == 2


def test_the_config_of_a_part_is_deepened_inside_the_config_of_the_whole():
    import transformers as T

    model = llava()
    name = 'model.language_model.layers'
    scale(model, stages=[name], order='stack')
    assert model.config.text_config.num_hidden_layers == 6
    assert model.config.vision_config.num_hidden_layers == 2
    assert model.model.language_model.config is model.config.text_config
    config = T.LlavaConfig.from_dict(model.config.to_dict())
    again = rescale(T.LlavaForConditionalGeneration(config), config.scalenet).eval()
    again.load_state_dict(model.state_dict())
    tokens = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_a_model_that_shares_its_config_is_not_changed():
    import transformers as T

    config = T.LlamaConfig(num_hidden_layers=3, **LANGUAGE)
    source, model = T.LlamaForCausalLM(config).eval(), T.LlamaForCausalLM(config).eval()
    said = copy.deepcopy(config.to_dict())
    before = copy.deepcopy(source)
    scale(model)
    assert model.config.num_hidden_layers == model.model.config.num_hidden_layers == 6
    assert model.config is model.model.config is model.model.layers[5].self_attn.config
    assert config.to_dict() == said and source.config is config
    same(source, before)


def test_norms_outside_a_scaled_part_are_not_trained():
    whole = nn.ModuleDict(dict(backbone=made('timm ViT'), neck=nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5))))
    scale(whole['backbone'])
    found = roles(whole)
    assert found['neck.1.weight'] is Role.OUTER
    assert found['backbone.norm.weight'] is Role.NORM


def test_hidden_states_are_those_of_the_scaled_depth_after_the_source_has_run():
    source, x = made('Hugging Face Llama'), ZOO['Hugging Face Llama'].input()
    assert len(source(x, output_hidden_states=True).hidden_states) == 4
    model = scale(source, adjust=None)
    with torch.no_grad():
        states = model(x, output_hidden_states=True, output_attentions=True)
    assert len(states.hidden_states) == 7
    for i in range(6):
        assert model.model.layers[i].self_attn.layer_idx == i


SWIN = ZOO['timm Swin'].make
VISION, TEXT = ['model.vision_tower.vision_model.encoder.layers'], ['model.language_model.layers']  # of LLaVA
REFUSED = {  # what -> (makes a model, arguments, what the error says)
    'scaled already': (lambda: scale(made('timm ViT')), {}, 'scaled already'),
    'layers': (lambda: made('timm ViT'), dict(layers=[7]), r'\b0\.\.2\b'),
    'times': (lambda: made('timm ViT'), dict(times=1.3), 'the nearest is 4 layers'),
    'times of stages': (lambda: made('timm Swin'), dict(times=[1, 2, 3]), 'one factor for each of the 2'),
    'stages': (lambda: made('timm Swin'), dict(stages=[5]), r'stages must be .*got \[5\]'),
    'stages by name': (lambda: made('timm Swin'), dict(stages=['blocks']), 'stages must be'),
    'sources': (lambda: made('timm ViT'), dict(sources=[0, 1]), 'every one of them'),
    'a stage of one layer that shifts no window': (lambda: SWIN((2, 1)), {}, 'two layers or more'),
    'order': (lambda: made('timm ViT'), dict(order='shuffle'), 'order must be one of'),
    'rank': (lambda: made('timm ViT'), dict(adjust=dict(rank=0)), 'rank'),
    'adjust_on': (lambda: made('timm ViT'), dict(adjust_on='some'), 'adjust_on must be one of'),
    'start': (lambda: made('timm ViT'), dict(start='zero'), 'start must be one of'),
    'a linear the host has not': (
        lambda: made('timm ConvNeXt'),
        dict(adjust=dict(type='LoRA')),
        r"no adjustable linear 'qkv'; choose from \['fc1', 'fc2'\]",
    ),
    'a linear read past its forward': (
        lambda: made('timm BEiT'),
        dict(adjust=dict(type='LoRA')),
        "no adjustable linear 'qkv'",
    ),
    'a map without the pretrained order': (
        lambda: made('timm ViT'),
        dict(sources=[2, 1, 0, 0], start='function'),
        'own order',
    ),
    'norms behind the branches': (
        lambda: timm_vit('vit_relpos_small_patch16_rpn_224', img_size=32)((3,)),
        dict(start='function'),
        'not known to be the identity',
    ),
    'norms behind the branches, mmpretrain': (
        lambda: mm_swin_v2(),
        dict(start='function'),
        'not known to be the identity',
    ),
    'a linear read past its forward, mmpretrain': (
        lambda: mm_swin_v2(),
        dict(adjust=dict(type='LoRA')),
        "no adjustable linear 'qkv'",
    ),
    'convolutions for an MLP': (
        lambda: timm_model('convnext_atto', depths=(1, 1, 2, 2), dims=(8, 8, 8, 8), conv_mlp=True),
        {},
        'holds no nn.Linear, and only those',
    ),
    'no blocks': (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), {}, 'No list of blocks'),
    'blocks of nobody': (
        lambda: Mixers((3,)),
        {},
        r"linear layers are \['tokens', 'wide.0', 'wide.2'\].*register_host",
    ),
    'outputs by layer': (lambda: features_only(), {}, 'out_indices'),
    'stage names of Hugging Face': (
        lambda: huggingface(
            'Dinov2Backbone', 'Dinov2Config', hidden_size=32, num_attention_heads=2, image_size=32, patch_size=8
        )((3,)),
        {},
        'ScaleNetHF',
    ),
    'a convolution between the branches': (
        lambda: timm_model('tiny_vit_5m_224'),
        dict(start='function', stages='all'),
        'not known to be the identity',
    ),
    'norms behind the branches of a decoder': (
        lambda: decoder('Olmo2'),
        dict(start='function'),
        'not known to be the identity',
    ),
    'MLPs beside one another': (
        lambda: timm_vit('vit_small_patch16_18x2_224', img_size=32)((3,)),
        {},
        'No list of blocks of a known host',
    ),
    'layers of several widths': (
        lambda: timm_model('hiera_tiny_224', embed_dim=16, num_heads=1, stages=(1, 2, 2, 1)),
        {},
        'change their width',
    ),
    'position embeddings by layer': (
        lambda: huggingface(
            'YolosModel', 'YolosConfig', hidden_size=32, num_attention_heads=2, image_size=[32, 32], patch_size=8
        )((3,)),
        {},
        'mid_position_embeddings',
    ),
    'constants by the index of a layer': (lambda: decoder('DiffLlama'), {}, 'lambda_init'),
    'layers of one width but the first': (lambda: mvit(), {}, 'change their width'),
    'a class token that joins at a layer': (
        lambda: timm_model('convit_tiny', img_size=32, embed_dim=8, depth=3, local_up_to_layer=2),
        {},
        'local_up_to_layer',
    ),
    'outputs that a config takes': (
        lambda: small('DPTForDepthEstimation', 'DPTConfig', backbone_out_indices=[0, 1, 2, 2], is_hybrid=False),
        {},
        'backbone_out_indices',
    ),
    'outputs by layer in a config': (
        lambda: small('BeitForSemanticSegmentation', 'BeitConfig', depth=4, out_indices=[1, 2, 3, 4]),
        {},
        'out_indices',
    ),
    'layers whose outputs another part reads': (lambda: qwen3_vision(), {}, 'deepstack_visual_indexes'),
    'a layer whose output the language model reads': (lambda: llava(-2), dict(stages=VISION), 'vision_feature_layer'),
    'layers whose outputs the language model reads': (
        lambda: llava([1, -1]),
        dict(stages=VISION),
        'vision_feature_layer',
    ),
    'linears read past their forward, Hugging Face': (
        lambda: small('VideoMAEModel', 'VideoMAEConfig', num_frames=2),
        dict(adjust=dict(type='LoRA')),
        "no adjustable linear 'qkv'",
    ),
    'linears without biases read past their forward, Hugging Face': (
        lambda: small('VideoMAEModel', 'VideoMAEConfig', num_frames=2, qkv_bias=False),
        dict(adjust=dict(type='LoRA')),
        "no adjustable linear 'qkv'",
    ),
    'layers in another order': (lambda: made('timm ViT'), dict(sources=[1, 0, 2]), 'at least one layer twice'),
    'a compiled linear layer': (lambda: compiled_linear(), {}, 'scale first'),
    'a list of blocks with hooks of accelerate': (lambda: dispatched(), {}, 'scale first, then dispatch'),
}


def small(model: str, config: str, depth: int = 3, **options) -> nn.Module:
    size = dict(hidden_size=32, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8)
    return huggingface(model, config, **size, **options)((depth,))


def qwen3_vision() -> nn.Module:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionConfig, Qwen3VLVisionModel

    size = dict(hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=16, patch_size=4)
    return Qwen3VLVisionModel(Qwen3VLVisionConfig(depth=3, deepstack_visual_indexes=[1], **size))


@pytest.mark.parametrize(('taken', 'tower'), [(-1, VISION), (-2, TEXT)])
def test_a_part_is_scaled_where_what_another_reads_of_it_stays_the_same(taken, tower):
    model = llava(taken)
    inputs = dict(input_ids=torch.tensor([[1, *[5] * 16, 2]]), pixel_values=torch.randn(1, 3, 32, 32))
    before = model(**inputs).logits
    scaled = scale(model, adjust=dict(type='LoRA', rank=2), start='function', stages=tower)
    torch.testing.assert_close(scaled(**inputs).logits, before)


def test_a_norm_behind_a_branch_is_told_by_the_class_where_structures_are_alike():
    import transformers as T

    model = T.CLIPSegForImageSegmentation(
        T.CLIPSegConfig(extract_layers=[0], reduce_dim=32, decoder_num_attention_heads=2)
    )
    tower, decoder = model.clip.vision_model.encoder.layers[0], model.decoder.layers[0]
    assert (hosts.host_facts(tower).writes, hosts.host_facts(decoder).writes) == (('proj', 'fc2'), None)


def mvit() -> nn.Module:
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    stages = dict(depths=(1, 2), embed_dim=(16, 32), num_heads=1, kernel_qkv=(3, 3), stride_q=((1, 1), (2, 2)))
    return MultiScaleVit(MultiScaleVitCfg(stride_kv=None, **stages), img_size=64)


def decoder(name: str) -> nn.Module:
    return huggingface(f'{name}ForCausalLM', f'{name}Config', **LANGUAGE)((3,))


def compiled_linear() -> nn.Module:
    model = made('timm ViT')
    model.blocks[1].mlp.fc1.compile(backend='eager')
    return model


def dispatched() -> nn.Module:
    from accelerate import dispatch_model

    return dispatch_model(made('timm ViT'), {'': 'cpu'}, force_hooks=True)


def test_lists_of_layers_in_a_config_name_every_instance():
    from transformers import VitDetConfig, VitDetModel

    def made(depth: int, windows: list[int], residual: list[int]) -> nn.Module:
        torch.manual_seed(0)
        lists = dict(window_block_indices=windows, residual_block_indices=residual, window_size=2)
        size = dict(hidden_size=32, num_attention_heads=2, image_size=48, patch_size=8)
        return VitDetModel(VitDetConfig(num_hidden_layers=depth, **lists, **size)).eval()

    source, deep = made(3, [0, 2], [1]), made(6, [0, 1, 4, 5], [2, 3])
    for i, layer in enumerate(deep.encoder.layer):
        layer.load_state_dict(source.encoder.layer[i // 2].state_dict())
    deep.embeddings.load_state_dict(source.embeddings.state_dict())
    scaled = scale(source, times=2, order='interpolate')
    assert (scaled.config.window_block_indices, scaled.config.residual_block_indices) == ([0, 1, 4, 5], [2, 3])
    image = torch.randn(1, 3, 48, 48)
    assert torch.equal(scaled(image).last_hidden_state, deep(image).last_hidden_state)
    again = rescale(VitDetModel(scaled.config), scaled.config.scalenet).eval()
    again.load_state_dict(scaled.state_dict())
    assert torch.equal(again(image).last_hidden_state, deep(image).last_hidden_state)
    assert again.encoder.layer[2].residual.conv1.weight is again.encoder.layer[3].residual.conv1.weight


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
def test_layers_that_look_at_the_whole_image_do_so_in_every_instance(order):
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLVisionConfig,
    )

    def made(depth: int, whole: list[int]) -> nn.Module:
        size = dict(hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=16, patch_size=4, window_size=16)
        torch.manual_seed(0)
        config = Qwen2_5_VLVisionConfig(depth=depth, fullatt_block_indexes=whole, **size)
        return perturb(Qwen2_5_VisionTransformerPretrainedModel(config), std=0.1).eval()

    sources = dict(interpolate=(0, 0, 1, 1, 2, 2), stack=(0, 1, 2, 0, 1, 2))[order]
    source = made(3, [1])
    deep = filled(made(6, [i for i, s in enumerate(sources) if s == 1]), source, dict(blocks=sources))
    scaled = scale(source, order=order, adjust=None)
    patches, grid = torch.randn(64, 3 * 2 * 4 * 4), torch.tensor([[1, 8, 8]])
    with torch.no_grad():
        assert torch.equal(scaled(patches, grid), deep(patches, grid))
    assert (scaled.config.depth, scaled.config.fullatt_block_indexes) == (6, deep.fullatt_block_indexes)
    with torch.no_grad():
        rebuilt = rescale(Qwen2_5_VisionTransformerPretrainedModel(scaled.config), scaled.scale_spec).eval()
        rebuilt.load_state_dict(scaled.state_dict())
        assert torch.equal(rebuilt(patches, grid), deep(patches, grid))


def test_layers_that_look_at_an_image_stay_those_in_a_decoder():
    from transformers import MllamaForCausalLM
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    config = MllamaTextConfig(num_hidden_layers=3, cross_attention_layers=[1], **TEXT_OF_MLLAMA)
    torch.manual_seed(0)
    source = perturb(MllamaForCausalLM(config), std=0.1).eval()
    before = source.model.layers[1]
    scaled = scale(source)
    assert scaled.config.cross_attention_layers == scaled.model.cross_attention_layers == [2, 3]
    assert scaled.model.layers[2] is before and type(scaled.model.layers[3]) is type(before)
    tokens = torch.tensor([[7, 8, 9]])
    with torch.no_grad():  # without an image its layers are passed over; all the others know how to do without
        assert scaled(tokens).logits.isfinite().all()


TEXT_OF_MLLAMA = dict(LANGUAGE, eos_token_id=2, pad_token_id=0, rope_scaling=dict(rope_type='default'))


def test_norms_with_other_names_are_each_instances_own():
    """Root mean square norms of timm, the response norms of Hugging Face and of mmpretrain."""
    from mmpretrain.models.backbones import ConvNeXt

    sizes = dict(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, image_size=32)
    hf = huggingface('ConvNextV2Model', 'ConvNextV2Config', **sizes)((2,))
    arch = dict(depths=[1, 2], channels=[8, 16])
    mm = ConvNeXt(arch, stem_patch_size=2, use_grn=True, layer_scale_init_value=0.0, out_indices=(1,))
    rms = timm_vit('vit_tiny_patch16_224', img_size=32, norm_layer='rmsnormfp32')((2,))
    for model, norms in ((hf, 'grn.weight'), (mm, 'grn.gamma'), (rms, 'norm2.weight')):
        scaled = scale(model, adjust=None)
        (layers,) = [
            m for m in scaled.modules() if getattr(m, 'layer_map', ()) and len(m) > len(set(m.layer_map.sources))
        ]
        a, b = (dict(block.named_parameters()) for block in layers[:2])
        assert a[norms] is not b[norms], norms
        found = [r for n, r in roles(scaled).items() if n.endswith(norms)]
        assert found and set(found) == {Role.NORM}


OUTPUTS_OF_OTHERS = {  # their configs list outputs that only a segmentor's or a depth estimator's class reads
    'BEiT': lambda: small('BeitForImageClassification', 'BeitConfig', depth=4, out_indices=[1, 2, 3, 4]),
    'Data2Vec': lambda: small('Data2VecVisionModel', 'Data2VecVisionConfig'),
    'DPT': lambda: small('DPTModel', 'DPTConfig', is_hybrid=False),
    'the last': lambda: small('Dinov2Model', 'Dinov2Config', out_indices=[-1]),
}


@pytest.mark.parametrize('name', OUTPUTS_OF_OTHERS)
def test_outputs_that_this_class_does_not_read_are_no_reason_to_refuse(name):
    model = perturb(OUTPUTS_OF_OTHERS[name](), std=0.1).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(image)[0]
        scaled = scale(model, adjust=None, start='function')
        assert torch.equal(scaled(image)[0], before)


def test_what_only_has_norm_in_its_name_is_tied():
    from timm.models.levit import ConvNorm, LinearNorm
    from torch.ao.nn.quantized import dynamic
    from transformers.models.cohere.modeling_cohere import CohereLayerNorm

    from scalenet_mm.core.tying import is_norm

    class NormMlp(nn.Module):
        """Holds no Parameter: its layer was quantised."""

        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(4), dynamic.Linear(4, 4)

    class NormedProduct_Norm(nn.Linear): ...

    assert not is_norm(ConvNorm(4, 4)) and not is_norm(LinearNorm(4, 4))
    assert not is_norm(NormMlp()) and not is_norm(NormedProduct_Norm(4, 4))
    assert is_norm(ConvNorm(4, 4).bn)
    assert is_norm(CohereLayerNorm((2, 4)))  # of queries: a weight for each head


def test_a_wrapped_network_is_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(made('timm ViT'))
        with pytest.raises(ValueError, match='scale first, then wrap'):
            scale(wrapped)
    finally:
        torch.distributed.destroy_process_group()


def mm_swin_v2() -> nn.Module:
    from mmpretrain.models.backbones import SwinTransformerV2

    arch = dict(embed_dims=16, depths=[2, 2], num_heads=[1, 2], extra_norm_every_n_blocks=0)
    return SwinTransformerV2(arch, img_size=32, patch_size=2, window_size=[4, 4], out_indices=(1,))


def features_only() -> nn.Module:
    import timm

    return timm.create_model(
        'vit_tiny_patch16_224', img_size=32, embed_dim=32, depth=3, num_heads=2, features_only=True, out_indices=(1, 2)
    )


def test_a_decoder_is_deepened_in_the_config_that_it_shares_with_its_encoder():
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration

    sides = {f'{side}_{what}': n for side in ('encoder', 'decoder') for what, n in (('num_attention_heads', 2),)}
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    layers = dict(encoder_num_hidden_layers=2, decoder_num_hidden_layers=2)
    config = MoonshineConfig(vocab_size=40, hidden_size=16, intermediate_size=32, **sides, **layers, **tokens)
    model = scale(MoonshineForConditionalGeneration(config).eval(), stages=['model.decoder.layers'])
    assert (model.config.encoder_num_hidden_layers, model.config.decoder_num_hidden_layers) == (2, 4)
    assert model.generate(input_values=torch.randn(2, 4000), max_new_tokens=3).shape == (2, 4)
    again = rescale(MoonshineForConditionalGeneration(model.config), model.config.scalenet)
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize('side', ['encoder', 'decoder'])
@pytest.mark.parametrize('host', ['T5', 'BART'])
def test_a_side_of_an_encoder_decoder_is_deepened_for_the_road_back(host, side):
    """T5's sides have configs of their own, BART's share one."""
    import transformers

    if host == 'T5':
        sizes = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, num_decoder_layers=2)
        made = lambda config: transformers.T5ForConditionalGeneration(config).eval()  # noqa: E731
        config, name = transformers.T5Config(**sizes, decoder_start_token_id=0), f'{side}.block'
        mlp = 'layer.2' if side == 'decoder' else 'layer.1'
        facts = HostFacts(host, fc1=f'{mlp}.DenseReluDense.wi', fc2=f'{mlp}.DenseReluDense.wo')
    else:
        sizes = {f'{s}_{what}': n for s in ('encoder', 'decoder') for what, n in (('layers', 2), ('ffn_dim', 32))}
        heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
        made = lambda config: transformers.BartForConditionalGeneration(config).eval()  # noqa: E731
        config, name = transformers.BartConfig(vocab_size=40, d_model=16, **sizes, **heads), f'model.{side}.layers'
        facts = HostFacts(host, fc1='fc1', fc2='fc2')
    model = scale(made(config), stages=[name], facts=facts)
    tokens = torch.randint(3, 40, (2, 5))
    cached = (host, side) != ('T5', 'decoder')  # whose stock `generate` takes both sides for equally deep
    assert model.generate(tokens, max_new_tokens=3, min_new_tokens=3, use_cache=cached).shape[0] == 2
    other = 'encoder' if side == 'decoder' else 'decoder'
    depths = {s: len(model.get_submodule(name.replace(side, s))) for s in (side, other)}
    assert depths == {side: 4, other: 2}
    again = rescale(made(model.config), model.config.scalenet, facts=facts)
    again.load_state_dict(model.state_dict())


def test_layers_that_call_their_place_otherwise_learn_it():
    from transformers import GPTNeoConfig, GPTNeoModel, LongformerConfig, LongformerModel

    sizes = dict(hidden_size=16, num_layers=2, num_heads=2, vocab_size=40)
    neo = GPTNeoModel(GPTNeoConfig(**sizes, intermediate_size=32, attention_types=[[['global', 'local'], 1]]))
    where = dict(proj='attn.attention.out_proj', fc1='mlp.c_fc', fc2='mlp.c_proj')
    scaled = scale(neo, facts=HostFacts('GPT-Neo', **where))
    assert [block.attn.attention.layer_id for block in scaled.h] == [0, 1, 2, 3]
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40)
    long = scale(LongformerModel(LongformerConfig(**sizes, attention_window=[4, 8])))
    assert long.config.attention_window == [4, 4, 8, 8]
    rescale(LongformerModel(long.config), long.config.scalenet).load_state_dict(long.state_dict())


def test_a_kind_that_follows_from_the_number_of_a_layer_has_no_road_back():
    from transformers import ModernBertConfig, ModernBertModel

    sizes = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, vocab_size=40)
    kinds = dict(global_attn_every_n_layers=2, local_attention=4, pad_token_id=0, attn_implementation='sdpa')
    facts = HostFacts('ModernBERT', fc1='mlp.Wi', fc2='mlp.Wo')
    scaled = scale(ModernBertModel(ModernBertConfig(**sizes, **kinds)), layers=(1, 2), facts=facts)
    with pytest.raises(ValueError, match=r'layers.2 is another kind of layer than its source, layer 1, .*_n_layers=2'):
        rescale(ModernBertModel(scaled.config), scaled.config.scalenet, facts=facts)


@pytest.mark.parametrize('adjust', [dict(type='ParallelAdapter', rank=4), None])
def test_padded_batches_of_an_encoder_of_torch(adjust):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2).eval()
    encoder, x = scale(encoder, adjust=adjust), torch.randn(2, 5, 16)
    padded = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    with torch.no_grad():
        fast = encoder(x, src_key_padding_mask=padded)
    slow = encoder(x.requires_grad_(), src_key_padding_mask=padded)  # with a gradient nothing is packed
    assert torch.allclose(fast[~padded], slow[~padded], atol=1e-6)


def test_what_adjusts_is_noted_as_plain_data():
    source = made('timm ViT')
    for given in (dict(type=ParallelAdapter, rank=4), dict(rank=np.int64(4))):
        scaled = scale(copy.deepcopy(source), adjust=given, layers=np.arange(2))
        assert json.loads(json.dumps(scaled.scale_spec)) == scaled.scale_spec
        delta = delta_of(scaled, source)
        again = copy.deepcopy(source)
        scale_by_delta(again, delta)
        same(again, scaled)


def test_a_compiled_network_gives_the_delta_of_what_it_holds():
    source = made('timm ViT')
    scaled = scale(copy.deepcopy(source))
    compiled = torch.compile(scaled)
    perturb(nn.ModuleList(m for m in scaled.modules() if isinstance(m, Adjustment)))
    held, plain = delta_of(compiled, source).tensors, delta_of(scaled, source).tensors
    assert held.keys() == plain.keys() and all(torch.equal(held[k], plain[k]) and plain[k].any() for k in plain)
    with pytest.raises(ValueError, match='compiled, .* scale first, then compile'):
        scale(torch.compile(source))


def test_a_copy_that_failed_half_way_is_in_nobodys_way():
    scaled = scale(made('timm ViT'))
    scaled.blocks[0].lock = threading.Lock()  # of which there is no copy
    with pytest.raises(TypeError) as kept:
        copy.deepcopy(scaled)
    torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert kept.value.__traceback__, 'which holds the copy'


def test_parts_sized_by_the_number_of_layers_are_refused():
    source = made('timm ViT')
    for attribute in ('embed_tokens_per_layer', 'layer_weights'):
        host = copy.deepcopy(source)
        setattr(host, attribute, nn.Parameter(torch.zeros(4)))
        with pytest.raises(ValueError, match=rf'\({attribute}\) for the layers'):
            scale(host)


@pytest.mark.parametrize('what', REFUSED)
def test_refused_before_anything_is_changed(what):
    make, options, says = REFUSED[what]
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises((ValueError, TypeError), match=says):
        scale(model, **options)
    same(model, before)


def test_quantised_linears_are_refused_before_anything_is_changed():
    model = made('timm ViT')
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match='no nn.Linear, and only those'):
        scale(model)
    assert [type(m) for m in model.modules()] == kinds

    class Quantised(nn.Linear):  # as those of bitsandbytes
        pass

    model = made('timm ViT')
    model.blocks[2].mlp.fc2.__class__ = Quantised
    before = copy.deepcopy(model)
    with pytest.raises(TypeError, match='plain linear layer'):
        scale(model)
    same(model, before)
    assert len(scale(model, adjust=None).blocks) == 6  # sharing asks nothing of them


def test_mmpretrains_vit_is_refused_with_a_pointer_to_the_registered_backbone():
    from mmpretrain.models.backbones import VisionTransformer

    arch = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
    model = VisionTransformer(arch, img_size=32, patch_size=8)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match='ScaleNetDeiT'):
        scale(model)
    same(model, before)
    model.eval()
    x = torch.randn(1, 3, 32, 32)
    y = model(x)[0]
    torch.testing.assert_close(scale(model, times=1)(x)[0], y, rtol=0, atol=1e-5)


def test_rescale_wants_the_depth_of_its_spec_and_a_network_that_is_not_scaled():
    model = scale(made('timm ViT'))
    other = made('timm ViT')
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match="{'blocks': 6}.*{'blocks': 3}"):
        rescale(other, model.scale_spec)
    same(other, before)
    with pytest.raises(ValueError, match='scaled already'):
        rescale(model, model.scale_spec)


def test_a_delta_on_another_source_is_refused_before_anything_is_changed():
    source = made('timm ViT')
    delta = delta_of(scale(copy.deepcopy(source)), source)
    other = perturb(copy.deepcopy(source), seed=5)
    before = copy.deepcopy(other)
    with pytest.raises(CheckpointError, match='another base'):
        scale_by_delta(other, delta)
    same(other, before)
    with pytest.raises(CheckpointError, match='not made by'):
        delta_of(source, source)


def test_a_delta_holds_a_trained_head_too():
    source = made('timm ViT')
    model = scale(copy.deepcopy(source))
    perturb(model.head)
    delta = delta_of(model, source)
    assert {'head.weight', 'head.bias'} <= set(delta.tensors)
    assert not any('norm' in name or 'attn' in name for name in delta.tensors)
    again = copy.deepcopy(source)
    scale_by_delta(again, delta)
    assert torch.equal(again.head.weight, model.head.weight)


def test_a_host_is_registered_in_five_lines():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return x + self.down(self.up(self.norm(x)).relu())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(*(Block() for _ in range(2)))

        def forward(self, x):
            return self.trunk(x)

    net, x = perturb(Net()), torch.randn(4, 8)
    y = net(x)
    with pytest.raises(ValueError, match='register_host'):
        scale(net)
    facts = register_host(HostFacts('mine', fc1='up', fc2='down', writes=('fc2',)))
    try:
        torch.testing.assert_close(scale(copy.deepcopy(net), start='function')(x), y)
    finally:
        REGISTERED.remove(facts)
    given = scale(copy.deepcopy(net), facts=facts, start='function')
    torch.testing.assert_close(given(x), y)
    with pytest.raises(ValueError, match='MLP'):
        register_host(HostFacts('half', qkv='attn.qkv'))


def test_blocks_of_different_mixers_in_one_list_are_each_read_by_their_own_structure():
    blocks = nn.ModuleList([*made('timm ViT').blocks[:1], *made('Hugging Face Llama').model.layers[:1]])
    tied = scale_layers(blocks, LayerMap.build(2, 2, 'interpolate'), dict(type='LoRA', rank=2))
    names = {n for n, _ in tied.named_modules() if n.endswith('.adapter')}
    assert {'1.attn.qkv.adapter', '3.self_attn.q_proj.adapter', '3.mlp.gate_proj.adapter'} <= names


def test_a_list_subclass_and_its_hooks_stay():
    class Trunk(nn.Sequential):
        def __init__(self, width, depth):
            super().__init__(*(Mixer() for _ in range(depth)))
            self.width = width

    trunk, seen = Trunk(32, 2), []
    trunk.register_forward_hook(lambda *args: seen.append(1))
    tied = scale_layers(trunk, LayerMap.build(2, 2), dict(type='ParallelAdapter', rank=2), facts=MIXER)
    tied(torch.randn(1, 16, 32))
    assert isinstance(tied, Trunk) and tied.width == 32 and len(tied) == 4 and seen == [1]


class Wrapped(nn.Module):
    """A network of Hugging Face in a module of one's own, as sentence-transformers has it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.auto_model = model

    def forward(self, ids):
        return self.auto_model(ids).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize('kind', ['Llama', 'Bert'])
def test_a_network_in_a_list_is_scaled_as_the_network_alone(kind):
    import transformers as T

    config = getattr(T, f'{kind}Config')(num_hidden_layers=3, **LANGUAGE)
    source, ids = getattr(T, f'{kind}Model')(config).eval(), torch.randint(0, 32, (1, 5))
    alone, listed = scale(Wrapped(copy.deepcopy(source))), scale(nn.Sequential(Wrapped(copy.deepcopy(source))))
    assert listed[0].auto_model.config.num_hidden_layers == 6
    assert torch.equal(listed(ids), alone(ids)) and not torch.equal(alone(ids), Wrapped(source)(ids))
    dpt = T.DPTConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8)
    dpt.num_hidden_layers, dpt.backbone_out_indices, dpt.is_hybrid = 3, [0, 1, 2, 2], False
    with pytest.raises(ValueError, match='keeps the layers whose outputs it uses'):
        scale(nn.Sequential(T.DPTForDepthEstimation(dpt)))


def encoder(depth: int = 2) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).eval()


def test_norms_of_every_tower_that_was_scaled_are_increments():
    towers = nn.ModuleDict(dict(vision=encoder(), former=encoder(), language=encoder()))
    scale(towers, stages=['vision.layers', 'language.layers'])
    trained = TrainPolicy('increments').apply(towers)
    norms = {name: sum(n.startswith(name) and 'norm' in n for n in trained) for name in towers}
    assert norms == {'vision': 16, 'former': 0, 'language': 16}


class HeldTwice(nn.Module):
    def __init__(self, network: nn.Module, first: bool):
        super().__init__()
        if first:
            self.blocks = network.layers
        self.network = network
        self.blocks = network.layers

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@torch.no_grad()
@pytest.mark.parametrize('first', [False, True])
def test_a_list_that_is_held_by_two_names_is_scaled_at_both(first):
    model, x = HeldTwice(encoder(), first), torch.randn(1, 3, 8)
    scale(model)
    assert model.blocks is model.network.layers and len(model.blocks) == 4
    assert torch.equal(model(x), model.network(x))


def test_a_compiled_list_is_refused():
    model = encoder()
    model.layers.compile(backend='eager')
    with pytest.raises(ValueError, match='A list of blocks is compiled.*scale first, then compile'):
        scale(model)
    assert len(model.layers) == 2


def test_each_tower_keeps_a_schedule_of_its_own():
    def image(rate: float) -> nn.Module:
        return timm_vit('vit_tiny_patch16_224', drop_path_rate=rate)((3,))

    def rates(net: nn.Module) -> list[float]:
        return [round(getattr(block.drop_path1, 'drop_prob', 0.0) or 0.0, 3) for block in net.blocks]

    towers = scale(nn.ModuleDict(dict(image=image(0.3), audio=image(0.1))), stages='all', times=[2, 1])
    assert rates(towers['image']) == [0.0, 0.06, 0.12, 0.18, 0.24, 0.3]
    assert rates(towers['audio']) == [0.0, 0.05, 0.1]


def test_networks_in_one_list_are_no_stages_of_one_another():
    with pytest.raises(ValueError, match='several lists of blocks that are no stages of one another'):
        scale(nn.ModuleList([encoder(), encoder()]))
    pair = scale(nn.ModuleList([encoder(), encoder()]), stages=['1.layers'])
    assert [len(net.layers) for net in pair] == [2, 4] and type(pair[0].layers) is nn.ModuleList


def test_torchvisions_drop_path_is_drawn_out():
    torchvision = pytest.importorskip('torchvision')
    swin = torchvision.models.swin_transformer.SwinTransformer
    model = swin([4, 4], 16, [2, 2], [1, 2], [4, 4], stochastic_depth_prob=0.3)
    scale(model, facts=HostFacts('torchvision', fc1='mlp.0', fc2='mlp.3'), stages='all')
    deep = swin([4, 4], 16, [4, 4], [1, 2], [4, 4], stochastic_depth_prob=0.3)
    found, wanted = ([block.stochastic_depth.p for i in (1, 3) for block in m.features[i]] for m in (model, deep))
    assert found == pytest.approx(wanted)


def test_facts_without_an_mlp_are_enough_for_what_they_adjust():
    facts = HostFacts('attention alone', qkv='linear1', proj='self_attn.out_proj')
    model = scale(encoder(), facts=facts, adjust=dict(type='LoRA', rank=2, targets=('qkv',)))
    assert len(model.layers) == 4 and hasattr(model.layers[3].linear1, 'adapter')


@pytest.mark.parametrize('assign', [False, True])
def test_a_network_made_without_memory_starts_with_adapters_at_zero(assign):
    source = perturb(timm_vit('vit_tiny_patch16_224')((2,))).eval()
    with torch.device('meta'):
        model = timm_vit('vit_tiny_patch16_224')((2,))
    scale(model, start='function')
    if not assign:
        model.to_empty(device='cpu')
    model.load_state_dict(source.state_dict(), assign=assign)
    x, ups = torch.randn(1, 3, 32, 32), [p for n, p in model.named_parameters() if n.endswith(('adapter.up', '.scale'))]
    assert ups and all(not p.is_meta and not p.any() for p in ups)
    downs = [p for n, p in model.named_parameters() if n.endswith('adapter.down')]
    assert all(0.2 < p.std() * p.shape[1] ** 0.5 < 2 for p in downs)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), source(x), atol=1e-6)


def test_the_examples_in_the_docstrings_run():
    for module in (live, hosts):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed
