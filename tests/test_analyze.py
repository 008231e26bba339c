"""Figures 3 to 6 and lesions against direct computations; the gradient hook inside real Runners."""

import itertools
import json
import os
import subprocess
import sys
import uuid
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import DEIT, SWIN, perturb, timm_vit
from matplotlib.text import Text
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from torch import nn

from scalenet_mm import LayerMap, scale_layers
from scalenet_mm.backbones import ScaleNetTimm
from scalenet_mm.compat import read_config
from scalenet_mm.core.depth import set_depth
from scalenet_mm.core.layers import containers, instances, layer_tensors, source_layers
from scalenet_mm.engine.gradient_hook import GradientNormHook
from scalenet_mm.experiments.commands import analyze
from scalenet_mm.experiments.figures import plots
from scalenet_mm.experiments.figures.accuracy import evaluate
from scalenet_mm.experiments.figures.batches import Batches, cut, prepared, random_batches
from scalenet_mm.experiments.figures.cka import MinibatchCKA, centred, cka, gram
from scalenet_mm.experiments.figures.droppath import curve, rates, read_results
from scalenet_mm.experiments.figures.features import RANGE, histograms, uniformly
from scalenet_mm.experiments.figures.given import Given, load, pairs, parts_of
from scalenet_mm.experiments.figures.gradients import gradient_norms
from scalenet_mm.experiments.figures.lesions import left_out, lesions

ROOT = Path(__file__).parents[1]
RANK = str(ROOT / 'configs/demo/rank_deit.py')  # its digits come with the package
LINEARS = ('attn.qkv', 'attn.proj', 'ffn.layers.0.0', 'ffn.layers.1')


def classifier(**scale) -> dict:
    """Of 5 classes, with three source layers."""
    backbone = dict(type='ScaleNetDeiT', arch=DEIT, img_size=16, patch_size=8, scale=scale)
    head = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=32)
    return dict(type='ImageClassifier', backbone=backbone, head=head)


def deit(**scale) -> nn.Module:
    """That classifier with weights nowhere trivial."""
    init_default_scope('mmpretrain')
    model = perturb(MODELS.build(classifier(**scale)))
    model.eval()
    return model


def raw(n: int, seed: int = 0) -> dict:
    """A batch as a loader gives it."""
    generator = torch.Generator().manual_seed(seed)
    samples = [DataSample().set_gt_label(i % 5) for i in range(n)]
    return dict(inputs=torch.randn(n, 3, 16, 16, generator=generator), data_samples=samples)


def norm(tensors) -> float:
    return float(np.sqrt(sum((np.asarray(t, np.float64) ** 2).sum() for t in tensors)))


def outputs(model: nn.Module, images: torch.Tensor) -> list[np.ndarray]:
    found, x = [], images
    blocks = model.backbone.layers
    handles = [b.register_forward_hook(lambda m, a, out: found.append(out.flatten(1).double().numpy())) for b in blocks]
    with torch.no_grad():
        model.backbone(x)
    for handle in handles:
        handle.remove()
    return found


# where the layers are


@pytest.mark.parametrize('kind', ['mmpretrain.SwinTransformer', 'mmdet.SwinTransformer', 'mmseg.SwinTransformer'])
def test_the_layers_of_every_familys_swin_are_found_by_structure(kind):
    pytest.importorskip('mmdet.models') and pytest.importorskip('mmseg.models')
    arch = dict(arch=SWIN) if 'pretrain' in kind else SWIN
    model = MODELS.build(dict(type=kind, **arch))
    found = containers(model)
    assert list(found) == [f'stages.{i}.blocks' for i in range(4)]
    assert [sources for _, sources in found.values()] == [(0, 1)] * 4


def test_tied_and_timm_layers_are_found_and_instances_gathered_by_source():
    model = timm_vit()
    assert list(source_layers(model)) == ['blocks.0', 'blocks.1', 'blocks.2']
    model.blocks = scale_layers(model.blocks, LayerMap.build(3, 2, 'interpolate'))
    by_source = source_layers(model)
    assert by_source['blocks.1'] == [model.blocks[2], model.blocks[3]]
    assert len(instances(model)) == 6


def test_layers_of_an_unknown_host_are_those_that_are_named():
    model = nn.ModuleDict({f'layer{i}': nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for i in (1, 2)})
    with pytest.raises(ValueError, match='--layers PATTERN'):
        containers(model)
    assert list(instances(model, ['layer?'])) == ['layer1.0', 'layer1.1', 'layer2.0', 'layer2.1']


# images


def test_every_pass_and_every_batch_size_gives_the_same_images():
    cfg = read_config(RANK)
    small, large = (Batches(cfg, 'train', 150, size) for size in (40, 150))
    passes = [torch.cat([b['inputs'] for b in x]) for x in (small, small, large)]
    assert [len(b['inputs']) for b in small] == [40, 40, 40, 30]
    assert torch.equal(passes[0], passes[1]) and torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0], torch.cat([b['inputs'] for b in Batches(cfg, 'train', 150, 50, seed=1)]))


