"""The fast paths equal their references, save what they say they save, and can be switched off."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import DEIT, SWIN, perturb
from mmcv.cnn.bricks.drop import DropPath
from mmpretrain.models.utils.attention import MultiheadAttention, ShiftWindowMSA
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.core.adapters import ACTIVATIONS, AdaptedLinear, LoRA, ParallelAdapter
from scalenet_mm.core.kept import declare_constant
from scalenet_mm.core.roles import Role, TrainPolicy, count
from scalenet_mm.ops import SWITCHES, Ops, blocks, set_ops, window
from scalenet_mm.ops.drop_path import draw, sparse_residual
from scalenet_mm.ops.gemm import by_onednn, in_dtype, onednn_works, product
from scalenet_mm.ops.linear import FastLinear, composed, linear, plain
from scalenet_mm.ops.window import METHODS, Permute, attend, layout, shift_masks

SMALL = dict(window_size=3, drop_path_rate=0.0, out_indices=(0, 1, 2, 3))


def swin(**options):
    options = {'pad_small_map': True, **SMALL, **options}
    return perturb(ScaleNetSwin({**SWIN, 'depths': [2, 2, 2, 2]}, **options))


def deit(**options):
    return perturb(ScaleNetDeiT(DEIT, img_size=64, drop_path_rate=0.0, **options))


def saved_bytes(net, run) -> int:
    """Bytes of the distinct storages that autograd keeps after ``run``, those of the weights left out."""
    found, weights = {}, {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    del out
    return sum(found.values())


def trained(net, x, ops):
    """Outputs and gradients of a step whose loss weighs every output differently."""
    set_ops(net, ops).zero_grad(set_to_none=True)
    outs = net(x)
    sum((o * torch.linspace(-1, 1, o.numel()).to(o).view_as(o)).sum() for o in outs).backward()
    grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return outs, grads


def require_equal(got, expected, rtol):
    assert len(got[0]) == len(expected[0]) and got[1].keys() == expected[1].keys()
    for a, b in [*zip(got[0], expected[0]), *((got[1][n], expected[1][n]) for n in expected[1])]:
        assert (a - b).norm() <= rtol * b.norm() + 1e-30


OPS = [
    None,
    dict(recompute=False),
    dict(recompute='attention'),
    dict(window='matmul'),
    dict(drop_path='dense', mlp='plain'),
    dict(window='sdpa', linear='plain'),
    dict(window='plain', linear='onednn', recompute=True),
]


@pytest.mark.parametrize('policy', ['increments', 'all'])
@pytest.mark.parametrize('ops', OPS, ids=str)
@pytest.mark.parametrize(
    'make,size', [(swin, (64, 64)), (swin, (52, 75)), (deit, (64, 64))], ids=['swin', 'swin padded', 'deit']
)
def test_every_switch_gives_the_outputs_and_gradients_of_the_plain_path(make, size, ops, policy):
    net = make().double().train()
    TrainPolicy(policy).apply(net)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    require_equal(trained(net, x, ops), trained(net, x, 'plain'), 1e-11)


@pytest.mark.parametrize('policy', ['increments', 'all'])
@pytest.mark.parametrize('ops', [None, dict(linear='onednn')], ids=str)
@pytest.mark.parametrize('make', [swin, deit])
def test_in_fp32_the_fast_paths_differ_by_rounding_only(make, ops, policy):
    net = make().train()
    TrainPolicy(policy).apply(net)
    x = torch.randn(2, 3, 64, 64)
    assert not ops or not onednn_works() or by_onednn(x[0, 0], x[0, 0], 'onednn'), 'which is not float64'
    require_equal(trained(net, x, ops), trained(net, x, 'plain'), 1e-4)
    net.eval()
    with torch.no_grad():
        fast, reference = (set_ops(net, ops)(x) for ops in (ops, 'plain'))
    for a, b in zip(fast, reference):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('host', [swin, deit])
def test_compiled_blocks_are_whole_graphs_in_mixed_precision_too(host, amp, monkeypatch):
    """With torch's autocast, a question about it once broke a graph at every linear layer."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    whole = partial(torch.compile, backend='aot_eager', fullgraph=True)  # raises where a graph breaks
    monkeypatch.setattr('scalenet_mm.ops.compile._compiled', {})
    monkeypatch.setattr(torch, 'compile', whole)
    net = host(scale=dict(times=2)).train()
    TrainPolicy().apply(net)
    counters.clear()
    dynamo.reset()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        outs = set_ops(net, dict(compile=True))(torch.randn(2, 3, 64, 64))
    sum(o.float().sum() for o in outs).backward()
    shapes = {b.graph for b in net.modules() if getattr(b, 'graph', None)}
    first = host is deit  # its input has no gradient: a graph of its own
    assert counters['stats']['unique_graphs'] == len(shapes) + first


