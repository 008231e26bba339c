"""Whole models as ONNX, against the libraries' own predictions."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import perturb, scalenet
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import Config
from torch import nn

from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.compat import read_config
from scalenet_mm.experiments.quickstart.quickstart_runs import CONFIGS
from scalenet_mm.export.boxes import decode, paste, suppress
from scalenet_mm.export.detection import Detector
from scalenet_mm.export.file import agreement, export_model, write
from scalenet_mm.export.graphs import Segmentor, network_of
from scalenet_mm.export.network import Agreement
from scalenet_mm.export.preparation import Preparation
from scalenet_mm.export.running import OnnxModel, about, pixels_of, prepared
from scalenet_mm.export.size_free import _Pool
from scalenet_mm.models.inference import as_panel, load_model, predict
from scalenet_mm.runner.config import build_runner, load_config

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / 'scalenet_mm/experiments/quickstart/sources'
NAMES = {'cls': 'deit_micro_digits', 'seg': 'upernet_swin_digits', 'det': 'mask_rcnn_swin_digits'}
SCALED = {'cls': 'scalenet_deit_micro_digits', 'det': 'mask_rcnn_scalenet_swin_digits'}
OTHERS = {
    'Cascade Mask R-CNN': 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'RetinaNet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
}


def source(task: str) -> nn.Module:
    """A model of the quickstart, trained to its end."""
    return load_model(CONFIGS / f'{NAMES[task]}.py', SOURCES / f'{NAMES[task]}.safetensors', device='cpu')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory) -> list[Path]:
    """Pictures of digits, 96 x 96, each with objects that the trained detector finds."""
    folder = tmp_path_factory.mktemp('scenes')
    command = scalenet('experiment', 'demo-data', folder / 'data', '--layout', 'coco', '--train', '400', '--val', '8')
    subprocess.run(command, check=True, capture_output=True)
    return sorted((folder / 'data' / 'coco' / 'val2017').iterdir())


def detector(name: str) -> nn.Module:
    """A small detector with a Swin of the library, whose random weights find something."""
    cfg = read_config(OTHERS[name])
    backbone = dict(type='SwinTransformer', embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
    cfg.model.backbone = dict(backbone, window_size=7, out_indices=(0, 1, 2, 3), drop_path_rate=0.0)
    cfg.model.neck.in_channels, cfg.default_scope = [16, 32, 64, 128], 'mmdet'
    torch.manual_seed(0)
    return perturb(build_model(cfg), std=0.05).eval()


# --- the parts, against the library's


def test_masks_are_pasted_as_mmdet_does():
    torch.manual_seed(0)
    masks, corner = torch.rand(5, 28, 28), torch.rand(5, 2) * 60
    boxes = torch.cat((corner, corner + 5 + 30 * torch.rand(5, 2)), 1)
    theirs, _ = _do_paste_mask(masks[:, None], boxes, 80, 100, skip_empty=False)
    torch.testing.assert_close(paste(masks, boxes, (80, 100)), theirs, atol=2e-5, rtol=0)


def test_boxes_are_decoded_and_suppressed_as_mmdet_does():
    from mmcv.ops import batched_nms
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    torch.manual_seed(0)
    coder, corner = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2)), torch.rand(300, 2) * 60
    boxes, deltas = torch.cat((corner, corner + 30 * torch.rand(300, 2)), 1), 5 * torch.randn(300, 4)
    theirs = coder.decode(boxes, deltas, max_shape=(70, 90))
    torch.testing.assert_close(decode(coder, boxes, deltas, (70, 90)), theirs)
    scores, groups = torch.rand(300), torch.randint(0, 3, (300,))
    _, kept = batched_nms(theirs, scores, groups, dict(type='nms', iou_threshold=0.5))
    assert torch.equal(suppress(theirs, scores, groups, 0.5, 1000), kept) and 60 < len(kept) < 300
    assert torch.equal(suppress(theirs, scores, groups, 0.5, 50), kept[:50])
    assert not len(suppress(theirs[:0], scores[:0], groups[:0], 0.5, 50))


@pytest.mark.parametrize('count', [1, 2, 3, (6, 4)])
@pytest.mark.parametrize('side', [1, 5, 6, 13])
def test_means_over_bins_are_torch_s(count, side):
    x = torch.randn(2, 3, side, side + 2)
    torch.testing.assert_close(_Pool(count)(x), nn.AdaptiveAvgPool2d(count)(x))


# --- whole models


def test_a_classifier_gives_its_scores_at_any_batch(tmp_path):
    model, file = source('cls'), tmp_path / 'm.onnx'
    done = export_model(model, file, metadata=about(model))
    assert done.nbytes == done.unique and len(done.shapes) == 8 and done.difference < 1e-5
    image = coloured(tmp_path / 'a.png', 32, 32)
    example = [sys.executable, ROOT / 'examples/run_onnx.py', file, image, tmp_path / 'example.png']
    first, *_ = subprocess.run(example, check=True, capture_output=True, text=True).stdout.splitlines()
    assert first.split()[0] == model.dataset_meta['classes'][int(predict(model, image).pred_label)]


def test_a_scaled_classifier_stores_shared_tensors_once(tmp_path):
    model = perturb(build_model(read_config(CONFIGS / f'{SCALED["cls"]}.py'))).eval()
    done = export_model(model, tmp_path / 'm.onnx')
    assert done.nbytes <= 1.001 * sum(p.nbytes for p in model.parameters())


@pytest.mark.slow
def test_a_detector_finds_what_torch_finds_and_draws_the_same_picture(scenes, tmp_path):
    model, file = source('det'), tmp_path / 'm.onnx'
    config, weights = CONFIGS / f'{NAMES["det"]}.py', SOURCES / f'{NAMES["det"]}.safetensors'
    done = subprocess.run(
        scalenet('onnx', config, weights, file, '--check', *scenes), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split('objects')[1].split()[0]) > 20, done.stdout
    assert {o.domain for o in onnx.load(file).opset_import} <= {'', 'ai.onnx'}, 'no operators of their own'
    ours = OnnxModel(file)
    for scene in scenes:
        a, b = as_panel(predict(model, scene)), as_panel(predict(ours, scene))
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        assert np.array_equal(a.labels, b.labels) and (a.masks != b.masks).mean() < 1e-3
    with pytest.raises(ValueError, match=r'takes images of 96 x 96 pixels; this one is 40 x 96'):
        ours.run(torch.zeros(1, 3, 40, 96))
    assert copy.deepcopy(ours) is ours, 'as EMAHook copies a model'
    narrow = cv2.imread(str(scenes[0]))[:, :48]
    for one in (model, ours):  # an image that is resized and padded to the file's size
        one.cfg.test_pipeline.insert(2, dict(type='Pad', size=(96, 96)))
    a, b = (as_panel(predict(one, narrow)) for one in (model, ours))
    assert len(a.boxes) > 1
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
    assert (a.masks != b.masks).mean() < 1e-3
    del model.cfg.test_pipeline[2]
    for words, out in (([config, weights], 'torch.png'), (['--onnx', file], 'onnx.png')):
        subprocess.run(scalenet('predict', scenes[0], *words, '--out', tmp_path / out), check=True, capture_output=True)
    one, two = (cv2.imread(str(tmp_path / name)).astype(int) for name in ('torch.png', 'onnx.png'))
    apart = (np.abs(one - two) > 32).any(2)
    assert one.shape == two.shape and not apart[100:].any(), 'nothing but the head of the column, which names the file'
    example = [sys.executable, ROOT / 'examples/run_onnx.py', file, scenes[0], tmp_path / 'example.png']
    said = subprocess.run(example, check=True, capture_output=True, text=True).stdout
    labels = [model.dataset_meta['classes'][k] for k in as_panel(predict(model, scenes[0])).labels]
    assert [line.split()[0] for line in said.splitlines()] == labels


@pytest.mark.slow
@pytest.mark.parametrize(('task', 'most'), [('seg', 0.025), ('det', 0.15)])
def test_results_of_a_resized_image_differ_at_borders_alone(task, most, scenes, tmp_path):
    """The share of the pixels of label maps, and of the area of masks: as docs/ship.md says, torch resizes logits."""
    model, file = source(task), tmp_path / 'm.onnx'
    if task == 'seg':
        model.cfg.test_pipeline.insert(1, dict(type='Resize', scale=(96, 96)))
    export_model(model, file, (96, 96), metadata=about(model))
    ours = OnnxModel(file)
    for scene in scenes[:3]:
        image = cv2.resize(cv2.imread(str(scene)), (192, 192))
        a, b = (as_panel(predict(one, image)) for one in (model, ours))
        if task == 'seg':
            share = (a.semantic != b.semantic).mean()
        else:
            np.testing.assert_allclose(a.boxes, b.boxes, atol=2e-2)
            share = (a.masks != b.masks).sum() / a.masks.sum()
        print(f'{task}: {share:.2%}')
        assert 0 < share < most


@pytest.mark.slow
def test_a_label_map_of_sides_that_were_made_multiples_is_the_whole_picture(scenes, tmp_path):
    """mmseg's ResizeToMultiple says nothing of it in scale_factor."""
    model, file = source('seg'), tmp_path / 'm.onnx'
    sizes = [dict(type='Resize', scale=(2048, 72), keep_ratio=True), dict(type='ResizeToMultiple', size_divisor=32)]
    model.cfg.test_pipeline[1:1] = sizes
    export_model(model, file, (96, 96), metadata=about(model))
    ours = OnnxModel(file)
    image = cv2.imread(str(scenes[0]))
    a, b = (as_panel(predict(one, image)).semantic for one in (model, ours))
    assert (a != 0).mean() > 0.05 and (a != b).mean() < 0.03  # 72 of 96 pixels stretched over all: 15 %


