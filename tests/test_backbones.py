"""ScaleNetSwin and ScaleNetDeiT: the hosts, deeper, from configs of every OpenMMLab package."""

import copy
import pickle
import subprocess

import pytest
import torch
from conftest import DEIT, ROOT, SWIN, perturb, scalenet
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import SwinTransformer, VisionTransformer

import scalenet_mm
from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.ops import set_ops

SWIN_ARGS = dict(arch=SWIN, window_size=4, out_indices=(0, 1, 2, 3), pad_small_map=True)
DEIT_ARGS = dict(arch=DEIT, img_size=32, patch_size=8)
OURS = {'swin': (ScaleNetSwin, SWIN_ARGS), 'deit': (ScaleNetDeiT, DEIT_ARGS)}
HOSTS = {'swin': (SwinTransformer, SWIN_ARGS), 'deit': (VisionTransformer, DEIT_ARGS)}


def ours(host, scale=None, seed=None, **kwargs):
    kind, args = OURS[host]
    net = kind(**{**copy.deepcopy(args), **kwargs}, scale=scale)
    return (net if seed is None else perturb(net, seed)).eval()


def host_net(host, seed=None, depth=None, **kwargs):
    kind, args = HOSTS[host]
    args = {**copy.deepcopy(args), **kwargs}
    if depth is not None:
        args['arch'] = {**args['arch'], ('depths' if host == 'swin' else 'num_layers'): depth}
    net = kind(**args)
    net.eval()
    return net if seed is None else perturb(net, seed)


def copied_layers(source, net, deep):
    """The state dict of a deep host filled with copies of the source's layers by the maps of ``net``."""
    state = source.state_dict()
    filled = dict(deep.state_dict())
    for name, layer_map in net.layer_maps().items():
        for i, s in enumerate(layer_map.sources):
            for key in filled:
                if key.startswith(f'{name}.{i}.'):
                    filled[key] = state[f'{name}.{s}.' + key[len(f'{name}.{i}.') :]]
    rest = {k: v for k, v in state.items() if not any(k.startswith(f'{n}.') for n in net.layer_maps())}
    return {**filled, **rest}


def assert_equal_outputs(a, b, x, rtol=1e-5):
    """To the bit on the plain path; the fast paths add the same numbers in another order."""
    with torch.no_grad():
        fast, got, expected = a(x), set_ops(a, 'plain')(x), set_ops(b, 'plain')(x)
    assert len(got) == len(expected) and all(torch.equal(g, e) for g, e in zip(got, expected))
    for g, e in zip(fast, expected):
        assert (g - e).abs().max() <= rtol * e.abs().max()


@pytest.mark.parametrize('size', [(32, 32), (64, 96), (50, 67)])
@pytest.mark.parametrize('host', OURS)
def test_times_1_reproduces_the_host_bit_for_bit_at_any_size(host, size):
    source = host_net(host, seed=1)
    net = ours(host, dict(times=1))
    net.load_state_dict(source.state_dict())
    assert_equal_outputs(net, source, torch.randn(2, 3, *size))


SCALES = {
    'swin': [
        (None, [2, 2, 2, 4]),
        (dict(stages='all', order='interpolate'), [4, 4, 4, 4]),
        (dict(stages=(2,), times=3), [2, 2, 6, 2]),
        (dict(times=(1, 2, 1, 1.5)), [2, 4, 2, 3]),
        (dict(sources={0: [0, 1, 0]}, stages=(1,)), [3, 4, 2, 2]),
    ],
    'deit': [
        (None, 6),
        (dict(order='stack', times=3), 9),
        (dict(layers=(0, 2)), 5),
        (dict(sources=[0, 1, 2, 1]), 4),
        (dict(adjust=dict(type='LoRA', rank=4)), 6),
    ],
}


@pytest.mark.parametrize(('host', 'scale', 'depth'), [(h, *s) for h, cases in SCALES.items() for s in cases])
def test_the_scaled_net_equals_the_deep_host_of_copied_layers(host, scale, depth):
    source = host_net(host, seed=1)
    net, deep = ours(host, scale), host_net(host, depth=depth)
    net.load_state_dict(source.state_dict())
    deep.load_state_dict(copied_layers(source, net, deep))
    assert_equal_outputs(net, deep, torch.randn(2, 3, 50, 67))


