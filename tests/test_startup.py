"""Start-up, data loading and whole detectors beside the host: what is measured is what is said, and imports stay
light.
"""

import copy
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import perturb
from mmcv.transforms import TRANSFORMS, BaseTransform
from mmengine.logging import MMLogger

from scalenet_mm.experiments.benchmark import detectors, startup
from scalenet_mm.experiments.benchmark import loaders as data
from scalenet_mm.experiments.benchmark import measure as run
from scalenet_mm.experiments.benchmark.cases import Case
from scalenet_mm.experiments.benchmark.settings import Settings
from scalenet_mm.runner.config import innermost

SIZE = (96, 128)  # height, width
BOUND = 0.25  # seconds; measured at a sixteenth of this on a free machine


@TRANSFORMS.register_module()
class Sleep(BaseTransform):
    def transform(self, results: dict) -> dict:
        time.sleep(0.02)
        return results


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Family -> folder with its data."""
    roots = {family: tmp_path_factory.mktemp(family) for family in data.FAMILIES}
    sizes = {family: data.make_images(root, family, 2) for family, root in roots.items()}
    assert all(40 < kilobytes < 250 for kilobytes in sizes.values()), sizes
    return roots


@pytest.fixture(scope='module')
def variants(images):
    """The demo detector's variants, and a batch of the shipped detector's data."""
    cfg = data.read_leaf('detection', images['detection'], data.DEMO['detection'])
    leaf = data.shrink(data.read_leaf('detection', images['detection']), *SIZE)
    return detectors.build_variants(cfg), data.first_batch(leaf, 2)


def inner(cfg):
    return innermost(cfg.train_dataloader.dataset)


# --- import


@pytest.mark.slow
def test_importing_the_package_adds_little_time_and_no_heavy_module_to_what_the_hosts_import():
    trials = []
    while len(trials) < 3 and not any(own < BOUND for _, own, _ in trials):
        trials.append(startup.own_seconds(list(startup.HOST)))
    assert min(own for _, own, _ in trials) < BOUND
    added = {m.partition('.')[0] for m in trials[0][2]} - set(startup.sys.stdlib_module_names)
    assert added <= {'torch', 'tqdm'}  # no onnx, pandas, timm, tensorboard, safetensors, ...


@pytest.mark.slow
def test_the_modules_imported_by_name_are_all_that_the_package_imports_of_others():
    roots = startup.imported_roots()
    packages = {r.partition('.')[0] for r in roots}
    assert 'torch' in packages and 'scalenet_mm' not in packages
    there, own, added = startup.own_seconds(roots)
    assert added == [] and own < there


def test_a_process_that_fails_to_import_is_an_error_with_its_text():
    with pytest.raises(RuntimeError, match='no_such_module_at_all'):
        startup.fresh(startup.TIMED, ['no_such_module_at_all'])


# --- build and load


@pytest.mark.slow
def test_building_and_loading_stay_near_the_host_and_leave_the_logger_as_it_was():
    before = MMLogger.get_current_instance().level
    case = Case('startup', 'startup', '', partial(startup.loading, 'ScaleNetDeiT-S x2'))
    rows = run.measure(case, Settings(rounds=1), {})
    assert MMLogger.get_current_instance().level == before
    assert [r['setting'].partition(': ')[2] for r in rows] == ['build', 'build and init_weights', 'load a file']
    for r in rows:
        work = r['setting'].partition(': ')[2]
        assert r['goal'] == '<= 1.2' and r['value'] == pytest.approx(r['ms'][f'ours {work}'] / r['ms'][f'peer {work}'])
        assert r['value'] < 2, rows


def test_both_sides_of_loading_have_one_depth_and_ours_takes_the_shallow_host_s_file(tmp_path):
    host, depth, ours = startup.NETWORKS['ScaleNetSwin-T x2']
    source, mine = perturb(host(depth)), ours()
    torch.save(source.state_dict(), tmp_path / 'source.pth')
    mine.load_pretrained(str(tmp_path / 'source.pth'))
    depths = [[len(s.blocks) for s in net.stages] for net in (host(2 * depth), mine)]
    assert depths[0] == depths[1] == [2, 2, 6, 4]
    for i, j in ((0, 0), (1, 1), (2, 0), (3, 1)):  # the tail repeats the stage
        theirs, got = source.stages[3].blocks[j], mine.stages[3].blocks[i]
        assert torch.equal(theirs.attn.w_msa.qkv.weight, got.attn.w_msa.qkv.weight)


# --- data


@pytest.mark.parametrize('family', data.FAMILIES)
def test_the_shipped_pipeline_reads_the_made_images_at_the_size_asked_for(images, family):
    cfg = data.read_leaf(family, images[family])
    size = (224, 224) if family == 'classification' else SIZE
    data.shrink(cfg, *size)
    batch = data.first_batch(cfg, 2)
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.float().std() > 5
        if family == 'classification':
            assert image.shape[1:] == size and 0 <= int(sample.gt_label) < 1000
        elif family == 'segmentation':
            labels = set(sample.gt_sem_seg.data.unique().tolist()) - {255}
            fits = [0 < a <= b for a, b in zip(image.shape[1:], size)]  # a small one is padded later
            assert all(fits) and labels <= set(range(11))
        else:
            masks, boxes = sample.gt_instances.masks.masks, sample.gt_instances.bboxes
            assert image.shape[1:] == (96, 128) and len(masks) == len(boxes) >= 3
            for mask, box in zip(masks, boxes.tensor.tolist()):
                rows, columns = np.nonzero(mask)
                if len(rows):
                    found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                    assert np.abs(np.array(found) - box).max() < 3


def test_a_worker_s_seconds_an_image_are_those_of_its_pipeline(images):
    cfg = data.shrink(data.read_leaf('segmentation', images['segmentation']), *SIZE)
    inner(cfg).pipeline = [*inner(cfg).pipeline, dict(type='Sleep')]
    seconds = data.loading_seconds(cfg, batch_size=4, rounds=4)
    assert len(seconds) == 4 and 0.02 < sorted(seconds)[1] < 0.08


def test_the_variable_of_the_data_is_left_as_it_was(images, monkeypatch):
    monkeypatch.setenv('SCALENET_COCO_ROOT', 'elsewhere')
    cfg = data.read_leaf('detection', images['detection'])
    assert inner(cfg).data_root == f'{images["detection"]}/'
    assert data.os.environ['SCALENET_COCO_ROOT'] == 'elsewhere'


@pytest.mark.slow
def test_a_row_of_data_loading_compares_a_worker_s_share_with_the_step():
    (figure,) = data.keeping_up(Settings(rounds=2), 'segmentation', 4, SIZE)
    told = figure.told
    assert figure.value == told['worker'] / told['used'] / told['step'] < figure.bound == 1
    assert '4 workers' in figure.note


# --- detectors


def test_all_variants_of_a_detector_compute_one_loss(variants):
    trainers, batch = variants
    losses = {}
    for name, (model, _) in trainers.items():
        torch.manual_seed(0)  # the samplers of RoIs
        np.random.seed(0)
        with torch.no_grad():
            inputs = model.data_preprocessor(copy.deepcopy(batch), True)
            losses[name] = model.parse_losses(model._run_forward(inputs, 'loss'))[0].item()
    assert len(losses) == 4 and max(losses.values()) - min(losses.values()) < 1e-4 * min(losses.values())


def test_the_frozen_stock_detector_trains_what_ours_does_but_the_adapters(variants):
    names = {}
    for name, (model, wrapper) in variants[0].items():
        given = {id(p) for group in wrapper.optimizer.param_groups for p in group['params']}
        names[name] = {n for n, p in model.named_parameters() if p.requires_grad}
        assert names[name] <= {n for n, p in model.named_parameters() if id(p) in given}
    assert names['stock frozen'] == {n for n in names['ours'] if '.adapter.' not in n}
    assert names['ours'] - names['stock frozen']
    for name in ('stock', 'ours all'):
        assert names[name] == {n for n, _ in variants[0][name][0].named_parameters()}


def test_backbones_that_differ_are_not_compared(variants):
    ours, stock = (variants[0][name][0].backbone for name in ('ours', 'stock'))
    broken = copy.deepcopy(stock)
    with torch.no_grad():
        broken.stages[2].blocks[1].ffn.layers[1].weight.mul_(1.5)
    assert all(p.holds for p in detectors.same_maps(stock, ours, 'cpu'))
    assert not all(p.holds for p in detectors.same_maps(broken, ours, 'cpu'))
    assert ours.training and stock.training


def test_the_parts_of_a_step_are_the_step(variants):
    trainers, batch = variants
    after = []
    for by_parts in (False, True):
        model, wrapper = copy.deepcopy(trainers['ours'])
        torch.manual_seed(0)
        np.random.seed(0)
        if by_parts:
            parts = detectors.phase_seconds(model, wrapper, batch, 'cpu')
        else:
            model.train_step(copy.deepcopy(batch), wrapper)
        after.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    assert tuple(parts) == detectors.PHASES and min(parts.values()) > 0
    start = dict(trainers['ours'][0].named_parameters())
    assert any(not torch.equal(p, start[n]) for n, p in after[0].items())
    assert all(torch.allclose(after[0][n], p, atol=1e-6) for n, p in after[1].items())


def test_rows_of_a_segmentor_compare_its_step_and_name_its_parts():
    s = Settings(size='quick', rounds=1)
    rows = run.measure(run.PAIRS['detectors'](s)[1], s, {})
    assert {r['pair'] for r in rows} == {'detectors'} and len(rows) == 5
    for row in rows:
        assert row['status'] == 'ok' and row['value'] > 0 and len(row['parity']) == 3
    first = rows[0]
    assert first['value'] == pytest.approx(first['ms']['ours'] / first['ms']['stock'])
    assert all(part in first['note'] for part in detectors.PHASES)
    assert [r['goal'] for r in rows] == ['<= 1', '', '', '', '<= 0.01']
    assert rows[-1]['value'] < 0.1  # seeding an iteration beside even a micro step


def test_one_image_is_timed_beside_the_stock_detector():
    s = Settings(size='micro', rounds=1, warmup=1)
    whole, backbone, first = run.measure(run.PAIRS['latency'](s)[0], s, {})
    assert {whole['status'], backbone['status']} == {'ok'} and whole['goal'] == '<= 0.8'
    ms = whole['ms']
    assert ms['ours'] > ms['ours backbone'] > 0 and ms['stock'] > ms['stock backbone'] > 0
    assert whole['value'] == pytest.approx(ms['ours'] / ms['stock'])
    assert backbone['value'] == pytest.approx(ms['ours backbone'] / ms['stock backbone'])
    assert first['value'] == pytest.approx(ms['ours, a new size'] / ms['ours']) and first['goal'] == '<= 1.02'