def test_a_normalisation_in_the_pipeline_is_not_lost_in_a_graph_that_prepares():
    cfg = source('det').cfg
    cfg.test_pipeline.insert(1, dict(type='Normalize', mean=[1.0] * 3, std=[2.0] * 3, to_rgb=False))
    with pytest.raises(ValueError, match='changes the values of pixels .*say mean and std in data_preprocessor'):
        Preparation.of(cfg)


@pytest.mark.slow
def test_the_example_resizes_and_crops_as_mmcv_does_or_says_what_it_does_not_know(scenes, tmp_path):
    from mmcv.transforms import CenterCrop, Resize
    from mmpretrain.datasets.transforms import ResizeEdge

    model, file = source('det'), tmp_path / 'm.onnx'
    export_model(model, file, (48, 32), metadata=about(model))

    def run(*steps: dict) -> subprocess.CompletedProcess:
        graph = onnx.load(file)
        held = {p.key: p.value for p in graph.metadata_props}
        held['test_pipeline'] = json.dumps([dict(type='LoadImageFromFile'), *steps, dict(type='mmdet.PackDetInputs')])
        onnx.helper.set_model_props(graph, held)
        onnx.save(graph, tmp_path / 'other.onnx')
        example = [
            sys.executable,
            ROOT / 'examples/run_onnx.py',
            tmp_path / 'other.onnx',
            scenes[0],
            tmp_path / 'e.png',
        ]
        return subprocess.run(example, capture_output=True, text=True)

    image = dict(img=cv2.imread(str(scenes[0])))
    for steps in (
        [(CenterCrop, dict(crop_size=(32, 48)))],
        [(Resize, dict(scale_factor=0.5)), (CenterCrop, dict(crop_size=(32, 48)))],
        [(Resize, dict(scale=(32, 48)))],
        [(Resize, dict(scale_factor=(0.336, 0.497)))],
        [(Resize, dict(scale=(32, 48))), (CenterCrop, dict(crop_size=200))],
        [(ResizeEdge, dict(scale=48, edge='long')), (CenterCrop, dict(crop_size=(32, 48)))],
    ):
        theirs = dict(image)
        for kind, given in steps:
            theirs = kind(**given)(theirs)
        done = run(*(dict(type=f'mmdet.{kind.__name__}', **given) for kind, given in steps))
        assert done.returncode == 0, done.stderr
        height, width = theirs['img'].shape[:2]
        assert cv2.imread(str(tmp_path / 'e.png')).shape[:2] == (height, width) == (48, 32)
    done = run(dict(type='Normalize', mean=[0.0], std=[1.0]))
    assert done.returncode == 1 and "a step 'Normalize', which this example does not know" in done.stderr