@pytest.mark.parametrize('host', OURS)
def test_after_init_weights_the_net_still_is_its_own_plain_deep_net(host):
    init_cfg = [
        dict(type='TruncNormal', layer='Linear', std=0.5, bias=0.1),
        dict(type='Constant', layer='LayerNorm', val=0.7),
    ]
    net = ours(host, init_cfg=init_cfg)
    net.init_weights()
    ups = [p for n, p in net.named_parameters() if n.endswith('adapter.up')]
    downs = [p for n, p in net.named_parameters() if n.endswith('adapter.down')]
    assert ups and all(not p.any() for p in ups) and all(p.any() for p in downs)
    state, deep = net.state_dict(), host_net(host, depth={'swin': [2, 2, 2, 4], 'deit': 6}[host])
    filled = {k: state[k] for k in deep.state_dict() if k in state}
    for name, layer_map in net.layer_maps().items():
        for i in range(len(layer_map)):
            for key in [k for k in deep.state_dict() if k.startswith(f'{name}.{i}.') and k not in filled]:
                filled[key] = state[f'{name}.{layer_map.owner(i)}.' + key[len(f'{name}.{i}.') :]]
    deep.load_state_dict(filled)
    assert_equal_outputs(net, deep, torch.randn(2, 3, 50, 67), 1e-3)  # a steep function


def test_out_indices_out_type_and_layer_depth_see_the_scaled_depth():
    net = ours('deit', out_indices=(0, 2, -1), out_type='featmap')
    assert net.num_layers == 6 and list(net.out_indices) == [0, 2, 5]
    features = net(torch.randn(1, 3, 32, 48))
    assert [tuple(f.shape) for f in features] == [(1, 32, 4, 6)] * 3
    assert net.get_layer_depth('layers.5.ln1.weight') == (6, 8)
    wanted = [0, -1]
    ours('deit', out_indices=wanted)
    assert wanted == [0, -1], "the caller's list is left alone"
    swin = ours('swin')
    assert swin.depths == [2, 2, 2, 4] and swin.get_layer_depth('stages.3.blocks.3.norm1.weight') == (10, 12)


def test_drop_path_and_window_shift_follow_the_scaled_depth():
    swin = ours('swin', dict(order='interpolate'), drop_path_rate=0.9)
    blocks = [b for s in swin.stages for b in s.blocks]
    rates = [getattr(b.attn.drop, 'drop_prob', 0.0) for b in blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.9, 10))
    assert [b.attn.shift_size for b in swin.stages[3].blocks] == [0, 2, 0, 2]


@pytest.mark.parametrize('order', ['stack', 'interpolate'])
@pytest.mark.parametrize('host', OURS)
def test_the_function_preserving_start_is_the_pretrained_function(host, order):
    source = host_net(host, seed=1)
    net = ours(host, dict(start='function', order=order, **(dict(stages='all') if host == 'swin' else {})))
    net.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert_equal_outputs(net, source, x)
    sum(f.square().sum() for f in net(x)).backward()
    gates = {n: p for n, p in net.named_parameters() if n.endswith('gate.scale')}
    assert len(gates) == 2 * (8 if host == 'swin' else 3)
    assert all(p.grad.abs() > 0 for p in gates.values())
    assert net.state_dict().keys() >= gates.keys()


def saved_elements(net, x):
    """A loss, and how many elements the graph keeps for its backward pass."""
    kept = []

    def keep(t):
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        return sum(f.square().mean() for f in net(x)), sum(kept)


@pytest.mark.parametrize('host', OURS)
def test_activation_checkpointing_gives_the_same_gradients_and_saves_less(host):
    x = torch.randn(2, 3, 64, 64)
    grads, saved = {}, {}
    for with_cp in (False, True):
        torch.manual_seed(3)
        net = perturb(OURS[host][0](**copy.deepcopy(OURS[host][1]), with_cp=with_cp), seed=1).train()
        out, saved[with_cp] = saved_elements(net, x)
        out.backward()
        grads[with_cp] = {n: p.grad.clone() for n, p in net.named_parameters()}
        assert pickle.loads(pickle.dumps(net)) is not None
    torch.testing.assert_close(grads[True], grads[False])
    assert saved[True] < 0.5 * saved[False]


