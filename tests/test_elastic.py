"""Elastic depth: instances skipped, exits by confidence, training at random depths."""

import copy
import doctest
import json
import pickle
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import DEIT, LIVE_HOSTS, SWIN, first, perturb, timm_vit
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scalenet_mm import HostFacts, scale
from scalenet_mm.backbones.scaled import UNSCALED
from scalenet_mm.core import depth as elastic
from scalenet_mm.core.adapters import Adjustment
from scalenet_mm.core.depth import RandomDepth, active_instances, depth_range, instances_at, set_depth, tied_containers
from scalenet_mm.core.early_exit import EarlyExit, largest_probability, passes
from scalenet_mm.core.flops import count_flops
from scalenet_mm.core.tying import shared_names
from scalenet_mm.experiments.study import exits as study
from scalenet_mm.experiments.study import exits_page
from scalenet_mm.experiments.study.pool import RESULTS, read_results
from scalenet_mm.experiments.study.runs import config, jobs_of
from scalenet_mm.experiments.study.studies import ROWS
from scalenet_mm.ops import set_ops

ADAPTER = dict(type='ParallelAdapter', rank=4)
IMAGES = (2, 3, 32, 32)


def hf(name: str, **changes):
    import transformers

    torch.manual_seed(0)
    cfg = getattr(transformers, f'{name}Config')(**changes)
    kind = dict(Llama='LlamaForCausalLM').get(name, f'{name}Model')
    return perturb(getattr(transformers, kind)._from_config(cfg, attn_implementation='eager'), std=0.05)