def weight_bytes(file: Path) -> int:
    return sum(onnx.numpy_helper.to_array(i).nbytes for i in onnx.load(file).graph.initializer)


@pytest.mark.slow
def test_half_floats_are_half_the_file_and_give_what_rounded_weights_give(tmp_path):
    model = perturb(build_model(read_config(CONFIGS / f'{SCALED["cls"]}.py'))).eval()
    exact, half = (export_model(model, tmp_path / f'{s}.onnx', store=s) for s in ('float32', 'fp16'))
    assert half.difference < 1e-4 and weight_bytes(tmp_path / 'fp16.onnx') == half.stored < 0.6 * exact.stored
    assert (tmp_path / 'fp16.onnx').stat().st_size < 0.75 * (tmp_path / 'float32.onnx').stat().st_size
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    ours, theirs = (run(tmp_path / f'{s}.onnx', image) for s in ('float32', 'fp16'))
    assert 0 < np.abs(ours - theirs).max() < 1e-2
    (model.head.layers.head if hasattr(model.head, 'layers') else model.head.fc).weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r'weight has values of up to 1e\+05, half floats end at 65504'):
        export_model(model, tmp_path / 'm.onnx', store='fp16')
    with pytest.raises(ValueError, match="store is 'bf16'; it must be one of float32, fp16, int8"):
        export_model(model, tmp_path / 'm.onnx', store='bf16')


def run(file: Path, image: torch.Tensor) -> np.ndarray:
    return onnxruntime.InferenceSession(file).run(None, {'image': image.numpy()})[0]


