"""What inference saves: layouts of deployed weights, GELU and sums as a product is written; beside the plain path."""

import gc
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import DEIT, SWIN, perturb
from torch import nn

from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.core.kept import _kept
from scalenet_mm.ops import blocks, deploy, gemm, set_ops, window
from scalenet_mm.ops import linear as layers
from scalenet_mm.ops.linear import inferred, plain

ONEDNN = pytest.mark.skipif(not gemm.onednn_works(), reason='this torch has no oneDNN product')


def swin(**options):
    host = dict(window_size=3, drop_path_rate=0.0, out_indices=(0, 1, 2, 3), pad_small_map=True)
    return perturb(ScaleNetSwin({**SWIN, 'depths': [2, 2, 2, 2]}, **host, **options))


def deit(**options):
    return perturb(ScaleNetDeiT(DEIT, img_size=64, drop_path_rate=0.0, **options))


NETS = pytest.mark.parametrize(
    'make,size', [(swin, (64, 64)), (swin, (52, 75)), (deit, (64, 64))], ids=['swin', 'swin padded', 'deit']
)


def outputs(net, x, ops=None, mode=torch.no_grad, deployed=True):
    set_ops(net, ops)
    if deployed:
        deploy(net)
    with mode():
        return net(x)


@NETS
@pytest.mark.parametrize('deployed', [True, False])
@pytest.mark.parametrize('ops', [None, dict(mlp='plain'), dict(linear='plain'), dict(compile=True)], ids=str)
def test_inference_is_the_plain_path(make, size, ops, deployed):
    net = make(scale=dict(times=2)).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for a, b in zip(outputs(net, x, ops, deployed=deployed), outputs(net, x, 'plain')):
        assert (a - b).norm() <= 1e-11 * b.norm()


@ONEDNN
@NETS
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_in_fp32_inference_by_packed_weights_differs_by_rounding(make, size, mode):
    net, x = make(scale=dict(times=2)).eval(), torch.randn(2, 3, *size)
    first, again = (outputs(net, x, dict(linear='onednn'), mode) for _ in range(2))
    for a, b, c in zip(first, outputs(net, x, 'plain'), again):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
        assert torch.equal(a, c)  # the first image is computed as all that follow


@NETS
def test_in_bf16_it_is_as_near_to_fp32_as_the_plain_path(make, size):
    net, x = make().eval(), torch.randn(2, 3, *size)
    exact = outputs(net, x, 'plain')
    with torch.autocast('cpu', torch.bfloat16):
        fast, slow = (outputs(net, x, ops) for ops in (None, 'plain'))
    for a, b, c in zip(exact, fast, slow):
        assert (a - b).norm() <= 1.5 * (a - c).norm() + 2**-8 * a.norm()


@pytest.mark.parametrize('library', ['plain', pytest.param('onednn', marks=ONEDNN)])
@pytest.mark.parametrize('deployed', [True, False])
@pytest.mark.parametrize('act', [None, F.gelu])
@pytest.mark.parametrize('d_in,d_out', [(6, 20), (20, 6)])
def test_every_form_of_a_layer_in_inference_is_its_sum(d_in, d_out, act, deployed, library):
    x, weight, bias, add = (torch.randn(*s) for s in ((2, 3, d_in), (d_out, d_in), (d_out,), (2, 3, d_out)))
    down, up, way = torch.randn(4, d_in), torch.randn(d_out, 4), (library, deployed)
    for given in ((down, up, F.gelu), (down, up, None), None):
        expected = plain(x, weight, bias, given)
        expected = expected if act is None else act(expected)
        with torch.no_grad():
            torch.testing.assert_close(inferred(x, weight, bias, given, *way, act), expected)
            torch.testing.assert_close(inferred(x, weight, None, given, *way) + bias, plain(x, weight, bias, given))
            torch.testing.assert_close(inferred(x, weight, bias, given, *way, act, add), expected + add)


