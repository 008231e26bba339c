"""What is put on the instances of a scaled network after scaling is their own: saved, moved, copied and loaded."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from conftest import DEIT, SWIN, perturb, timm_vit
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models.peft.lora import LoRALinear, LoRAModel
from test_scaling import SURVIVES
from torch import nn
from torch.ao.quantization import MinMaxObserver
from torch.nn.utils import parametrizations, parametrize, prune

from scalenet_mm import scale
from scalenet_mm.core.depth import set_depth
from scalenet_mm.core.tying import refuse_merging

ADAPTER = dict(type='ParallelAdapter', rank=2)


class Columns(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(32))

    def forward(self, weight):
        return weight * self.gain


def probes(block):
    block.probe, block.probe_norm = nn.Linear(32, 4), nn.BatchNorm1d(32)
    block.gain = nn.Parameter(torch.ones(1))
    block.register_buffer('seen', torch.rand(3))


def low_rank(block):
    block.attn.qkv = LoRALinear(block.attn.qkv, rank=2)


def observed(block):
    block.observer = MinMaxObserver()
    block.observer(torch.randn(9))


def replaced(block):
    block.attn.proj = nn.Linear(32, 32)
    block.mlp.fc1.bias = nn.Parameter(torch.randn(64))


PUT = {
    'probes': probes,
    'LoRA': low_rank,
    'observers': observed,
    'replacements': replaced,
    'parametrizations': lambda block: parametrize.register_parametrization(block.attn.qkv, 'weight', Columns()),
    'weight norm': lambda block: parametrizations.weight_norm(block.attn.proj),
    'pruning': lambda block: prune.random_unstructured(block.attn.proj, 'weight', 0.5),
}


def changed(what: str, on=(0, 1, 3), seed: int = 0) -> nn.Module:
    """A scaled ViT, 3 -> 6 layers, with something put on some instances, and nowhere at its start."""
    torch.manual_seed(seed)
    vit = scale(timm_vit(3), times=2, adjust=ADAPTER)
    for i in on:
        PUT[what](vit.blocks[i])
    return perturb(vit, seed).eval()


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor in every place, whatever a state dict says."""
    both = *model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)
    return {name: tensor.detach().clone() for name, tensor in both}


def groups(model: nn.Module) -> set[frozenset[str]]:
    """The places that hold one Parameter."""
    by_id = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(p), set()).add(name)
    return set(map(frozenset, by_id.values()))


def loaded(model: nn.Module, what: str, assign: bool) -> nn.Module:
    other = changed(what, seed=7)
    assert any(not torch.equal(held(other)[k], v) for k, v in held(model).items())
    other.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=assign)
    return other


@pytest.mark.parametrize('what', PUT)
def test_what_is_put_on_an_instance_stays_its_own(what):
    model = changed(what)
    before, tied, x = held(model), groups(model), torch.randn(2, 3, 32, 32)
    ways = {
        **{name: SURVIVES[name] for name in ('deepcopy', 'double', 'swap on conversion')},
        'load': lambda m: loaded(m, what, assign=False),
        'load with assign': lambda m: loaded(m, what, assign=True),
    }
    if 'parametrizations' not in what and what != 'weight norm':  # torch pickles no parametrized module
        ways |= {name: SURVIVES[name] for name in ('pickle', 'torch.save')}
    with torch.no_grad():
        expected = model(x)
        for way, run in ways.items():
            twin = run(model)
            now = held(twin)
            assert now.keys() == before.keys() and groups(twin) == tied, way
            assert all(torch.equal(now[name], tensor) for name, tensor in before.items()), way
            torch.testing.assert_close(twin(x), expected, rtol=0, atol=0, msg=way)


@pytest.mark.parametrize('what', PUT)
def test_every_tensor_still_has_one_key(what):
    model = changed(what)
    state = model.state_dict(keep_vars=True)
    parameters = {id(t) for t in state.values()} & {id(p) for p in model.parameters()}
    assert len(parameters) == len(list(model.parameters()))
    assert len({id(t) for t in state.values()}) == len(state)


def test_an_addition_to_the_first_layers_is_no_file_of_the_unscaled_network():
    model = changed('LoRA', on=(0, 1, 2))  # as many as the source has layers
    before = held(model)
    other = changed('LoRA', on=(0, 1, 2), seed=7)
    other.load_state_dict({k: v for k, v in model.state_dict().items() if 'lora' in k}, strict=False)
    now = held(other)
    added = [name for name in before if 'lora' in name]
    assert len(added) == 3 * 2 and all(torch.equal(now[name], before[name]) for name in added)