def test_a_shared_weight_is_quantized_once_and_every_linear_layer_is(tmp_path):
    model = perturb(build_model(read_config(CONFIGS / f'{SCALED["cls"]}.py'))).eval()
    done = export_model(model, tmp_path / 'm.onnx', store='int8')
    graph = onnx.load(tmp_path / 'm.onnx').graph
    whole = [i for i in graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 2]
    linear = {id(p): p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in [m.weight]}
    sizes = sorted(int(np.prod(i.dims)) for i in whole)
    assert set(linear.values()) <= set(sizes)
    assert all(sizes.count(n) >= list(linear.values()).count(n) for n in linear.values())
    narrow = sum(p.numel() for n, p in model.named_parameters() if 'adapter' in n)
    assert sum(sizes) == sum(linear.values()) + narrow, 'each shared weight once, and the adapters'
    assert done.stored < 0.6 * done.nbytes and done.difference < 1e-4
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    apart = np.abs(run(tmp_path / 'm.onnx', image) - model.predict(image)[0].pred_score.detach().numpy()).max()
    assert 0 < apart < 0.1


def test_pixels_go_into_a_graph_that_prepares_them(scenes, tmp_path):
    model, file = source('det'), tmp_path / 'm.onnx'
    images = [pixels_of(model, scene) for scene in scenes]
    done = export_model(
        model, file, (96, 96), images=images, preparation=Preparation.of(model.cfg), metadata=about(model)
    )
    assert done.found > 20 and {len(shape) for shape in done.shapes} == {4} and done.shapes[-1] == (1, 96, 96, 3)
    ours = OnnxModel(file)
    for scene in scenes[:3]:
        a, b = as_panel(predict(model, scene)), as_panel(predict(ours, scene))
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
        assert len(a.boxes) and np.array_equal(a.labels, b.labels)
    with pytest.raises(ValueError, match='takes images of 96 x 96 pixels; this one is 40 x 96'):
        ours.run(torch.zeros(1, 40, 96, 3, dtype=torch.uint8))
    example = [sys.executable, ROOT / 'examples/run_onnx.py', file, scenes[0], tmp_path / 'example.png']
    said = subprocess.run(example, check=True, capture_output=True, text=True).stdout
    labels = [model.dataset_meta['classes'][k] for k in as_panel(predict(model, scenes[0])).labels]
    assert [line.split()[0] for line in said.splitlines()] == labels
    with pytest.raises(
        ValueError, match=r'40 x 96 pixels, once it is resized, cannot be checked in a file for \(96, 96\)'
    ):
        export_model(model, file, (96, 96), images=[images[0][:, :40]], preparation=Preparation.of(model.cfg))


@pytest.mark.parametrize('blue_first', [True, False])
@pytest.mark.parametrize('mean', [(1.0, 2.0, 3.0), (1.0,), None])
def test_preparation_is_the_librarys(blue_first, mean):
    """Against mmdet's preprocessor on what mmcv's loader gives, blue first."""
    from mmdet.models.data_preprocessors import DetDataPreprocessor

    said = dict(mean=mean, std=mean and (4.0, 5.0, 6.0)[: len(mean)], bgr_to_rgb=not blue_first)
    steps = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    cfg = Config(dict(default_scope='mmdet', model=dict(data_preprocessor=said), test_pipeline=steps))
    blue = torch.randint(256, (3, 7, 5), dtype=torch.uint8)
    theirs = DetDataPreprocessor(**said)(dict(inputs=[blue], data_samples=None))['inputs']
    assert torch.equal(Preparation.of(cfg)(blue.flip(0).permute(1, 2, 0)[None]), theirs.float())


def classifier(*steps: dict, **preprocessor) -> nn.Module:
    """The quickstart's classifier, behind another test pipeline."""
    cfg = read_config(CONFIGS / f'{NAMES["cls"]}.py')
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')]
    cfg.model.data_preprocessor.update(preprocessor)
    return load_model(cfg, SOURCES / f'{NAMES["cls"]}.safetensors', device='cpu')


