"""mmcv's operators from torch and torchvision: equal to the compiled ones where these run here, else to formulas."""

import importlib
import math
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parents[1] / 'scalenet_mm' / 'mmcv_ops'


def load_supplied():
    """The stand-in beside a compiled module, under a name of its own."""
    name = 'supplied_ops'
    if name not in sys.modules:
        spec = spec_from_file_location(name, FOLDER / '__init__.py', submodule_search_locations=[str(FOLDER)])
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


ours = load_supplied()
compiled = importlib.import_module('mmcv._ext')
needs_compiled = pytest.mark.skipif(
    not hasattr(compiled, '__file__') or not str(compiled.__file__).endswith('.so'),
    reason='mmcv is not compiled here: bash tools/setup_env.sh --compile-mmcv',
)


def both(monkeypatch, module: str, call):
    """What ``call`` gives by mmcv's Python code on the compiled operators, and on ours."""
    part = importlib.import_module(f'mmcv.ops.{module}')
    results = []
    for ext in (compiled, ours):
        monkeypatch.setattr(part, 'ext_module', ext)
        results.append(call())
    return results


def same(one, two, tolerance=1e-5):
    one, two = ([x] if torch.is_tensor(x) else list(x) for x in (one, two))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def use_ours(monkeypatch, module: str):
    """mmcv's Python code on our operators; an import of the name would give the function of the same name."""
    part = importlib.import_module(f'mmcv.ops.{module}')
    monkeypatch.setattr(part, 'ext_module', ours)
    return part


def boxes(count: int, seed: int, flat: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of which some have no area, and scores that all differ."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100
    sides = torch.rand(count, 2, generator=generator) * 60 * (torch.rand(count, 1, generator=generator) >= flat)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)
    return torch.cat((corner, corner + sides), 1), scores


# ---- suppression


@needs_compiled
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('count', [0, 1, 7, 200])
def test_nms_keeps_the_same_boxes_in_the_same_order(count, offset, monkeypatch):
    from mmcv.ops import nms

    for seed in range(20):
        given = boxes(count, seed)
        for threshold in (0.0, 0.3, 0.5, 0.9):
            same(*both(monkeypatch, 'nms', lambda t=threshold, g=given: nms(*g, t, offset)))
        same(*both(monkeypatch, 'nms', lambda g=given: nms(*g, 0.5, offset, score_threshold=0.4, max_num=5)))


def test_of_equal_scores_the_first_box_is_asked_first():
    box = torch.tensor([[0.0, 0, 10, 10]]).repeat(5, 1) + torch.arange(5.0)[:, None] * 100
    assert ours.nms(box, torch.full((5,), 0.5), 0.5, 0).tolist() == [0, 1, 2, 3, 4]
    assert ours.nms(box.half(), torch.full((5,), 0.5).half(), 0.5, 0).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
def test_an_overlap_of_the_threshold_is_not_above_it(threshold):
    """The compiled operator compares float32 with float32."""
    two = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, round(10 * threshold)]])
    assert ours.nms(two, torch.tensor([0.9, 0.8]), threshold, 0).tolist() == [0, 1]
    assert ours.nms(two, torch.tensor([0.9, 0.8]), threshold - 1e-6, 0).tolist() == [0]


@needs_compiled
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('count', [0, 1, 60])
def test_soft_nms_gives_the_same_boxes_and_scores(count, method, monkeypatch):
    from mmcv.ops import soft_nms

    for seed in range(15):
        given = boxes(count, seed, flat=0 if method == 'gaussian' else 0.1)
        for offset in (0, 1):
            same(*both(monkeypatch, 'nms', lambda g=given, o=offset: soft_nms(*g, 0.3, 0.5, 0.05, method, o)))