@pytest.mark.parametrize('host', OURS)
def test_checkpointed_blocks_train_behind_frozen_embeddings(host):
    """The input of the first block needs no gradient: a reentrant checkpoint would cut the blocks off."""
    net = perturb(OURS[host][0](**copy.deepcopy(OURS[host][1]), with_cp=True), seed=1).train()
    names = TrainPolicy().apply(net)
    for name, p in net.named_parameters():  # the embeddings' norm too
        p.requires_grad_(name in names and any(name.startswith(f'{n}.') for n in net.layer_maps()))
    sum(f.square().mean() for f in net(torch.randn(2, 3, 64, 64))).backward()
    trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None and p.grad.any() for p in trained.values())


def test_configs_of_every_package_build_the_backbone():
    from mmdet.registry import MODELS as DET
    from mmpretrain.registry import MODELS as CLS
    from mmseg.registry import MODELS as SEG

    for registry in (MODELS, CLS, DET, SEG):
        assert isinstance(registry.build(dict(type='ScaleNetSwin', **SWIN_ARGS)), ScaleNetSwin)
        assert isinstance(registry.build(dict(type='ScaleNetDeiT', **DEIT_ARGS)), ScaleNetDeiT)


DENSE = dict(
    embed_dims=16,
    depths=[2, 2, 2, 2],
    num_heads=[1, 2, 2, 4],
    window_size=4,
    mlp_ratio=2,
    drop_path_rate=0.0,
    act_cfg=dict(type='ReLU'),
    convert_weights=True,
    with_cp=False,
    frozen_stages=-1,
)


@pytest.mark.parametrize('changed', [{}, dict(qkv_bias=False), dict(patch_norm=False), dict(out_indices=(1, 3))])
def test_the_arguments_of_mmdets_swin_are_understood(changed):
    from mmdet.models.backbones.swin import SwinTransformer as DetSwin

    args = {**DENSE, **changed}
    source = perturb(DetSwin(**args), seed=2)
    source.eval()
    net = ScaleNetSwin(**args, scale=dict(times=1, adjust=None)).eval()
    net.load_state_dict(source.state_dict())
    assert_equal_outputs(net, source, torch.randn(1, 3, 61, 90))


def test_wrong_arguments_are_refused_with_rule_value_and_way_out():
    for host in OURS:
        with pytest.raises(ValueError, match='frozen_stages=2 .*policy = dict'):
            ours(host, frozen_stages=2)
        with pytest.raises(ValueError, match=r"no key \['depth'\]"):
            ours(host, dict(depth=2))
        with pytest.raises(ValueError, match='arch must be one of'):
            ours(host, arch='huge-swin')
    with pytest.raises(ValueError, match="no key \\['stages'\\]"):
        ours('deit', dict(stages=(3,)))
    with pytest.raises(ValueError, match=r'strides\[0\]=2 must equal patch_size=4; write strides=\(4, 2, 2, 1\)'):
        ScaleNetSwin(**DENSE, strides=(2, 2, 2, 1))
    with pytest.raises(ValueError, match='names no model'):
        scalenet_mm.build('resnet_50')


@pytest.mark.parametrize('host', OURS)
def test_a_file_that_does_not_fit_is_refused_before_anything_changes(host):
    net = ours(host, seed=1)
    before = copy.deepcopy(net.state_dict())
    state = ours(host, seed=2).state_dict()
    norm = next(k for k in state if k.endswith('.1.norm1.weight') or k.endswith('.1.ln1.weight'))
    wrong_depth = {'swin': [2, 2, 4, 2], 'deit': 4}[host]
    files = {
        'missing': {k: v for k, v in state.items() if k != norm},
        'unexpected': {**state, norm.replace('weight', 'extra'): torch.zeros(1)},
        'shape': {**state, norm: torch.zeros(7)},
        'depth': host_net(host, depth=wrong_depth).state_dict(),
        'map': ours(host, dict(order={'swin': 'interpolate', 'deit': 'stack'}[host])).state_dict(),
        'nothing': {'neck.weight': torch.zeros(1)},
    }
    for name, file in files.items():
        for strict in (True, False):
            with pytest.raises((CheckpointError, ValueError)) as error:
                net.load_state_dict(file, strict=strict)
            if name in ('missing', 'unexpected', 'shape'):
                assert norm.rpartition('.')[0] in str(error.value), str(error.value)
            assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize('host', OURS)