def test_lists_and_tensors_are_joined_across_the_batches_of_a_loader():
    batches = [dict(inputs=torch.arange(3) + 3 * i, names=list('abc')) for i in range(3)]
    made = list(cut(batches, 4, 7))
    assert [b['inputs'].tolist() for b in made] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [''.join(b['names']) for b in made] == ['abca', 'bca']


def test_a_config_without_the_split_says_which_it_has():
    cfg = Config(dict(val_dataloader=dict(batch_size=1)))
    with pytest.raises(ValueError, match='no train_dataloader; choose --split val'):
        Batches(cfg, 'train', 4, 4)


# Fig. 3


def by_hand(model: nn.Module, owners: dict[str, int]) -> dict[str, float]:
    """One backward pass over the whole batch; the tensors are listed by name."""
    batch = raw(12)
    model.zero_grad()
    model(batch['inputs'], batch['data_samples'], mode='loss')['loss'].backward()
    of = dict(model.named_parameters())
    return {
        name: norm(
            of[f'backbone.layers.{owner}.{linear}.{part}'].grad for linear in LINEARS for part in ('weight', 'bias')
        )
        for name, owner in owners.items()
    }


@pytest.mark.parametrize('micro_batch', [12, 5])
def test_gradient_norms_are_those_of_one_backward_pass_over_the_whole_batch(micro_batch):
    model = deit(times=2, order='interpolate')
    owners = {f'backbone.layers.{s}': 2 * s for s in range(3)}
    expected = by_hand(model, owners)
    found, _, images = gradient_norms(model, cut([raw(12)], micro_batch, 12))
    assert found == pytest.approx(expected, rel=1e-5) and images == 12
    assert len({round(v, 4) for v in found.values()}) == 3


def test_a_tied_layers_gradient_is_the_sum_of_those_of_independent_copies():
    tied = deit(times=2, order='interpolate', adjust=None)
    copies = deit(growth='interpolate', times=2)
    for mine, theirs in zip(copies.backbone.layers, tied.backbone.layers):
        mine.load_state_dict(theirs.state_dict())
    batch = raw(6)
    rest = {k: v for k, v in tied.state_dict().items() if not k.startswith('backbone.layers.')}
    copies.load_state_dict({**copies.state_dict(), **rest})
    copies(batch['inputs'], batch['data_samples'], mode='loss')['loss'].backward()
    of = dict(copies.backbone.layers.named_parameters())
    expected = [
        norm(of[f'{2 * s}.{x}.{p}'].grad + of[f'{2 * s + 1}.{x}.{p}'].grad for x in LINEARS for p in ('weight', 'bias'))
        for s in range(3)
    ]
    found, *_ = gradient_norms(tied, [batch])
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)


def test_all_tensors_add_norms_and_adapters_of_every_instance():
    model = deit(times=2, order='interpolate')
    for tensors, of_block in (('shared', 1), ('all', 2)):
        counted = sum(p.numel() for p in layer_tensors(model, tensors)['backbone.layers.0'])
        weights = 32 * 96 + 96 + 32 * 32 + 32 + 2 * 32 * 64 + 64 + 32
        own = 4 * 32 + 2 * 16 * (32 + 64)  # two norms; A and B of two adapters
        assert counted == weights + (2 * own if of_block == 2 else 0)
    with pytest.raises(ValueError, match="one of .*'shared'"):
        layer_tensors(model, 'some')


def test_a_grown_layers_gradient_is_over_all_its_independent_copies():
    model = deit(growth='stack', new_layers=1)
    names = {'first': 0, 'copy': 3}
    each = by_hand(model, names)
    found, *_ = gradient_norms(model, [raw(12)])
    assert found['backbone.layers.0'] == pytest.approx(np.hypot(*each.values()), rel=1e-5)


def test_frozen_layers_have_gradients_too():
    model = deit(times=2)
    expected, *_ = gradient_norms(model, [raw(4)])
    model.requires_grad_(False)
    assert gradient_norms(model, [raw(4)])[0] == expected


# Fig. 4


def test_streamed_histograms_are_numpys_of_all_activations():
    model = deit(times=2, order='interpolate')
    batch = raw(9)
    kept = outputs(model, batch['inputs'])
    found = histograms(model, cut([batch], 4, 9), layers=3, bins=40)
    assert [entry['layer'] for entry in found.values()] == [0, 2, 5]
    for entry in found.values():
        values = kept[entry['layer']].ravel()
        counts, edges = np.histogram(values, 40, RANGE)
        outside = 1 - counts.sum() / values.size
        assert entry['density'] == pytest.approx(counts / values.size / (edges[1] - edges[0]), abs=1e-6)
        assert (entry['mean'], entry['std']) == pytest.approx((values.mean(), values.std()), abs=1e-5)
        assert entry['outside'] == pytest.approx(outside) and entry['values'] == values.size


def test_values_outside_the_range_are_counted_as_such():
    model = deit()
    with torch.no_grad():
        model.backbone.patch_embed.projection.weight.mul_(1000)
    first = next(iter(histograms(model, [raw(4)]).values()))
    assert 0.5 < first['outside'] < 1
    assert sum(first['density']) * 0.1 == pytest.approx(1 - first['outside'])


