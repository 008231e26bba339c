"""Growth by independent layers: what each method puts where, and that nothing is tied."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import DEIT, LIVE_HOSTS, SWIN, filled, first, perturb, timm_vit
from host_zoo import ZOO
from mmpretrain.models.backbones import VisionTransformer
from torch import nn

from scalenet_mm import LayerMap, build, tie
from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.commands.inspect import as_text
from scalenet_mm.compat import configs_dir
from scalenet_mm.core.flops import meta_parameters
from scalenet_mm.core.growth import GROWTH, Growth, grow_layers, layers_to_reach
from scalenet_mm.core.roles import Role, TrainPolicy, count, roles
from scalenet_mm.models.counts import inspect

UNSCALED = dict(times=1, adjust=None)
# By hand, for four layers and two new ones: where each lies, and what it is a copy of.
PLACES = {
    'random': (0, 1, 2, 3, 0, 1),
    'stack': (0, 1, 2, 3, 0, 1),
    'swa': (0, 1, 2, 3, 0, 1),
    'interpolate': (0, 0, 1, 2, 2, 3),
    'zero': (0, 1, 1, 2, 3, 3),
}


def deit(depth: int = 4, **scale):
    arch = dict(DEIT, num_layers=depth)
    return perturb(ScaleNetDeiT(arch, img_size=32, patch_size=8, scale=scale or UNSCALED)).eval()


@pytest.mark.parametrize('method', GROWTH)
def test_new_layers_lie_where_the_method_says(method):
    assert Growth(method).layer_map(4, new_layers=2).sources == PLACES[method]
    assert len(Growth(method).layer_map(4, times=2)) == 8
    assert Growth(method).layer_map(4, new_layers=0).sources == (0, 1, 2, 3)


@pytest.mark.parametrize('method', GROWTH)
def test_an_unscaled_file_fills_the_grown_network_and_its_layers_stay_themselves(method):
    source, grown = deit(), deit(growth=method, new_layers=2)
    before = copy.deepcopy(grown.state_dict())
    grown.load_state_dict(source.state_dict())
    places, seen = PLACES[method], set()
    blocks = [b.state_dict() for b in source.layers]
    for i, s in enumerate(places):
        new = s in seen
        seen.add(s)
        for name, value in grown.layers[i].state_dict().items():
            if not new or method in ('stack', 'interpolate'):
                expected = blocks[s][name]
            elif method == 'random':
                expected = before[f'layers.{i}.{name}']
            elif method == 'zero':
                written = name.startswith(('attn.proj.', 'ffn.layers.1.'))
                expected = torch.zeros_like(value) if written else blocks[s][name]
            else:
                sampled = grown.layers.sampled(i)
                assert len(set(sampled)) == len(sampled) == 2  # half of four
                expected = torch.from_numpy(
                    np.mean([blocks[k][name].double().numpy() for k in sampled], axis=0)
                ).float()
            torch.testing.assert_close(value, expected, msg=f'{i} {name}', rtol=1e-6, atol=1e-7)


def test_averaged_layers_are_drawn_anew_for_each_layer_and_alike_for_each_seed():
    def drawn(seed):
        grown = deit(12, growth=dict(type='swa', samples=3, seed=seed), new_layers=4)
        return [grown.layers.sampled(i) for i in grown.layers.new]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len({tuple(s) for s in drawn(0)}) > 1 and all(len(s) == 3 for s in drawn(0))


@pytest.mark.parametrize('new_layers', [1, 2, 4])
def test_zero_initialised_layers_keep_the_source_function_bit_for_bit(new_layers):
    source, grown = deit(), deit(growth='zero', new_layers=new_layers)
    grown.load_state_dict(source.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(source(images)), first(grown(images)))
    grown.train()
    first(grown(images)).square().sum().backward()
    assert all(grown.layers[i].ffn.layers[1].weight.grad.abs().sum() > 0 for i in grown.layers.new)


def test_zero_initialised_swin_layers_keep_the_function_where_windows_keep_their_shift():
    arch = dict(SWIN, depths=[1, 1, 2, 1])
    make = dict(img_size=64, window_size=2, pad_small_map=True)
    source = perturb(ScaleNetSwin(arch, scale=UNSCALED, **make)).eval()
    tail = dict(growth='zero', new_layers=1, stages=(2,))
    grown = ScaleNetSwin(arch, scale=tail, **make).eval()
    grown.load_state_dict(source.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(source(images)[0], grown(images)[0])
    with pytest.raises(ValueError, match='position of its own parity'):
        ScaleNetSwin(arch, scale=dict(tail, new_layers=2), **make)


@pytest.mark.parametrize('method', GROWTH)
def test_no_tensor_is_shared_and_training_one_layer_moves_no_other(method):
    grown = deit(growth=method, times=2)
    grown.load_state_dict(deit().state_dict())
    places = [p.data_ptr() for p in grown.parameters()]
    assert len(places) == len(set(places)) == len(list(grown.named_parameters(remove_duplicate=False)))
    plain = VisionTransformer(dict(DEIT, num_layers=8), img_size=32, patch_size=8)
    assert grown.state_dict().keys() == plain.state_dict().keys()
    before = copy.deepcopy(grown.layers[4].state_dict())
    with torch.no_grad():
        grown.layers[0].ffn.layers[0][0].weight.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in grown.layers[4].state_dict().items())


# torch's encoder layer reads the weights of its attention itself, so 'zero' is refused there: see below.
GROWN_HOSTS = [(n, m) for n in LIVE_HOSTS for m in GROWTH if (n, m) != ('torch encoder', 'zero')]


@pytest.mark.parametrize('name, method', GROWN_HOSTS)
def test_any_sequence_of_layers_grows(name, method):
    make, container, shape = LIVE_HOSTS[name]
    model = perturb(make())
    model.eval()
    x = torch.randn(shape)
    before = first(model(x))
    layers = getattr(model, container)
    source = [copy.deepcopy(b.state_dict()) for b in layers]
    layer_map = Growth(method).layer_map(3, new_layers=1)
    setattr(model, container, grow_layers(layers, layer_map, method).eval())
    grown = getattr(model, container)
    assert len(grown) == 4
    for owner, state in zip(layer_map.owners, source):
        assert all(torch.equal(v, state[k]) for k, v in grown[owner].state_dict().items())
    after = first(model(x))
    assert after.shape == before.shape and after.isfinite().all()
    assert torch.equal(after, before) == (method == 'zero')
    (new,) = grown.new
    copied = all(torch.equal(v, source[layer_map.sources[new]][k]) for k, v in grown[new].state_dict().items())
    assert copied == (method in ('stack', 'interpolate'))


def test_a_decoder_runs_the_layers_that_were_added():
    """It counts its layers by its config, and finds each one's keys by its index."""
    source = perturb(ZOO['Hugging Face Llama'].make((3,)), std=0.1).eval()
    layer_map = Growth('interpolate').layer_map(3, new_layers=1)
    deep = filled(ZOO['Hugging Face Llama'].make((4,)).eval(), source, {'model.layers': layer_map.sources})
    x = ZOO['Hugging Face Llama'].input()
    source.model.layers = grow_layers(source.model.layers, layer_map, 'interpolate')
    with torch.no_grad():
        grown = source(x, output_hidden_states=True, use_cache=True)
        assert torch.equal(grown.logits, deep(x).logits) and len(grown.hidden_states) == 5
    assert source.config.num_hidden_layers == 4 and source.model.layers[3].self_attn.config is source.config
    assert [layer.self_attn.layer_idx for layer in source.model.layers] == [0, 1, 2, 3]