def test_two_boxes_without_area_do_not_overlap_in_soft_nms(monkeypatch):
    """The compiled operator divides 0 by 0 there, and its Gaussian makes the score nan."""
    use_ours(monkeypatch, 'nms')
    from mmcv.ops import soft_nms

    dets, kept = soft_nms(torch.ones(2, 4), torch.tensor([0.5, 0.9]), method='gaussian')
    assert kept.tolist() == [1, 0] and dets[:, 4].tolist() == pytest.approx([0.9, 0.5])


@needs_compiled
def test_nms_match_and_overlaps_are_the_same(monkeypatch):
    from mmcv.ops import bbox_overlaps, nms_match

    for seed in range(20):
        given, scores = boxes(50, seed)
        dets = torch.cat((given, scores[:, None]), 1)
        one, two = both(monkeypatch, 'nms', lambda d=dets: nms_match(d, 0.4))
        assert [g.tolist() for g in one] == [g.tolist() for g in two]
        whole = given[(given[:, 2:] > given[:, :2]).all(1)]
        for mode in ('iou', 'iof'):
            for aligned, offset in ((False, 0), (True, 1)):
                other = whole.flip(0)
                arguments = (whole, other, mode, aligned, offset)
                same(*both(monkeypatch, 'bbox', lambda a=arguments: bbox_overlaps(*a)))


# ---- regions


def regions(count: int, seed: int, images: int = 2, size: float = 64) -> torch.Tensor:
    """Some reach over the edge, one has no area."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 1.2 - size * 0.1
    other = corner + torch.rand(count, 2, generator=generator) * size * 0.7
    image = torch.randint(0, images, (count, 1), generator=generator)
    rois = torch.cat((image, corner, other), 1)
    if count > 2:
        rois[0, 3:] = rois[0, 1:3]
    return rois


def value_and_gradient(pool, features, rois):
    features = features.clone().requires_grad_()
    out = pool(features, rois)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), features)


@needs_compiled
@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize(('ratio', 'aligned'), [(0, True), (0, False), (2, True), (1, False)])
@pytest.mark.parametrize('count', [0, 1, 9])
def test_roi_align_is_the_same_forward_and_backward(count, ratio, aligned, mode, monkeypatch):
    from mmcv.ops import RoIAlign

    pool = RoIAlign((5, 7), 0.25, ratio, mode, aligned)
    for seed in range(4):
        features = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(seed))
        same(*both(monkeypatch, 'roi_align', lambda f=features, s=seed: value_and_gradient(pool, f, regions(count, s))))


def test_a_region_that_is_turned_around_pools_to_zero(monkeypatch):
    """As on CUDA; mmcv's CPU kernel stops there."""
    use_ours(monkeypatch, 'roi_align')
    from mmcv.ops import RoIAlign

    turned = torch.tensor([[0, 30.0, 30, 10, 10]])
    found, slope = value_and_gradient(RoIAlign((3, 3), 0.25, 0), torch.randn(1, 2, 16, 16), turned)
    assert not found.any() and not slope.any()


def pooled_by_hand(features, rois, size, scale):
    """The rule of mmcv's CUDA kernel, bin by bin."""
    height, width = features.shape[2:]
    out = torch.zeros(len(rois), features.shape[1], *size, dtype=features.dtype)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 - x1 <= 0 or y2 - y1 <= 0:
            continue
        for i in range(size[0]):
            for j in range(size[1]):
                rows = [math.floor(i * (y2 - y1) / size[0] + y1), math.ceil((i + 1) * (y2 - y1) / size[0] + y1)]
                columns = [math.floor(j * (x2 - x1) / size[1] + x1), math.ceil((j + 1) * (x2 - x1) / size[1] + x1)]
                (a, b), (c, d) = ([min(max(v, 0), n) for v in p] for p, n in ((rows, height), (columns, width)))
                if b > a and d > c:
                    out[r, :, i, j] = features[int(image), :, a:b, c:d].amax((1, 2))
    return out + 0 * features.sum()