@pytest.mark.parametrize('bias_grad', [False, True])
@pytest.mark.parametrize('act', [None, *ACTIVATIONS])
@pytest.mark.parametrize('form', [linear, composed])
def test_the_gradients_of_an_adjusted_linear_layer_are_right(form, act, bias_grad):
    def leaf(*shape, grad=True):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)

    x, weight, bias = leaf(2, 3, 5), leaf(4, 5), leaf(4, grad=bias_grad)
    down, up, sigma = leaf(2, 5), leaf(4, 2), act and ACTIVATIONS[act]

    def run(x, weight, bias, down, up):
        return form(x, weight, bias, (down, up, sigma))

    assert torch.autograd.gradcheck(run, (x, weight, bias, down, up))
    torch.testing.assert_close(
        run(x, weight, bias, down, up), x @ weight.T + bias + (sigma or (lambda z: z))(x @ down.T) @ up.T
    )


@pytest.mark.parametrize('method', ['efficient', 'sdpa', 'matmul'])
def test_the_gradients_of_window_attention_are_right(method):
    at = layout(2, 3, 5, 2, 1, torch.device('cpu'))
    x = torch.randn(2 * 15, 3, dtype=torch.float64, requires_grad=True)
    ways = at.rows, at.padding, at.places, None
    assert at.padding.any() and torch.autograd.gradcheck(lambda x: Permute.apply(x, *ways), x)
    qkv = torch.randn(len(at.sorts), 4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 2, 4, 4, dtype=torch.float64, requires_grad=method == 'matmul')
    assert torch.autograd.gradcheck(lambda q, b: attend(q, b, at, 0.5, method), (qkv, bias))


def test_the_form_for_a_gpu_casts_as_autocast_does():
    layer = perturb(AdaptedLinear.wrap(nn.Linear(5, 8), ParallelAdapter(5, 8)))
    low_rank, x = layer.adapter.low_rank(), torch.randn(2, 3, 5)
    for frozen in (True, False):
        layer.weight.requires_grad_(not frozen), layer.bias.requires_grad_(not frozen)
        found = []
        for form in (plain, composed):
            layer.zero_grad(set_to_none=True)
            with torch.autocast('cpu', torch.bfloat16):
                y = form(x, layer.weight, layer.bias, low_rank)
            assert y.dtype is torch.bfloat16
            y.float().square().sum().backward()
            found.append((y, {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}))
        (y, grads), (other, others) = found
        assert grads.keys() == others.keys() and ('weight' in grads) is not frozen
        for a, b in ((y, other), *((grads[n], others[n]) for n in grads)):
            assert (a - b).norm() <= 0.02 * a.norm()