@ONEDNN
def test_a_packed_weight_is_kept_for_all_that_share_it_until_it_changes_or_goes():
    weight = nn.Parameter(torch.randn(8, 6), requires_grad=False)
    tails = [nn.Parameter(torch.randn(8, 2), requires_grad=False) for _ in range(2)]
    x = torch.randn(4, 6)
    made = [gemm.packed(weight, torch.float32, tail) for tail in (None, *tails)]
    again = [gemm.packed(weight, torch.float32, tail) for tail in (None, *tails)]
    assert all(a is b for a, b in zip(made, again)) and len({id(t) for t in made}) == 3

    def change_both():
        weight.add_(1)
        tails[0].mul_(2)

    def replace():
        weight.data, tails[1].data = torch.randn(8, 6), torch.randn(8, 2)

    for change in (partial(weight.mul_, 2), partial(tails[0].add_, 1), change_both, replace):
        with torch.no_grad():
            change()
        for tail in tails:
            wide = torch.cat([x, x[:, :2]], 1)
            torch.testing.assert_close(
                gemm.product(wide, gemm.packed(weight, torch.float32, tail), None, 'onednn'),
                x @ weight.T + x[:, :2] @ tail.T,
            )
    gc.collect()
    before = len(_kept)
    tails.clear()
    del tail, made, again, change
    gc.collect()
    assert len(_kept) == before - 2


@ONEDNN
@pytest.mark.parametrize('frozen', [True, False])
def test_only_deployed_weights_are_packed(frozen):
    """Averages of weights (EMA) and adapters that peft merges are written past autograd's counter of changes."""
    net, x = deit().eval(), torch.randn(1, 3, 64, 64)
    net.requires_grad_(not frozen)
    set_ops(deploy(net), dict(linear='onednn'))  # which takes it back
    with torch.no_grad():
        before = net(x)[0]
        for p in net.parameters():
            p.data.mul_(1.5)
        after = net(x)[0]
    expected = outputs(net, x, 'plain')[0]
    assert not torch.allclose(before, after)
    assert (after - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('host', [swin, deit])
def test_hooks_on_what_an_mlp_calls_are_called(host):
    net, x = host().eval(), torch.randn(1, 3, 64, 64)
    plain_path = outputs(net, x, 'plain')
    watched = [m for m in net.modules() if isinstance(m, (nn.GELU, nn.Linear))]
    called = set()
    for module in watched:
        module.register_forward_hook(lambda module, args, output: called.add(module))
    fast = outputs(net, x)
    assert called == set(watched)
    for a, b in zip(fast, plain_path):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('host', [swin, deit])
def test_without_hooks_each_mlp_is_two_products_and_recomputing_does_not_hinder_it(host, monkeypatch):
    net, x, calls = host().eval(), torch.randn(1, 3, 64, 64), []

    def counted(*args, **kwargs):
        calls.append(kwargs.keys())
        return inferred(*args, **kwargs)

    monkeypatch.setattr(blocks, 'inferred', counted)
    monkeypatch.setattr(layers, 'inferred', counted)
    for ops in (None, dict(recompute=True)):
        calls.clear()
        outputs(net, x, ops)
        hosts = [m for m in net.modules() if isinstance(m, blocks.FastBlock)]
        assert calls.count({'act': 0}.keys()) == calls.count({'add': 0}.keys()) == len(hosts) > 0


@pytest.mark.parametrize('side,shift', [(6, 1), (9, 1), (9, 0)])
def test_windows_in_half_precision_are_attended_in_fp32_on_a_cpu_piece_by_piece(side, shift, monkeypatch):
    table, index = torch.randn(25, 2), torch.randint(25, (9, 9))
    at = window.layout(1, side, side, 3, shift, torch.device('cpu'))
    qkv = torch.randn(len(at.sorts), 9, 3, 2, 8)
    biases = [window.biases(table, index, 3, shift, dtype) for dtype in (torch.float32, torch.float32)]
    monkeypatch.setattr(window, 'CACHED', 2 * qkv[0].numel() * 4)  # two windows
    exact = window.attend(qkv.bfloat16().float(), biases[0], at, 0.3, 'matmul')
    half = window.attend(qkv.bfloat16(), biases[1], at, 0.3, 'sdpa')
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=2**-8, atol=1e-3)  # one rounding, of the result
    with torch.no_grad():
        assert window.fastest(torch.bfloat16, torch.device('cpu'), False, 0.0) == 'sdpa'
    assert window.fastest(torch.bfloat16, torch.device('cpu'), False, 0.0) == 'matmul'
    assert window.mask_dtype('sdpa', torch.bfloat16, table) is torch.float32