def test_mmengines_lenient_loading_is_strict_too(host):
    from mmengine.runner.checkpoint import load_state_dict

    net = ours(host)
    state = net.state_dict()
    state.popitem()
    with pytest.raises(CheckpointError, match='missing'):
        load_state_dict(net, state)
    source = host_net(host, seed=4)
    load_state_dict(net, source.state_dict())
    deep = host_net(host, depth={'swin': [2, 2, 2, 4], 'deit': 6}[host])
    deep.load_state_dict(copied_layers(source, net, deep))
    assert_equal_outputs(net, deep, torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('host', OURS)
def test_a_scaled_file_round_trips_through_a_classifier(host, tmp_path):
    from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint, weights_to_cpu

    def classifier():
        return scalenet_mm.build(f'{host}_t', num_classes=3, **({} if host == 'swin' else dict(img_size=32)))

    model = perturb(classifier(), seed=1).eval()
    path = str(tmp_path / 'scaled.pth')
    save_checkpoint({'state_dict': weights_to_cpu(model.state_dict()), 'meta': {}}, path)
    twin = classifier()
    load_checkpoint(twin, path, map_location='cpu')
    x = torch.randn(1, 3, 224, 224) if host == 'swin' else torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
    loaded = scalenet_mm.load(f'{host}_t', path, num_classes=3, **({} if host == 'swin' else dict(img_size=32)))
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    backbone = scalenet_mm.load(f'{host}_t', path, num_classes=None, **({} if host == 'swin' else dict(img_size=32)))
    with torch.no_grad():
        assert torch.equal(backbone(x)[0], model.backbone(x)[0])


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_the_map_stored_in_a_file_is_checked(prefix, suffix, tmp_path):
    one, two = (ours('deit', dict(sources=s)) for s in ([0, 1, 2, 0], [0, 1, 2, 1]))
    holder = torch.nn.ModuleDict(dict(backbone=one)) if prefix else one
    path = str(tmp_path / 'one.pth')
    torch.save({'state_dict': holder.state_dict()}, path)
    if suffix == '.safetensors':
        subprocess.run(scalenet('convert', path, tmp_path / 'one.safetensors'), check=True, cwd=ROOT, timeout=200)
        path = str(tmp_path / 'one.safetensors')
    with pytest.raises(CheckpointError, match=r'one\.\w+: .*another layer map'):
        two.load_pretrained(path)
    twin = ours('deit', dict(sources=[0, 1, 2, 0]))
    twin.load_pretrained(path)
    assert_equal_outputs(twin, one, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('host', OURS)
def test_a_file_of_another_map_is_refused_before_anything_changes(host):
    """Two maps whose keys are equal: only what the file says about itself tells them apart."""
    maps = {'deit': ([0, 1, 2, 0], [0, 1, 2, 1]), 'swin': ({2: [0, 1, 0]}, {2: [0, 1, 1]})}[host]
    one, two = (ours(host, dict(sources=s), seed=i) for i, s in enumerate(maps))
    before = copy.deepcopy(two.state_dict())
    assert before.keys() == one.state_dict().keys()
    with pytest.raises(CheckpointError, match='another layer map'):
        two.load_state_dict(one.state_dict())
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize('host', OURS)
def test_an_unscaled_network_of_ours_is_a_source_too(host):
    """Its file carries a map, every layer once, and no kind of adjustment."""
    source = host_net(host, seed=1)
    unscaled, scaled, reference = ours(host, dict(times=1, adjust=None)), ours(host), ours(host)
    unscaled.load_state_dict(source.state_dict())
    assert unscaled.state_dict()._metadata['']['layer_maps']
    scaled.load_state_dict(unscaled.state_dict())
    reference.load_state_dict(source.state_dict())
    assert_equal_outputs(scaled, reference, torch.randn(1, 3, 32, 32))


def test_sizes_are_adapted_on_loading():
    source = host_net('swin', seed=1)
    net = ours('swin', dict(times=1, adjust=None), window_size=6)
    net.load_state_dict(source.state_dict())
    assert net.stages[0].blocks[0].attn.w_msa.relative_position_bias_table.shape == (121, 1)
    vit = host_net('deit', seed=1)
    larger = ours('deit', dict(times=1, adjust=None), img_size=64)
    reference = host_net('deit', img_size=64)
    reference.load_state_dict(vit.state_dict())
    larger.load_state_dict(vit.state_dict())
    assert_equal_outputs(larger, reference, torch.randn(1, 3, 64, 64))


def test_output_norms_may_differ_between_tasks_and_nothing_else():
    classifier = host_net('swin', seed=1, out_indices=(3,))
    dense = ours('swin')
    dense.load_state_dict(classifier.state_dict())
    assert torch.equal(dense.norm3.weight, classifier.norm3.weight)
    assert torch.equal(dense.norm0.weight, torch.ones(16))
    back = ours('swin', out_indices=(3,))
    back.load_state_dict(dense.state_dict())
    with pytest.raises(CheckpointError, match='norm3'):
        dense.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith('norm3')})