class Called(TorchDispatchMode):
    """The operations that were called, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).removeprefix('aten.'))
        return func(*args, **(kwargs or {}))


def test_the_form_for_a_gpu_adds_in_place_and_casts_deployed_weights_once():
    layer = perturb(AdaptedLinear.wrap(nn.Linear(5, 8), ParallelAdapter(5, 8)))
    x, calls = torch.randn(2, 3, 5), []
    for deployed, grad in ((False, True), (True, True), (True, False), (True, False)):
        with torch.set_grad_enabled(grad), torch.autocast('cpu', torch.bfloat16), Called() as called:
            y = composed(x, layer.weight, layer.bias, layer.adapter.low_rank(), deployed)
        calls.append(called.names)
        if grad:
            assert all(g is not None for g in torch.autograd.grad(y.sum(), list(layer.parameters())))
    casts = [names.count('_to_copy.default') for names in calls]
    assert casts == [5, 5, 5, 1], 'at last of the input alone'
    assert all('addmm_.default' in names and 'copy_.default' not in names for names in calls)


@pytest.mark.parametrize('shape', [(5,), (0, 5), (2, 0, 5), (2, 3, 5)])
def test_the_form_for_a_gpu_takes_every_shape(shape):
    low_rank = torch.randn(2, 5), torch.randn(8, 2), F.gelu
    x, weight = torch.randn(shape), torch.randn(8, 5)
    torch.testing.assert_close(composed(x, weight, None, low_rank), plain(x, weight, None, low_rank))


def test_a_constant_first_made_in_inference_can_be_saved_by_autograd():
    from scalenet_mm.ops.compile import filled

    filled.cache_clear()
    with torch.inference_mode():
        assert not filled(1.0, (2, 1, 1), 0, torch.device('cpu')).is_inference()


@pytest.mark.parametrize('size', [(6, 4), (7, 5)])
def test_patches_merge_by_one_copy_as_the_host_unfolds_them(size):
    host = set_ops(swin().double(), 'plain').stages[0].downsample
    fast = set_ops(copy.deepcopy(host))
    assert type(fast) is blocks.FastPatchMerging
    x = torch.randn(2, size[0] * size[1], SWIN['embed_dims'], dtype=torch.float64)
    (a, sa), (b, sb) = host(x, size), fast(x, size)
    assert torch.equal(a, b) and tuple(sa) == tuple(sb)


def graph(tensor):
    """Names of the steps of its backward pass."""
    names, todo = set(), [tensor.grad_fn]
    while todo:
        step = todo.pop()
        names.add(type(step).__name__)
        todo += [s for s, _ in step.next_functions if s is not None]
    return names


@pytest.mark.parametrize('settings', [{}, dict(v_shortcut=True, embed_dims=6, num_heads=1), dict(qk_scale=1.0)])
def test_attention_is_the_hosts_with_one_gradient_of_queries_keys_and_values(settings):
    torch.manual_seed(0)
    host = MultiheadAttention(**{**dict(embed_dims=12, num_heads=3, input_dims=6), **settings}).double()
    fast = set_ops(copy.deepcopy(host))
    assert type(fast) is blocks.FastMultiheadAttention
    x = torch.randn(2, 1 if 'v_shortcut' in settings else 5, 6, dtype=torch.float64, requires_grad=True)
    outs = [net(x) for net in (host, fast)]
    torch.testing.assert_close(*outs)
    assert 'SelectBackward0' in graph(outs[0])
    assert 'SelectBackward0' not in graph(outs[1]) or host.v_shortcut, 'a pass over all three for each'
    grads = [torch.autograd.grad(o.square().sum(), [x, *n.parameters()]) for o, n in zip(outs, (host, fast))]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('shape', [(6, 9), (9, 3), (3, 3), (12, 6)])
def test_the_shift_masks_are_the_hosts(shape):
    at = layout(1, *shape, 3, 1, torch.device('cpu'))
    theirs = ShiftWindowMSA.get_attn_mask(shape, window_size=3, shift_size=1)
    tokens = torch.arange(shape[0] * shape[1]).view(1, *shape, 1).roll((-1, -1), (1, 2))
    windows = ShiftWindowMSA.window_partition(tokens, 3).view(-1, 9).tolist()
    for tokens, sort in zip(at.rows.view(-1, 9).tolist(), at.sorts.tolist()):
        torch.testing.assert_close(shift_masks(3, 1)[sort], theirs[windows.index(tokens)])
    assert sum(at.counts) == len(windows)


def test_more_windows_than_a_kernels_grid_are_cut(monkeypatch):
    net, x = swin().eval().requires_grad_(False), torch.randn(2, 3, 64, 64)
    whole = net(x)
    calls = []
    monkeypatch.setattr(window, 'MAX_WINDOWS', 5)
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda q, *a, **k: (calls.append(len(q)), real(q, *a, **k))[1]
    )
    for a, b in zip(net(x), whole):
        torch.testing.assert_close(a, b)
    assert max(calls) == 5 and METHODS[0] == 'auto'


def test_a_frozen_tables_bias_is_made_once_for_all_its_instances_and_anew_when_it_changes(monkeypatch):
    made = []
    real = window._biases_of
    monkeypatch.setattr(window, '_biases_of', lambda *a: (made.append(a), real(*a))[1])
    net = swin(scale=dict(times=2, stages=(3,))).train()
    TrainPolicy().apply(net)
    x = torch.randn(1, 3, 64, 64)
    net(x)
    tables = {id(b.attn.w_msa.relative_position_bias_table) for s in net.stages for b in s.blocks}
    assert len(made) == len(tables) == 8 < sum(len(s.blocks) for s in net.stages)
    net(x)
    net(torch.randn(2, 3, 96, 64))  # nor for another size
    assert len(made) == 8
    table = net.stages[2].blocks[0].attn.w_msa.relative_position_bias_table
    before = net(x)[-1]
    table.add_(1 * torch.arange(table.numel()).view_as(table) / 10) if not table.requires_grad else 0
    assert not torch.equal(net(x)[-1], before) and len(made) == 9
    net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()})
    net(x)
    assert len(made) == 9 + 8
    net.double()
    net(x.double())
    assert len(made) == 9 + 16


def test_a_trained_table_gets_its_gradient_after_inference_kept_its_bias():
    net = swin().double()
    x = torch.randn(1, 3, 52, 75, dtype=torch.float64)
    with torch.no_grad():
        net.eval()(x)
    TrainPolicy('all').apply(net.train())
    require_equal(trained(net, x, None), trained(net, x, 'plain'), 1e-11)


@pytest.mark.parametrize('autocast', [False, True])
def test_what_inference_mode_kept_serves_training(autocast):
    net = swin()
    TrainPolicy().apply(net)
    x = torch.randn(1, 3, 52, 75)
    layout.cache_clear()
    window.image_layout.cache_clear()
    with torch.autocast('cpu', torch.bfloat16, autocast):
        with torch.inference_mode():
            net.eval()(x)
        _, grads = trained(net.train(), x, None)
    assert grads and all(g.isfinite().all() for g in grads.values())


def test_a_frozen_linear_layer_saves_nothing_and_an_adjusted_one_its_input_once():
    layer = nn.Linear(64, 256).requires_grad_(False)
    adapted = AdaptedLinear.wrap(copy.deepcopy(layer), ParallelAdapter(64, 256, 4))
    x = torch.randn(100, 64, requires_grad=True).clone()
    layer.__class__ = FastLinear
    assert saved_bytes(layer, lambda: layer(x)) == 0
    narrow = 100 * 4 * 4  # (N, r) in fp32
    assert saved_bytes(adapted, lambda: adapted(x)) == x.numel() * 4 + 2 * narrow
    set_ops(adapted)
    assert saved_bytes(adapted, lambda: adapted(x)) == x.numel() * 4 + narrow


def test_recomputing_saves_neither_norm_nor_activation_outputs():
    net = deit().train()
    TrainPolicy().apply(net)
    x = torch.randn(1, 3, 64, 64)
    kept = [saved_bytes(net, partial(set_ops(net, dict(recompute=on)), x)) for on in (False, True, 'auto')]
    block = net.layers[0]
    tokens, width = 17, DEIT['embed_dims']
    hidden = block.ffn.layers[0][0].out_features
    outputs = tokens * (width + hidden) * 4  # norm2 and GELU
    assert kept[False] - kept[True] == len(net.layers) * outputs
    assert kept[2] == kept[True]


def test_by_default_a_gpu_makes_nothing_again():
    """What it costs there was not measured."""
    block, there = deit().layers[0], torch.empty(1, device='meta')
    for choice, here_and_there in (('auto', (True, False)), (True, (True, True)), (False, (False, False))):
        set_ops(block, dict(recompute=choice))
        assert (block.remakes(torch.empty(1)), block.remakes(there)) == here_and_there
        with torch.no_grad():
            assert not block.remakes(torch.empty(1))


def test_each_degree_of_recomputation_saves_less():
    net = swin().train()
    TrainPolicy().apply(net)
    x = torch.randn(1, 3, 64, 64)
    kept = [
        saved_bytes(net, partial(set_ops(net, dict(recompute=on, window='matmul')), x))
        for on in (False, True, 'attention')
    ]
    outputs = qkv = 0
    for stage, side, padded in zip(net.stages, (16, 8, 4, 2), (18, 9, 6, 3)):  # tokens a side
        msa, depth = stage.blocks[0].attn.w_msa, 4 * len(stage.blocks)
        outputs += depth * side**2 * (1 + 4) * msa.embed_dims  # norm2 and GELU
        qkv += depth * padded**2 * 3 * msa.embed_dims
    assert kept[0] - kept[1] == outputs
    assert kept[1] - kept[2] > 0.9 * qkv


def test_under_autocast_a_constant_weight_is_cast_once_and_a_trained_one_each_time():
    weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    assert in_dtype(weight, torch.bfloat16) is not in_dtype(weight, torch.bfloat16)
    declare_constant(weight)
    first = in_dtype(weight, torch.bfloat16)
    assert in_dtype(weight, torch.bfloat16) is first
    weight.data = torch.randn(8, 8)
    assert torch.equal(in_dtype(weight, torch.bfloat16), weight.bfloat16())
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(in_dtype(weight, torch.bfloat16), weight.bfloat16())
    weight.requires_grad_()
    assert in_dtype(weight, torch.bfloat16) is not in_dtype(weight, torch.bfloat16)


@pytest.mark.parametrize('make', [swin, deit])
def test_under_autocast_gradients_are_those_of_the_plain_path_to_bf16(make):
    net = make().train()
    TrainPolicy().apply(net)
    x = torch.randn(2, 3, 64, 64)
    exact = trained(net, x, 'plain')[1]
    error = {}
    for name, ops in (('plain', 'plain'), ('fast', dict(recompute=False)), ('recompute', dict(recompute=True))):
        with torch.autocast('cpu', torch.bfloat16):
            grads = trained(net, x, ops)[1]
        assert grads.keys() == exact.keys()
        assert all(g.dtype is torch.float32 for g in grads.values())
        error[name] = sum(((grads[n] - exact[n]).norm() / exact[n].norm()).item() for n in exact)
    assert 0 < error['plain'] < 0.3 * len(exact)  # bf16 has 8 bits
    assert error['fast'] < 1.2 * error['plain'] and error['recompute'] < 1.2 * error['plain']


def test_weights_stored_in_bf16_serve_fp32_activations():
    layer = set_ops(AdaptedLinear.wrap(nn.Linear(16, 8).bfloat16(), ParallelAdapter(16, 8, 4)))
    x = torch.randn(3, 16)
    expected = F.linear(x, layer.weight.float(), layer.bias.float()) + layer.adapter(x)
    for library in ('auto', 'plain'):
        layer.library = library
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('adjust', [dict(type='ParallelAdapter', rank=4), None])
@pytest.mark.parametrize('make', [swin, deit])
def test_a_network_that_is_built_with_its_weights_in_bf16_stores_all_of_them(make, adjust):
    net = make(scale=dict(times=2, adjust=adjust), ops=dict(weights='bfloat16'))
    big = [
        p for name, p in net.named_parameters() if name.endswith(('qkv.weight', 'proj.weight', '0.weight', '1.weight'))
    ]
    blocks_of = [p for p in big if p.ndim == 2 and 4 not in p.shape]  # 4: the adapters' rank
    assert len({id(p) for p in blocks_of}) >= 8 and {p.dtype for p in blocks_of} == {torch.bfloat16}


@pytest.mark.parametrize('make', [swin, deit])
def test_frozen_weights_stored_in_bf16_are_half_as_large_and_computed_with_as_such(make, tmp_path):
    net = make()
    rounded = copy.deepcopy(net)
    with torch.no_grad():
        for block in (b for _, layers in rounded._containers() for b in layers):
            for m in block.modules():
                if isinstance(m, nn.Linear):
                    m.weight.copy_(m.weight.bfloat16())
    before = {id(p) for p in net.parameters()}
    set_ops(net, dict(weights='bfloat16'))
    assert {id(p) for p in net.parameters()} == before, 'the ties are the Parameters'
    stored = [p for p in net.parameters() if p.dtype is torch.bfloat16]
    shared = count(net)[Role.SHARED]
    assert sum(p.numel() for p in stored) > 0.9 * shared.params and all(p.ndim == 2 for p in stored)
    TrainPolicy().apply(net.train()), TrainPolicy().apply(rounded.train())
    x = torch.randn(2, 3, 64, 64)
    require_equal(trained(net, x, dict(weights='bfloat16')), trained(rounded, x, None), 1e-4)
    with pytest.raises(ValueError, match=r"stored in torch.bfloat16.*weights='bfloat16'"):
        TrainPolicy('all').apply(net)
    with pytest.raises(ValueError, match="needs a linear layer that casts, got ops.linear='plain'"):
        Ops.read(dict(weights='bfloat16', linear='plain'))
    with pytest.raises(ValueError, match="compiles window attention by index, got ops.window='plain'"):
        Ops.read(dict(compile=True, window='plain'))
    torch.save(make().state_dict(), tmp_path / 'source.pth')
    net.load_state_dict(torch.load(tmp_path / 'source.pth'))  # fp32 files load
    assert sum(p.dtype is torch.bfloat16 for p in net.parameters()) == len(stored)
    set_ops(net, 'plain')
    assert all(p.dtype is torch.float32 for p in net.parameters())
    half = set_ops(make().bfloat16(), None)
    assert all(p.dtype is torch.bfloat16 for p in half.parameters())


@pytest.mark.parametrize('keep', [[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]])
def test_sparse_drop_path_equals_the_dense_one_for_a_given_mask(keep):
    keep = torch.tensor(keep).bool()
    branch = nn.Linear(6, 6).double()
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    seen = []

    def recorded(x):
        seen.append(len(x))
        return branch(x)

    sparse = sparse_residual(x, recorded, 0.25, keep)
    dense = x + branch(x) * (keep.double() / 0.75)[:, None, None]
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)
    leaves = [x, *branch.parameters()]
    grads = [torch.autograd.grad((y**2).sum(), leaves) for y in (sparse, dense)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert seen == [max(1, int(keep.sum()))]  # never empty: every parameter has a gradient


@pytest.mark.parametrize('policy', ['increments', 'all'])
@pytest.mark.parametrize('make', [swin, deit])
def test_an_mlp_in_pieces_gives_the_outputs_and_gradients_of_the_whole(monkeypatch, make, policy):
    net = make().double().train()
    TrainPolicy(policy).apply(net)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    whole = trained(net, x, 'plain')
    calls = []
    monkeypatch.setattr(blocks, 'LARGE', 2000)
    monkeypatch.setattr(blocks, 'CACHED', 900)
    mlp = blocks.FastBlock.mlp  # a hook would have it whole

    def seen(block, x):
        calls.append(x[..., 0].numel() * block.ffn.feedforward_channels * 8)
        return mlp(block, x)

    monkeypatch.setattr(blocks.FastBlock, 'mlp', seen)
    require_equal(trained(net, x, None), whole, 1e-11)
    width = 64 * 8 if make is deit else 16 * 4 * 8  # a row is never cut
    assert min(calls) <= max(900, width) < 2000 and len(calls) > 2 * len(net.layer_maps())


def test_samples_are_kept_independently_with_probability_one_minus_rate():
    torch.manual_seed(0)
    kept = torch.stack([draw(8, 0.3) for _ in range(20_000)]).double()
    assert (kept.mean(0) - 0.7).abs().max() < 4 * (0.21 / 20_000) ** 0.5
    assert (torch.corrcoef(kept.T) - torch.eye(8)).abs().max() < 0.03


@pytest.mark.parametrize('make', [swin, deit])
def test_a_block_with_sparse_drop_path_leaves_a_sample_or_adds_its_scaled_branch(make):
    torch.manual_seed(0)
    net = make().double().eval()
    block = (net.stages[0].blocks if make is swin else net.layers)[0]
    size = (4, 36, 16) if make is swin else (4, 5, 32)
    x, args = torch.randn(size, dtype=torch.float64), ((6, 6),) if make is swin else ()
    attention, mlp = block.drops()
    attention.drop_prob, mlp.drop_prob = 0.5, 0.0
    mid = x + block.attn(block.norm1(x), *args)  # linear in the first mask up to here
    block.train()
    mlp.eval()
    hooks, first = [], []
    hooks.append(block.norm2.register_forward_pre_hook(lambda m, a: first.append(a[0])))
    for _ in range(100):
        block(x, *args)
    outcomes = torch.stack([x, 2 * mid - x])  # dropped, or kept and scaled by 1 / 0.5
    apart = (torch.stack(first)[:, None] - outcomes).flatten(3).norm(dim=3)  # (runs, outcomes, B)
    assert apart.min(1).values.max() < 1e-10 * mid.norm()
    assert abs(apart.argmin(1).double().mean() - 0.5) < 4 * 0.5 / 400**0.5


def test_plain_gives_every_module_its_hosts_class_and_keys_and_outputs_stay():
    net = swin()
    keys, kinds = list(net.state_dict()), [type(m) for m in net.modules()]
    assert FastLinear in kinds and blocks.FastShiftWindowMSA in kinds and DropPath not in kinds
    set_ops(net, 'plain')
    found = {type(m) for m in net.modules()}
    assert not found & {FastLinear, blocks.FastShiftWindowMSA, blocks.BlockDropPath}
    assert list(net.state_dict()) == keys
    assert not any(m._forward_hooks for m in net.modules())
    set_ops(net, None)
    assert [type(m) for m in net.modules()] == kinds


def test_fast_networks_are_copied_and_pickled():
    net = set_ops(swin(), dict(recompute=True)).train()
    x = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(torch.equal(a, b) for a, b in zip(twin(x), net(x)))
        assert not {id(m) for m in twin.modules()} & {id(m) for m in net.modules()}


def test_products_take_strides_empty_batches_and_either_library():
    x, weight, bias = torch.randn(40, 24), torch.randn(8, 24), torch.randn(8)
    for library in ('onednn', 'plain'):
        torch.testing.assert_close(product(x, weight, bias, library), x @ weight.T + bias)
        torch.testing.assert_close(
            product(x.T, weight[:, :1].expand(8, 40), None, library), x.T @ weight[:, :1].expand(8, 40).T
        )
        assert product(x[:0], weight, bias, library).shape == (0, 8)
    y = linear(torch.randn(0, 24, requires_grad=True), weight, bias)
    assert y.shape == (0, 8)
    y.sum().backward()


def test_adjustments_of_another_form_are_added_plainly():
    class Scaled(LoRA):
        def low_rank(self):
            return None

        def forward(self, x):
            return 3 * super().forward(x)

    layer = AdaptedLinear.wrap(nn.Linear(6, 5), perturb(Scaled(6, 5, 2)))
    x = torch.randn(4, 6)
    expected = plain(x, layer.weight, layer.bias) + 3 * x @ layer.adapter.down.T @ layer.adapter.up.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    'ops,words',
    [
        ('fast', ["None, 'plain'", "'fast'"]),
        (dict(windows='auto'), ["['windows']", 'drop_path']),
        (dict(window='flash'), ['ops.window', "'flash'", 'sdpa']),
        (dict(recompute='yes'), ['ops.recompute', "'yes'", 'True']),
        (dict(recompute=1), ['ops.recompute', '1']),
    ],
)
def test_wrong_switches_are_refused_by_name_before_anything_is_built(ops, words):
    for make in (swin, deit):
        with pytest.raises(ValueError) as e:
            make(ops=ops)
        assert all(word in str(e.value) for word in words)


def test_the_last_choice_of_a_switch_is_its_plain_path():
    plain_path = Ops.read('plain').as_dict()
    assert plain_path == {name: switch.choices[-1] for name, switch in SWITCHES.items()}
    assert Ops.read(dict(linear='plain')).as_dict() == {
        **{name: s.default for name, s in SWITCHES.items()},
        'linear': 'plain',
    }


@pytest.mark.parametrize('by_host', [False, True])
def test_a_hosts_own_checkpointing_stays_and_its_names_are_taken(by_host, monkeypatch):
    from mmpretrain.models import SwinTransformer

    import scalenet_mm.ops.blocks as blocks

    calls, real = [], blocks.checkpoint
    monkeypatch.setattr(blocks, 'checkpoint', lambda *args: calls.append(1) or real(*args))
    arch = dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4])
    torch.manual_seed(0)
    model = set_ops(SwinTransformer(arch, img_size=56, window_size=7, out_indices=(1,), with_cp=by_host))
    model.train()
    x = torch.randn(1, 3, 56, 56)
    model(x)[0].sum().backward()
    assert len(calls) == (4 if by_host else 0)
    block, tokens = model.stages[0].blocks[1].eval(), torch.randn(1, 14 * 14, 16)
    assert torch.equal(block(tokens, hw_shape=(14, 14)), block(tokens, (14, 14)))


def test_a_map_smaller_than_the_window_is_refused_by_name():
    net = swin(pad_small_map=False)
    with pytest.raises(ValueError, match=r'smaller than the window \(3\)'):
        net(torch.randn(1, 3, 32, 64))


def test_torchs_own_counter_sees_the_products_of_the_fast_path():
    from torch.utils.flop_counter import FlopCounterMode

    net, x = deit().eval(), torch.randn(1, 3, 64, 64)
    found = []
    for ops in (None, dict(linear='onednn'), 'plain'):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            set_ops(net, ops)(x)
        found.append(counter.get_total_flops())
    assert found[0] == found[1] == found[2] > 0


def test_what_reads_along_sees_the_dense_drop_path():
    """Its shapes do not depend on what is drawn."""
    from torch.utils.flop_counter import FlopCounterMode

    found = []
    for rate in (0.0, 0.9):
        net = swin(drop_path_rate=rate).train()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.randn(2, 3, 64, 64))
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


@pytest.mark.slow
def test_compiled_blocks_are_one_graph_a_stage_and_changing_sizes_end_recompiling():
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    net = swin(scale=dict(times=2, stages=(2, 3))).train()
    TrainPolicy().apply(net)
    counters.clear()
    dynamo.reset()
    graphs = []
    for size in [(64, 64), (96, 64), (72, 100), (52, 75), (100, 72), (128, 96)]:
        x = torch.randn(2, 3, *size)
        require_equal(trained(net, x, dict(compile=True)), trained(net, x, 'plain'), 1e-3)
        graphs.append(counters['stats']['unique_graphs'])
    depth = sum(len(s.blocks) for s in net.stages)
    assert graphs[0] == 4 < depth
    assert graphs[-1] == graphs[-3] <= 3 * 4  # the first size, any size, any size with padding
    assert not any('recompile_limit' in str(k) for k in counters['frames'])
