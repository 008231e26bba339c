"""Ties by Parameter identity on any sequence of blocks: decisions 1, 2, 5 and 8."""

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict

import pytest
import torch
from conftest import Encoder, SwinStage, VitLayers, deep_copy_of, filled, first, perturb, timm_vit
from host_zoo import ZOO
from torch import nn

from scalenet_mm import HostFacts, LayerMap, rescale, scale, scale_layers, tie
from scalenet_mm.core.adapters import Adjustment
from scalenet_mm.core.tying import TiedLayers, is_norm, shared_names, ties

ADAPTER = dict(type='ParallelAdapter', rank=4)


def scaled(live_host, order='interpolate', adjust=ADAPTER, times=2, **kwargs):
    """(source model, scaled model, input); the source keeps copies of its own."""
    source, container, x = live_host
    model = copy.deepcopy(source)
    layer_map = LayerMap.build(len(getattr(model, container)), times, order)
    setattr(model, container, scale_layers(getattr(model, container), layer_map, adjust, **kwargs))
    return source, model, x


def ties_hold(model: nn.Module) -> bool:
    """Checked with ``is``: every shared tensor is one object, every norm and adjustment its own."""
    (layers,) = (m for m in model.modules() if isinstance(m, TiedLayers))
    for i, layer in enumerate(layers):
        owner = layers[layers.layer_map.owner(i)]
        mine, theirs = dict(layer.named_parameters()), dict(owner.named_parameters())
        for name in shared_names(layer):
            if name in mine and mine[name] is not theirs[name]:
                return False
        if owner is not layer:
            own = set(mine) - set(shared_names(layer))
            assert own and not any(mine[n] is theirs.get(n) for n in own)
    return True