def llama():
    return hf(
        'Llama',
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def hf_vit():
    return hf(
        'ViT',
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )


def hf_swin():
    return hf('Swin', embed_dim=16, depths=[2, 2], num_heads=[1, 2], image_size=32, patch_size=2, window_size=4)


def timm_swin():
    import timm

    return timm.models.SwinTransformer(
        img_size=32, patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4, num_classes=5
    )


def mm(kind: str, **host):
    return MODELS.build(dict(type=kind, ops='plain', **host))


def mm_pair(kind: str, **host):
    """(source, order -> the scaled backbone with the source's weights)."""
    source = perturb(mm(kind, scale=UNSCALED, **host), std=0.1)

    def scaled(order: str):
        stages = dict(stages='all') if kind == 'ScaleNetSwin' else {}
        model = mm(kind, scale=dict(order=order, adjust=ADAPTER, **stages), **host)
        model.load_state_dict(copy.deepcopy(source.state_dict()))
        return model.eval()

    return source.eval(), scaled


def live_pair(make):
    source = perturb(make(), std=0.1)
    source.eval()

    def scaled(order: str):
        model = scale(copy.deepcopy(source), order=order, adjust=ADAPTER, stages='all')
        model.eval()
        return set_ops(model, 'plain')

    return source, scaled


DEIT_MM = dict(arch=DEIT, img_size=32, patch_size=8)
SWIN_MM = dict(arch=SWIN, img_size=64, patch_size=2, window_size=4, out_indices=(0, 1, 2, 3))
# name -> (makes (source, order -> scaled), shape of an input; None for token ids)
PAIRS = {
    **{name: (partial(live_pair, make), shape) for name, (make, _, shape) in LIVE_HOSTS.items()},
    'timm Swin': (partial(live_pair, timm_swin), IMAGES),
    'HF ViT': (partial(live_pair, hf_vit), IMAGES),
    'HF Swin': (partial(live_pair, hf_swin), IMAGES),
    'HF Llama': (partial(live_pair, llama), None),
    'ScaleNetDeiT': (partial(mm_pair, 'ScaleNetDeiT', **DEIT_MM), IMAGES),
    'ScaleNetSwin': (partial(mm_pair, 'ScaleNetSwin', **SWIN_MM), (2, 3, 64, 64)),
}


def inputs(shape) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(3, 50, (2, 7)) if shape is None else torch.randn(shape)


@torch.no_grad()
def outputs(model: nn.Module, x) -> list[torch.Tensor]:
    out = model(x)
    out = out.to_tuple() if hasattr(out, 'to_tuple') else out
    out = out if isinstance(out, (tuple, list)) else [out]
    return [t for t in out if isinstance(t, torch.Tensor)]


def same(a: list, b: list) -> bool:
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


@pytest.fixture(params=[(host, order) for host in PAIRS for order in ('interpolate', 'stack')], ids=' '.join)
def pair(request):
    """(source, scaled with untouched adapters, input)."""
    host, order = request.param
    make, shape = PAIRS[host]
    source, scaled = make()
    return source, scaled(order), inputs(shape)


@pytest.fixture
def vit():
    """A scaled timm ViT, 3 layers twice, every tensor moved."""
    return perturb(scale(timm_vit(3), adjust=ADAPTER), std=0.05).eval()


def classifier(order: str) -> nn.Module:
    torch.manual_seed(0)
    return perturb(scale(timm_vit(3), order=order, adjust=ADAPTER), std=0.05).eval()


def of_kept_blocks(model: nn.Module, active: dict) -> nn.Module:
    """The reference: a plain network that holds the active instances and no others."""
    plain = copy.deepcopy(model)
    set_depth(plain)
    for name, instances in active.items():
        layers = plain.get_submodule(name)
        host = type(layers).__bases__[1]
        blocks = [layers[i] for i in instances]
        parent, _, attribute = name.rpartition('.')
        made = host(*blocks) if issubclass(host, nn.Sequential) else host(blocks)
        setattr(plain.get_submodule(parent), attribute, made)
    return plain


# ------------------------------------------------------------------------------- skipping


def test_at_the_source_depth_untouched_adapters_give_the_source_bit_for_bit(pair):
    source, scaled, x = pair
    low, high = depth_range(scaled)
    assert high == 2 * low
    active = set_depth(scaled, low)
    assert sum(map(len, active.values())) == low
    assert same(outputs(scaled, x), outputs(source, x))
    assert active_instances(scaled) == active == set_depth(scaled, np.int64(low))


def handing_on(host: str) -> tuple[nn.Module, torch.Tensor, dict]:
    """A host whose blocks hand on more than a hidden state, its input, and what `scale` is told of it."""
    if host == 'TNT':
        import timm

        net = timm.create_model('tnt_s_legacy_patch16_224', img_size=32, depth=2, num_classes=3)
        return net, torch.randn(2, 3, 32, 32), {}
    import transformers

    size = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64)
    if host == 'LiLT':
        net = transformers.LiltModel(transformers.LiltConfig(**size))
        return net, torch.randint(2, 64, (2, 8)), {}
    net = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0)
    )
    attention = {'qkv': tuple(f'layer.0.SelfAttention.{name}' for name in 'qkv'), 'proj': 'layer.0.SelfAttention.o'}
    mlp = {name: f'layer.1.DenseReluDense.{place}' for name, place in (('fc1', 'wi'), ('fc2', 'wo'))}
    return net, torch.randint(2, 64, (2, 8)), dict(facts=HostFacts('T5', **attention, **mlp))


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
@pytest.mark.parametrize('host', ['T5', 'TNT', 'LiLT'])
def test_what_blocks_hand_on_beside_their_state_passes_a_skipped_one(host, order):
    torch.manual_seed(0)
    net, x, told = handing_on(host)
    net = perturb(net, std=0.3).eval()
    with torch.no_grad():
        before = outputs(net, x)
        scaled = scale(net, order=order, **told)
        whole = outputs(scaled, x)
        assert not same(whole, before)
        set_depth(scaled, 2)
        assert same(outputs(scaled, x), before)
        kept = [layers.skipping.last for layers in tied_containers(scaled).values()]
        assert kept == [()], 'nothing of a pass is kept after it'
        for dropout in (m for m in scaled.train().modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.0
        set_depth(scaled, 2, zero_gradients=True)  # two in a row are skipped in the stacked order
        assert same(outputs(scaled, x), before)
        scaled.eval()
        set_depth(scaled)
        assert same(outputs(scaled, x), whole)


def test_early_exit_refuses_blocks_that_hand_on_more_than_their_state():
    net, x, _ = handing_on('TNT')
    with pytest.raises(ValueError, match='hands on more than its state'):
        EarlyExit(scale(net, order='stack').eval(), 2.0, [2, 4])(x)


def test_back_at_full_depth_nothing_has_changed_twice(pair):
    _, scaled, x = pair
    perturb(scaled, std=0.05)
    whole, (low, high) = outputs(scaled, x), depth_range(scaled)
    keys = set(scaled.state_dict())
    for depth in (low, high - 1):
        set_depth(scaled, depth)
        assert not same(outputs(scaled, x), whole)
        assert set(scaled.state_dict()) == keys
        set_depth(scaled)
        assert same(outputs(scaled, x), whole)
    blocks = [b for layers in tied_containers(scaled).values() for b in layers]
    assert not any('forward' in vars(b) or b._forward_hooks for b in blocks)


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
@pytest.mark.parametrize('host', LIVE_HOSTS)
def test_every_depth_equals_a_network_of_the_kept_blocks(host, order):
    make, container, shape = LIVE_HOSTS[host]
    model = perturb(scale(perturb(make()), order=order, adjust=ADAPTER), std=0.05)
    model.eval()
    x = inputs(shape)
    for depth in (3, 4, 5):
        reference = of_kept_blocks(model, instances_at(model, depth))
        assert len(reference.get_submodule(container)) == depth
        set_depth(model, depth)
        assert same(outputs(model, x), outputs(reference, x))


def test_which_instances_run():
    def at(depth, **how):
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4)
        return instances_at(scale(encoder, **how), depth)['layers']

    assert at(4) == (0, 2, 4, 6)  # 0 0 1 1 2 2 3 3
    assert at(6) == (0, 2, 3, 4, 6, 7)  # the second instances of layers 1 and 3: evenly spaced
    assert at(4, order='stack') == (0, 1, 2, 3)
    assert at(6, order='stack') == (0, 1, 2, 3, 4, 5)  # the beginning of the deeper one
    assert at(5, sources=(1, 0, 1, 2, 3, 3)) == (0, 1, 2, 3, 4)  # 1 to 4 are in order; 0 runs always
    assert at(4, sources=(3, 2, 1, 0, 0)) == (0, 1, 2, 3)  # no such order: the owners
    with pytest.raises(ValueError, match='from 5 .* to 6'):
        at(4, sources=(1, 0, 1, 2, 3, 3))