def test_an_unscaled_state_dict_leaves_additions_as_they_are():
    source = perturb(timm_vit(3), seed=5)
    model = changed('probes', on=range(6))
    before = held(model)
    told = model.load_state_dict(source.state_dict(), strict=False)
    mine = {name for name in model.state_dict() if any(n in name for n in ('probe', 'gain', 'seen'))}
    counts = {name for name in mine if name.endswith('num_batches_tracked')}  # torch demands none
    assert set(told.missing_keys) == mine - counts and len(mine) == 6 * 9 and not told.unexpected_keys
    assert all(torch.equal(held(model)[name], before[name]) for name in mine)
    assert torch.equal(model.blocks[1].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


WRITERS = {  # what writes into a tensor, or views it, and what takes it off
    'pruning': (lambda m: prune.random_unstructured(m, 'weight', 0.5), lambda m: prune.remove(m, 'weight')),
    'columns': (
        lambda m: parametrize.register_parametrization(m, 'weight', Columns()),
        lambda m: parametrize.remove_parametrizations(m, 'weight'),
    ),
    'orthogonal': (parametrizations.orthogonal, lambda m: parametrize.remove_parametrizations(m, 'weight')),
    'weight norm': (parametrizations.weight_norm, lambda m: parametrize.remove_parametrizations(m, 'weight')),
    'old weight norm': (torch.nn.utils.weight_norm, torch.nn.utils.remove_weight_norm),
}


@pytest.mark.filterwarnings('ignore:.*weight_norm')
@pytest.mark.parametrize('kept', [True, False])
@pytest.mark.parametrize('what', WRITERS)
def test_what_a_tool_writes_for_one_instance_is_that_instances(what, kept):
    """On the owner of three: the other two stay as they are, tied and with one key."""
    put, remove = WRITERS[what]

    def made() -> nn.Module:
        torch.manual_seed(0)
        model = perturb(scale(timm_vit(3), times=3, adjust=ADAPTER)).eval()
        first, second = model.blocks[0].attn.proj, model.blocks[1].attn.proj
        put(first)
        if not kept:
            remove(first)
        with torch.no_grad():
            for p in set(first.parameters()) - set(second.parameters()):
                p.add_(0.1)
        return model

    model = made()
    torch.manual_seed(0)
    weight = perturb(scale(timm_vit(3), times=3, adjust=ADAPTER)).blocks[1].attn.proj.weight
    for twin in (model, model.double().float()):
        second, third = (twin.blocks[i].attn.proj for i in (1, 2))
        assert second.weight is third.weight and torch.equal(second.weight, weight)
    x = torch.randn(2, 3, 32, 32)
    expected, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    assert 'blocks.2.attn.proj.weight' not in state
    other = made()
    perturb(other, seed=9).load_state_dict(state)
    assert torch.equal(other(x), expected)
    assert model.blocks[0].attn.proj.bias is model.blocks[1].attn.proj.bias, 'what no tool wrote into'


def test_a_hook_on_one_instance_is_that_instances():
    model = changed('probes')
    model.blocks[1].attn.qkv.register_forward_hook(lambda module, args, output: None)
    for twin in (model, copy.deepcopy(model).double()):
        assert [len(block.attn.qkv._forward_hooks) for block in twin.blocks] == [0, 1, 0, 0, 0, 0]


def test_a_skipped_instance_gives_its_additions_a_zero_gradient():
    model = changed('LoRA', on=range(6)).train()
    set_depth(model, 3, zero_gradients=True)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    added = {name: p.grad for name, p in model.named_parameters() if 'lora' in name}
    assert len(added) == 6 * 2 and all(g is not None for g in added.values())
    assert sum(bool(g.any()) for g in added.values()) == 3 * 2


# ------------------------------------------------------------------------------- mmpretrain's LoRAModel

BACKBONES = {
    'ScaleNetDeiT': dict(type='ScaleNetDeiT', arch=DEIT, img_size=32, patch_size=8),
    'ScaleNetSwin': dict(type='ScaleNetSwin', arch=SWIN, img_size=64, window_size=2),
    'ScaleNetTimm': dict(
        type='ScaleNetTimm',
        model_name='vit_tiny_patch16_224',
        img_size=32,
        patch_size=8,
        depth=2,
        embed_dim=32,
        num_heads=2,
    ),
    'ScaleNetHF': dict(
        type='ScaleNetHF',
        model_name_or_config=dict(
            model_type='vit', hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        ),
        img_size=32,
    ),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_mmpretrains_lora_is_saved_and_loaded_for_every_instance(name, tmp_path):
    def build(seed):
        torch.manual_seed(seed)
        model = LoRAModel(dict(BACKBONES[name]), rank=2, targets=[dict(type='.*(qkv|query|q_proj)')])
        for n, p in model.named_parameters():
            if '.lora_' in n:
                nn.init.normal_(p)
        return model.eval()

    model, state = build(1), build(1).state_dict()
    added = [n for n, _ in model.named_parameters(remove_duplicate=False) if '.lora_' in n]
    assert set(added) == set(state) and len(added) >= 2 * 4
    x = torch.randn(1, 3, 64, 64) if 'Swin' in name else torch.randn(1, 3, 32, 32)
    for load in (lambda m, s: m.load_state_dict(s), lambda m, s: load_state_dict(m, s, strict=False)):
        other = build(2)
        with torch.no_grad():
            for mine, theirs in zip(other.parameters(), model.parameters()):
                if not mine.requires_grad:
                    mine.copy_(theirs)  # the base, which such a file does not hold
            assert not torch.equal(other(x)[-1], model(x)[-1])
            load(other, copy.copy(state))
            assert torch.equal(other.double().float()(x)[-1], model(x)[-1])


def test_a_backbones_file_is_held_to_the_rule_with_additions_too():
    from scalenet_mm.checkpoint.strict import CheckpointError

    backbone = MODELS.build(BACKBONES['ScaleNetDeiT'])
    for block in backbone.layers:
        block.probe = nn.Linear(32, 4)
    state = backbone.state_dict()
    backbone.load_state_dict(state)
    with pytest.raises(CheckpointError, match='1 missing in the file:\n  layers.1.probe.bias'):
        backbone.load_state_dict({k: v for k, v in state.items() if k != 'layers.1.probe.bias'})


# ------------------------------------------------------------------------------- merging


class Around(nn.Module):
    """A layer with an addition beside it, as PEFT keeps them."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer


@pytest.mark.parametrize('on', [(0,), (1,), (0, 1)])
def test_nothing_is_merged_into_a_tensor_of_several_layers(on):
    model = scale(timm_vit(3), sources=[0, 0, 1, 2], adjust=None)
    model.blocks[3].attn.qkv = Around(model.blocks[3].attn.qkv)
    refuse_merging(model)  # a layer that is used once
    for i in on:
        model.blocks[i].attn.qkv = Around(model.blocks[i].attn.qkv)
        with pytest.raises(ValueError, match=r'one tensor serves several layers'):
            refuse_merging(model.blocks[i].attn.qkv)
    refuse_merging(model.blocks[3].attn.qkv)
    with pytest.raises(ValueError, match=r'one tensor serves several layers'):
        refuse_merging(copy.deepcopy(model))
    with pytest.raises(ValueError, match=r'blocks\.[01]\.attn\.qkv.* one tensor serves several layers.*unload\(\)'):
        refuse_merging(model)


PEFT_RUN = """
import sys, tempfile
import torch, scalenet_mm
from transformers import LlamaConfig, LlamaForCausalLM
if {first}: import peft

def scaled(times=2):
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=64, **size)
    return scalenet_mm.scale(LlamaForCausalLM(config), times=times, adjust=dict(type='ParallelAdapter', rank=2)).eval()

def require_refused(merge):
    try:
        merge()
    except ValueError as error:
        assert 'one tensor serves several layers' in str(error)
    else:
        raise SystemExit('merged')

base, ids = scaled(), torch.arange(8)[None]
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
kinds = [
    LoraConfig(target_modules=['q_proj', 'down_proj'], r=2, init_lora_weights=False),
    LoraConfig(target_modules=['q_proj'], r=2, init_lora_weights=False, layers_to_transform=[0, 1]),
    IA3Config(target_modules=['k_proj', 'down_proj'], feedforward_modules=['down_proj'], init_ia3_weights=False),
]
with torch.no_grad():
    plain = base(ids).logits
    for kind in kinds:
        model = get_peft_model(scaled(), kind).eval()
        before = model(ids).logits
        assert not torch.equal(before, plain)
        folder = tempfile.mkdtemp()
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(scaled(), folder).eval()
        assert torch.equal(again(ids).logits, before)
        assert torch.equal(model.double().float()(ids).logits, before)
        layer = next(m for m in model.modules() if hasattr(m, 'base_layer'))
        for merge in (model.merge_and_unload, model.merge_adapter, layer.merge):
            require_refused(merge)
        assert torch.equal(model(ids).logits, before)
        assert torch.equal(model.unload()(ids).logits, plain)
    model = get_peft_model(scaled(), kinds[0], mixed=True).eval()
    before = model(ids).logits
    require_refused(model.merge_and_unload)
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(model.unload()(ids).logits, plain)
    model = get_peft_model(scaled(1), kinds[0]).eval()
    before = model(ids).logits
    for layer in [m for m in model.modules() if hasattr(m, 'base_layer')]:
        layer.merge()
        layer.unmerge()
    torch.testing.assert_close(model(ids).logits, before)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, before)
"""


@pytest.mark.parametrize('first', [True, False])
def test_pefts_adapters_are_saved_moved_and_never_merged(first):
    pytest.importorskip('peft')  # not asked for in other environments than ours
    env = dict(os.environ, OMP_NUM_THREADS='1')
    done = subprocess.run([sys.executable, '-c', PEFT_RUN.format(first=first)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