def test_the_core_imports_torch_only():
    blocked = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'transformers')
    code = f"""
import sys
for name in {blocked}: sys.modules[name] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {blocked} else find(name, package)
from scalenet_mm import scale_layers, tie, LayerMap, TrainPolicy
from torch import nn
layers = scale_layers([nn.TransformerEncoderLayer(8, 2, 8)], LayerMap.build(1, 2))
assert layers[0].linear1.weight is layers[1].linear1.weight
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


@pytest.mark.parametrize('order', ['stack', 'interpolate'])
def test_the_scaled_net_is_the_plain_deep_net_of_copied_layers(live_host, order):
    source, model, x = scaled(live_host, order)
    sources = LayerMap.build(3, 2, order).sources
    deep = deep_copy_of(source, live_host[1], sources)
    with torch.no_grad():
        assert torch.equal(first(model(x)), first(deep(x)))


def test_times_1_reproduces_the_host_bit_for_bit(live_host):
    source, model, x = scaled(live_host, times=1)
    with torch.no_grad():
        assert torch.equal(first(model(x)), first(source(x)))


def test_adapters_act_on_every_host_in_eval_mode(live_host):
    _, model, x = scaled(live_host)
    with torch.no_grad():
        before = first(model(x)).clone()
        up = [p for n, p in model.named_parameters() if n.endswith('adapter.up')]
        assert len(up) == 12, 'two linears of six instances'
        for p in up:
            saved, _ = p.clone(), p.normal_(std=0.1)
            assert not torch.equal(first(model(x)), before)
            p.copy_(saved)
        assert torch.equal(first(model(x)), before)


def test_one_tensor_one_key(live_host):
    source, model, _ = scaled(live_host)
    state = model.state_dict()
    pointers = [t.data_ptr() for t in state.values()]
    assert len(set(pointers)) == len(pointers)
    assert {n for n, _ in model.named_parameters()} <= set(state)
    extra = sum('adapter' in k for k in state) + sum(
        is_norm(m) * len(m.state_dict()) for layer in getattr(source, live_host[1]) for m in layer.modules()
    )
    assert len(state) == len(source.state_dict()) + extra


def test_keys_of_source_layers_are_the_hosts_own():
    source = timm_vit()
    keys = set(source.state_dict())
    source.blocks = scale_layers(source.blocks, LayerMap.build(3, 2, 'stack'))
    assert keys <= set(source.state_dict())
    extra = set(source.state_dict()) - keys
    assert extra == {f'blocks.{i}.norm{j}.{p}' for i in (3, 4, 5) for j in (1, 2) for p in ('weight', 'bias')}


def test_a_saved_file_holds_each_tensor_once(live_host, tmp_path):
    from mmengine.runner.checkpoint import save_checkpoint, weights_to_cpu

    _, model, _ = scaled(live_host)
    unique = sum(p.numel() * p.element_size() for p in model.parameters())
    unique += sum(b.numel() * b.element_size() for b in dict.fromkeys(model.buffers()))
    state = weights_to_cpu(model.state_dict())
    copies = type(state)((name, t.clone()) for name, t in state.items())  # as from a GPU: no two names of one storage
    save_checkpoint({'state_dict': copies}, str(tmp_path / 'a.pth'))
    assert sum(t.nbytes for t in copies.values()) == unique
    assert unique <= (tmp_path / 'a.pth').stat().st_size <= unique + 700 * len(copies)


SURVIVES = {
    'deepcopy': copy.deepcopy,
    'pickle': lambda m: pickle.loads(pickle.dumps(m)),
    'torch.save': lambda m: _saved(m),
    'half': lambda m: copy.deepcopy(m).half().float(),
    'double': lambda m: copy.deepcopy(m).double().float(),
    'to_empty': lambda m: _materialised(m),
    'load_state_dict': lambda m: _loaded(m, assign=False),
    'load_state_dict assign': lambda m: _loaded(m, assign=True),
    'swap on conversion': lambda m: _overwritten(m),
}


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _materialised(model):
    with torch.device('meta'):
        empty = copy.deepcopy(model).to('meta')
    return _fill(empty.to_empty(device='cpu'), model)


def _fill(empty, model):
    empty.load_state_dict(model.state_dict())
    return empty


def _loaded(model, assign):
    twin = perturb(copy.deepcopy(model), seed=3)
    twin.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=assign)
    return twin


def _overwritten(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return copy.deepcopy(model).double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize('way', SURVIVES)
def test_ties_survive(way, live_host):
    _, model, x = scaled(live_host)
    perturb(model, seed=1)
    twin = SURVIVES[way](model)
    twin.eval()
    assert ties_hold(model) and ties_hold(twin)
    shared = {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    assert not shared, 'the copy has tensors of its own'
    tolerance = dict(rtol=0, atol=0) if way != 'half' else dict(rtol=0.1, atol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(first(twin(x)), first(model(x)), **tolerance)


def test_ties_hold_right_after_to_empty(live_host):
    _, model, _ = scaled(live_host)
    empty = copy.deepcopy(model).to('meta').to_empty(device='cpu')
    assert ties_hold(empty), 'before a load could mend them'


@pytest.mark.parametrize('way', ['deepcopy', 'double', 'to_empty', 'load_state_dict assign'])
def test_instances_hold_their_sources_buffers(way):
    net = SwinStage(32, 3, num_heads=2, window_size=2)
    net.blocks = scale_layers(net.blocks, LayerMap.build(3, 2, 'interpolate'))
    for model in (net, SURVIVES[way](net)):
        found = [b.attn.w_msa.relative_position_index for b in model.blocks]
        assert all(found[i] is found[i + 1] for i in (0, 2, 4))
        assert found[0] is not found[2]


def test_ties_survive_ema():
    from mmengine.model import ExponentialMovingAverage

    model = VitLayers()
    model.layers = scale_layers(model.layers, LayerMap.build(3, 2, 'interpolate'), ADAPTER)
    for update_buffers in (False, True):
        ema = ExponentialMovingAverage(model, momentum=0.5, update_buffers=update_buffers)
        ema.update_parameters(model)
        before = {n: p.clone() for n, p in ema.module.named_parameters()}
        perturb(model, seed=5)
        ema.update_parameters(model)
        assert ties_hold(ema.module)
        for n, p in ema.module.named_parameters():  # averaged once, not once for each instance
            torch.testing.assert_close(p, (before[n] + dict(model.named_parameters())[n]) / 2)


def test_ties_survive_compile():
    _, model, x = scaled((perturb(Encoder()).eval(), 'layers', torch.randn(2, 16, 32)))
    perturb(model, seed=2)
    compiled = torch.compile(copy.deepcopy(model), backend='aot_eager')
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert ties_hold(compiled._orig_mod)
    before = compiled(x).detach()
    with torch.no_grad():
        compiled._orig_mod.layers[1].linear1.weight.mul_(1.5)
        model.layers[0].linear1.weight.mul_(1.5)
    assert not torch.equal(compiled(x), before)
    torch.testing.assert_close(compiled(x), model(x))


def test_ties_survive_export():
    _, model, x = scaled((perturb(Encoder()).eval(), 'layers', torch.randn(2, 16, 32)))
    perturb(model, seed=2)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    exported = program.module()
    weights = {n: p.data_ptr() for n, p in exported.named_parameters(remove_duplicate=False)}
    # torch 2.6 keeps one of two names of a tensor, later versions both
    stored = {place for name, place in weights.items() if name.endswith('linear1.weight')}
    assert len(stored) == len({p.data_ptr() for n, p in model.named_parameters() if n.endswith('linear1.weight')}) == 3
    assert sum(p.numel() for p in exported.parameters()) == sum(p.numel() for p in model.parameters())


def test_gradients_of_a_shared_tensor_are_the_sum_over_its_instances(live_host):
    source, model, x = scaled(live_host, adjust=None)
    deep = deep_copy_of(source, live_host[1], LayerMap.build(3, 2, 'interpolate').sources)
    for net in (model, deep):
        first(net(x)).square().sum().backward()
    shared, copies = getattr(model, live_host[1]), getattr(deep, live_host[1])
    for i in (0, 2, 4):
        pairs = zip(copies[i].named_parameters(), copies[i + 1].named_parameters())
        for (name, a), (_, b) in pairs:
            expected = a.grad + b.grad if name in shared_names(copies[i]) else a.grad
            torch.testing.assert_close(dict(shared[i].named_parameters())[name].grad, expected, rtol=1e-4, atol=1e-5)


def test_an_unscaled_state_dict_loads_with_norms_copied(live_host):
    source, model, x = scaled(live_host)
    other = perturb(copy.deepcopy(source), seed=9)
    other.eval()
    model.load_state_dict(other.state_dict())
    assert ties_hold(model)
    deep = deep_copy_of(other, live_host[1], LayerMap.build(3, 2, 'interpolate').sources)
    with torch.no_grad():
        assert torch.equal(first(model(x)), first(deep(x)))


def test_norms_are_tensors_of_their_own_after_loading_with_assign(live_host):
    source, model, _ = scaled(live_host)
    model.load_state_dict(source.state_dict(), assign=True)
    assert ties_hold(model)
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_norms_of_other_libraries_are_norms():
    class ScaleNorm(nn.Module):
        """Known by its class's name only."""

        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(1))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            kinds = (nn.RMSNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), ScaleNorm())
            self.norms, self.fc = nn.ModuleList(kinds), nn.Linear(4, 4)

    one, two = tie(nn.ModuleList([Block(), Block()]), LayerMap.build(1, 2))
    assert one.fc.weight is two.fc.weight
    assert shared_names(one) == ['fc.weight', 'fc.bias']
    for a, b in zip(one.norms.parameters(), two.norms.parameters()):
        assert a is not b