def test_layers_with_names_grow_and_their_files_load():
    names = ('first', 'second', 'third')

    def made(seed: int) -> nn.Module:
        blocks = OrderedDict(zip(names, perturb(timm_vit(), std=0.1, seed=seed).blocks))
        return nn.ModuleDict(dict(layers=nn.Sequential(blocks)))

    net, other = made(0), made(1)
    net['layers'] = grow_layers(net['layers'], Growth('interpolate').layer_map(3, new_layers=1), 'interpolate')
    net.load_state_dict(other.state_dict())
    for block, name in zip(net['layers'], ('first', 'first', 'second', 'third')):
        assert torch.equal(block.mlp.fc1.weight, other['layers'].get_submodule(name).mlp.fc1.weight)


def test_a_layer_host_whose_writes_cannot_be_zeroed_is_refused():
    make, container, _ = LIVE_HOSTS['torch encoder']
    layers = getattr(make(), container)
    with pytest.raises(ValueError, match=r"TransformerEncoderLayer is not known to be the identity .*growth='zero'"):
        grow_layers(layers, Growth('zero').layer_map(3, 1), 'zero')


def test_a_grown_network_survives_copies_files_and_slices(tmp_path):
    grown = deit(growth='interpolate', new_layers=2)
    state = grown.state_dict()
    torch.save(state, tmp_path / 'grown.pth')
    again = deit(growth='interpolate', new_layers=2)
    again.load_pretrained(str(tmp_path / 'grown.pth'))
    for other in (again, copy.deepcopy(grown), pickle.loads(pickle.dumps(grown))):
        assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
        assert other.layers.layer_map == grown.layers.layer_map
        assert other.layers.growth == grown.layers.growth
    assert type(grown.layers[:2]).__name__ == 'ModuleList'
    torch.save(deit(growth='stack', new_layers=2).state_dict(), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='another layer map'):
        again.load_pretrained(str(tmp_path / 'other.pth'))