def test_layers_are_sampled_evenly_from_first_to_last():
    assert uniformly(24, 4) == [0, 8, 15, 23] and uniformly(3, 9) == [0, 1, 2]
    assert uniformly(1, 4) == [0] and uniformly(5, 1) == [0]


# Fig. 5


def hsic_by_definition(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic itself: the mean of the kernel of HSIC over all quadruples of different images."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def hsic_by_song(k: np.ndarray, m: np.ndarray) -> float:
    """Eq. 5 of Song et al. (2012), Eq. 3 of Nguyen et al. (2021)."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    whole = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (whole - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def hsic_biased(k: np.ndarray, m: np.ndarray) -> float:
    h = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ h @ m @ h) / (len(k) - 1) ** 2


def test_centred_gram_matrices_give_the_unbiased_estimator_by_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 5)), rng.normal(size=(7, 3)) + 2
    k, m = x @ x.T, y @ y.T
    expected = hsic_by_definition(k, m)
    found = (centred(torch.tensor(k)) * centred(torch.tensor(m))).sum() / (7 * 4)
    assert float(found) == pytest.approx(expected, rel=1e-10)
    assert hsic_by_song(k, m) == pytest.approx(expected, rel=1e-10)


def direct(a: nn.Module, b: nn.Module, batches, hsic) -> np.ndarray:
    """CKA from whole features in double precision."""

    def summed(x, y, i, j):
        return sum(hsic(p[i] @ p[i].T, q[j] @ q[j].T) for p, q in zip(x, y))

    of_a, of_b = ([outputs(m, batch['inputs']) for batch in batches] for m in (a, b))
    return np.array(
        [
            [
                summed(of_a, of_b, i, j) / np.sqrt(summed(of_a, of_a, i, i) * summed(of_b, of_b, j, j))
                for j in range(len(of_b[0]))
            ]
            for i in range(len(of_a[0]))
        ]
    )


@pytest.mark.parametrize('size', [24, 8])
def test_cka_is_the_direct_computation_from_whole_features(size):
    a, b = deit(sources=[0, 1, 2], adjust=None), deit(times=2, order='interpolate')
    batch = raw(24)
    pieces = list(cut([batch], size, 24))
    found, images = cka(a, b, pieces, size)
    assert found.shape == (3, 6) and images == 24
    assert found.numpy() == pytest.approx(direct(a, b, pieces, hsic_by_song), rel=1e-6)
    assert np.abs(found.numpy() - direct(a, b, pieces, hsic_biased)).max() > 0.01


def test_cka_of_unrelated_features_is_near_zero_where_the_biased_one_is_not():
    rng, unbiased = np.random.default_rng(0), MinibatchCKA()
    biased = []
    for _ in range(200):
        x, y = (rng.normal(size=(10, 50)) for _ in range(2))
        k, m = x @ x.T, y @ y.T
        unbiased.add(torch.tensor(k)[None], torch.tensor(m)[None])
        biased.append(hsic_biased(k, m) / np.sqrt(hsic_biased(k, k) * hsic_biased(m, m)))
    assert abs(float(unbiased.result())) < 0.05 and np.mean(biased) > 0.7


def test_a_model_has_cka_1_with_itself_and_with_a_rotated_scaled_copy_of_its_features():
    model = deit()
    same, _ = cka(model, model, cut([raw(16)], 8, 16), 8)
    assert torch.diag(same) == pytest.approx(torch.ones(len(same)))
    x = torch.randn(9, 4, 5)
    turned = 3 * x.flatten(1) @ torch.linalg.qr(torch.randn(20, 20))[0] + 7
    summed = MinibatchCKA()
    summed.add(gram(x)[None], gram(turned)[None])
    assert float(summed.result()) == pytest.approx(1, abs=1e-5)


def test_only_whole_minibatches_of_four_or_more_count():
    model = deit()
    assert cka(model, model, cut([raw(10)], 8, 10), 8)[1] == 8
    with pytest.raises(ValueError, match='smaller --batch'):
        cka(model, model, [raw(5)], 8)
    with pytest.raises(ValueError, match='at least 4 images, got 3'):
        cka(model, model, [raw(3)], 3)


# Fig. 6


def test_the_sweep_evaluates_as_the_runner_does(tmp_path):
    cfg = read_config(RANK)
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader'].dataset.update(batches=3, batch=50)
    given = Given(RANK, 'none', 'random').load('cpu')
    (found,) = evaluate(given, cfg, Batches(cfg, 'val', 10**9, 64), 'val')
    torch.save(dict(state_dict=given.state_dict()), tmp_path / 'random.pth')
    cfg.load_from, cfg.work_dir = str(tmp_path / 'random.pth'), str(tmp_path)
    metrics = Runner.from_cfg(cfg).test()
    assert found == pytest.approx(dict(top1=metrics['rank/top1'], loss=metrics['rank/loss'], images=150), rel=1e-5)


def test_the_loss_of_a_distilled_classifier_is_its_heads_and_needs_no_teacher():
    cfg = read_config(RANK)
    cfg.val_dataloader.dataset.update(batches=1, batch=40)
    cfg.model.backbone.scale = dict(times=2)
    plain = perturb(load(cfg, 'none'))
    cfg.model.update(type='DistilledClassifier', distill=dict(checkpoint='gone.pth', layers=1.0))
    distilled = load(cfg, 'none')
    distilled.load_state_dict(plain.state_dict())
    one, other = (evaluate(model, cfg, Batches(cfg, 'val', 40, 40), 'val') for model in (plain, distilled))
    assert one == other


def test_top_1_is_asked_of_classifiers_before_any_image_is_read():
    cfg = read_config(ROOT / 'configs/demo/mask_rcnn_swin_digits.py')
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    with pytest.raises(ValueError, match='Top-1 is of classifiers .*is a MaskRCNN; features and cka take it'):
        evaluate(MODELS.build(cfg.model), cfg, None, 'val')


def test_results_of_a_study_become_a_curve(tmp_path):
    lines = [
        dict(row='deit/drop_path_0.1', seed=0, status='done', top1=60.0, loss=1.0, params=3),
        dict(row='deit/drop_path_0.1', seed=1, status='done', top1=64.0, loss=1.4),
        dict(row='deit/drop_path_0.2', seed=0, status='failed', error='killed'),
        dict(row='deit/scalenet', status='done', top1=50.0, loss=2.0),
        dict(row='deit/random', status='done', top1=1.0, loss=9.0),
        dict(drop_path=0.5, top1=40, loss=3),
    ]
    file = tmp_path / 'results.jsonl'
    file.write_text('\n'.join(map(json.dumps, lines)))
    points = curve(read_results([file], {'deit/scalenet': 0.0}))
    assert [(p['drop_path'], p['runs'], p['top1']['mean']) for p in points] == [
        (0.0, 1, 50.0),
        (0.1, 2, 62.0),
        (0.5, 1, 40.0),
    ]
    assert points[1]['loss'] == dict(mean=pytest.approx(1.2), least=1.0, greatest=1.4)
    others = [dict(line, row=f'deit5000/on_{line["row"][5:]}') for line in lines[:2]]
    file.write_text('\n'.join(map(json.dumps, lines + others)))
    with pytest.raises(ValueError, match="the sweeps of 'deit/', 'deit5000/on', which are .*: --sweep deit5000/on"):
        read_results([file])
    assert [p['runs'] for p in curve(read_results([file], {'deit/scalenet': 0.0}, 'deit/'))] == [1, 2, 1]
    parts = [tmp_path / 'a.jsonl', tmp_path / 'b.jsonl']
    for part, these in zip(parts, (lines[:2], others)):
        part.write_text('\n'.join(map(json.dumps, these)))
    with pytest.raises(ValueError, match="a.jsonl, .*b.jsonl holds the sweeps of 'deit/', 'deit5000/on'"):
        read_results(parts)
    parts[1].write_text(json.dumps(dict(lines[0], top1=70.0)))  # a copy that went on
    (point,) = curve(read_results(parts))
    assert point['runs'] == 2 and point['top1'] == dict(mean=67.0, least=64.0, greatest=70.0)
    file.write_text('{"drop_path": 0.1, "top1": 3}')
    with pytest.raises(ValueError, match='line 1: a run is a JSON object'):
        read_results([file])
    file.write_text(json.dumps(lines[4]))
    with pytest.raises(ValueError, match='--rows 0=ROW'):
        read_results([file])


@pytest.mark.parametrize('word', ['0.1', '=a.pth', '1.5=a.pth', 'x=a.pth', '0.1='])
def test_a_run_of_the_sweep_is_a_rate_and_a_checkpoint(word):
    with pytest.raises(ValueError, match='RATE=CKPT'):
        rates([word])


# lesions


def rank_net(**scale):
    """A scaled network of the rank task with weights nowhere trivial, its config and some of its data."""
    cfg = read_config(RANK)
    cfg.val_dataloader.dataset.update(batches=2, batch=60)
    cfg.model.backbone.scale = dict(times=2, **scale)
    model = perturb(load(cfg, 'none'))
    model.eval()
    batches = Batches(cfg, 'val', 100, 40)
    return model, lambda changes=(nullcontext,): evaluate(model, cfg, batches, 'val', changes)


@pytest.mark.parametrize('order', ['interpolate', 'stack'])
def test_a_layer_is_left_out_as_if_its_forward_handed_on_its_input(order):
    model, measure = rank_net(order=order)
    found = lesions(model, measure)
    (whole,) = measure()
    assert found['whole'] == whole and whole['images'] == 100
    sources, added = {
        'interpolate': ([0, 0, 1, 1, 2, 2], [False, True] * 3),
        'stack': ([0, 1, 2, 0, 1, 2], [False] * 3 + [True] * 3),
    }[order]
    assert [x['layer'] for x in found['layers']] == [f'backbone.layers.{i}' for i in range(6)]
    assert [x['source'] for x in found['layers']] == sources and [x['added'] for x in found['layers']] == added
    for block, without in zip(model.backbone.layers, found['layers']):
        block.forward = lambda x: x
        assert measure()[0]['loss'] == pytest.approx(without['loss'], rel=1e-6)
        del block.forward
    assert len({round(x['loss'], 4) for x in found['layers']}) == 6 and measure() == [whole]


def test_without_all_added_layers_it_is_the_network_at_its_smallest_depth():
    model, measure = rank_net(order='interpolate')
    found = lesions(model, measure)
    assert set_depth(model, 3) == {'backbone.layers': (0, 2, 4)}
    assert measure() == [found['without_added']]


def test_an_unscaled_network_has_no_added_layer():
    found = lesions(deit(sources=[0, 1, 2], adjust=None), lambda changes: [dict(top1=i) for i, _ in enumerate(changes)])
    assert found['without_added'] is None and [x['top1'] for x in found['layers']] == [1, 2, 3]


def test_the_last_layer_of_a_live_backbone_is_left_out_too():
    """Whose outputs are caught by a hook on the block, put there before."""
    name = 'vit_tiny_patch16_224'
    net = perturb(ScaleNetTimm(name, img_size=32, scale=dict(times=2), out_indices=(-1,)).eval(), std=0.05)
    image = torch.randn(1, 3, 32, 32)
    whole = net(image)[0]
    for block in dict(net.named_modules())['net.blocks']:
        with left_out([block]):
            assert not torch.allclose(net(image)[0], whole, rtol=1e-3)
    assert torch.equal(net(image)[0], whole)


def test_a_layer_may_return_several_things_and_take_its_state_by_name():
    class Block(nn.Module):
        def forward(self, hidden, other=None):
            return 2 * hidden, other

    block, x = Block(), torch.ones(2, 3)
    with left_out([block]):
        out, other = block(hidden=x, other='kept')
    assert out is x and other == 'kept' and torch.equal(block(x)[0], 2 * x)
    with left_out([narrow := nn.Linear(3, 2)]), pytest.raises(ValueError, match=r'Linear makes \(2, 2\) of \(2, 3\)'):
        narrow(x)
    assert narrow(x).shape == (2, 2), 'the hook is off after an error too'


# models and command line


def test_a_checkpoint_of_the_unscaled_network_gives_the_scaled_one_before_training(tmp_path):
    source = Given(RANK, 'none', '').load('cpu')
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'source.pth')
    cfg = read_config(RANK)
    cfg.model.backbone.scale = dict(times=2, order='interpolate')
    scaled = load(cfg, str(tmp_path / 'source.pth'))
    for name in ('attn.qkv.weight', 'ffn.layers.1.weight', 'ln1.weight'):
        for i, block in enumerate(scaled.backbone.layers):
            mine = source.backbone.layers[i // 2].get_parameter(name)
            assert torch.equal(block.get_parameter(name), mine)


def test_random_weights_pass_gradients_through_a_head_that_starts_at_zero():
    cfg = Config(dict(default_scope='mmpretrain', model=classifier()))
    found, *_ = gradient_norms(load(cfg, 'none'), [raw(4)])
    assert all(v > 1e-6 for v in found.values())


def test_images_are_normalised_as_the_runner_does_it():
    cfg = read_config(RANK)
    cfg.data_preprocessor = dict(mean=[3.0], std=[2.0], num_classes=5)
    found = prepared(load(cfg, 'none'), dict(inputs=torch.full((2, 1, 32, 32), 7.0)))
    assert torch.equal(found['inputs'], torch.full((2, 1, 32, 32), 2.0))


def test_base_and_delta_are_a_checkpoint(tmp_path):
    from scalenet_mm.checkpoint.assemble import export_delta

    cfg = read_config(RANK)
    cfg.model.backbone.scale = dict(times=2)
    cfg.dump(tmp_path / 'scaled.py')
    source, full = tmp_path / 'base.pth', tmp_path / 'full.pth'
    torch.save(dict(state_dict=Given(RANK, 'none', '').load('cpu').state_dict()), source)
    model = load(cfg, str(source))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'adapter' in name:
                p.add_(0.1)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), full)
    export_delta(full, source, tmp_path / 'x.delta.safetensors')
    found = load(cfg, f'{source}+{tmp_path / "x.delta.safetensors"}').state_dict()
    assert all(torch.equal(found[k], v) for k, v in model.state_dict().items())


def call(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, 'argv', ['scalenet'])
    analyze.main([*map(str, words)])


FIGURES = {
    'gradients': ['--batch', 32, '--micro-batch', 12],
    'features': ['--images', 16],
    'cka': ['--images', 16, '--batch', 8],
    'lesions': ['--images', 40],
}


@pytest.mark.parametrize(
    ('figure', 'noise'),
    [*((figure, []) for figure in FIGURES), *((figure, ['--random']) for figure in FIGURES if figure != 'lesions')],
)
def test_the_tool_writes_a_picture_and_its_numbers(figure, noise, tmp_path, monkeypatch):
    configs = [RANK, ROOT / 'configs/demo/rank_swin.py']
    if noise:
        configs = [ROOT / f'configs/demo/{x}deit_digits.py' for x in ('', 'scalenet_')]
    call(monkeypatch, figure, configs[0], 'none', configs[1], 'none', *FIGURES[figure], *noise, '--out', tmp_path)
    numbers = json.loads((tmp_path / f'{figure}.json').read_text())
    depths = (4, 8) if noise else (3, 4)
    if figure == 'gradients':
        assert [len(m['gradient_norms']) for m in numbers['models']] == [4 if noise else 3, 4]
        assert all(v > 0 for m in numbers['models'] for v in m['gradient_norms'].values())
        assert [m['images'] for m in numbers['models']] == [32, 32]
    elif figure == 'features':
        assert [max(e['layer'] for e in m['layers'].values()) + 1 for m in numbers['models']] == list(depths)
    elif figure == 'lesions':
        assert [len(m['layers']) for m in numbers['models']] == list(depths)
        assert all(m['whole']['images'] == 40 and not m['without_added'] for m in numbers['models'])
    else:
        assert np.array(numbers['pairs'][0]['cka']).shape == depths and numbers['pairs'][0]['images'] == 16
    picture = cv2.imread(str(tmp_path / f'{figure}.png'))
    assert min(picture.shape[:2]) > 400 and picture.std() > 5


def test_the_tool_draws_a_sweep_of_checkpoints(tmp_path, monkeypatch):
    torch.save(dict(state_dict=Given(RANK, 'none', '').load('cpu').state_dict()), tmp_path / 'a.pth')
    runs = [f'0={tmp_path / "a.pth"}', '0.5=none']
    call(monkeypatch, 'droppath', RANK, *runs, '--images', 40, '--out', tmp_path)
    numbers = json.loads((tmp_path / 'droppath.json').read_text())
    assert [p['drop_path'] for p in numbers['curve']] == [0, 0.5]
    assert numbers['runs'][0]['loss'] == numbers['runs'][1]['loss']  # the same weights
    assert cv2.imread(str(tmp_path / 'droppath.png')) is not None


RESULTS = ROOT / 'docs/results/evidence/demo/results.jsonl'
SWEEP = ['--sweep', 'deit5000/scalenet']


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['features', RANK], 'pairs CONFIG CKPT'),
        (['features', RANK, 'nothing.pth'], 'no checkpoint nothing.pth'),
        (['features', 'nothing.py', 'none'], 'no config nothing.py'),
        (['cka', RANK, 'none'], 'two models or more'),
        (['gradients', RANK, 'none', '--labels', 'a', 'b'], 'as many --labels'),
        (['gradients', RANK, 'none', '--random'], 'no head.num_classes'),
        (['droppath', RANK, '2=none'], 'RATE=CKPT'),
        (['droppath'], '--results'),
        (
            ['droppath', '0.2=run.pth', '--results', str(RESULTS), *SWEEP],
            r"CONFIG RATE=CKPT ...; got \['0.2=run.pth'\]",
        ),
        (
            ['droppath', '--results', str(RESULTS), *SWEEP, '--rows', '0=deit5000/scalenett'],
            'run of deit5000/scalenett',
        ),
    ],
)
def test_the_tool_refuses_with_the_way_out_and_writes_nothing(words, says, tmp_path, monkeypatch):
    with pytest.raises((OSError, ValueError), match=says):
        call(monkeypatch, *words, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_config_that_comes_twice_is_told_by_its_checkpoint(tmp_path):
    (tmp_path / 'epoch_1.pth').touch()
    labels = [m.label for m in pairs([RANK, 'none', RANK, str(tmp_path / 'epoch_1.pth')])]
    assert labels == ['rank_deit, random', 'rank_deit, epoch_1']


def test_every_text_of_a_figure_has_12_points_or_more(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, '_save', lambda figure, path: drawn.append(figure))
    plots.draw_gradients({'a': [1.0, 2.0], 'b': [2.0, 1.0]}, 4, 'x.png')
    plots.draw_cka({('a', 'b'): np.eye(3), ('a', 'a'): np.eye(3)}, 4, 'x.png')
    layers = [dict(added=bool(i), source=i, top1=40.0 + i) for i in range(2)]
    plots.draw_lesions({'a': dict(whole=dict(top1=50.0), layers=layers, without_added=dict(top1=45.0))}, 'x.png')
    for figure in drawn:
        figure.draw_without_rendering()
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert len(sizes) > 5 and min(sizes) >= 12
    assert len(drawn) == 3


def test_gradients_of_a_detector_are_those_of_its_training_loss(tmp_path):
    from scalenet_mm.experiments.data import make_demo_data

    root = str(make_demo_data(tmp_path, ['coco'], train=4, val=4)['coco'])
    cfg = read_config(ROOT / 'configs/demo/mask_rcnn_swin_digits.py')
    cfg.train_dataloader.dataset.get('dataset', cfg.train_dataloader.dataset).data_root = root
    cfg.train_dataloader.update(num_workers=0)
    model = load(cfg, 'none')
    norms, loss, images = gradient_norms(model, Batches(cfg, 'train', 4, 2))
    assert images == 4 and loss > 0 and all(v > 0 for v in norms.values())
    assert list(norms) == list(source_layers(model))


def test_a_segmentors_images_may_differ_in_size():
    from mmseg.structures import SegDataSample

    init_default_scope('mmseg')
    cfg = read_config(ROOT / 'configs/demo/upernet_scalenet_swin_digits.py')
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.size = (96, 96)
    model = perturb(MODELS.build(cfg.model)).eval()

    def batch():
        sizes, generator = ((64, 96), (96, 64), (64, 64)), torch.Generator().manual_seed(0)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, *s, dtype=torch.long))) for s in sizes]
        images = [torch.randint(256, (3, *s), generator=generator, dtype=torch.uint8) for s in sizes]
        return dict(inputs=images, data_samples=samples)

    mean, std = (torch.tensor(cfg.model.data_preprocessor[k]).view(3, 1, 1) for k in ('mean', 'std'))
    seen = prepared(model, batch())['inputs']
    assert seen.shape == (3, 3, 96, 96) and not seen[0, :, 64:].any() and not seen[1, :, :, 64:].any()
    colours = batch()['inputs'][0].flip(0) if cfg.model.data_preprocessor.bgr_to_rgb else batch()['inputs'][0]
    torch.testing.assert_close(seen[0, :, :64], (colours - mean) / std)
    small = {k: v[2:] for k, v in batch().items()}
    assert prepared(model, small)['inputs'].shape == (1, 3, 64, 64)
    for_loss = prepared(model, small, for_loss=True)
    assert for_loss['inputs'].shape == (1, 3, 96, 96)
    assert (for_loss['data_samples'][0].gt_sem_seg.data[:, 64:] == 255).all()
    norms, loss, images = gradient_norms(model, [batch()])
    assert images == 3 and loss > 0 and all(v > 0 for v in norms.values())
    assert all(len(h) for h in histograms(model, [batch()]).values())


# the hook


def train(tmp_path, *, batch: int, accumulate: int = 1, clip=None, hook=None, scale=None, tensorboard=False, **changes):
    """Two steps of SGD on twelve fixed images; returns what the hook logged, by step."""
    cfg = Config.fromfile(ROOT / 'configs/demo/scalenet_deit_digits.py')
    data = dict(type='RandomImages', shape=(3, 16, 16), classes=19, length=12)
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path),
            'experiment_name': uuid.uuid4().hex,
            'custom_imports': dict(imports=['scalenet_mm', 'scalenet_mm.experiments.figures.batches']),
            'model.backbone.img_size': 16,
            'model.backbone.init_cfg': None,
            'train_dataloader': dict(
                _delete_=True,
                batch_size=batch,
                num_workers=0,
                dataset=data,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            'optim_wrapper': dict(
                clip_grad=clip, accumulative_counts=accumulate, optimizer=dict(_delete_=True, type='SGD', lr=0.01)
            ),
            'policy': None,
            'train_cfg': dict(_delete_=True, by_epoch=True, max_epochs=1),
            'custom_hooks': [dict(type='GradientNormHook', **(hook or dict(interval=1)))],
            'default_hooks.checkpoint': None,
            'param_scheduler': None,
            'load_from': None,
        }
    )
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg', 'test_dataloader', 'test_evaluator', 'test_cfg'):
        cfg[key] = None
    cfg.optim_wrapper.paramwise_cfg = dict(policy=dict(train='all'))
    if scale:
        cfg.model.backbone.scale = scale
    if tensorboard:
        cfg.visualizer = dict(
            type='Visualizer', vis_backends=[dict(type=f'{x}VisBackend') for x in ('Local', 'Tensorboard')]
        )
    cfg.merge_from_dict(changes)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner, logged(tmp_path, runner)


def logged(folder: Path, runner) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (Path(folder) / runner.timestamp / 'vis_data/scalars.json').read_text().splitlines())
    return {
        x['step']: {k: v for k, v in x.items() if k != 'step'} for x in lines if any('gradient_norm' in k for k in x)
    }


def test_the_hook_logs_the_gradient_of_the_accumulated_batch_before_clipping(tmp_path):
    _, whole = train(tmp_path / 'whole', batch=6)
    runner, parts = train(tmp_path / 'parts', batch=2, accumulate=3, clip=dict(max_norm=1e-3))
    assert list(whole) == [1, 2] and list(parts) == [3, 6]
    assert parts[3] == pytest.approx(whole[1], rel=1e-4)
    assert list(whole[1]) == [f'gradient_norm/backbone.layers.{i}' for i in range(4)]
    assert norm(np.array(list(parts[3].values()))) > 1e-2  # clipped, it would be 1e-3
    assert 'step' not in vars(runner.optim_wrapper)


def test_the_hook_logs_what_a_step_of_sgd_moves(tmp_path):
    """An independent measure: the way of one step of plain SGD is lr times the gradient."""
    runner, found = train(tmp_path, batch=12, hook=dict(interval=1, tensors='shared'))
    after = {k: v.clone() for k, v in runner.model.state_dict().items()}
    again, _ = train(tmp_path / 'before', batch=12, **{'optim_wrapper.optimizer.lr': 0.0})
    before = again.model.state_dict()
    for source in range(4):
        moved = norm(
            (after[k] - before[k]) / 0.01
            for x in LINEARS
            for p in ('weight', 'bias')
            for k in [f'backbone.layers.{2 * source}.{x}.{p}']
        )
        assert found[1][f'gradient_norm/backbone.layers.{source}'] == pytest.approx(moved, rel=2e-3)


def test_the_hooks_values_are_in_the_message_hub_and_tensorboard_and_every_interval(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runner, found = train(tmp_path, batch=3, hook=dict(interval=3), tensorboard=True)
    assert list(found) == [1, 4]
    name = 'gradient_norm/backbone.layers.2'
    events = EventAccumulator(str(tmp_path / runner.timestamp / 'vis_data')).Reload().Scalars(name)
    assert [(e.step, pytest.approx(e.value)) for e in events] == [(s, v[name]) for s, v in found.items()]
    assert runner.message_hub.get_scalar(name).current() == found[4][name]


def test_a_resumed_run_is_measured_at_the_steps_of_an_uninterrupted_one(tmp_path):
    kept = dict(_delete_=True, type='CheckpointHook', interval=1)
    changes = {'default_hooks.checkpoint': kept, 'train_cfg.max_epochs': 2}
    _, whole = train(tmp_path / 'a', batch=2, hook=dict(interval=4), **changes)
    changes |= dict(resume=True, load_from=str(tmp_path / 'a' / 'epoch_1.pth'))
    _, resumed = train(tmp_path / 'b', batch=2, hook=dict(interval=4), **changes)
    assert list(whole) == [1, 5, 9] and list(resumed) == [9]
    assert resumed[9] == pytest.approx(whole[9], rel=1e-5)


def test_the_hook_refuses_to_watch_what_is_not_trained(tmp_path):
    increments = {'optim_wrapper.paramwise_cfg.policy.train': 'increments'}
    with pytest.raises(ValueError, match="none of these tensors is trained.*tensors='all'"):
        train(tmp_path, batch=6, hook=dict(tensors='shared'), **increments)
    _, found = train(tmp_path / 'all', batch=6, hook=dict(interval=1), **increments)
    assert len(found[1]) == 4
    runner, _ = train(tmp_path / 'several', batch=12)
    runner.optim_wrapper = OptimWrapperDict(one=runner.optim_wrapper)
    with pytest.raises(ValueError, match='needs one optimizer wrapper, got OptimWrapperDict'):
        GradientNormHook().before_train(runner)
    with pytest.raises(ValueError, match='at least 1 step, got 0'):
        train(tmp_path, batch=6, hook=dict(interval=0))


@pytest.mark.slow
def test_two_processes_log_the_gradient_of_the_whole_batch(tmp_path):
    runner, whole = train(tmp_path / 'whole', batch=6)
    cfg = runner.cfg.copy()
    cfg.train_dataloader.batch_size = 3
    cfg.work_dir, cfg.model_wrapper_cfg = (
        str(tmp_path / 'two'),
        dict(type='ScaleNetDistributedDataParallel', policy=dict(train='all')),
    )
    cfg.policy = dict(train='all')
    cfg.dump(tmp_path / 'two.py')
    done = subprocess.run(
        ['bash', str(ROOT / 'tools/dist_train.sh'), str(tmp_path / 'two.py'), '2', '--no-preflight'],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / 'two').rglob('scalars.json')
    first = next(x for x in map(json.loads, file.read_text().splitlines()) if 'gradient_norm/backbone.layers.0' in x)
    assert {k: v for k, v in first.items() if k != 'step'} == pytest.approx(whole[1], rel=1e-4)


def test_noise_has_the_models_size_and_channels_and_labels():
    batch = next(iter(random_batches(deit(), 3, 3, labels=True)))
    images = torch.stack(batch['inputs'])
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.uint8 and images.max() > 200
    assert all(0 <= int(s.gt_label) < 5 for s in batch['data_samples'])
    other = next(iter(random_batches(deit(), 3, 3, seed=1)))['inputs']
    drawn = [*batch['inputs'], *other]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(drawn, 2)), 'another seed, other images'


@pytest.mark.parametrize('words', ['features --batch 0', 'gradients --micro-batch -1', 'cka --images none'])
def test_numbers_of_images_begin_at_one(words, capsys):
    figure, *rest = words.split()
    with pytest.raises(SystemExit):
        analyze.parser().parse_args([figure, 'config.py', 'none', *rest])
    assert 'must be a whole number from 1 on' in capsys.readouterr().err


def test_increments_need_the_base_they_stand_on():
    with pytest.raises(ValueError, match='stand on the base they were trained from'):
        parts_of('none+x.delta.safetensors')
    with pytest.raises(FileNotFoundError, match='There are no increments missing.delta.safetensors'):
        parts_of(f'{__file__}+missing.delta.safetensors')


def test_the_path_of_increments_may_hold_a_plus(tmp_path):
    for file in ('a+b/x+y.delta.safetensors', 'c+d/base.pth'):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    base, delta = tmp_path / 'c+d/base.pth', tmp_path / 'a+b/x+y.delta.safetensors'
    assert parts_of(f'{base}+{delta}') == (str(base), str(delta))
    assert parts_of(f'{base}') == (str(base), None)