def llama(depth: int = 3) -> nn.Module:
    return ZOO['Hugging Face Llama'].make((depth,))


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
def test_a_list_alone_is_scaled_as_it_is_in_its_network(order):
    """Its blocks know their places and the network runs all of them, as by ``scale``."""
    source = perturb(llama(), std=0.1).eval()
    whole, by_list = scale(copy.deepcopy(source), order=order), copy.deepcopy(source)
    adjust = dict(type='ParallelAdapter', rank=16)
    by_list.model.layers = scale_layers(by_list.model.layers, LayerMap.build(3, 2, order), adjust)
    x = ZOO['Hugging Face Llama'].input()
    with torch.no_grad():
        states = by_list(x, output_hidden_states=True, use_cache=True)
        assert torch.equal(states.logits, whole(x).logits) and len(states.hidden_states) == 7
    assert by_list.config.num_hidden_layers == 6
    assert [layer.self_attn.layer_idx for layer in by_list.model.layers] == list(range(6))


def test_windows_and_drop_path_follow_the_new_place_of_a_block():
    swin = perturb(ZOO['timm Swin'].make((1, 3)), std=0.1).eval()
    whole, by_list = scale(copy.deepcopy(swin)), copy.deepcopy(swin)
    stage = by_list.layers[1]
    adjust = dict(type='ParallelAdapter', rank=16)
    stage.blocks = scale_layers(stage.blocks, LayerMap.build(3, 2, 'stack'), adjust)
    x = ZOO['timm Swin'].input()
    with torch.no_grad():
        assert torch.equal(by_list.forward_features(x), whole.forward_features(x))
    rates = [block.drop_path2.drop_prob for block in stage.blocks]
    assert rates == sorted(rates) and rates[-1] > rates[0]


