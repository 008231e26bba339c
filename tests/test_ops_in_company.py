"""Fast paths of networks that others write to, wait for, replace parts of or transform; beside the plain path."""

import copy
import gc
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import DEIT, SWIN, perturb
from mmcv.cnn.bricks.drop import DropPath
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.utils import parametrize

from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.core.adapters import AdaptedLinear, ParallelAdapter
from scalenet_mm.core.kept import is_constant
from scalenet_mm.core.roles import TrainPolicy, declare_frozen
from scalenet_mm.ops import blocks, deploy, set_ops, window
from scalenet_mm.ops.gemm import in_dtype
from scalenet_mm.ops.linear import linear, plain, remakable


def swin(**options):
    host = dict(window_size=3, drop_path_rate=0.0, out_indices=(0, 1, 2, 3), pad_small_map=True)
    return perturb(ScaleNetSwin({**SWIN, 'depths': [2, 2, 2, 2]}, **{**host, **options}))


def deit(**options):
    return perturb(ScaleNetDeiT(DEIT, img_size=64, **{'drop_path_rate': 0.0, **options}))


IMAGES = {swin: (2, 3, 36, 36), deit: (2, 3, 64, 64)}
HOSTS = pytest.mark.parametrize('host', [swin, deit])


def images(host):
    return torch.randn(IMAGES[host])


def apart(a, b) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def plain_copy(model):
    return set_ops(copy.deepcopy(model), 'plain')


def read_anew(net, x) -> bool:
    """Whether a network computes with the values that its weights have: as a copy, of which nothing is kept."""
    return torch.equal(net(x)[-1], copy.deepcopy(net)(x)[-1])


def through_data(net, x):
    for p in net.parameters():
        p.data.mul_(1.5)


def step(net, x, fused):
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1, fused=fused)
    with torch.enable_grad():
        net(x)[-1].square().sum().backward()
        optimizer.step()


@HOSTS
@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize(
    'write,trained', [(through_data, False), (through_data, True), (partial(step, fused=True), True)]
)
def test_weights_that_change_without_a_count_are_read_anew(host, half, write, trained):
    """torch counts neither what is written through ``.data`` nor a step of an optimizer with ``fused=True``."""
    net, x = host().requires_grad_(trained).eval(), images(host)
    region = partial(torch.autocast, 'cpu', torch.bfloat16, half)  # torch itself keeps casts until one ends
    with torch.no_grad():
        with region():
            before = net(x)[-1]
        write(net, x)
        with region():
            assert read_anew(net, x) and apart(before, net(x)[-1]) > 0.05


@pytest.mark.parametrize('half', [False, True])
@HOSTS
def test_what_was_trained_since_a_policy_froze_it_is_read_anew(host, half):
    """In a second phase that trains everything with a fused optimizer, which no counter sees, and is frozen by hand."""
    net, x = host(), images(host)
    amp = partial(torch.autocast, 'cpu', torch.bfloat16, enabled=half)
    TrainPolicy('increments').apply(net)
    with torch.no_grad(), amp():
        net.eval()(x)  # kept from here on
    net.requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        with amp():
            net(x)[-1].float().pow(2).mean().backward()
        optimizer.step()
    net.requires_grad_(False)
    with torch.no_grad(), amp():
        assert read_anew(net, x)


@HOSTS
def test_an_average_of_weights_teaches_with_its_own_values(host):
    net, x = host().eval(), images(host)
    average = ExponentialMovingAverage(net, momentum=0.5)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        average(x)
        perturb(net, 5, 0.3)
        for _ in range(4):
            average.update_parameters(net)
        assert read_anew(average.module, x)


@HOSTS
def test_training_takes_deployment_back(host):
    net, x = host(), images(host)
    with torch.no_grad():
        deploy(set_ops(net.eval(), dict(linear='onednn')))(x)
        net.train()
        step(net, x, fused=True)
        net.eval()
        assert read_anew(net, x)


def test_a_constant_is_what_a_policy_froze_and_no_copy_of_it():
    net = deit()
    TrainPolicy('increments').apply(net)
    frozen = net.layers[0].attn.qkv.weight
    assert is_constant(frozen) and not is_constant(net.layers[0].ln1.weight)
    assert in_dtype(frozen, torch.bfloat16) is in_dtype(frozen, torch.bfloat16)
    other = copy.deepcopy(net)
    assert not is_constant(other.layers[0].attn.qkv.weight)
    declare_frozen(other)
    assert is_constant(other.layers[0].attn.qkv.weight)
    TrainPolicy('all').apply(net)
    frozen.requires_grad_(False)
    assert not is_constant(frozen)