@pytest.mark.parametrize('host', OURS)
def test_a_net_built_on_meta_takes_a_checkpoint(host):
    source = host_net(host, seed=1)
    kind, args = OURS[host]
    with torch.device('meta'):
        net = kind(**copy.deepcopy(args), scale=dict(adjust=None))
    net.to_empty(device='cpu').eval()
    net.load_state_dict(source.state_dict())
    reference = ours(host, dict(adjust=None))
    reference.load_state_dict(source.state_dict())
    assert_equal_outputs(net, reference, torch.randn(1, 3, 50, 67))


def test_norm_cfg_of_mmdet_reaches_every_norm():
    from mmdet.models.backbones.swin import SwinTransformer as DetSwin

    args = {**DENSE, 'norm_cfg': dict(type='LN', eps=1e-2)}
    source = perturb(DetSwin(**args), seed=2)
    source.eval()
    net = ScaleNetSwin(**args, scale=dict(times=1, adjust=None)).eval()
    net.load_state_dict(source.state_dict())
    assert_equal_outputs(net, source, torch.randn(1, 3, 61, 90))


def test_adapters_of_another_kind_are_refused_though_their_keys_fit():
    source = ours('deit', dict(adjust=dict(type='ParallelAdapter', rank=4, act='ReLU')))
    for other in (dict(type='ParallelAdapter', rank=4), dict(type='LoRA', rank=4, targets=('fc1', 'fc2'))):
        net = ours('deit', dict(adjust=other))
        assert set(net.state_dict()) == set(source.state_dict())
        with pytest.raises(CheckpointError, match='another kind: .*ReLU'):
            net.load_state_dict(source.state_dict())


def test_tensors_that_no_resizer_can_take_are_refused_by_key():
    swin, deit = host_net('swin', seed=1), host_net('deit', seed=1)
    table = 'stages.1.blocks.0.attn.w_msa.relative_position_bias_table'
    state = swin.state_dict()
    with pytest.raises(
        CheckpointError, match='stages.1.blocks.0.*different windows|different windows.*stages.1.blocks.0'
    ):
        ours('swin').load_state_dict({**state, table: torch.zeros(25, 2)})
    tables = {k: v[:-1] for k, v in state.items() if k.endswith('bias_table')}
    with pytest.raises(CheckpointError, match='relative_position_bias_table: '):
        ours('swin').load_state_dict({**state, **tables})
    state = deit.state_dict()
    with pytest.raises(CheckpointError, match=r'pos_embed \(1, 12, 32\)'):
        ours('deit').load_state_dict({**state, 'pos_embed': state['pos_embed'][:, :12]})
    with pytest.raises(CheckpointError, match=r'pos_embed \(1, 16, 32\) has no place for a class token'):
        ours('deit').load_state_dict({**state, 'pos_embed': torch.zeros(1, 16, 32)})
    net = ours('swin', use_abs_pos_embed=True)
    state = {**net.state_dict(), 'absolute_pos_embed': torch.zeros(1, 12, net.absolute_pos_embed.shape[2])}
    with pytest.raises(CheckpointError, match=r'absolute_pos_embed \(1, 12, .* is no square of patches'):
        net.load_state_dict(state)


def test_positions_of_a_file_with_a_class_token_are_resized_for_a_network_without():
    """Against mmseg's own class, which keeps the token's position and leaves the token out."""
    from mmseg.models.backbones import VisionTransformer as OfSegmentors

    def made(kind, image: int, **more):
        size = dict(embed_dims=32, num_layers=2, num_heads=2, patch_size=8, with_cls_token=False)
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = kind(img_size=image, **size, **more)
        model.eval()  # mmseg's returns nothing
        return model

    small, theirs = perturb(made(OfSegmentors, 32)), made(OfSegmentors, 64)
    theirs.load_state_dict({**small.state_dict(), 'pos_embed': theirs.pos_embed})
    grid = theirs.resize_pos_embed(small.pos_embed, (8, 8), (4, 4), theirs.interpolate_mode)
    theirs.pos_embed.data.copy_(grid)
    ours = made(ScaleNetDeiT, 64, scale=dict(times=1, adjust=None))
    ours.load_state_dict(small.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for mine, expected in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)