def test_windows_shift_as_in_the_source():
    _, scaled = live_pair(hf_swin)
    assert instances_at(scaled('interpolate'), 4) == {
        'encoder.layers.0.blocks': (0, 3),  # of sources 0 0 1 1, the ones at their sources' parity
        'encoder.layers.1.blocks': (0, 3),
    }


def test_multi_layer_outputs_keep_their_indices():
    source, _ = mm_pair('ScaleNetDeiT', out_indices=(0, 1, 2), **DEIT_MM)
    model = mm('ScaleNetDeiT', out_indices=(1, 3, 5), scale=dict(adjust=ADAPTER), **DEIT_MM).eval()
    model.load_state_dict(source.state_dict())
    x = inputs(IMAGES)
    set_depth(model, 3)  # instances 0, 2, 4: after 1, 3, 5 what the source has after 0, 1, 2
    found = outputs(model, x)
    assert len(found) == 3 and same(found, outputs(source, x))


def test_a_function_preserving_start_is_the_source_at_every_depth():
    source = perturb(timm_vit(3)).eval()
    model = scale(copy.deepcopy(source), adjust=ADAPTER, start='function').eval()
    x = inputs(IMAGES)
    for depth in (3, 4, 5, 6):
        set_depth(model, depth)
        assert same(outputs(model, x), outputs(source, x))