def test_a_weight_in_the_place_of_a_deployed_one_is_packed_anew():
    """Its address and count of changes are often those of the tensor that went."""
    layer = AdaptedLinear.wrap(nn.Linear(6, 8), ParallelAdapter(6, 8, 3))
    perturb(deploy(set_ops(layer, dict(linear='onednn'))).eval())
    x = torch.randn(5, 6)
    with torch.no_grad():
        for _ in range(50):
            layer(x)
            layer.weight = None
            layer.weight = nn.Parameter(torch.randn(8, 6))
            assert apart(layer(x), plain_copy(layer)(x)) < 1e-5


class Between(nn.Module):
    """A norm, something in place, a linear layer."""

    def __init__(self, change, norm=None):
        super().__init__()
        self.norm, self.linear, self.change = norm or nn.LayerNorm(6), nn.Linear(6, 8), change

    def forward(self, x):
        y = remakable(self.norm, x)
        self.change(y)
        return self.linear(y)


def hide(y):
    y[:, :3] = 0


def halve(module, args, output):
    return output * 0.5


@pytest.mark.parametrize('change', [hide, lambda y: y.add_(1), lambda y: F.dropout(y, inplace=True), lambda y: None])
@pytest.mark.parametrize('norm', [nn.LayerNorm(6), nn.SiLU(inplace=True)])
@pytest.mark.parametrize('hook', [None, False, True])
def test_what_changed_since_is_not_made_again(change, norm, hook):
    model = Between(change, copy.deepcopy(norm)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    if hook is False:
        model.norm.register_forward_hook(halve)
    grads = []
    for ops in (None, 'plain'):
        one = set_ops(copy.deepcopy(model), ops)
        if hook:
            one.norm.register_forward_hook(halve, prepend=True)
        torch.manual_seed(1)
        one(x * 1).square().sum().backward()
        grads.append(one.linear.weight.grad)
    torch.testing.assert_close(*grads)


PARTS = {
    swin: ['ffn', 'ffn.gamma2', 'ffn.dropout_layer', 'ffn.layers', 'attn.w_msa', 'attn.w_msa.softmax', 'attn.drop'],
    deit: ['ffn', 'ffn.gamma2', 'ffn.dropout_layer', 'ffn.layers', 'attn', 'attn.out_drop'],
}
LAST = {swin: 'stages.3.blocks.1.', deit: 'layers.1.'}


def doubled_by_a_hook(module):
    module.register_forward_hook(lambda module, args, output: 2 * output)


def doubled_by_its_forward(module):
    forward = module.forward
    module.forward = lambda *args, **kwargs: 2 * forward(*args, **kwargs)


@pytest.mark.parametrize('host,part', [(host, part) for host, parts in PARTS.items() for part in parts])
@pytest.mark.parametrize('double', [doubled_by_a_hook, doubled_by_its_forward])
@pytest.mark.parametrize('grad', [False, True])
def test_a_part_that_somebody_doubles_is_doubled(host, part, double, grad):
    net, x, outs = host(drop_path_rate=0.3).eval(), images(host), []
    untouched = net(x)[-1]
    for ops in (None, 'plain'):
        one = set_ops(copy.deepcopy(net), ops)
        double(one.get_submodule(LAST[host] + part))
        with torch.set_grad_enabled(grad):
            outs.append(one(x)[-1])
    assert apart(*outs) < 1e-5 < apart(outs[1], untouched)


@pytest.mark.parametrize('host,part', [(host, part) for host, parts in PARTS.items() for part in parts])
def test_a_part_of_a_compiled_block_that_somebody_doubles_is_doubled(host, part, monkeypatch):
    monkeypatch.setattr('scalenet_mm.ops.compile._compiled', {})
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)  # the graph is the function that it is of
    net, x, outs = host().eval(), images(host), []
    for ops in (dict(compile=True), 'plain'):
        one = set_ops(copy.deepcopy(net), ops)
        doubled_by_a_hook(one.get_submodule(LAST[host] + part))
        outs.append(one(x)[-1])
    assert apart(*outs) < 1e-5 < apart(outs[1], net(x)[-1])


