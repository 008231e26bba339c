"""A type given as a class is the same as its name: mmengine's pure-Python configs, and what a run dumps of them."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from scalenet_mm.commands import train
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.experiments.figures.batches import Batches
from scalenet_mm.models.counts import inspect
from scalenet_mm.models.inference import as_json, load_model, predict
from scalenet_mm.runner import launch
from scalenet_mm.runner.atomic import make_atomic
from scalenet_mm.runner.config import draw_predictions, load_config, trained_by
from scalenet_mm.runner.preflight import preflight
from scalenet_mm.runner.progress_hook import log_to_tensorboard, show_progress

RUNTIME = """
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend
from mmpretrain.engine.hooks import VisualizationHook
from mmpretrain.visualization import UniversalVisualizer
from scalenet_mm.runner import ProgressHook, ScaleNetRunner

default_scope = None  # types that are classes need none
runner_type = ScaleNetRunner
default_hooks = dict(logger=dict(type=LoggerHook), checkpoint=dict(type=CheckpointHook, interval=1),
    visualization=dict(type=VisualizationHook, enable=False))
custom_hooks = [dict(type=EMAHook), dict(type=ProgressHook, what='mine')]
visualizer = dict(type=UniversalVisualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
load_from = None
resume = False
"""

LEAF = """
from mmengine.config import read_base

with read_base():
    from .runtime import *

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.datasets import ImageNet, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import CrossEntropyLoss, ImageClassifier, LinearClsHead
from torch.optim import AdamW

from scalenet_mm.backbones import ScaleNetDeiT
from scalenet_mm.core.adapters import LoRA
from scalenet_mm.engine.optim import ScaleNetOptimWrapperConstructor

model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(num_classes=19, mean=[90.0] * 3, std=[60.0] * 3, to_rgb=True),
    backbone=dict(type=ScaleNetDeiT, arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
        img_size=32, patch_size=8, out_type='avg_featmap', scale=dict(adjust=dict(type=LoRA, rank=2))),
    head=dict(type=LinearClsHead, num_classes=19, in_channels=32, loss=dict(type=CrossEntropyLoss)),
)
data = dict(type=ImageNet, data_root='data/imagenet', metainfo=dict(classes=[f'{i:02d}' for i in range(19)]),
    pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)])
loader = dict(batch_size=19, num_workers=0)
train_dataloader = dict(**loader, dataset=dict(**data, split='train'), sampler=dict(type=DefaultSampler, shuffle=True))
val_dataloader = dict(**loader, dataset=dict(**data, split='val'), sampler=dict(type=DefaultSampler, shuffle=False))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type=Accuracy, topk=(1,))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
val_cfg = test_cfg = dict()
policy = dict(train='increments', also=['head'])
optim_wrapper = dict(
    type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3), constructor=ScaleNetOptimWrapperConstructor)
wrapper_of_others = dict(type=MMDistributedDataParallel)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config in two files, its data, a base, and the run that the command line makes of it."""
    where = tmp_path_factory.mktemp('lazy')
    root = make_demo_data(where / 'data', ['imagenet'], train=19, val=19)['imagenet']
    (where / 'runtime.py').write_text(RUNTIME)
    (where / 'classes.py').write_text(LEAF.replace('data/imagenet', str(root)))
    cfg = load_config(str(where / 'classes.py'))
    model = load_model_of(cfg)
    torch.save(dict(state_dict=model.state_dict()), where / 'base.pth')
    return where


def load_model_of(cfg: Config) -> torch.nn.Module:
    from scalenet_mm.checkpoint.loading import build_model

    model = build_model(cfg)
    DefaultScope._instance_dict.clear()
    return model


@pytest.fixture(scope='module')
def run(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = folder / 'base.pth'
        train.main(['classes.py', '--work-dir', 'run', '--tensorboard', '--cfg-options', f'load_from={base}'])
        DefaultScope._instance_dict.clear()
    return folder / 'run'


def config(written: str, folder: Path, run: Path) -> Path:
    return folder / 'classes.py' if written == 'classes' else run / 'classes.py'


def test_a_run_of_classes_has_every_hook_once_its_deltas_and_its_check(run):
    assert (run / 'epoch_1.delta.safetensors').is_file(), 'beside its checkpoint'
    assert "type='mmpretrain.visualization.UniversalVisualizer'" in (run / 'classes.py').read_text(), 'dumped by name'
    log = next(run.rglob('*.log')).read_text()
    hooks = log.partition('after_train_iter:')[2].partition('---')[0]
    listed = [line.split(')')[1].strip() for line in hooks.splitlines() if line.startswith('(')]
    assert (
        listed.count('ProgressHook') == listed.count('ScaleNetCheckpointHook') == 1 and 'CheckpointHook' not in listed
    )
    assert 'frozen at values' not in log


@pytest.mark.parametrize('written', ['classes', 'dumped'])
def test_a_type_given_as_a_class_or_as_a_dump_writes_it_is_its_name(written, folder, run):
    path = config(written, folder, run)
    cfg = load_config(str(path), 'elsewhere')
    assert trained_by(cfg) == TrainPolicy(also=['head'])
    preflight(cfg)
    make_atomic(cfg)
    assert cfg.default_hooks['checkpoint']['type'] == 'ScaleNetCheckpointHook'
    before = len(cfg.custom_hooks)
    show_progress(cfg)
    log_to_tensorboard(cfg)
    assert len(cfg.custom_hooks) == before and len(cfg.visualizer.vis_backends) == 2
    draw_predictions(cfg, False, 'shown', 0)
    assert cfg.default_hooks.visualization.enable
    cfg.model_wrapper_cfg = cfg.wrapper_of_others
    launch._no_devices(cfg)
    assert cfg.model_wrapper_cfg['device_ids'] is None
    assert len(next(iter(Batches(cfg, 'val', 2, 2)))['inputs']) == 2


@pytest.mark.parametrize('written', ['classes', 'dumped'])
def test_prediction_and_counts_read_such_a_config(written, folder, run):
    path = config(written, folder, run)
    model = load_model(path, run / 'epoch_1.pth', device='cpu')
    image = next((folder / 'data').rglob('*.png'))
    assert as_json(model, predict(model, image))[0]['class'].isdigit()
    again = load_model(path, folder / 'base.pth', run / 'epoch_1.delta.safetensors', device='cpu')
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    report = inspect(path)
    assert report.policy == TrainPolicy(also=['head']) and 'LoRA(rank=2)' in str(report.to_json()['adjustments'])