def test_depth_is_shared_out_over_stages_or_named_by_stage():
    _, scaled = mm_pair('ScaleNetSwin', **SWIN_MM)
    model = scaled('stack')
    sizes = {k: len(v) for k, v in instances_at(model, 12).items()}
    assert list(sizes.values()) == [3, 3, 3, 3]
    active = set_depth(model, {'stages.2.blocks': 3})
    assert active['stages.2.blocks'] == (0, 1, 2) and active['stages.0.blocks'] == (0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"'stages.2.blocks': \(2, 4\).*got {'stages.9': 3}"):
        set_depth(model, {'stages.9': 3})
    with pytest.raises(ValueError, match='got .*5'):
        set_depth(model, {'stages.2.blocks': 5})
    assert active_instances(model) == active


@pytest.mark.parametrize('depth', [2, 7, 0, -1, 3.5, True, '4'])
def test_a_depth_outside_the_range_is_refused_and_changes_nothing(vit, depth):
    active = set_depth(vit, 4)
    with pytest.raises(ValueError, match='from 3 .* to 6 .*got'):
        set_depth(vit, depth)
    assert active_instances(vit) == active


def test_a_network_without_tied_layers_is_refused():
    with pytest.raises(ValueError, match='no tied layers.*scalenet_mm.scale'):
        set_depth(timm_vit(3), 3)


def test_a_forward_of_somebody_else_is_not_overwritten(vit):
    mine = vit.blocks[4].forward = partial(type(vit.blocks[4]).forward, vit.blocks[4])
    with pytest.raises(ValueError, match=r'blocks.4 was replaced.*remove_hook_from_module'):
        set_depth(vit, 3)
    assert vit.blocks[4].forward is mine and 'forward' not in vars(vit.blocks[1])


def test_recorded_outputs_leave_nothing_that_stands_in_the_way():
    """transformers 4 leaves the class's own forward on the instance; accelerate's hooks replace it."""
    model, tokens = scale(llama(), times=2).eval(), inputs(None)
    for how in (lambda: model(tokens, output_hidden_states=True), lambda: None):
        how()
        assert len(set_depth(model, 4)['model.layers']) == 4
        set_depth(model)
        for block in model.model.layers:
            block.forward = block.forward
    strange = model.model.layers[1]
    strange.forward = model.model.layers[0].forward  # of another block
    with pytest.raises(ValueError, match=r'layers.1 was replaced'):
        set_depth(model, 4)


@pytest.mark.parametrize('how', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_depth_and_ties_and_are_independent(vit, how):
    x = inputs(IMAGES)
    whole = outputs(vit, x)
    set_depth(vit, 4)
    found = outputs(vit, x)
    other = how(vit)
    assert same(outputs(other, x), found) and active_instances(other) == active_instances(vit)
    assert other.blocks[0].attn.qkv.weight is other.blocks[1].attn.qkv.weight
    assert other.blocks[1].forward.args[0] is other.blocks[1]
    set_depth(other)
    assert same(outputs(other, x), whole)
    assert same(outputs(vit, x), found)


def test_a_state_dict_of_any_depth_is_that_of_the_full_one(vit):
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    set_depth(vit, 3)
    after = vit.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    assert vit.load_state_dict(before).missing_keys == []
    assert vit.blocks[0].attn.qkv.weight is vit.blocks[1].attn.qkv.weight


def test_a_compiled_network_follows_the_depth(vit):
    compiled, x = torch.compile(vit, backend='eager'), inputs(IMAGES)
    for depth in (6, 3, 5, 6):
        set_depth(vit, depth)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), vit(x))


def test_flops_are_those_of_the_source_with_its_adapters(vit):
    costs = {}
    for times, depth in ((1, 3), (4 / 3, 4), (2, 6)):
        fresh = scale(timm_vit(3), times=times, adjust=ADAPTER)
        costs[depth] = count_flops(fresh, (32, 32))
    for depth, cost in costs.items():
        set_depth(vit, depth)
        assert count_flops(vit, (32, 32)) == cost
    assert costs[3] < costs[4] < costs[6]


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
def test_cached_generation_equals_uncached_at_every_depth(order):
    _, scaled = live_pair(llama)
    model, tokens = perturb(scaled(order), std=0.05), inputs(None)
    how = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    for depth in (3, 4, 6):
        active = set_depth(model, depth)['model.layers']
        cached = model.generate(tokens, use_cache=True, return_dict_in_generate=True, **how)
        assert torch.equal(cached.sequences, model.generate(tokens, use_cache=False, **how))
        filled = {i for i, c in enumerate(cached.past_key_values.layers) if c.get_seq_length()}
        assert filled == set(active)