class OwnSoftmax(nn.Softmax):
    def forward(self, x):
        return super().forward(2 * x)


class OwnDropout(nn.Dropout):
    def forward(self, x):
        return x / 2


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('compile', [False, True])
@pytest.mark.parametrize(
    'name,part,changes',
    [('softmax', OwnSoftmax(-1), True), ('attn_drop', OwnDropout(), True), ('attn_drop', nn.Identity(), False)],
)
def test_window_attention_of_other_parts_is_the_hosts(name, part, changes, compile, training, monkeypatch):
    monkeypatch.setattr('scalenet_mm.ops.compile._compiled', {})
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)
    net, x = swin(ops=dict(compile=compile)).train(training), images(swin)
    untouched = net(x)[-1]
    setattr(net.get_submodule('stages.3.blocks.1.attn.w_msa'), name, part)
    got = net(x)[-1]
    assert apart(got, plain_copy(net)(x)[-1]) < 1e-5 and (apart(got, untouched) > 1e-3) == changes


@HOSTS
@pytest.mark.parametrize('part', ['norm1', 'attn', 'norm2'])
def test_hooks_see_every_sample_that_a_drop_path_drops(host, part):
    net, x, sizes = host(drop_path_rate=0.5).train(), torch.randn(8, *IMAGES[host][1:]), []
    module = getattr(net.get_submodule(LAST[host][:-1]), part)
    module.register_forward_hook(lambda m, inputs, out: sizes.append(len(out)))
    for seed in range(4):
        torch.manual_seed(seed)
        net(x)
    assert sizes == [8] * 4


def test_a_merging_whose_sampler_is_waited_for_calls_it():
    net, calls = swin().eval(), []
    samplers = [m.sampler for m in net.modules() if isinstance(m, blocks.FastPatchMerging)]
    for sampler in samplers:
        sampler.register_forward_hook(lambda *args: calls.append(1))
    net(images(swin))
    assert len(calls) == len(samplers) == 3


@HOSTS
def test_a_copy_of_a_deployed_network_is_not_deployed(host):
    net, x = host(), images(host)
    deploy(set_ops(net.eval(), dict(linear='onednn')))
    average = ExponentialMovingAverage(net, momentum=0.5)
    with torch.no_grad():
        average(x)
        perturb(net, 5, 0.3)
        average.update_parameters(net)
        assert read_anew(average.module, x)
        assert apart(average.module(x)[-1], plain_copy(average.module)(x)[-1]) < 1e-4


@HOSTS
def test_a_hook_on_every_module_sees_every_module(host):
    net, x, seen = host().eval(), images(host), []
    for ops in (None, 'plain'):
        set_ops(net, ops)
        calls = []
        handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: calls.append(id(m)))  # noqa: B023
        with torch.no_grad():
            net(x)
        handle.remove()
        seen.append(calls)
    assert set(seen[0]) == set(seen[1])


@HOSTS
def test_a_drop_path_stays_the_hosts_while_a_hook_waits_for_the_mlp(host):
    net, x = host(drop_path_rate=0.5).train(), torch.randn(8, *IMAGES[host][1:])
    hook = [m.ffn.register_forward_hook(lambda *args: None) for m in net.modules() if isinstance(m, blocks.FastBlock)]
    torch.manual_seed(3)
    got = net(x)[-1]
    reference = host(drop_path_rate=0.5, ops='plain').train()  # never anything but the host's
    reference.load_state_dict(net.state_dict())
    torch.manual_seed(3)
    torch.testing.assert_close(got, reference(x)[-1], rtol=1e-4, atol=1e-4)
    for handle in hook:
        handle.remove()
    net(x)
    rates = [d for b in net.modules() if isinstance(b, blocks.FastBlock) for d in b.drops() if isinstance(d, DropPath)]
    assert rates and all(type(d) is blocks.BlockDropPath for d in rates)


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('host,part', [(host, part) for host in LAST for part in ('norm2', 'gamma2', 'layers.0.1')])
def test_a_wide_mlp_is_whole_where_its_parts_are_waited_for(host, part, grad, monkeypatch):
    monkeypatch.setattr(blocks, 'LARGE', 1)
    monkeypatch.setattr(blocks, 'CACHED', 1000)
    net, sizes = host().eval(), []
    block = net.get_submodule(LAST[host][:-1])
    module = block.norm2 if part == 'norm2' else block.ffn.get_submodule(part)
    module.register_forward_hook(lambda m, args, out: sizes.append(out.shape))
    with torch.set_grad_enabled(grad):
        net(images(host))
    assert [len(size) for size in sizes] == [3]


