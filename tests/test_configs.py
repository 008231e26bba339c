"""Every shipped config builds, says what the paper says, and trains at full size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

import scalenet_mm  # noqa: F401
from scalenet_mm.core.flops import meta_parameters
from scalenet_mm.core.roles import TrainPolicy, count, total
from scalenet_mm.ops import set_ops
from scalenet_mm.runner.config import complete_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
IMAGENET = sorted(p.name for p in CONFIGS.glob('scalenet_*_100e.py'))
# Sec. IV-A1 and paper.md, section 5: parameters, drop path; DeiT-T and DeiT-S are trained whole
EXPECTED = {
    'scalenet_deit_t_100e.py': (6_463_912, 0.0, 'all'),
    'scalenet_deit_s_100e.py': (23_543_656, 0.2, 'all'),
    'scalenet_deit_b_100e.py': (89_553_640, 0.5, 'increments'),
    'scalenet_swin_t_100e.py': (29_246_818, 0.2, 'increments'),
    'scalenet_swin_s_100e.py': (51_302_002, 0.2, 'increments'),
    'scalenet_swin_b_100e.py': (90_029_216, 0.5, 'increments'),
}


def test_no_config_is_untested():
    assert set(IMAGENET) == set(EXPECTED)


@pytest.mark.parametrize('name', EXPECTED)
def test_a_config_is_the_papers_recipe(name):
    cfg = complete_config(Config.fromfile(CONFIGS / name))
    params, drop_path, train = EXPECTED[name]
    assert cfg.model.backbone.drop_path_rate == drop_path
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 2e-4, 0.05)
    assert cfg.param_scheduler[1].eta_min == 2e-6 and cfg.train_cfg.max_epochs == 100
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 512
    assert cfg.optim_wrapper.paramwise_cfg.policy == cfg.model_wrapper_cfg.policy == dict(train=train)
    init_default_scope('mmpretrain')
    with meta_parameters():
        model = MODELS.build(cfg.model)
    TrainPolicy(**cfg.optim_wrapper.paramwise_cfg.policy).apply(model)
    counts = total(count(model).values())
    assert counts.params == params
    if train == 'all':
        assert counts.trainable == params
    if name == 'scalenet_deit_b_100e.py':
        assert counts.trainable == 3_024_384


@pytest.mark.parametrize('name', EXPECTED)
def test_leaf_configs_are_short(name):
    lines = (CONFIGS / name).read_text().splitlines()
    assert len(lines) <= 40 and lines[0] == f'# python tools/train.py configs/{name}'


def test_configs_inherit_through_the_package_name(tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'scalenet_mm::scalenet_swin_t_100e.py'\nmodel = dict(backbone=dict(scale=dict(times=3)))\n"
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.model.backbone.type == 'ScaleNetSwin' and cfg.model.backbone.scale.times == 3


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Generated images in ImageNet's folders: 1,000 classes are declared, a few are there."""
    root = tmp_path_factory.mktemp('imagenet')
    rng = np.random.default_rng(0)
    (root / 'meta').mkdir()
    for split, per_class in (('train', 2), ('val', 1)):
        lines = []
        for label, name in enumerate(('n01440764', 'n01443537')):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (300, 260, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.JPEG')
                lines.append(f'{name}/{i}.JPEG {label}')
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    return root


@pytest.mark.slow
@pytest.mark.parametrize('name', EXPECTED)
def test_a_config_trains_two_iterations_at_full_size(name, images, tmp_path):
    """The command of the README, with data and batch cut down, from an unscaled checkpoint of the host."""
    import torch

    init_default_scope('mmpretrain')
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.backbone.pop('scale')
    cfg.model.backbone.type = dict(d='VisionTransformer', s='SwinTransformer')[name[9]]
    source = MODELS.build(cfg.model)
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'source.pth')
    options = [
        f'load_from={tmp_path / "source.pth"}',
        f'train_dataloader.dataset.data_root={images}',
        f'val_dataloader.dataset.data_root={images}',
        f'test_dataloader.dataset.data_root={images}',
        'train_dataloader.batch_size=2',
        'val_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
        'train_cfg.max_epochs=1',
        'param_scheduler.0.end=1',  # the schedule is of 100 epochs
        'param_scheduler.1.begin=0',
        'default_hooks.logger.interval=1',
    ]
    command = [sys.executable, ROOT / 'tools' / 'train.py', CONFIGS / name, '--work-dir', tmp_path / 'run']
    done = subprocess.run(
        [*map(str, command), '--cfg-options', *options], capture_output=True, text=True, timeout=500, cwd=ROOT
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert '[1][2/2]' in output and 'accuracy/top1' in output and 'What is trained:' in output
    assert 'not match exactly' not in output, 'the unscaled checkpoint loads without a complaint'
    state = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert sum(t.numel() for k, t in state.items() if 'relative_position_index' not in k) == EXPECTED[name][0]


STOCK = {
    'mmdet': ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', 'mmdet'),
    'mmseg': ('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', 'mmseg'),
    'mmpretrain': ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 'mmpretrain'),
}


@pytest.mark.parametrize('package', STOCK)
def test_a_stock_config_takes_the_backbone_by_its_type_alone(package, tmp_path):
    """Inheriting from the package and changing ``type`` is all a user does; the features are those of its own Swin."""
    import torch

    base, scope = STOCK[package]
    (tmp_path / 'mine.py').write_text(
        f"_base_ = '{base}'\ncustom_imports = dict(imports=['scalenet_mm'])\n"
        "model = dict(backbone=dict(type='ScaleNetSwin', init_cfg=None))\n"
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    init_default_scope(scope)
    model = MODELS.build(cfg.model)
    model.eval()
    assert type(model.backbone).__name__ == 'ScaleNetSwin' and model.backbone.depths == [2, 2, 6, 4]
    (tmp_path / 'stock.py').write_text(f"_base_ = '{base}'\n")
    stock = MODELS.build(Config.fromfile(tmp_path / 'stock.py').model.backbone | dict(init_cfg=None))
    stock.eval()
    model.backbone.load_state_dict(stock.state_dict())
    unscaled = MODELS.build(cfg.model.backbone | dict(scale=dict(times=1)))
    unscaled.eval()
    unscaled.load_state_dict(stock.state_dict())
    image = torch.randn(1, 3, 224, 256)
    (set_ops(unscaled, 'plain'), set_ops(model, 'plain'))  # where the same sums are added in the same order
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(unscaled(image), stock(image), strict=True))
        scaled, plain = model.backbone(image), stock(image)
    same = [torch.equal(a, b) for a, b in zip(scaled, plain, strict=True)]
    assert same == [True] * (len(same) - 1) + [False], 'only the last stage is deeper'