def test_increments_of_a_grown_network_are_its_new_layers_and_norms():
    grown = deit(growth='stack', new_layers=2)
    found = roles(grown)
    new = {n for n, r in found.items() if r is Role.GROWN}
    norms = ('ln1', 'ln2')
    assert new == {n for n in found if n.startswith(('layers.4.', 'layers.5.')) and n.split('.')[2] not in norms}
    trained = set(TrainPolicy('increments').apply(grown))
    assert trained == new | {n for n, r in found.items() if r is Role.NORM}
    layer = 12 * 32 * 32 // 4 * 2 + 0  # qkv, proj, fc1, fc2 of width 32 and MLP 64: 4 x 32^2 + 2 x 32 x 64
    weights = 4 * 32 * 32 + 2 * 32 * 64
    biases = 4 * 32 + 64 + 32
    assert layer == 6144 and count(grown)[Role.GROWN].params == 2 * (weights + biases)
    assert set(TrainPolicy('adjustments').apply(deit(times=2))) == {n for n in roles(deit(times=2)) if '.adapter.' in n}


# Table I: base and ScaleNet of shared/paper's arithmetic, one new layer, printed size of the baselines.
@pytest.mark.parametrize(
    'model, base, scalenet, width, stages, printed',
    [
        ('deit_t', 5_717_416, 6_463_912, 192, None, 6.61),
        ('deit_b', 86_567_656, 89_553_640, 768, None, 93.66),
        ('swin_t', 28_288_354, 29_246_818, 384, (2,), 30.06),
        ('swin_s', 49_606_258, 51_302_002, 384, (2,), 51.38),
        ('swin_b', 87_768_224, 90_029_216, 512, (2,), 90.92),
    ],
)
def test_adding_one_by_one_until_scalenets_size_gives_the_papers_counts(model, base, scalenet, width, stages, printed):
    layer = 12 * width**2 + 13 * width
    if stages:
        layer += (2 * 7 - 1) ** 2 * (width // 32)  # bias table of a window of 7, heads of 32
    number = layers_to_reach(base, layer, scalenet)
    assert base + (number - 1) * layer < scalenet <= base + number * layer
    assert round((base + number * layer) / 1e6, 2) == printed
    scale = dict(growth='stack', new_layers=number, **({'stages': stages} if stages else {}))
    built = sum(p.numel() for p in build(model, scale).parameters())
    assert built == base + number * layer


@pytest.mark.parametrize(
    'scale, message',
    [
        (dict(growth='grow'), "growth must be one of .*'interpolate'.*got 'grow'"),
        (dict(growth=dict(type='swa', sample=2)), 'growth takes a name'),
        (dict(growth=dict(type='swa', samples=0)), 'samples must be a whole number >= 1, got 0'),
        (dict(new_layers=2), "new_layers=2, which counts the independent layers.*growth='stack'"),
        (dict(growth='stack', order='interpolate'), r"growth='stack' and \['order'\]"),
        (dict(growth='stack', new_layers=1, times=2), r"\['times'\].*new_layers=NUMBER or times"),
        (dict(growth='stack', start='function'), r"\['start'\]"),
        (dict(growth='stack', new_layers=-1), 'new_layers must be a whole number >= 0, got -1'),
        (dict(growth='stack', times=1), 'times=1, which adds nothing'),
        (dict(growth=1), 'growth must be one of'),
        (dict(growth=dict(type='swa', samples=2.5)), 'samples must be a whole number'),
        (dict(growth=dict(type='stack', samples=2)), "samples=2 are of 'swa', and 'stack' averages no layers"),
        (dict(growth=dict(type='swa', samples=5)), 'samples=5 are more than the 4 pretrained layers'),
        (dict(growth='stack', new_layers=1, layers=[]), 'layers must be distinct indices'),
        (dict(growth='stack', new_layers=1.5), 'new_layers must be a whole number >= 0, got 1.5'),
    ],
)
def test_a_growth_outside_its_rules_is_refused(scale, message):
    with pytest.raises(ValueError, match=message):
        deit(**scale)


def test_layers_that_are_scaled_already_or_of_another_number_are_refused():
    make, container, _ = LIVE_HOSTS['timm ViT']
    layers = getattr(make(), container)
    with pytest.raises(ValueError, match='names 4 source layers, but the network has 3'):
        grow_layers(layers, Growth('stack').layer_map(4, 1), 'stack')
    grown = grow_layers(layers, Growth('stack').layer_map(3, 1), 'stack')
    with pytest.raises(ValueError, match='tied or grown already'):
        grow_layers(grown, Growth('stack').layer_map(4, 1), 'stack')
    with pytest.raises(ValueError, match='tied or grown already'):
        tie(grown, LayerMap.build(4, times=1))


def test_a_file_that_lacks_an_averaged_layer_is_refused_by_name():
    state = deit().state_dict()
    for key in [k for k in state if k.startswith('layers.2.attn')]:
        del state[key]
    grown = deit(growth=dict(type='swa', samples=4), new_layers=1)
    with pytest.raises(CheckpointError, match=r'layers\.2\.attn'):
        grown.load_state_dict(state)


def test_growth_replaces_the_scale_of_a_config(tmp_path):
    config = tmp_path / 'child.py'
    base = configs_dir() / 'scalenet_deit_t_100e.py'
    config.write_text(f"_base_ = '{base}'\nmodel = dict(backbone=dict(scale=dict(growth='stack', new_layers=2)))")
    with pytest.raises(ValueError, match=r"\['order', 'times'\].*_delete_=True"):
        build(str(config))
    text = config.read_text().replace('scale=dict(', 'scale=dict(_delete_=True, ')
    (tmp_path / 'right.py').write_text(text)
    for model, scale in ((tmp_path / 'right.py', None), (base, dict(growth='stack', new_layers=2))):
        with meta_parameters():
            net = build(str(model), scale)
        assert len(net.backbone.layers) == 14


def test_inspecting_a_baseline_tells_its_new_layers(capsys):
    for leaf in ('deit_t_stack_100e', 'swin_t_zero_100e', 'deit_t_tied_lora_r10_100e'):
        report = inspect(str(configs_dir() / 'baselines' / f'{leaf}.py'))
        assert report.networks['unscaled network'].params in (5_717_416, 28_288_354)
        told = as_text(report)
        assert ('a new layer, nothing is shared' in told) == ('lora' not in leaf)
        assert ('Sharing saves parameters' in told) == ('lora' in leaf)