@HOSTS
def test_drop_out_that_is_asked_for_in_inference_is_applied(host):
    net, x = host().eval(), images(host)
    for m in net.modules():
        for part in m.ffn.layers.modules() if isinstance(m, blocks.FastBlock) else ():
            if isinstance(part, nn.Dropout):
                part.train().p = 0.5
    with torch.no_grad():
        assert apart(net(x)[-1], net(x)[-1]) > 0.01


@HOSTS
@pytest.mark.parametrize('compile', [False, True])
def test_another_drop_out_than_drop_path_is_the_hosts(host, compile):
    net, x = host().train(), images(host)
    block = net.get_submodule(LAST[host][:-1])
    block.ffn.dropout_layer = nn.Dropout(0.5)

    class Own(DropPath):
        def forward(self, x):
            return 0 * x

    block.ffn.dropout_layer = Own(0.5)
    set_ops(net, dict(compile=compile))
    assert type(block.ffn.dropout_layer) is Own and not block.own_path()
    set_ops(net, None)
    one, two = net(x)[-1], plain_copy(net)(x)[-1]
    assert apart(one, two) < 1e-5
    block.ffn.dropout_layer = nn.Dropout(0.5)
    assert apart(net(x)[-1], net(x)[-1]) > 0.01


def of_window_attention(net, path='stages.3.blocks.1.attn'):
    return lambda x: net.get_submodule(path)(x.flatten(2).transpose(1, 2), x.shape[2:])


def test_gradients_of_several_outputs_at_once():
    x, (down, up) = torch.randn(3, 8), (torch.randn(2, 8), torch.randn(4, 2))
    weight, bias = torch.randn(4, 8), torch.randn(4)
    rest = dict(weight=weight, bias=bias, low_rank=(down, up, F.gelu))
    found, wanted = (torch.autograd.functional.jacobian(partial(f, **rest), x, vectorize=True) for f in (linear, plain))
    assert apart(found, wanted) < 1e-6


@pytest.mark.parametrize('stored', [torch.bfloat16, torch.float32])
def test_adapters_of_another_dtype_than_the_base(stored):
    """As increments trained in float32 on a bfloat16 base, read by tools that see torch's own operations."""
    x, weight, bias = (t.bfloat16() for t in (torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)))
    low_rank = torch.randn(2, 8, dtype=stored), torch.randn(4, 2, dtype=stored), F.gelu
    with torch.no_grad():
        one, two = linear(x, weight, bias, low_rank), plain(x, weight, bias, low_rank)
    assert one.dtype is two.dtype is torch.bfloat16 and apart(one, two) < 2e-2


@pytest.mark.parametrize('grad', [False, True])
def test_forward_mode_differentiation_is_that_of_the_plain_path(grad):
    net = swin(ops=dict(window='matmul')).double().eval()  # torch's SDPA has no such derivative on a CPU
    x = torch.randn(2, net.stages[3].blocks[1].attn.w_msa.embed_dims, 5, 5, dtype=torch.float64)
    for part in (nn.Sequential(nn.Linear(5, 3), nn.Tanh()).double(), of_window_attention(net)):
        with torch.set_grad_enabled(grad):
            got = torch.func.jvp(set_ops(part) if isinstance(part, nn.Module) else part, (x,), (x,))
        set_ops(net, 'plain')
        expected = torch.func.jvp(set_ops(part, 'plain') if isinstance(part, nn.Module) else part, (x,), (x,))
        set_ops(net, dict(window='matmul'))
        torch.testing.assert_close(got, expected)


def test_gradients_of_every_image_by_torch_func_are_those_of_the_plain_path():
    net, image = deit().double().eval(), images(deit).double()

    def loss(params, one, image):
        return torch.func.functional_call(one, params, (image[None],))[-1].square().sum()

    params = dict(net.named_parameters())
    several = torch.func.vmap(torch.func.grad(loss), (None, None, 0))(params, net, image)
    single = torch.func.grad(loss)(params, plain_copy(net), image[1])
    for name, grad in single.items():
        torch.testing.assert_close(several[name][1], grad)