@pytest.mark.parametrize('count', [0, 1, 9])
def test_roi_pool_is_the_maximum_of_each_bin(count, monkeypatch):
    from mmcv.ops import RoIPool

    use_ours(monkeypatch, 'roi_pool')
    for seed in range(4):
        features = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rois = regions(count, seed).double()
        found = value_and_gradient(RoIPool((3, 4), 0.25), features, rois)
        same(found, value_and_gradient(lambda f, r: pooled_by_hand(f, r, (3, 4), 0.25), features, rois))


# ---- focal losses


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_the_focal_losses_are_equation_5(reduction, weighted, monkeypatch):
    from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

    use_ours(monkeypatch, 'focal_loss')
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 5, generator=generator, dtype=torch.float64) * 3
    target = torch.randint(0, 5, (11,), generator=generator)
    weight = torch.rand(5, generator=generator, dtype=torch.float64) if weighted else None
    reduce = dict(none=lambda x: x, mean=lambda x: x.sum() / 11, sum=lambda x: x.sum())[reduction]

    def sigmoid(x):
        p, hit = x.sigmoid(), F.one_hot(target, 5).bool()
        pt, alpha = torch.where(hit, p, 1 - p), torch.where(hit, 0.25, 0.75)
        loss = -alpha * (1 - pt) ** 2 * pt.log()
        return reduce(loss * weight[target][:, None] if weighted else loss)

    def softmax(x):
        p = x.softmax(1)[range(11), target]
        loss = -0.25 * (1 - p) ** 2 * p.log()
        return reduce(loss * weight[target] if weighted else loss)

    pairs = [(sigmoid_focal_loss, sigmoid), (softmax_focal_loss, softmax)]
    for theirs, formula in pairs[: 1 if reduction == 'none' else 2]:  # mmcv's softmax has no gradient of 'none'
        results = []
        for loss in (lambda x, f=theirs: f(x, target, 2.0, 0.25, weight, reduction), formula):
            x = logits.clone().requires_grad_()
            value = loss(x)
            slope = torch.ones_like(value)
            results.append((value.detach(), *torch.autograd.grad(value, x, slope)))
        same(*results)