@pytest.mark.parametrize('module', [elastic, study])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


# ------------------------------------------------------------------------------- training


def own(block: nn.Module) -> list[nn.Parameter]:
    tied = set(shared_names(block))
    return [p for n, p in block.named_parameters() if n not in tied]


def test_gradients_reach_active_instances_alone(vit):
    active = set_depth(vit.train(), 4)['blocks']
    vit(inputs(IMAGES)).square().mean().backward()
    for i, block in enumerate(vit.blocks):
        assert all((p.grad is not None) == (i in active) for p in own(block))
        assert block.attn.qkv.weight.grad.abs().sum() > 0
    assert any(isinstance(m, Adjustment) for m in vit.modules()) and len(active) == 4


def test_at_random_depths_skipped_instances_have_zero_gradients_and_the_others_the_same(vit):
    x, twin = inputs(IMAGES), copy.deepcopy(vit)
    draw = RandomDepth(vit.train(), full=0, seed=3)
    step = next(s for s in range(99) if draw(s) == 4)
    draw(step)
    vit(x).square().mean().backward()
    set_depth(twin.train(), 4)
    twin(x).square().mean().backward()
    active = active_instances(vit)['blocks']
    for i, (block, other) in enumerate(zip(vit.blocks, twin.blocks)):
        for p, q in zip(own(block), own(other)):
            assert torch.equal(p.grad, q.grad if i in active else torch.zeros_like(p))
        assert torch.equal(block.attn.qkv.weight.grad, other.attn.qkv.weight.grad)


def test_random_depths_are_uniform_beside_the_full_one_and_depend_on_seed_and_step_alone(vit):
    draws = [RandomDepth(vit, full=0.5, seed=1)(s) for s in range(1000)]
    again = RandomDepth(copy.deepcopy(vit), full=0.5, seed=1)
    assert [again(s) for s in (999, 3, 500)] == [draws[s] for s in (999, 3, 500)]
    found = Counter(draws)
    assert set(found) == {3, 4, 5, 6}
    for depth, share in {3: 1 / 8, 4: 1 / 8, 5: 1 / 8, 6: 5 / 8}.items():
        assert abs(found[depth] / 1000 - share) < 0.05
    assert {RandomDepth(vit, full=1)(s) for s in range(20)} == {6}
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match='probability'):
            RandomDepth(vit, full=wrong)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_random_depth_trains_under_ddp_where_plain_skipping_does_not(vit, one_process):
    x, model = inputs(IMAGES), DistributedDataParallel(vit.train())
    draw = RandomDepth(vit, full=0.2)
    depths = []
    for step in range(6):
        depths.append(draw(step))
        model(x).square().mean().backward()
    assert len(set(depths)) > 1
    set_depth(vit, 3)
    model(x).square().mean().backward()
    with pytest.raises(RuntimeError, match='finished reduction'):
        model(x)


