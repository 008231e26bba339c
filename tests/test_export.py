"""Backbones as ONNX, run by onnxruntime."""

import copy
import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import perturb, scalenet

from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.export.file import export_backbone
from scalenet_mm.export.size_free import SIZE_FREE, traceable
from scalenet_mm.ops import set_ops

ROOT = Path(__file__).parents[1]
ARCH = dict(embed_dims=16, depths=[1, 2], num_heads=[1, 2])
SCALE = dict(times=2, stages=(1,), adjust=dict(type='ParallelAdapter', rank=4))


def swin(**kwargs) -> ScaleNetSwin:
    dense = dict(window_size=4, pad_small_map=True, out_indices=(0, 1))
    model = perturb(ScaleNetSwin(ARCH, scale=SCALE, **{**dense, **kwargs}))
    return model.eval()


def deit(**kwargs) -> ScaleNetDeiT:
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    host = dict(img_size=32, patch_size=8, out_type='featmap', out_indices=(1, 3))
    return perturb(ScaleNetDeiT(arch, **{**host, **kwargs})).eval()


def outputs(file: Path, image: torch.Tensor) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(file).run(None, {'image': image.numpy()})


@torch.no_grad()
def assert_same(file: Path, model: torch.nn.Module, *shape: int) -> None:
    image = torch.randn(shape)
    for ours, theirs in zip(model(image), outputs(file, image), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)


def stored_once(file: Path, model: torch.nn.Module) -> None:
    """Each parameter object is one initializer with its values, as it is or transposed; beside them are buffers and
    scalars only.
    """
    tensors = [onnx.numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer]
    big = sorted(t.size for t in tensors if t.dtype == np.float32 and t.ndim)
    assert big == sorted({id(p): p.numel() for p in model.parameters()}.values())
    for p in model.parameters():
        assert any(np.array_equal(t, p.detach()) or np.array_equal(t.T, p.detach()) for t in tensors)


@pytest.mark.parametrize('growth', ['stack', 'interpolate', 'swa', 'zero', 'random'])
def test_a_grown_deit_keeps_its_outputs_and_all_its_tensors(growth, tmp_path):
    model = deit(scale=dict(growth=growth, new_layers=2))
    done = export_backbone(model, tmp_path / 'deit.onnx')
    assert_same(tmp_path / 'deit.onnx', model, 2, 3, 32, 32)
    stored_once(tmp_path / 'deit.onnx', model)
    assert done.unique == sum(p.nbytes for p in model.parameters())


def test_a_deit_keeps_its_outputs_at_any_batch_and_stores_shared_tensors_once(tmp_path):
    model = deit()
    done = export_backbone(model, tmp_path / 'deit.onnx')
    assert_same(tmp_path / 'deit.onnx', model, 5, 3, 32, 32)
    stored_once(tmp_path / 'deit.onnx', model)
    assert done.initializers == len({id(p) for p in model.parameters()})
    assert done.nbytes == done.unique == sum(p.nbytes for p in model.parameters())
    assert done.difference < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ['deit.onnx']


@pytest.mark.parametrize(
    ('make', 'channels'), [(deit, 1), (deit, 4), (swin, 1), pytest.param(swin, 4, marks=pytest.mark.slow)]
)
def test_the_channels_are_those_of_the_backbone(make, channels, tmp_path):
    model = make(in_channels=channels)
    done = export_backbone(model, tmp_path / 'a.onnx', size=(64, 64) if make is swin else None)
    assert {shape[1] for shape in done.shapes} == {channels}
    assert_same(tmp_path / 'a.onnx', model, 2, channels, *done.shapes[0][2:])


def test_a_swin_keeps_its_outputs_at_any_batch_and_stores_shared_tensors_once(tmp_path):
    model = swin()
    done = export_backbone(model, tmp_path / 'swin.onnx', size=(44, 56))
    for batch in (1, 5):
        assert_same(tmp_path / 'swin.onnx', model, batch, 3, 44, 56)
    stored_once(tmp_path / 'swin.onnx', model)
    assert done.nbytes <= done.unique * 1.001
    graph = onnx.load(tmp_path / 'swin.onnx').graph
    assert [o.name for o in graph.output] == ['level_0', 'level_1']