def coloured(file: Path, *sides: int) -> Path:
    pixels = np.random.default_rng(1).integers(0, 255, (*sides, 3), np.uint8)
    cv2.imwrite(str(file), pixels // np.uint8([4, 1, 2]))
    return file


TO_PIL, FROM_PIL = dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy')


@pytest.mark.parametrize('turned', [False, True])
def test_channels_that_a_pipeline_turns_round_are_in_the_graph_as_it_gives_them(turned, tmp_path):
    steps = (TO_PIL, FROM_PIL) if turned else ()
    model, image = classifier(*steps, to_rgb=not turned), coloured(tmp_path / 'a.png', 32, 32)
    export_model(model, tmp_path / 'm.onnx', (32, 32), preparation=Preparation.of(model.cfg), metadata=about(model))
    pixels = torch.from_numpy(cv2.imread(str(image))[None, ..., ::-1].copy())
    expected = predict(model, image).pred_score
    torch.testing.assert_close(torch.from_numpy(run(tmp_path / 'm.onnx', pixels))[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(predict(OnnxModel(tmp_path / 'm.onnx'), image).pred_score, expected, atol=1e-4, rtol=0)
    blue_first = run(tmp_path / 'm.onnx', pixels.flip(-1))[0]
    assert np.abs(blue_first - expected.numpy()).max() > 1e-3, 'the order does not matter to this network'


def test_a_step_that_makes_shares_of_pixels_is_refused_before_any_work():
    model = classifier(TO_PIL, dict(type='torchvision/ToTensor'))
    with pytest.raises(ValueError, match=r'changes the values of pixels \(\(200, 100, 50\) comes out as \(0.78'):
        Preparation.of(model.cfg)


def test_what_a_step_of_torchvision_resizes_is_taken_whole(tmp_path):
    resized = dict(type='torchvision/Resize', size=(32, 32))
    model, image = (
        classifier(TO_PIL, resized, dict(type='PILToNumpy', to_bgr=True)),
        coloured(tmp_path / 'a.png', 24, 16),
    )
    assert prepared(model, image).shape == (1, 3, 32, 32)
    export_model(model, tmp_path / 'm.onnx', (32, 32), metadata=about(model))
    theirs, ours = (predict(m, image).pred_score for m in (model, OnnxModel(tmp_path / 'm.onnx')))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_file_that_is_none_of_onnx_is_told_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no file .*m.onnx'):
        OnnxModel(tmp_path / 'm.onnx')
    (tmp_path / 'm.onnx').write_text('no graph')
    with pytest.raises(ValueError, match='m.onnx cannot be run: it is damaged, or none of ONNX'):
        OnnxModel(tmp_path / 'm.onnx')


def test_a_file_names_steps_that_are_registered_and_no_other_code(tmp_path):
    model, file = source('det'), tmp_path / 'm.onnx'
    export_model(model, file, (48, 32), metadata=about(model))
    assert len(OnnxModel(file).cfg.test_pipeline) == len(model.cfg.test_pipeline)
    called = dict(type='builtins.open', file=str(tmp_path / 'ran'), mode='w')
    graph = onnx.load(file)
    held = {p.key: p.value for p in graph.metadata_props}
    steps = json.loads(held['test_pipeline'])
    for key, value in (
        ('test_pipeline', [*steps, called]),
        ('test_pipeline', [dict(type='RandomChoice', transforms=[[called]])]),
        ('data_preprocessor', called),
        ('scope', 'antigravity'),
    ):
        onnx.helper.set_model_props(graph, {**held, key: json.dumps(value)})
        onnx.save(graph, file)
        with pytest.raises(
            CheckpointError, match='nothing stored in a file is run; import .* or export the model again'
        ):
            OnnxModel(file)
    assert not (tmp_path / 'ran').exists()


def test_a_classifier_that_was_distilled_is_exported_with_its_own_config(tmp_path):
    cfg = read_config(CONFIGS / f'{SCALED["cls"]}.py')
    cfg.model.update(type='DistilledClassifier', distill=dict(checkpoint='nowhere.pth'))
    model = perturb(build_model(cfg)).eval()
    assert export_model(model, tmp_path / 'm.onnx', (32, 32)).difference < 1e-4


@pytest.mark.slow
def test_without_the_last_suppression_every_candidate_comes_out(scenes, tmp_path):
    model = source('det')
    given = [prepared(model, scene) for scene in scenes]
    network = network_of(model, nms=False)
    done = write(network, tmp_path / 'm.onnx', (96, 96), images=given, metadata=about(model, network))
    with pytest.raises(ValueError, match=r'gives candidates before their suppression \(--no-nms\)'):
        OnnxModel(tmp_path / 'm.onnx')
    assert done.found > 2 * sum(len(predict(model, s).pred_instances) for s in scenes)
    ours = onnxruntime.InferenceSession(tmp_path / 'm.onnx')
    assert [o.name for o in ours.get_outputs()] == ['boxes', 'labels', 'scores']
    with pytest.raises(ValueError, match=r'nms=False \(--no-nms\) is of detectors; this model is of classification'):
        export_model(source('cls'), tmp_path / 'm.onnx', nms=False)


@pytest.mark.slow
def test_a_file_is_evaluated_as_a_checkpoint_is(scenes, tmp_path):
    """The metrics that `scalenet test` prints of both."""
    config, weights = CONFIGS / f'{NAMES["det"]}.py', SOURCES / f'{NAMES["det"]}.safetensors'
    export_model(source('det'), tmp_path / 'm.onnx', (96, 96), metadata=about(source('det')))
    data = f'data_root={scenes[0].parents[1]}'
    found = []
    for i, file in enumerate((weights, tmp_path / 'm.onnx')):
        out = tmp_path / f'{i}.json'
        command = scalenet('test', config, file, '--work-dir', tmp_path / 'w', '--out', out, '--cfg-options', data)
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1] and found[0]['coco/bbox_mAP'] > 0.7
    refused = subprocess.run(
        scalenet('test', config, tmp_path / 'm.onnx', '--tta'), capture_output=True, text=True, cwd=ROOT
    )
    assert refused.returncode == 2 and 'takes neither --delta nor --tta' in refused.stderr
    options = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.5')
    refused = subprocess.run(
        scalenet('test', config, tmp_path / 'm.onnx', *options), capture_output=True, text=True, cwd=ROOT
    )
    assert refused.returncode == 2 and 'give such options to `scalenet onnx`' in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize('task', ['seg', 'det'])
def test_the_image_size_is_free(task, scenes, tmp_path):
    model = source(task)
    done = export_model(
        model, tmp_path / 'm.onnx', (96, 96), dynamic=True, images=[prepared(model, s) for s in scenes[:2]]
    )
    assert len({shape[2:] for shape in done.shapes}) >= 7


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize('nms', [True, False])
@pytest.mark.parametrize('name', sorted(OTHERS))
def test_what_is_written_of_other_detectors_computes_what_they_do(name, nms):
    """In torch: their random weights give hundreds of scores of 1, of which onnxruntime may keep others."""
    network = network_of(detector(name), nms=nms)
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    ours = network.reference(image)
    assert len(ours[0]) == 100 if nms else len(ours[0]) > 200
    assert not network.compare(ours[:3], network(image)[:3]).wrong


def trained(name: str, scenes: list[Path], folder: Path) -> nn.Module:
    """The quickstart's scaled detector, or the library's heads on its source's backbone and neck, after 50 steps."""
    scaled = name not in OTHERS
    file = CONFIGS / f'{(SCALED if scaled else NAMES)["det"]}.py'
    cfg = load_config(str(file), str(folder), options=dict(data_root=str(scenes[0].parents[1])))
    theirs, small = None if scaled else read_config(OTHERS[name]).model, dict(in_channels=48, num_classes=10)
    if name == 'RetinaNet':
        anchors = {**theirs.bbox_head.anchor_generator, 'strides': [4, 8, 16]}
        kept = {key: cfg.model[key] for key in ('data_preprocessor', 'backbone', 'neck')}
        head = {**theirs.bbox_head, **small, 'feat_channels': 48, 'stacked_convs': 1, 'anchor_generator': anchors}
        cfg.model = dict(kept, type='RetinaNet', bbox_head=head, train_cfg=theirs.train_cfg, test_cfg=theirs.test_cfg)
    elif not scaled:
        ours, roi = cfg.model.roi_head, theirs.roi_head
        ours.type, ours.num_stages, ours.stage_loss_weights = roi.type, roi.num_stages, roi.stage_loss_weights
        ours.bbox_head = [{**head, **small, 'fc_out_channels': 64, 'roi_feat_size': 5} for head in roi.bbox_head]
        cfg.model.type = 'CascadeRCNN'
        cfg.model.train_cfg.rcnn = [{**stage, 'mask_size': 20} for stage in theirs.train_cfg.rcnn]
    cfg.train_cfg = dict(by_epoch=False, max_iters=50)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    cfg.param_scheduler, cfg.optim_wrapper.optimizer.lr = [], 1e-3
    for split in ('val', 'test'):
        for part in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{split}_{part}'] = None
    cfg.load_from = str(SOURCES / f'{NAMES["det"]}.safetensors')
    runner = build_runner(cfg)
    runner.train()
    return runner.model.eval()


@pytest.mark.slow
@pytest.mark.parametrize('name', [*sorted(OTHERS), 'ScaleNet Mask R-CNN'])
def test_files_of_other_detectors_find_what_they_do(name, scenes, tmp_path):
    model = trained(name, scenes, tmp_path / 'run')
    given = [prepared(source('det'), scene) for scene in scenes]
    for nms in (True, False):
        done = export_model(model, tmp_path / 'm.onnx', (96, 96), images=given, nms=nms)
        assert done.found > 100


@pytest.mark.slow
def test_proposals_of_tiny_scores_are_taken_in_their_order(scenes, tmp_path):
    """onnxruntime's sigmoid is off by 1e-7 and more, which is all that there is of such a score."""
    model = source('det')
    model.rpn_head.rpn_cls.bias.data -= 18
    given = [prepared(model, scene) for scene in scenes]
    assert export_model(model, tmp_path / 'm.onnx', (96, 96), images=given).found > 20


def test_a_tie_may_turn_as_torchs_own_does_and_no_other_difference_passes():
    class Tie(Segmentor):
        def __init__(self):
            nn.Module.__init__(self)

        def reference(self, image):
            return ((image[:, :1] > 0).long(),)  # of zeros, what rounding makes of them

    image = torch.zeros(1, 1, 1, 1)
    for given, agrees in ((0, True), (1, True), (2, False)):
        found = agreement(Tie(), image, Tie().reference(image), [torch.full((1, 1, 1, 1), given)])
        assert bool(found.wrong) != agrees
    assert agreement(Tie(), image + 1, Tie().reference(image + 1), [torch.zeros(1, 1, 1, 1)]).wrong


def test_objects_of_nearly_equal_scores_may_change_places_and_nothing_else():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20], [1, 1, 3, 3]])
    ours = boxes, torch.tensor([1, 2, 1]), torch.tensor([0.9, 0.50001, 0.5])
    swapped = tuple(t[[0, 2, 1]] for t in ours[:2])
    compare = Detector.compare
    network = object()
    assert compare(network, ours, (*swapped, ours[2])) == Agreement(0.0)
    assert 'order' in compare(network, ours, tuple(t[[1, 0, 2]] for t in ours)).wrong
    assert 'a box differs' in compare(network, ours, (boxes + 0.1, *ours[1:])).wrong
    assert '2 objects are found, torch finds 3' in compare(network, ours, tuple(t[:2] for t in ours)).wrong