def test_a_network_whose_layers_have_names_reads_its_files_before_and_after():
    """torchvision's encoder is a Sequential of ``encoder_layer_0``, ``encoder_layer_1``, ..."""
    from torchvision.models import VisionTransformer

    def made(depth: int) -> nn.Module:
        return VisionTransformer(32, 8, depth, 2, 32, 64, num_classes=5).eval()

    facts = HostFacts('torchvision', fc1='mlp.0', fc2='mlp.3', writes=None)
    source = perturb(made(3), std=0.1)
    other = perturb(made(3), std=0.1, seed=5)
    model = scale(copy.deepcopy(source), facts=facts)
    model.load_state_dict(other.state_dict())
    x = torch.randn(2, 3, 32, 32)
    deep = filled(made(6), other, {'encoder.layers': (0, 0, 1, 1, 2, 2)})
    with torch.no_grad():
        assert torch.equal(model(x), deep(x))
    perturb(model, std=0.1, seed=7)
    state = model.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    for again in (scale(made(3), facts=facts), rescale(made(6), model.scale_spec, facts=facts)):
        again.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(again(x), model(x))


@pytest.mark.parametrize('adjust', [None, ADAPTER])
@pytest.mark.parametrize('order', ['stack', 'interpolate'])
def test_a_part_of_a_sequential_keeps_its_numbers_as_names(order, adjust):
    """Behind ``[1:]`` layers are called 1, 2, 3; files of the unscaled network are told from those of the scaled."""

    def made(seed: int = 0) -> nn.Module:
        blocks = timm_vit(4).blocks[1:]
        assert list(blocks._modules) == ['1', '2', '3']
        return perturb(nn.ModuleDict(dict(layers=blocks)), std=0.1, seed=seed)

    how = dict(times=4 / 3, order=order, adjust=adjust)
    unscaled, trained = made(3), perturb(scale(made(), **how), std=0.1, seed=4)
    x = torch.randn(2, 5, 32)
    again = scale(made(), **how)
    again.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(again['layers'](x), trained['layers'](x))
        again.load_state_dict(unscaled.state_dict())
        assert torch.equal(again['layers'][0].mlp.fc1.weight, unscaled['layers'][0].mlp.fc1.weight)
        last = again['layers'].layer_map.sources[-1]
        assert torch.equal(again['layers'][-1].mlp.fc1.weight, unscaled['layers'][last].mlp.fc1.weight)


def test_a_list_that_calls_its_layers_by_name_can_be_tied():
    class Two(nn.Sequential):
        def forward(self, x):
            return self.second(self.first(x))

    one, two = timm_vit(2).blocks
    made = tie(Two(OrderedDict(first=one, second=two)), LayerMap((0, 0)))
    assert made.first.mlp.fc1.weight is made.second.mlp.fc1.weight
    assert made(torch.randn(1, 5, 32)).isfinite().all()


def test_what_a_block_calls_its_config_stays_the_one_it_was_given():
    class Config:
        def __init__(self):
            self.lock = threading.Lock()  # cannot be copied

    net, config = timm_vit(), Config()
    for block in net.blocks:
        block.config = config
    scale(net)
    assert all(block.config is config for block in net.blocks) and len(net.blocks) == 6


@pytest.mark.parametrize('sources', [(0, 1, 2, 0, 1, 2), (0, 0, 0, 1, 1, 2)])
def test_tying_by_another_map_is_refused_and_changes_no_weight(sources):
    net = perturb(timm_vit(), std=0.1)
    net.blocks = scale_layers(net.blocks, LayerMap.build(3, 2, 'interpolate'))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r'by the map \[0, 0, 1, 1, 2, 2\]'):
        tie(net.blocks, LayerMap(sources))
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    tie(net.blocks, LayerMap.build(3, 2, 'interpolate'))  # its own map ties again what a tool has replaced


def test_a_file_of_another_map_with_the_same_keys_is_refused():
    def build(sources):
        net = timm_vit()
        net.blocks = scale_layers(net.blocks, LayerMap(sources))
        return net

    one, two = build((0, 1, 2, 0)), build((0, 1, 2, 1))
    assert set(one.state_dict()) == set(two.state_dict())
    with pytest.raises(ValueError, match='another layer map'):
        two.load_state_dict(one.state_dict())