@HOSTS
def test_weights_lent_for_one_call_are_those_of_its_backward_pass(host):
    """As MAML and hypernetworks do: the backward pass comes when the module has its own weights again."""
    net, image = host().eval(), images(host)
    found = []
    for one in (net, plain_copy(net)):
        lent = {name: (p.detach() * 1.1).requires_grad_() for name, p in one.named_parameters()}
        torch.func.functional_call(one, lent, (image,))[-1].square().sum().backward()
        found.append({name: p.grad for name, p in lent.items()})
    for name, expected in found[1].items():
        got = found[0][name]
        assert got is expected is None or apart(got, expected) < 1e-4, name  # None: of norms of outputs not asked for


def test_a_parametrized_norm_takes_lent_weights():
    net, image = deit().eval(), images(deit)

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(net.layers[0].ln2, 'weight', Double())
    found = []
    for one in (net, plain_copy(net)):
        lent = {name: (p.detach() * 1.1).requires_grad_() for name, p in one.named_parameters()}
        torch.func.functional_call(one, lent, (image,))[-1].square().sum().backward()
        found.append(lent)
    for name, p in found[1].items():
        assert p.grad is None or apart(found[0][name].grad, p.grad) < 1e-4, name


def test_numbers_that_the_fast_path_does_not_know_take_the_plain_one():
    x, weight = torch.randn(3, 4, dtype=torch.complex128), torch.randn(5, 4, dtype=torch.complex128)
    grads = []
    for form in (linear, plain):
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        form(a, w, None).abs().sum().backward()
        grads.append((a.grad, w.grad))
    torch.testing.assert_close(*grads)
    with pytest.raises(RuntimeError, match='dtype'):
        linear(torch.ones(3, 4, dtype=torch.long), weight.real.float())
    double = torch.randn(2, 4, dtype=torch.float64)
    with torch.autocast('cpu', torch.bfloat16):
        assert linear(double, weight.real, None).dtype is torch.float64
    assert linear(torch.randn(3, 0), torch.randn(5, 0), torch.ones(5)).equal(torch.ones(3, 5))
    assert linear(torch.randn(3, 4), torch.randn(0, 4)).shape == (3, 0)


def test_a_parametrized_layer_keeps_its_parametrization():
    layer, x = set_ops(nn.Linear(4, 4)), torch.randn(2, 4)
    parametrize.register_parametrization(layer, 'weight', nn.Softplus())
    expected = F.linear(x, layer.weight, layer.bias)
    for ops in (None, 'plain', None):
        torch.testing.assert_close(set_ops(nn.Sequential(layer), ops)(x), expected)


def test_an_adjustment_that_computes_something_else_than_its_base_is_called():
    class Twice(ParallelAdapter):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = perturb(AdaptedLinear.wrap(nn.Linear(6, 8), Twice(6, 8, 3)))
    fast, x = set_ops(copy.deepcopy(layer)), torch.randn(5, 6)
    torch.testing.assert_close(fast(x), layer(x))
    layer.adapter = fast.adapter = nn.Linear(6, 8)  # of another kind
    torch.testing.assert_close(fast(x), layer(x))


def test_readers_of_graphs_and_another_default_device():
    net = deit()
    torch.fx.symbolic_trace(net.layers[0].attn)
    net, x = swin().eval(), images(swin)
    expected = plain_copy(net)(x)[-1]
    with torch.device('meta'):
        torch.testing.assert_close(set_ops(net)(x)[-1], expected, rtol=1e-4, atol=1e-4)


def test_nothing_that_a_cuda_graph_captured_is_kept(monkeypatch):
    """It lies in the graph's memory, and holds no values until the graph is replayed."""
    calls = []

    @window.by_size(4)
    def computed(size, device):
        calls.append(size)
        return size

    gpu = torch.device('cuda')
    for captured, expected in ((True, 2), (False, 3)):
        monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda captured=captured: captured)
        computed(1, gpu), computed(1, gpu)
        assert len(calls) == expected and computed.cache_info().currsize == (not captured)


@pytest.mark.parametrize('inplace', [False, True])
def test_outputs_that_keep_recipes_go_with_their_last_reference(inplace):
    gc.collect()
    gc.disable()
    try:
        out = remakable(nn.SiLU(inplace=inplace), nn.Linear(4, 4)(torch.randn(2, 4)))
        assert hasattr(out, 'recipe') is not inplace
        gone = torch._C._WeakTensorRef(out)
        del out
        assert gone.expired()
    finally:
        gc.enable()