@torch.no_grad()
def test_padding_of_the_preprocessor_is_in_the_network(scenes):
    """Against the library's own prediction, which pads; the network gets what is not padded."""
    detector, segmentor = source('det'), source('seg')
    detector.data_preprocessor.pad_size_divisor, detector.data_preprocessor.pad_value = 64, 2.0
    segmentor.data_preprocessor.test_cfg = dict(size_divisor=64)
    for scene in scenes[:3]:
        boxes = network_of(detector)(prepared(detector, scene))[0]
        torch.testing.assert_close(boxes, predict(detector, scene).pred_instances.bboxes, atol=1e-3, rtol=0)
        labels = network_of(segmentor)(prepared(segmentor, scene))[0]
        assert torch.equal(labels, predict(segmentor, scene).pred_sem_seg.data)
    segmentor.data_preprocessor.test_cfg = dict(size=(128, 128))
    with pytest.raises(ValueError, match=r'test_cfg.size is \(128, 128\), which is not covered'):
        network_of(segmentor)


@torch.no_grad()
@pytest.mark.parametrize(('part', 'option', 'value'), [('rcnn', 'max_per_img', -1), ('rpn', 'nms_pre', -1)])
def test_limits_of_no_number_are_none(part, option, value, scenes):
    model = source('det')
    cfg = model.roi_head.test_cfg if part == 'rcnn' else model.test_cfg.rpn
    cfg[option] = model.test_cfg[part][option] = value
    if part == 'rpn':
        model.rpn_head.test_cfg[option] = value
    network, image = network_of(model), prepared(model, scenes[0])
    ours = network.reference(image)
    assert len(ours[0]) > 3 and not network.compare(ours, network(image)).wrong