def test_a_file_of_an_independent_copy_network_is_refused(live_host):
    source, model, _ = scaled(live_host, adjust=None)
    deep = perturb(deep_copy_of(source, live_host[1], LayerMap.build(3, 2, 'interpolate').sources), seed=1)
    with pytest.raises(ValueError, match='independent-copy'):
        model.load_state_dict(deep.state_dict())


@pytest.mark.parametrize('order', ['stack', 'interpolate'])
@pytest.mark.parametrize('times', [2, 3])
def test_the_function_preserving_start_is_bit_equal_and_alive(live_host, order, times):
    if live_host[1] == 'layers' and isinstance(live_host[0], Encoder):
        with pytest.raises(ValueError, match='not known to be the identity'):
            scaled(live_host, order, times=times, start='function')
        return
    period = 2 if isinstance(live_host[0], SwinStage) else 1
    source, model, x = scaled(live_host, order, times=times, start='function', period=period)
    with torch.no_grad():
        assert torch.equal(first(model(x)), first(source(x)))
    perturb_head = first(model(x)).square().sum()
    perturb_head.backward()
    gates = [p for n, p in model.named_parameters() if n.endswith('gate.scale')]
    ups = [p for n, p in model.named_parameters() if n.endswith('fc2.adapter.up') or n.endswith('layers.1.adapter.up')]
    assert len(gates) == 2 * 3 * (times - 1) and len(ups) == 3 * times
    assert all(p.grad.abs().max() > 0 for p in (*gates, *ups))


def test_adjustments_sit_on_all_instances_or_on_the_reused_ones():
    for adjust_on, expected in (('all', range(4)), ('reused', (0, 3))):
        layers = scale_layers(Encoder().layers, LayerMap.build(3, 2, 'stack', layers=(0,)), ADAPTER, adjust_on)
        found = {i for i, b in enumerate(layers) if any(isinstance(m, Adjustment) for m in b.modules())}
        assert found == set(expected)


def test_tie_is_idempotent_and_refuses_a_wrong_length():
    layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8) for _ in range(4))
    layer_map = LayerMap.build(2, 2)
    keys = set(tie(layers, layer_map).state_dict())
    kind, hooks = type(layers), len(layers._state_dict_hooks)
    assert set(tie(layers, layer_map).state_dict()) == keys
    assert type(layers) is kind and len(layers._state_dict_hooks) == hooks
    assert len(list(ties(layers))) == 2 * 8
    with pytest.raises(ValueError, match='4 instances'):
        tie(nn.ModuleList(nn.Linear(1, 1) for _ in range(3)), layer_map)


def test_unknown_blocks_and_keys_are_refused():
    with pytest.raises(ValueError, match='HostFacts'):
        scale_layers([nn.Linear(2, 2)], LayerMap.build(1, 2), ADAPTER)
    plain = scale_layers([nn.Linear(2, 2)], LayerMap.build(1, 2))  # sharing alone asks nothing of the host
    assert plain[0].weight is plain[1].weight
    with pytest.raises(ValueError, match='source layers'):
        scale_layers(Encoder().layers, LayerMap.build(4, 2))
    for kwargs, says in ((dict(adjust_on='new'), 'adjust_on'), (dict(start='zero'), 'start must be')):
        with pytest.raises(ValueError, match=says):
            scale_layers(Encoder().layers, LayerMap.build(3, 2), ADAPTER, **kwargs)


def test_a_scaled_container_is_not_scaled_again():
    layers = scale_layers(Encoder().layers, LayerMap.build(3, 2))
    with pytest.raises(ValueError, match='scaled already'):
        scale_layers(layers, LayerMap.build(6, 2))


def test_a_slice_is_a_plain_container_and_a_longer_one_is_refused():
    model = timm_vit()
    model.blocks = scale_layers(model.blocks, LayerMap.build(3, 2))
    part = model.blocks[:3]
    assert type(part) is nn.Sequential and len(part.double()) == 3
    model.blocks.append(copy.deepcopy(part[0]))
    with pytest.raises(ValueError, match='now holds 7 blocks'):
        model.half()


def test_adapters_of_a_file_are_not_spread_over_new_instances():
    one, two = timm_vit(), timm_vit()
    one.blocks = scale_layers(one.blocks, LayerMap.build(3, 1), ADAPTER)
    two.blocks = scale_layers(two.blocks, LayerMap.build(3, 2), ADAPTER)
    with pytest.raises(RuntimeError, match='Missing key'):
        two.load_state_dict(dict(one.state_dict()))