class Depths(Hook):
    """Writes down how deep the model was."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.trained, self.validated = [], []

    @staticmethod
    def of(runner):
        return sum(map(len, active_instances(runner.model).values()))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.trained.append(self.of(runner))

    def before_val(self, runner):
        self.validated.append(self.of(runner))


def test_the_hook_trains_at_random_depths_and_validates_at_full_depth(tmp_path):
    row = replace(study.RANDOM[0], steps=8, source=None)
    cfg = config(row, 0, tmp_path)
    cfg.train_cfg.val_interval, cfg.experiment_name = 8, 'random_depth'
    cfg.val_dataloader.dataset.update(batches=1, batch=4)
    cfg.train_dataloader.dataset.batch = 4
    runner, depths = Runner.from_cfg(cfg), Depths()
    runner.register_hook(depths)
    runner.train()
    draw = RandomDepth(copy.deepcopy(runner.model))
    assert depths.trained == [draw(step) for step in range(8)] and len(set(depths.trained)) > 1
    assert depths.validated == [6] and Depths.of(runner) == 6


# ------------------------------------------------------------------------------- early exit


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
def test_every_sample_has_the_result_of_the_depth_it_stopped_at(order):
    model = classifier(order)
    torch.manual_seed(2)
    x = torch.randn(24, 3, 32, 32)
    at = {}
    for depth in (3, 4, 5, 6):
        set_depth(model, depth)
        at[depth] = outputs(model, x)[0]
    threshold = float(largest_probability(at[3]).median())
    before = set_depth(model, 5)
    exits = EarlyExit(model, threshold, depths=[3, 4, 5, 6])(x)
    assert active_instances(model) == before
    assert len(set(exits.depth.tolist())) >= 3
    for i, depth in enumerate(exits.depth.tolist()):
        torch.testing.assert_close(exits.logits[i], at[depth][i])
        for shallower in range(3, depth):
            assert largest_probability(at[shallower][i : i + 1]) < threshold
        assert depth == 6 or largest_probability(at[depth][i : i + 1]) >= threshold
    assert torch.equal(EarlyExit(model, 0)(x).logits, at[3])
    assert torch.equal(EarlyExit(model, 1.1)(x).logits, at[6])
    assert set(EarlyExit(model, 1.1)(x).depth.tolist()) == {6}


def first_output(model, x):
    out = model(x)
    return first(out.to_tuple()) if hasattr(out, 'to_tuple') else out


@pytest.mark.parametrize('host', ['HF ViT', 'HF Swin', 'timm Swin', 'HF Llama'])
def test_exits_work_on_other_hosts(host):
    make, shape = PAIRS[host]
    model, x = perturb(make()[1]('stack'), std=0.05), inputs(shape)
    assert_whole_exits(model, x)


@pytest.mark.parametrize('stages', [(0,), (1,), 'all'])
@pytest.mark.parametrize('make', [hf_swin, timm_swin])
def test_exits_pass_containers_that_run_whole(make, stages):
    assert_whole_exits(perturb(scale(make(), adjust=ADAPTER, stages=stages), std=0.05).eval(), inputs(IMAGES))


def assert_whole_exits(model, x):
    """A cascade that nothing stops ends with what the whole network says."""

    set_depth(model)
    with torch.no_grad():
        whole = first_output(model, x)
    exits = EarlyExit(model, 2, predict=first_output)(x)
    torch.testing.assert_close(exits.logits, whole)
    assert (exits.multiply_adds > 0).all()


class EncoderDecoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        kinds = (torch.nn.TransformerEncoder, torch.nn.TransformerDecoder)
        layers = (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)
        made = (k(layer(16, 2, 32, batch_first=True, dropout=0.0), 2) for k, layer in zip(kinds, layers))
        self.encoder, self.decoder = made
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.decoder(x.flip(1), self.encoder(x)).mean(1))


@pytest.mark.parametrize('depths', [[4, 5], [5, 6], [6, 7], [4, 8]])
def test_a_prefix_ends_where_the_next_list_does_not_go_on_from_it(depths):
    torch.manual_seed(0)
    model = perturb(scale(EncoderDecoder(), order='stack', stages='all'), std=0.2).eval()
    x = torch.randn(3, 5, 16)
    exits = EarlyExit(model, 2.0, depths=depths)(x)  # none is sure enough: the last depth decides
    with torch.no_grad():
        set_depth(model, depths[-1])
        assert torch.allclose(exits.logits, model(x), atol=1e-6)


def test_a_prefix_is_not_computed_again_and_everything_else_is_counted_again():
    calls, x = Counter(), torch.randn(4, 3, 32, 32)
    for order, expected in (
        ('stack', [1, 1, 1, 1, 1, 1]),
        ('interpolate', [1, 1, 2, 1, 2, 1]),  # instance 0 is the beginning of both
    ):
        model = classifier(order)
        cascade = EarlyExit(model, 2)
        cascade.costs(x)
        for i, block in enumerate(model.blocks):
            block.attn.register_forward_hook(lambda *_, i=i: calls.update([i]))
        calls.clear()
        cascade(x)
        assert [calls[i] for i in range(6)] == expected


def test_multiply_adds_are_those_that_count_flops_finds_in_networks_of_these_blocks():
    for order in ('stack', 'interpolate'):
        model, x = classifier(order), torch.randn(3, 3, 32, 32)
        small, full = (count_flops(of_kept_blocks(model, instances_at(model, d)), (32, 32)) for d in (3, 6))
        block = (full - small) // 3
        kept = {'stack': 3, 'interpolate': 1}[order]
        assert EarlyExit(model, 0)(x).multiply_adds.tolist() == [small] * 3
        assert EarlyExit(model, 2)(x).multiply_adds.tolist() == [small + full - kept * block] * 3
        assert active_instances(model) == {'blocks': tuple(range(6))}


def test_an_empty_batch_leaves_the_counts_of_the_next_one_as_they_are():
    model, x = classifier('stack'), torch.randn(3, 3, 32, 32)
    cascade, fresh = EarlyExit(model, 2), EarlyExit(model, 2)(x)
    assert cascade(x[:0]).multiply_adds.tolist() == []
    assert cascade(x).multiply_adds.tolist() == fresh.multiply_adds.tolist() and fresh.multiply_adds.min() > 0


def test_depths_of_a_cascade_must_increase_within_the_range(vit):
    for wrong in ([4, 3], [3, 3], []):
        with pytest.raises(ValueError, match='must increase, from 3 to 6'):
            EarlyExit(vit, 0.5, depths=wrong)
    with pytest.raises(ValueError, match='got 9'):
        passes(vit, [3, 9])


def test_exits_in_train_mode_are_refused():
    model = classifier('stack')
    exits, x = EarlyExit(model, 2), torch.randn(2, 3, 32, 32)
    model.train()
    with pytest.raises(ValueError, match=r'train mode.*model.eval\(\) first'):
        exits(x)
    model.eval()
    assert exits(x).depth.tolist() == [6, 6]


def test_blocks_that_put_the_samples_elsewhere_are_refused():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 2, enable_nested_tensor=False)
    model = scale(encoder, order='stack').eval()
    turned = EarlyExit(model, 2, predict=lambda m, x: m(x.transpose(0, 1)).transpose(0, 1)[:, 0])
    with pytest.raises(ValueError, match='samples first'):
        turned(torch.randn(3, 5, 8))
    assert active_instances(model) == {'layers': (0, 1, 2, 3)}


# ------------------------------------------------------------------------------- the study


def test_the_curve_over_thresholds_is_what_early_exit_does():
    model = classifier('stack')
    torch.manual_seed(3)
    x, truth = torch.randn(40, 3, 32, 32), torch.randint(5, (40,))
    depths, sure, right = [3, 4, 6], [], []
    for depth in depths:
        set_depth(model, depth)
        logits = outputs(model, x)[0]
        sure.append(largest_probability(logits).double().numpy())
        right.append((logits.argmax(-1) == truth).double().numpy())
    costs = EarlyExit(model, 0, depths).costs(x)
    points = {p['threshold']: p for p in study.curve(np.stack(sure), np.stack(right), costs, depths)}
    assert len(points) == len(study.THRESHOLDS)
    for threshold in (0.0, 0.4, 0.5, 0.6, 1.01):
        exits = EarlyExit(model, threshold, depths)(x)
        top1 = 100 * (exits.logits.argmax(-1) == truth).double().mean()
        assert points[threshold]['top1'] == pytest.approx(float(top1))
        assert points[threshold]['mflops'] == pytest.approx(float(exits.multiply_adds.double().mean()) / 1e6)
        assert points[threshold]['depth'] == pytest.approx(float(exits.depth.double().mean()))


def test_an_exit_is_compared_with_that_depth_and_with_the_best_mixture_at_its_cost():
    depths = {3: (1.0, 80.0), 4: (2.0, 79.0), 5: (3.0, 82.0)}
    curve = [(4.0, 84.0), (1.0, 80.0), (2.5, 81.5)]
    measured = dict(
        depths={d: dict(mflops=f, top1=t) for d, (f, t) in depths.items()},
        exits=dict(two=[dict(mflops=f, top1=t) for f, t in curve]),
    )
    assert study.at_equal_flops(measured, 'two') == {
        4: dict(exit=81.0, fixed=79.0, mixture=81.0),  # 80 to 82 and 80 to 81.5, at 2
        5: dict(exit=pytest.approx(81.5 + 2.5 / 3), fixed=82.0, mixture=82.0),
    }


def test_finished_runs_of_the_same_settings_are_taken_over_and_others_are_not(tmp_path):
    jobs = jobs_of((row, 0) for row in study.ROWS.values())
    assert not {row.key for row in study.RANDOM} & set(ROWS)
    other, mine = tmp_path / 'other', tmp_path / 'mine'
    (other / 'run').mkdir(parents=True)
    (other / 'run/last.pth').write_bytes(b'weights')
    fits = dict(row=jobs[0].row, seed=0, digest=jobs[0].digest, status='done', checkpoint='run/last.pth')
    others = [
        dict(fits, row=jobs[1].row),  # another digest
        dict(fits, row=jobs[2].row, digest=jobs[2].digest, status='failed'),
        dict(fits, row=jobs[3].row, digest=jobs[3].digest, checkpoint='run/gone.pth'),
    ]
    (other / RESULTS).write_text(''.join(json.dumps(r) + '\n' for r in (fits, *others)))
    assert study.adopt(jobs, mine, other) == 1
    (record,) = read_results(mine / RESULTS)
    assert record['row'] == jobs[0].row and (mine / record['checkpoint']).read_bytes() == b'weights'
    assert study.adopt(jobs, mine, other) == 0
    for failed in (dict(fits, status='failed', error='no memory'), dict(fits, digest='of other settings')):
        (mine / RESULTS).write_text(json.dumps(failed) + '\n')
        assert study.adopt(jobs, mine, other) == 1


def test_the_page_waits_for_a_scaled_network(tmp_path):
    assert not list(exits_page.report({}, tmp_path, tmp_path / 'out', 'a command'))
    (tmp_path / f'{study.CONTROL}/seed0').mkdir(parents=True)
    kept = dict(digest='d', depths={'3': dict(top1=1.0, mflops=1.0)}, exits={})
    (tmp_path / f'{study.CONTROL}/seed0/{study.MEASURED}').write_text(json.dumps(kept))
    records = {(study.CONTROL, 0): dict(status='done', digest='d', checkpoint='x.pth')}
    assert not list(exits_page.report(records, tmp_path, tmp_path / 'out', 'a command'))
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_the_tool_trains_measures_and_continues(tmp_path, capsys):
    from scalenet_mm.experiments.commands import early_exits as tool

    args = ['--seeds', '1', '--shorten', '250', '--work-dir', str(tmp_path), '--out', str(tmp_path / 'out')]
    assert tool.main(args) == 0
    found = json.loads((tmp_path / 'out/elastic.json').read_text())
    assert set(found['rows']) == {
        'deit/on',
        'deit/scalenet',
        'deit/scalenet_random',
        'deit/stacked',
        'deit/stacked_random',
    }
    one = found['rows']['deit/stacked']['0']
    assert list(one['depths']) == ['3', '4', '5', '6'] and set(one['exits']) == {'two', 'all'}
    page = (tmp_path / 'out/elastic.md').read_text()
    assert 'stacked, random depth' in page and (tmp_path / 'out/elastic.png').stat().st_size > 10_000
    capsys.readouterr()
    assert tool.main(args) == 0
    assert '6 runs, 6 of them done before' in capsys.readouterr().out
