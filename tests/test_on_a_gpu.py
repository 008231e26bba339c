"""What a GPU computes beside the CPU, and the forms that are for it alone."""

import copy

import pytest
import torch
from conftest import perturb

from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.compat import configs_dir, read_config
from scalenet_mm.experiments.benchmark import networks
from scalenet_mm.experiments.benchmark.parity import Net, compare, objective
from scalenet_mm.experiments.benchmark.settings import Settings
from scalenet_mm.experiments.benchmark.steps import images
from scalenet_mm.ops import drop_path, set_ops
from scalenet_mm.ops.window import MAX_WINDOWS, attend, layout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')]
GPU = torch.device('cuda')
MICRO = Settings(size='micro')
NETWORKS = {
    'swin': lambda: networks.our_swin(MICRO, 'Swin-T', pyramid=True),
    'deit': lambda: networks.our_deit(MICRO, 'DeiT-T'),
}
SWITCHED = [
    {},
    dict(window='matmul'),
    dict(window='sdpa'),
    dict(window='efficient'),
    dict(linear='plain'),
    dict(recompute=True),
    dict(recompute='attention'),
    dict(weights='bfloat16'),
    dict(compile=True),
]


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch):
    """cuDNN rounds to TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


@pytest.mark.parametrize('ops', SWITCHED, ids=lambda ops: ','.join(f'{k}={v}' for k, v in ops.items()) or 'defaults')
@pytest.mark.parametrize('host', NETWORKS)
def test_a_gpu_computes_what_the_plain_network_does_on_the_cpu(host, ops):
    ours = perturb(NETWORKS[host]())
    there = set_ops(copy.deepcopy(ours), ops)
    if 'weights' in ops:  # they are rounded when they are stored
        ours.load_state_dict({k: v.float() for k, v in there.state_dict().items()})
    plain = set_ops(ours, 'plain')
    plain.train(), there.to(GPU).train()
    pixels = images(MICRO, 2)
    outputs, grads = [], []
    for net, x in ((plain, pixels), (there, pixels.to(GPU))):
        found = Net(net)(x)
        objective(found).backward()
        outputs.append([o.detach().cpu() for o in found])
        grads.append({n: p.grad.cpu() for n, p in net.named_parameters() if p.grad is not None})
    for expected, got in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name, expected in grads[0].items():
        torch.testing.assert_close(
            grads[1][name], expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item(), msg=name
        )


@pytest.mark.parametrize('host', NETWORKS)
def test_half_precision_is_near_single(host):
    ours = perturb(NETWORKS[host]()).to(GPU).eval()
    x = images(MICRO, 2).to(GPU)
    with torch.inference_mode():
        expected = Net(ours)(x)[-1]
        with torch.autocast('cuda', torch.float16):
            mixed = Net(ours)(x)[-1].float()
        half = Net(ours.bfloat16())(x.bfloat16())[-1].float()
    norm = torch.linalg.vector_norm
    assert 0 < norm(mixed - expected) < 0.02 * norm(expected)
    assert 0 < norm(half - expected) < 0.1 * norm(expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_more_windows_than_a_grid_has_places_for(dtype):
    side = 7 * 94  # 8,836 windows an image
    at = layout(8, side, side, 7, 3, GPU)
    assert max(at.counts) > MAX_WINDOWS
    qkv = torch.randn(len(at.sorts), 49, 3, 1, 8, device=GPU, dtype=dtype)
    bias = torch.randn(4, 1, 49, 56, device=GPU, dtype=dtype)[..., :49]
    grads, outs = [], []
    for method in ('efficient', 'sdpa', 'matmul'):
        one = qkv.clone().requires_grad_()
        out = attend(one, bias, at, 8**-0.5, method)
        out.float().square().sum().backward()
        outs.append(out.detach().float())
        grads.append(one.grad.float())
    for pair in (outs, grads):
        (got, expected), norm = pair, torch.linalg.vector_norm
        assert norm(got - expected) < (1e-5 if dtype is torch.float32 else 0.02) * norm(expected)


def test_sparse_drop_path_is_the_dense_one():
    x, w = torch.randn(5, 3, 4, device=GPU), torch.randn(4, 4, device=GPU)
    keep = torch.tensor([True, False, True, False, True])
    expected = x + (keep.to(GPU) / 0.6)[:, None, None] * (x @ w)
    torch.testing.assert_close(drop_path.sparse_residual(x, lambda x: x @ w, 0.4, keep), expected)


@pytest.mark.parametrize(
    'config', ['demo/mask_rcnn_scalenet_swin_digits.py', 'demo/upernet_scalenet_swin_digits.py'], ids=['det', 'seg']
)
def test_a_detector_gives_the_maps_and_gradients_of_the_cpu(config):
    backbone = perturb(build_model(read_config(configs_dir() / config)).backbone)
    there = copy.deepcopy(backbone).to(GPU)
    x = torch.randn(2, 3, 96, 120)
    for a, b in zip(backbone.eval()(x), there.eval()(x.to(GPU)), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-4)
    found = compare('plain', Net(there), networks.plain(Net(there)), x.to(GPU))
    assert found.holds, str(found)


def test_operators_of_torchvision_give_on_a_gpu_what_they_give_on_the_cpu():
    from mmcv.ops import ModulatedDeformConv2d, batched_nms, roi_align

    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 50
    boxes = torch.cat((corner, corner + 1 + 30 * torch.rand(200, 2, generator=generator)), 1)
    scores, kind = torch.randperm(200, generator=generator) / 200, torch.arange(200) % 3
    kept = [
        batched_nms(boxes.to(d), scores.to(d), kind.to(d), dict(type='nms', iou_threshold=0.5))[1].cpu()
        for d in ('cpu', GPU)
    ]
    assert torch.equal(*kept) and 0 < len(kept[0]) < 200
    feats = torch.randn(2, 4, 20, 20, generator=generator)
    rois = torch.cat((torch.arange(200)[:, None] % 2.0, boxes), 1)
    pooled = []
    for d in ('cpu', GPU):
        f = feats.detach().clone().to(d).requires_grad_()
        out = roi_align(f, rois.to(d), 7, 0.25, 0, 'avg', True)
        out.square().sum().backward()
        pooled += [(out.detach().cpu(), f.grad.cpu())]
    for a, b in zip(*pooled, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    conv = ModulatedDeformConv2d(4, 4, 3, padding=1, bias=False)
    offset, mask = torch.randn(2, 18, 20, 20, generator=generator), torch.rand(2, 9, 20, 20, generator=generator)
    deformed = [conv.to(d)(feats.to(d), offset.to(d), mask.to(d)).detach().cpu() for d in ('cpu', GPU)]
    torch.testing.assert_close(*deformed, rtol=1e-4, atol=1e-4)