@pytest.mark.slow
def test_a_side_that_is_no_multiple_is_refused(tmp_path):
    model = source('cls')
    network = network_of(model)
    write(network, tmp_path / 'm.onnx', dynamic=True, metadata=about(model, network))
    step = network.step
    with pytest.raises(ValueError, match=f'multiples of {step}; this one is {8 * step + 1} x {8 * step}'):
        OnnxModel(tmp_path / 'm.onnx').run(torch.zeros(1, 3, 8 * step + 1, 8 * step))
    with pytest.raises(ValueError, match=f'must be multiples of the patch size {step}'):
        write(network, tmp_path / 'm.onnx', dynamic=True, images=[torch.zeros(1, 3, 8 * step + 1, 8 * step)])


# --- what is refused


RESNET = dict(type='ResNet', depth=18, out_indices=(3,))


@pytest.mark.parametrize(
    ('scope', 'model', 'told'),
    [
        (
            'mmpretrain',
            dict(
                backbone=RESNET,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=512, loss=dict(type='CrossEntropyLoss')),
            ),
            'model.backbone is a ResNet',
        ),
        (
            'mmpretrain',
            dict(
                backbone=RESNET,
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='MultiLabelLinearClsHead', num_classes=3, in_channels=512),
            ),
            'model.head is a MultiLabelLinearClsHead',
        ),
    ],
)
def test_backbones_and_heads_that_are_not_covered_are_named_before_any_work(scope, model, told):
    cfg = Config(dict(default_scope=scope, model=dict(type='ImageClassifier', **model)))
    with pytest.raises(ValueError, match=told):
        network_of(build_model(cfg)).require((64, 64), False)