def test_background_and_ignored_samples_lose_as_mmcv_says(monkeypatch):
    from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss

    use_ours(monkeypatch, 'focal_loss')
    x = torch.zeros(2, 3)
    background = sigmoid_focal_loss(x, torch.tensor([3, 3]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(background, torch.full((2, 3), 0.75 * 0.25 * math.log(2)))
    assert softmax_focal_loss(x, torch.tensor([-1, -1]), 2.0, 0.25, None, 'none').tolist() == [0, 0]
    assert sigmoid_focal_loss(x[:0], torch.tensor([], dtype=torch.long), 2.0, 0.25, None, 'sum') == 0


# ---- deformable


CONVS = [dict(), dict(stride=2, padding=1), dict(padding=2, dilation=2, deform_groups=2), dict(groups=2, padding=1)]


@needs_compiled
@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('settings', CONVS, ids=str)
def test_deformable_convolution_is_the_same_forward_and_backward(settings, modulated, monkeypatch):
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    torch.manual_seed(0)
    conv = (ModulatedDeformConv2d if modulated else DeformConv2d)(4, 6, 3, **settings)
    size = F.conv2d(torch.zeros(2, 4, 9, 11), torch.zeros(6, 4, 3, 3), None, conv.stride, conv.padding, conv.dilation)
    count, shape = 9 * conv.deform_groups, size.shape[2:]
    inputs = [torch.randn(2, 4, 9, 11), torch.randn(2, 2 * count, *shape) * 2]
    inputs += [torch.rand(2, count, *shape)] if modulated else []

    def run():
        given = [x.clone().requires_grad_() for x in inputs]
        out = conv(*given)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        return out.detach(), *torch.autograd.grad((out * weights).sum(), [*given, *conv.parameters()])

    module = 'modulated_deform_conv' if modulated else 'deform_conv'
    same(*both(monkeypatch, module, run), tolerance=3e-5)
    if modulated:  # of a larger level, as mmdet's DyHead
        inputs[1:] = [F.interpolate(x, scale_factor=2) for x in inputs[1:]]
        same(*both(monkeypatch, module, run), tolerance=3e-5)


def by_flat_index(x, offset, mask, weight, stride):
    """Modulated deformable convolution, 3 x 3 with padding 1, as the compiled operator counts: sample i of an output of
    H x W has its offsets and masks at places of its own in memory, whatever the shape that they came in.
    """
    height, width = (math.ceil(n / stride) for n in x.shape[2:])
    columns = []
    for b in range(len(x)):
        offsets, masks, taps = offset[b].flatten(), mask[b].flatten(), []
        rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        for k in range(9):
            place = [((c * height) + rows) * width + cols for c in (2 * k, 2 * k + 1, k)]
            y = rows * stride - 1 + k // 3 + offsets[place[0]]
            left = cols * stride - 1 + k % 3 + offsets[place[1]]
            grid = torch.stack([2 * left / (x.shape[3] - 1) - 1, 2 * y / (x.shape[2] - 1) - 1], -1)[None]
            taps.append(F.grid_sample(x[b : b + 1], grid, align_corners=True)[0] * masks[place[2]])
        columns.append(torch.stack(taps, 1))  # (C, 9, H, W)
    return torch.einsum('bckhw,ock->bohw', torch.stack(columns), weight.flatten(2))


@pytest.mark.parametrize(('stride', 'given'), [(1, (6, 5)), (2, (3, 3)), (2, (6, 5)), (1, (12, 10)), (1, (7, 6))])
def test_offsets_of_another_level_are_read_as_the_compiled_operator_reads_them(stride, given, monkeypatch):
    """mmdet's DyHead convolves a level by the offsets of the next larger one."""
    module = use_ours(monkeypatch, 'modulated_deform_conv')
    torch.manual_seed(0)
    parts = [
        torch.randn(2, 3, 6, 5, dtype=torch.float64),
        torch.randn(2, 18, *given, dtype=torch.float64),
        torch.rand(2, 9, *given, dtype=torch.float64),
        torch.randn(4, 3, 3, 3, dtype=torch.float64),
    ]

    def run(convolve):
        leaves = [x.clone().requires_grad_() for x in parts]
        out = convolve(*leaves)
        return out.detach(), *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaves)

    got = run(lambda x, o, m, w: module.modulated_deform_conv2d(x, o, m, w, None, stride, 1))
    same(got, run(lambda x, o, m, w: by_flat_index(x, o, m, w, stride)))


@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('settings', CONVS, ids=str)
def test_offsets_whose_samples_lie_at_minus_one_have_no_gradient(settings, modulated, monkeypatch):
    """The compiled operator's border is there (``<= -1``). Elsewhere the slope is the one to the right."""
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d

    use_ours(monkeypatch, 'modulated_deform_conv' if modulated else 'deform_conv')
    torch.manual_seed(0)
    conv = (ModulatedDeformConv2d if modulated else DeformConv2d)(4, 6, 3, **settings).double()
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    size = F.conv2d(x, torch.zeros(6, 4, 3, 3).double(), None, conv.stride, conv.padding, conv.dilation).shape[2:]
    mask = [torch.rand(2, 9 * conv.deform_groups, *size, dtype=torch.float64)] if modulated else []

    def slopes(at):
        offset = torch.full((2, 18 * conv.deform_groups, *size), at, dtype=torch.float64, requires_grad=True)
        out = conv(x, offset, *mask)
        return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), offset)[0]

    expected, outside = slopes(1e-9), 0
    for i in range(expected.shape[1] // 2):
        places = [
            [n * conv.stride[a] - conv.padding[a] + tap * conv.dilation[a] for n in range(size[a])]
            for a, tap in enumerate((i % 9 // 3, i % 3))
        ]
        for row, y in enumerate(places[0]):
            for column, left in enumerate(places[1]):
                if y <= -1 or left <= -1:
                    expected[:, 2 * i : 2 * i + 2, row, column] = 0
                    outside += 1
    torch.testing.assert_close(slopes(0.0), expected, rtol=1e-6, atol=1e-6)
    assert bool(outside) == bool(conv.padding[0])


def test_too_few_offsets_are_refused(monkeypatch):
    module = use_ours(monkeypatch, 'modulated_deform_conv')
    x, weight = torch.randn(1, 3, 6, 5), torch.randn(4, 3, 3, 3)
    with pytest.raises(RuntimeError, match=r'of \(1, 18, 3, 3\) are too few for an output of \(1, 4, 6, 5\)'):
        module.modulated_deform_conv2d(x, torch.zeros(1, 18, 3, 3), torch.ones(1, 9, 3, 3), weight, None, 1, 1)


def test_multi_scale_attention_is_mmcvs_own_in_torch_with_its_gradients(monkeypatch):
    module = use_ours(monkeypatch, 'multi_scale_deform_attn')
    torch.manual_seed(0)
    shapes = torch.tensor([[6, 5], [3, 4]])
    value = torch.randn(2, 42, 3, 4, dtype=torch.float64)
    places = torch.rand(2, 7, 3, 2, 2, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 7, 3, 2, 2, dtype=torch.float64)
    start = torch.tensor([0, 30])

    def run(attend):
        given = [x.clone().requires_grad_() for x in (value, places, weights)]
        out = attend(*given)
        return out.detach(), *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), given)

    by_ext = run(lambda v, p, w: module.MultiScaleDeformableAttnFunction.apply(v, shapes, start, p, w, 64))
    same(by_ext, run(lambda v, p, w: module.multi_scale_deformable_attn_pytorch(v, shapes, p, w)))


# ---- reassembly


def test_carafe_is_the_weighted_sum_of_neighbours(monkeypatch):
    from mmcv.ops.carafe import carafe

    use_ours(monkeypatch, 'carafe')
    torch.manual_seed(0)
    features = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    masks = torch.randn(2, 2 * 9, 6, 10, dtype=torch.float64)

    def by_hand(x, m):
        padded = F.pad(x, (1, 1, 1, 1))
        rows = []
        for c in range(4):
            for y in range(6):
                for w in range(10):
                    near = padded[:, c, y // 2 : y // 2 + 3, w // 2 : w // 2 + 3].flatten(1)
                    rows.append((near * m[:, 9 * (c // 2) : 9 * (c // 2) + 9, y, w]).sum(1))
        return torch.stack(rows, 1).view(2, 4, 6, 10)

    def run(f):
        given = [x.clone().requires_grad_() for x in (features, masks)]
        out = f(*given)
        return out.detach(), *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), given)

    same(run(lambda x, m: carafe(x, m, 3, 2, 2)), run(by_hand))


def test_a_masked_convolution_is_the_dense_one_where_the_mask_is(monkeypatch):
    from mmcv.ops import MaskedConv2d

    use_ours(monkeypatch, 'masked_conv')
    torch.manual_seed(0)
    conv, x = MaskedConv2d(3, 5, 3, padding=1), torch.randn(1, 3, 8, 9)
    for mask in (torch.rand(1, 8, 9) > 0.6, torch.zeros(1, 8, 9)):
        torch.testing.assert_close(conv(x, mask), conv(x) * (mask > 0), rtol=1e-5, atol=1e-5)


@needs_compiled
@pytest.mark.parametrize('kind', ['collect', 'distribute'])
@pytest.mark.parametrize('mask', [(3, 5), (9, 7)])
def test_psa_masks_are_the_same_forward_and_backward(mask, kind, monkeypatch):
    from mmcv.ops import PSAMask

    torch.manual_seed(0)
    x = torch.randn(2, mask[0] * mask[1], 5, 4)
    same(*both(monkeypatch, 'psa_mask', lambda: value_and_gradient(lambda f, _: PSAMask(kind, mask)(f), x, None)))


# ---- half precision


def half_cases(monkeypatch):
    """Name -> (call on floating inputs, the inputs in fp32), by mmcv's Python code on our operators."""
    from mmcv.ops import RoIAlign, RoIPool, sigmoid_focal_loss, softmax_focal_loss
    from mmcv.ops.carafe import carafe
    from mmcv.ops.deform_conv import deform_conv2d
    from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d

    for module in ('roi_align', 'roi_pool', 'focal_loss', 'deform_conv', 'modulated_deform_conv', 'carafe'):
        use_ours(monkeypatch, module)
    attend = use_ours(monkeypatch, 'multi_scale_deform_attn').MultiScaleDeformableAttnFunction.apply
    torch.manual_seed(0)
    features, rois, target = torch.randn(2, 4, 16, 20), regions(6, 0).round(), torch.randint(0, 5, (11,))
    shapes, start = torch.tensor([[6, 5], [3, 4]]), torch.tensor([0, 30])
    kernel, offset, mask = torch.randn(6, 4, 3, 3), torch.randn(2, 18, 16, 20), torch.rand(2, 9, 16, 20)
    places, weights = torch.rand(2, 7, 2, 2, 2, 2), torch.rand(2, 7, 2, 2, 2)
    return {
        'roi align': (lambda x: RoIAlign((3, 3), 0.25, 2)(x, rois.to(x.dtype)), [features]),
        'roi align max': (lambda x: RoIAlign((3, 3), 0.25, 2, 'max')(x, rois.to(x.dtype)), [features]),
        'roi pool': (lambda x: RoIPool((3, 3), 0.25)(x, rois.to(x.dtype)), [features]),
        'sigmoid': (lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'sum'), [torch.randn(11, 5)]),
        'softmax': (lambda x: softmax_focal_loss(x, target, 2.0, 0.25, None, 'sum'), [torch.randn(11, 5)]),
        'deform': (lambda x, o, w: deform_conv2d(x, o, w, 1, 1), [features, offset, kernel]),
        'modulated': (
            lambda x, o, m, w: modulated_deform_conv2d(x, o, m, w, None, 1, 1),
            [features, offset, mask, kernel],
        ),
        'attention': (lambda v, p, w: attend(v, shapes, start, p, w, 64), [torch.randn(2, 42, 2, 4), places, weights]),
        'carafe': (lambda x, m: carafe(x, m, 3, 1, 2), [torch.randn(1, 4, 3, 5), torch.rand(1, 9, 6, 10)]),
    }


HALVES = {torch.float16: 2**-10, torch.bfloat16: 2**-7}  # the distance of two neighbouring numbers
POOLS, LOSSES = ('roi align', 'roi align max', 'roi pool'), ('sigmoid', 'softmax')
OPERATORS = (*POOLS, *LOSSES, 'deform', 'modulated', 'attention', 'carafe')


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('name', OPERATORS)
def test_half_precision_rounds_inputs_and_outputs_and_nothing_between(name, dtype, monkeypatch):
    """Forward and gradients: those of fp32 on the rounded inputs, but for one rounding of each result."""
    call, given = half_cases(monkeypatch)[name]
    results = []
    for kind in (dtype, torch.float32):
        inputs = [x.to(dtype).to(kind).requires_grad_() for x in given]
        out = call(*inputs)
        results.append((out, *torch.autograd.grad(out.float().sum(), inputs)))
        assert all(x.dtype == kind for x in results[-1])
    if name == 'roi align max':  # mmcv keeps the places of the maxima in the type of the input
        results = [r[:1] for r in results]
    for half, full in zip(*results, strict=True):
        torch.testing.assert_close(half, full.to(dtype), rtol=HALVES[dtype], atol=HALVES[dtype])


@pytest.mark.parametrize('name', OPERATORS)
def test_under_autocast_an_operator_takes_what_it_is_given(name, monkeypatch):
    call, given = half_cases(monkeypatch)[name]
    full = call(*given)
    with torch.autocast('cpu', torch.bfloat16):
        inputs = [x.clone().requires_grad_() for x in given]
        out = call(*inputs)
        out.float().sum().backward()
    torch.testing.assert_close(out.float(), full, rtol=2e-2, atol=2e-2 * float(full.abs().max()))
    assert all(x.grad is not None and x.grad.dtype == torch.float32 and x.grad.isfinite().all() for x in inputs)


# ---- the rest


def test_an_operator_that_is_not_here_can_be_imported_and_says_when_called_what_to_do():
    assert hasattr(ours, 'border_align_forward') and not hasattr(ours, '__wrapped__')
    with pytest.raises(NotImplementedError, match=r"'border_align_forward' needs a compiled mmcv.*--compile-mmcv"):
        ours.border_align_forward(1, 2)
    assert 'nms' in ours.SUPPLIED and not any(name.startswith('_') for name in ours.SUPPLIED)


@pytest.mark.slow
def test_mmcvs_own_report_of_the_environment_is_made():
    done = subprocess.run(
        [sys.executable, '-c', 'from mmcv.utils import collect_env; print(collect_env()["MMCV Compiler"])'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert ours.get_compiler_version() == ours.get_compiling_cuda_version() == 'not compiled'


# ---- put in the place of the compiled ones

PROBE = """
import runpy, sys
finder = runpy.run_path({finder!r})['MmcvOpsFinder']
sys.meta_path.insert(0, finder)  # before the compiled module's own
import mmcv.ops, torch
print(mmcv.ops.nms(torch.tensor([[0., 0, 9, 9]] * 2), torch.tensor([0.5, 0.9]), 0.5)[1].tolist(), mmcv._ext.__file__)
"""


@pytest.mark.slow
def test_mmcvs_own_code_imports_whole_on_these_operators():
    code = PROBE.format(finder=str(FOLDER.parent / 'mmcv_finder.py'))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='/')
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith(f'[1] {FOLDER / "__init__.py"}')


def worker(kind: str, out: Path) -> dict:
    command = [sys.executable, Path(__file__).with_name('mmcv_ops_worker.py'), kind, out]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(FOLDER.parents[1])}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.slow
@needs_compiled
def test_a_training_step_and_a_prediction_of_the_libraries_models_agree(tmp_path):
    one, two = (worker(kind, tmp_path / f'{kind}.pth') for kind in ('compiled', 'supplied'))
    assert one.pop('file').endswith('.so') and two.pop('file').endswith('__init__.py')
    assert len(two) == 14 and two.keys() - one.keys() <= {'Faster R-CNN with CARAFE', 'Guided anchoring'}
    for name in two.keys() - one.keys():  # nothing to compare with, so it must run and give numbers
        values = (*two[name]['losses'].values(), *two[name]['grads'].values(), *two[name]['found'].values())
        assert all(value.isfinite().all() for value in values), name
    for name, theirs in one.items():
        mine = two[name]
        for part in ('losses', 'found'):
            assert theirs[part].keys() == mine[part].keys(), name
            for key, value in theirs[part].items():
                assert value.numel(), (name, key)
                torch.testing.assert_close(
                    mine[part][key], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name, k=key: f'{n} {k}: {m}'
                )
        assert theirs['grads'].keys() == mine['grads'].keys()
        for key, grad in theirs['grads'].items():
            scale = float(grad.abs().max()) + 1e-6
            torch.testing.assert_close(mine['grads'][key] / scale, grad / scale, rtol=0, atol=1e-4)
        print(f'{name:28} compiled {theirs["seconds"]:.1f} s, without a compiler {mine["seconds"]:.1f} s')