@pytest.mark.slow
@pytest.mark.parametrize(
    'make, sizes',
    [
        (swin, [(32, 32), (31, 77), (64, 40), (9, 130), (128, 96)]),
        (lambda: swin(window_size=7), [(56, 56), (31, 77), (9, 130), (224, 112)]),
        (deit, [(32, 32), (64, 16), (24, 80)]),
    ],
)
def test_the_image_size_is_free(make, sizes, tmp_path):
    model = make()
    export_backbone(model, tmp_path / 'm.onnx', size=(48, 40), dynamic=True)
    for batch, size in enumerate(sizes, 1):
        assert_same(tmp_path / 'm.onnx', model, batch, 3, *size)
    stored_once(tmp_path / 'm.onnx', model)


@torch.no_grad()
def test_what_is_traced_computes_what_the_host_does_at_every_size():
    model = set_ops(swin(), 'plain')
    traced = traceable(model)
    assert {type(m) for m in traced.modules()} >= {SIZE_FREE[type(m)] for m in model.modules() if type(m) in SIZE_FREE}
    assert len({type(m) for m in traced.modules()} & set(SIZE_FREE.values())) == 3
    for size in [(32, 32), (31, 77), (9, 130), (16, 16), (5, 6)]:
        image = torch.randn(2, 3, *size)
        for ours, theirs in zip(traced(image), model(image), strict=True):
            assert torch.equal(ours, theirs)


def test_a_classifiers_swin_has_one_image_size(tmp_path):
    model = swin(pad_small_map=False)
    with pytest.raises(ValueError, match=r'pad_small_map=False.*--size H W'):
        export_backbone(model, tmp_path / 'm.onnx', dynamic=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    'model, message',
    [
        (torch.nn.Conv2d(3, 3, 1), r'Conv2d cannot be exported as a backbone; it must be ScaleNetSwin'),
        (None, r'multiples of the patch size 8'),
    ],
)
def test_what_cannot_be_exported_is_told_before_any_work(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_backbone(model or deit(), tmp_path / 'm.onnx', size=(32, 30))
    assert not any(tmp_path.iterdir())


def test_outputs_that_differ_are_refused_and_leave_the_old_file(tmp_path, monkeypatch):
    (tmp_path / 'm.onnx').write_text('the old one')

    def wrong(model):
        made = copy.deepcopy(model)
        made.layers[0].ln1.bias.data += 0.01
        return made

    monkeypatch.setattr('scalenet_mm.export.network.traceable', wrong)
    with pytest.raises(RuntimeError, match=r'onnxruntime differs from torch at'):
        export_backbone(deit(), tmp_path / 'm.onnx')
    assert (tmp_path / 'm.onnx').read_text() == 'the old one'
    assert [p.name for p in tmp_path.iterdir()] == ['m.onnx']


@pytest.mark.slow
def test_the_command_exports_a_detectors_backbone(tmp_path):
    from mmengine.config import Config

    from scalenet_mm.checkpoint.loading import build_model

    config = ROOT / 'configs/demo/mask_rcnn_scalenet_swin_digits.py'
    model = perturb(build_model(Config.fromfile(config)), std=0.02)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'm.pth')
    out = tmp_path / 'm.onnx'
    command = scalenet('onnx', config, tmp_path / 'm.pth', out)
    done = subprocess.run([*command, '--backbone', '--size', '64', '96'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model.backbone.eval()
    assert_same(out, model.backbone, 3, 3, 64, 96)
    assert 'at most, onnxruntime against torch' in done.stdout
    props = {p.key: p.value for p in onnx.load(out).metadata_props}
    prepared = Config.fromfile(config).model.data_preprocessor
    assert json.loads(props['data_preprocessor']) == prepared.to_dict()