@pytest.mark.parametrize(
    ('library', 'told'),
    [
        ('mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 'model.rpn_head is a NoneType'),
        ('mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py', 'model.decode_head is a Mask2FormerHead'),
        ('mmseg::vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py', 'model.backbone is a VisionTransformer'),
    ],
)
def test_shipped_models_that_are_not_covered_are_named_before_any_work(library, told):
    cfg = read_config(library)
    with pytest.raises(ValueError, match=told):
        network_of(build_model(without_weights_of(cfg))).require((512, 512), False)


def without_weights_of(cfg: Config) -> Config:
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    return cfg


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (
            dict(roi_head=dict(bbox_head=dict(type='DoubleConvFCBBoxHead', num_convs=1, num_fcs=1))),
            'DoubleConvFCBBoxHead',
        ),
        (dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms')))), r'test_cfg.rcnn.nms is .*soft_nms'),
        (dict(rpn_head=dict(bbox_coder=dict(type='TBLRBBoxCoder', normalizer=4.0))), 'TBLRBBoxCoder'),
        (
            dict(roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(_delete_=True, type='RoIPool', output_size=7)))),
            r'bbox_roi_extractor \(0\).roi_layer is a RoIPool, .* covered are RoIAlign',
        ),
        (
            dict(roi_head=dict(mask_roi_extractor=dict(roi_layer=dict(pool_mode='max')))),
            r"mask_roi_extractor \(0\).roi_layer is a RoIAlign, .*pool_mode='avg'",
        ),
    ],
)
def test_a_part_that_is_not_covered_is_named(change, told):
    cfg = read_config(CONFIGS / f'{NAMES["det"]}.py')
    cfg.default_scope = 'mmdet'
    if 'bbox_head' in change.get('roi_head', {}):
        cfg.model.roi_head.bbox_head = {**cfg.model.roi_head.bbox_head, **change['roi_head']['bbox_head']}
    elif 'rpn_head' in change:
        cfg.model.rpn_head.bbox_coder = change['rpn_head']['bbox_coder']
    else:
        cfg.merge_from_dict(dict(model=change))
    with pytest.raises(ValueError, match=told):
        network_of(build_model(cfg))


def test_a_detector_that_predicts_more_than_objects_is_named():
    cfg = read_config(CONFIGS / f'{NAMES["det"]}.py')
    classes, width = dict(num_things_classes=10, num_stuff_classes=3), cfg.model.neck.out_channels
    loss, norm = dict(type='CrossEntropyLoss', ignore_index=255), dict(type='GN', num_groups=4)
    cfg.model.test_cfg.panoptic = {}
    cfg.model |= dict(
        type='PanopticFPN',
        semantic_head=dict(
            type='PanopticFPNHead', in_channels=width, inner_channels=16, norm_cfg=norm, loss_seg=loss, **classes
        ),
        panoptic_fusion_head=dict(type='HeuristicFusionHead', **classes),
    )
    with pytest.raises(ValueError, match='model is a PanopticFPN, which is not covered'):
        network_of(build_model(cfg))


def test_models_and_modes_that_are_not_covered_are_named(tmp_path):
    with pytest.raises(ValueError, match='model is a Linear, which is not covered by the export; covered are Image'):
        network_of(nn.Linear(1, 1))
    cfg = read_config(CONFIGS / f'{NAMES["seg"]}.py')
    cfg.model.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    cfg.default_scope = 'mmseg'
    with pytest.raises(ValueError, match="test_cfg.mode is 'slide'"):
        network_of(build_model(cfg))
    cfg.model.test_cfg = None
    assert network_of(build_model(cfg)).task == 'segmentation'
    cfg = read_config(CONFIGS / f'{NAMES["det"]}.py')
    cfg.model.test_cfg.rcnn.nms = None
    with pytest.raises(ValueError, match='rcnn.nms is None; the export covers'):
        network_of(build_model(cfg))

    file = tmp_path / 'foreign.onnx'
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('Identity', ['image'], ['level_0'])],
        'g',
        [onnx.helper.make_tensor_value_info('image', 1, [1])],
        [onnx.helper.make_tensor_value_info('level_0', 1, [1])],
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid('', 18)]), file)
    with pytest.raises(ValueError, match='does not say how images are prepared'):
        OnnxModel(file)
