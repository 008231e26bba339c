"""`scalenet init`: from a config and a checkpoint that somebody has to a scaled config, proved before it is there."""

import ast
import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import perturb, scalenet
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

import scalenet_mm
from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.commands import init as command
from scalenet_mm.compat import read_config
from scalenet_mm.models import adoption, adoption_proofs
from scalenet_mm.models.adoption import AdoptionError, adopt
from scalenet_mm.models.adoption_proofs import _beside
from scalenet_mm.models.adoption_schedule import shorten
from scalenet_mm.models.adoption_text import difference, leaf_text, without_scope
from scalenet_mm.models.made_up import made_up
from scalenet_mm.runner.config import share_policy

WIDTHS = [16, 32, 64, 128]
SWIN = (
    "dict(_delete_=True, type='SwinTransformer', embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], "
    'window_size=7, out_indices={}, drop_path_rate=0.0)'
)
FPN = f'neck=dict(in_channels={WIDTHS})'
# base config, outputs of the backbone, what else its widths ask for, and the layers that are trained
DETECTORS = {
    'Mask R-CNN': (
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        (0, 1, 2, 3),
        FPN,
        ['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'],
    ),
    'Cascade R-CNN': (
        'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        (0, 1, 2, 3),
        FPN,
        ['roi_head.bbox_head.*.fc_cls', 'roi_head.bbox_head.*.fc_reg'],
    ),
    'RetinaNet': (
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        (0, 1, 2, 3),
        FPN,
        ['bbox_head.retina_cls', 'bbox_head.retina_reg'],
    ),
    'Deformable DETR': (
        'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
        (1, 2, 3),
        f'neck=dict(in_channels={WIDTHS[1:]})',
        ['bbox_head.cls_branches.*', 'bbox_head.reg_branches.*.4'],
    ),
    'DINO': (
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        (1, 2, 3),
        f'neck=dict(in_channels={WIDTHS[1:]})',
        ['bbox_head.cls_branches.*', 'bbox_head.reg_branches.*.4'],
    ),
    'Mask2Former of mmseg': (
        'mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py',
        (0, 1, 2, 3),
        f'decode_head=dict(in_channels={WIDTHS})',
        ['decode_head.pixel_decoder.mask_feature', 'decode_head.cls_embed', 'decode_head.mask_embed.4'],
    ),
}
UPERNET = (
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    f'decode_head=dict(in_channels={WIDTHS}, channels=16), auxiliary_head=dict(in_channels=64, channels=16)',
)


PURE = """
from mmpretrain.models import ImageClassifier, LinearClsHead, CrossEntropyLoss, VisionTransformer
from mmengine.optim import OptimWrapper
from torch.optim import AdamW

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(num_classes=5, mean=[90.0] * 3, std=[60.0] * 3, to_rgb=True),
    backbone=dict(
        type=VisionTransformer,
        arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64),
        img_size=32,
        patch_size=8,
        out_type='avg_featmap',
    ),
    head=dict(type=LinearClsHead, num_classes=5, in_channels=32, loss=dict(type=CrossEntropyLoss)),
)
train_cfg = dict(by_epoch=True, max_epochs=3)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-3))
"""


def own(folder: Path, base: str, rest: str, backbone: str) -> tuple[Path, Path]:
    """A user's config and the checkpoint of its model, whose values are nowhere trivial."""
    config, checkpoint = folder / 'own.py', folder / 'own.pth'
    config.write_text(f"_base_ = '{base}'\nmodel = dict(backbone={backbone}, {rest})\n")
    torch.manual_seed(0)
    model = build_model(read_config(config))
    model.init_weights()  # mmdet's DETRs leave embeddings in memory that nobody filled until then
    torch.save(dict(state_dict=perturb(model).state_dict(), meta={}), checkpoint)
    return config, checkpoint


def detector(folder: Path, name: str) -> tuple[Path, Path]:
    base, outputs, rest, _ = DETECTORS[name]
    return own(folder, base, rest, SWIN.format(outputs))


@pytest.fixture(scope='module')
def mask_rcnn(tmp_path_factory):
    return detector(tmp_path_factory.mktemp('own'), 'Mask R-CNN')


@pytest.fixture(scope='module')
def upernet(tmp_path_factory):
    return own(tmp_path_factory.mktemp('own'), *UPERNET, SWIN.format((0, 1, 2, 3)))


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    arch = 'dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)'
    backbone = f"dict(_delete_=True, type='VisionTransformer', arch={arch}, img_size=64, patch_size=16)"
    return own(
        tmp_path_factory.mktemp('own'),
        'mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
        'head=dict(in_channels=32, num_classes=7), data_preprocessor=dict(num_classes=7)',
        backbone,
    )


def scale(**given) -> dict:
    return dict(times=2, rank=4) | given


# --- what is written


def test_a_detector_gets_a_short_config_that_inherits_from_its_own(mask_rcnn, tmp_path):
    config, checkpoint = mask_rcnn
    out = tmp_path / 'deep' / 'scaled.py'
    adopted = adopt(config, checkpoint, out, scale())
    assert out.read_text() == adopted.text and len(adopted.text.splitlines()) <= 15
    ast.parse(adopted.text)
    cfg = Config.fromfile(out)
    assert cfg.model.backbone.scale.to_dict() == dict(
        times=2, order='stack', stages=(3,), adjust=dict(type='ParallelAdapter', rank=4)
    )
    assert (cfg.model.backbone.type, cfg.runner_type, cfg.load_from) == (
        'ScaleNetSwin',
        'ScaleNetRunner',
        str(checkpoint),
    )
    assert cfg.policy.also == DETECTORS['Mask R-CNN'][3]
    assert cfg.train_cfg.max_epochs == 4, 'a third of 12'
    assert [s.get('milestones') for s in cfg.param_scheduler] == [None, [2, 3]]
    assert cfg.param_scheduler[0].end == 1000, 'the warm-up stays'
    theirs = Config.fromfile(config)
    for key in set(theirs) - {'model', 'train_cfg', 'param_scheduler', 'custom_imports', 'runner_type', 'load_from'}:
        assert cfg[key] == theirs[key], key


def test_of_a_segmentor_the_last_classifiers_are_trained_and_of_a_classifier_the_increments(
    upernet, classifier, tmp_path
):
    segmentor = scalenet_mm.init(*upernet, tmp_path / 'seg.py', rank=4)
    assert segmentor.policy.also == ['decode_head.conv_seg', 'auxiliary_head.conv_seg']
    assert segmentor.train_cfg.max_iters == round(160_000 / 3) and segmentor.param_scheduler[1].begin == 1500
    assert segmentor.param_scheduler[1].end == segmentor.train_cfg.max_iters
    cfg = scalenet_mm.init(*classifier, tmp_path / 'cls.py', rank=4)
    assert cfg.policy.to_dict() == dict(train='increments') and cfg.model.backbone.type == 'ScaleNetDeiT'
    assert cfg.model.backbone.scale.order == 'interpolate'
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4 * 4096 / 512), 'the rate of the paper for this batch'


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in DETECTORS if name != 'Mask R-CNN'])
def test_the_last_layers_are_found_by_structure(name, tmp_path):
    config, checkpoint = detector(tmp_path, name)
    adopted = adopt(config, checkpoint, tmp_path / 'scaled.py', scale())
    assert list(adopted.proofs.also) == DETECTORS[name][3]
    # a neck that begins at the second output leaves the norm of the first without a gradient, as in the config itself
    unread = ('backbone.norm0.bias', 'backbone.norm0.weight') if name == 'RetinaNet' else ()
    assert adopted.proofs.unused == unread
    assert bool(adopted.config.get('find_unused_parameters')) == bool(unread)


def test_what_a_library_leaves_unfilled_is_drawn(upernet, monkeypatch):
    """Else what lies in memory decides whether mmdet's DETRs take the trial step."""

    def unfilled(cfg):
        model = build_model(cfg)
        model.decode_head.conv_seg.weight.data.fill_(math.nan)
        model.auxiliary_head.conv_seg.weight.data.fill_(1e30)
        return model

    monkeypatch.setattr(adoption_proofs, 'build_model', unfilled)
    drawn = adoption_proofs._built(read_config(upernet[0]))
    for head in (drawn.decode_head, drawn.auxiliary_head):
        assert 0 < head.conv_seg.weight.abs().max() < 1


@pytest.mark.slow
def test_of_a_plain_transformer_the_outputs_are_those_of_its_layers_last_use(tmp_path):
    """mmseg's ViT, which adds in another order than ours: equal in double precision up to its rounding."""
    backbone = (
        "dict(_delete_=True, type='VisionTransformer', img_size=(64, 64), embed_dims=32, num_layers=4, num_heads=2, "
        'mlp_ratio=2, out_indices={})'
    )
    heads = 'decode_head=dict(in_channels=[32] * 4, channels=16), auxiliary_head=dict(in_channels=32, channels=16)'
    rest = f'pretrained=None, neck=dict(in_channels=[32] * 4, out_channels=32), {heads}'
    base = 'mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py'
    files = own(tmp_path, base, rest, backbone.format([0, 1, 2, 3]))
    adopted = adopt(*files, tmp_path / 'scaled.py', scale())
    assert adopted.config.model.backbone.out_indices == [1, 3, 5, 7] and not adopted.proofs.same_code
    last = adopt(*files, tmp_path / 'stacked.py', scale(layers=[2, 3], order='stack'))
    assert last.config.model.backbone.out_indices == [0, 1, 4, 5], 'of 0 1 2 3 2* 3*'
    adopt(*files, tmp_path / 'same.py', scale(start='function'))


def test_the_start_at_the_function_is_proved_of_frozen_stages_and_of_other_dialects(classifier, tmp_path):
    config = changed(classifier, tmp_path, 'model = dict(backbone=dict(frozen_stages=1))')
    adopt(config, classifier[1], tmp_path / 'a.py', scale(start='function'))
    options = dict(embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, img_size=64, num_classes=7)
    theirs = timm.create_model('vit_tiny_patch16_224', **options)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    adopt(classifier[0], tmp_path / 'timm.pth', tmp_path / 'b.py', scale(start='function'))


def test_what_is_asked_for_is_written_and_the_rest_is_the_paper_s(classifier, tmp_path):
    given = dict(times=3, order='stack', layers=[1], rank=2, start='function', also=['head'], keep_schedule=True)
    cfg = scalenet_mm.init(*classifier, tmp_path / 'cls.py', **given)
    assert cfg.model.backbone.scale.to_dict() == dict(
        times=3, order='stack', start='function', layers=[1], adjust=dict(type='ParallelAdapter', rank=2)
    )
    assert cfg.policy.also == ['head']
    assert cfg.train_cfg == Config.fromfile(classifier[0]).train_cfg


def test_a_backbone_s_file_is_loaded_as_such_and_everything_outside_it_is_trained(mask_rcnn, tmp_path):
    config, checkpoint = mask_rcnn
    state = torch.load(checkpoint)['state_dict']
    own = {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
    torch.save(dict(state_dict=own), tmp_path / 'backbone.pth')
    adopted = adopt(config, tmp_path / 'backbone.pth', tmp_path / 'scaled.py', scale())
    assert not adopted.proofs.whole and list(adopted.proofs.also) == ['neck', 'rpn_head', 'roi_head']
    assert adopted.config.model.backbone.init_cfg.checkpoint == str(tmp_path / 'backbone.pth')
    assert adopted.config.load_from is None


def test_what_lies_beside_a_backbone_within_a_list_is_trained_and_the_backbone_is_not():
    model = nn.ModuleDict(
        dict(
            encoder=nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))),
            head=nn.Linear(2, 2),
        )
    )
    assert list(_beside(model, 'encoder')) == ['head']
    assert list(_beside(model, 'encoder.1.0')) == ['head', 'encoder.0', 'encoder.1.2']


def test_a_checkpoint_below_the_data_s_old_folder_stays_where_it_is(classifier, tmp_path, monkeypatch):
    config, checkpoint = classifier
    old = tmp_path / 'old'
    loaders = (f"{stage}_dataloader = dict(dataset=dict(data_root='{old}'))" for stage in ('train', 'val', 'test'))
    config = changed(classifier, tmp_path, '\n'.join(loaders))
    (old / 'kept').mkdir(parents=True)
    mine = Path(shutil.copy(checkpoint, old / 'kept' / 'mine.pth'))
    monkeypatch.setenv('HOME', str(tmp_path))
    cfg = scalenet_mm.init(config, mine, '~/scaled.py', data_root='elsewhere')
    assert cfg.load_from == str(mine) and cfg.train_dataloader.dataset.data_root.rstrip('/') == 'elsewhere'
    assert (tmp_path / 'scaled.py').is_file(), 'where a shell would write it'


def test_the_written_config_loads_the_checkpoint_with_the_real_runner(mask_rcnn, tmp_path, monkeypatch):
    from scalenet_mm.runner.config import build_runner

    cfg = scalenet_mm.init(*mask_rcnn, tmp_path / 'scaled.py', rank=4)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'):
        cfg[key] = None
    for key in ('train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key)
    cfg.work_dir, cfg.launcher = str(tmp_path / 'run'), 'none'
    cfg.train_cfg = cfg.optim_wrapper = cfg.train_dataloader = None
    runner = build_runner(cfg)
    runner.load_or_resume()
    theirs = torch.load(mask_rcnn[1])['state_dict']
    mine = runner.model.state_dict()
    for key in (
        'neck.fpn_convs.0.conv.weight',
        'roi_head.bbox_head.fc_cls.weight',
        'backbone.patch_embed.projection.weight',
    ):
        assert torch.equal(mine[key], theirs[key])
    scaled = [(name, layers) for name, layers in runner.model.backbone.named_modules() if hasattr(layers, 'layer_map')]
    assert scaled
    for name, layers in scaled:
        for block, source in zip(layers, layers.layer_map.sources):
            of_file = {k: theirs[f'backbone.{name}.{source}.{k}'] for k in ('attn.w_msa.qkv.weight', 'norm1.weight')}
            assert torch.equal(block.attn.w_msa.qkv.weight, of_file['attn.w_msa.qkv.weight'])
            assert torch.equal(block.norm1.weight, of_file['norm1.weight'])


def test_the_folder_of_the_data_is_replaced_everywhere(mask_rcnn, tmp_path):
    cfg = scalenet_mm.init(*mask_rcnn, tmp_path / 'scaled.py', data_root='elsewhere')
    assert cfg.train_dataloader.dataset.data_root == cfg.val_dataloader.dataset.data_root == 'elsewhere/'
    assert cfg.test_evaluator.ann_file == 'elsewhere/annotations/instances_val2017.json'
    text = (tmp_path / 'scaled.py').read_text()
    assert 'train_dataloader = val_dataloader = test_dataloader = ' in text and len(text.splitlines()) <= 15


def test_a_config_in_pure_python_gets_one_in_pure_python(tmp_path):
    config, checkpoint = tmp_path / 'own.py', tmp_path / 'own.pth'
    config.write_text(PURE)
    torch.save(dict(state_dict=perturb(build_model(read_config(config))).state_dict(), meta={}), checkpoint)
    cfg = scalenet_mm.init(config, checkpoint, tmp_path / 'scaled.py', rank=4)
    assert 'from .own import *' in (tmp_path / 'scaled.py').read_text()
    again = read_config(tmp_path / 'scaled.py')
    assert again.model.backbone.type == cfg.model.backbone.type == 'ScaleNetDeiT'
    assert again.model.backbone.arch.num_layers == 2 and again.model.backbone.scale.order == 'interpolate'
    assert (again.train_cfg.max_epochs, again.train_cfg.by_epoch) == (1, True)
    assert again.load_from == str(checkpoint) and again.policy.train == 'increments'


# --- what a config says of its own run, model and folder


def changed(files, folder: Path, text: str) -> Path:
    """A config that inherits from a user's."""
    config = folder / 'changed.py'
    config.write_text(f"_base_ = '{files[0]}'\n{text}\n")
    return config


def test_the_run_gets_a_folder_a_start_and_an_optimizer_of_its_own(classifier, tmp_path):
    config = changed(
        classifier,
        tmp_path,
        "work_dir = 'work_dirs/mine'\nresume = True\n"
        "model = dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='nowhere.pth'))\n"
        "optim_wrapper = dict(constructor='LearningRateDecayOptimWrapperConstructor', "
        "paramwise_cfg=dict(layer_decay_rate=0.65, custom_keys={'.ln': dict(decay_mult=0.0)}))",
    )
    cfg = scalenet_mm.init(config, classifier[1], tmp_path / 'scaled.py', rank=4)
    assert (cfg.work_dir, cfg.resume, cfg.model.init_cfg) == (None, False, None)
    training = cfg.optim_wrapper
    assert training.constructor == 'ScaleNetOptimWrapperConstructor'
    assert 'layer_decay_rate' not in training.paramwise_cfg and '.ln' in training.paramwise_cfg.custom_keys
    assert share_policy(cfg)['train'] == 'increments', 'which refuses a constructor that knows no policy'


def test_a_run_that_would_write_over_the_checkpoint_is_refused(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / 'work_dirs' / 'mine' / 'epoch_1.pth'
    source.parent.mkdir(parents=True)
    source.write_bytes(classifier[1].read_bytes())
    with pytest.raises(AdoptionError, match='mine.py writes into work_dirs/mine, where .*epoch_1.pth is'):
        adopt(classifier[0], source, 'mine.py', scale())


def test_one_output_is_read_at_the_last_use_of_its_layer(classifier, tmp_path, monkeypatch):
    config = changed(classifier, tmp_path, 'model = dict(backbone=dict(out_indices=1))')
    cfg = scalenet_mm.init(config, classifier[1], tmp_path / 'scaled.py', rank=4)
    assert cfg.model.backbone.out_indices == 3 and not cfg.get('find_unused_parameters')
    monkeypatch.setattr(adoption, 'outputs', lambda node, scope: list(node['out_indices']))
    with pytest.raises(ValueError, match=r'depend on no part of \d+ tensors, such as .*backbone.* read too early'):
        adopt(config, classifier[1], tmp_path / 'early.py', scale())
    assert not (tmp_path / 'early.py').exists()


def test_frozen_stages_give_way_to_the_policy(upernet, tmp_path):
    config = changed(upernet, tmp_path, 'model = dict(backbone=dict(frozen_stages=2))')
    cfg = scalenet_mm.init(config, upernet[1], tmp_path / 'scaled.py', rank=4)
    assert cfg.model.backbone.frozen_stages == -1 and tuple(cfg.model.backbone.out_indices) == (0, 1, 2, 3)


def test_layers_are_those_of_the_last_stage_whatever_its_number():
    backbone = dict(type='SwinTransformer', embed_dims=16, depths=[1, 1, 1], num_heads=[1, 2, 4], strides=(4, 2, 2))
    cfg = Config(dict(default_scope='mmdet', model=dict(backbone=dict(backbone, out_indices=(0, 1, 2)))))
    wanted = adoption.scaled(cfg, 'model.backbone', adoption.SWIN, dict(layers='all', rank=4))
    assert tuple(wanted.model.backbone.scale.stages) == (2,) and wanted.model.backbone.scale.layers == 'all'


def test_what_was_changed_in_a_config_in_memory_is_written(classifier, tmp_path):
    cfg = read_config(classifier[0])
    cfg.optim_wrapper.optimizer.weight_decay = 0.125
    made = scalenet_mm.init(cfg, classifier[1], tmp_path / 'scaled.py', rank=4)
    assert read_config(tmp_path / 'scaled.py').optim_wrapper.optimizer.weight_decay == 0.125
    assert made.optim_wrapper.optimizer.weight_decay == 0.125


def test_links_are_followed_as_mmengine_does(classifier, tmp_path):
    (tmp_path / 'elsewhere' / 'deep').mkdir(parents=True)
    (tmp_path / 'project').mkdir()
    (tmp_path / 'blob').write_text(f"_base_ = '{classifier[0]}'\n")
    (tmp_path / 'project' / 'own.py').symlink_to(tmp_path / 'blob')
    (tmp_path / 'project' / 'runs').symlink_to(tmp_path / 'elsewhere' / 'deep')
    out = tmp_path / 'project' / 'runs' / 'scaled.py'
    scalenet_mm.init(tmp_path / 'project' / 'own.py', classifier[1], out, rank=4)
    assert read_config(out).model.backbone.type == 'ScaleNetDeiT'


# --- what is refused


def test_a_folder_is_not_left_where_a_config_in_pure_python_cannot_be_imported(tmp_path):
    config, checkpoint = tmp_path / 'own-one.py', tmp_path / 'own.pth'
    config.write_text(PURE)
    torch.save(dict(state_dict=perturb(build_model(read_config(config))).state_dict(), meta={}), checkpoint)
    with pytest.raises(AdoptionError, match='own-one.py cannot be imported'):
        scalenet_mm.init(config, checkpoint, tmp_path / 'new' / 'scaled.py', rank=4)
    assert not (tmp_path / 'new').exists()


def test_files_and_folders_that_cannot_be_meant_are_refused_before_any_work(classifier, tmp_path):
    with pytest.raises(ValueError, match='scaled.yaml must end in .py'):
        scalenet_mm.init(*classifier, tmp_path / 'scaled.yaml')
    (tmp_path / 'link.py').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(AdoptionError, match='link.py exists and is not written over'):
        scalenet_mm.init(*classifier, tmp_path / 'link.py')
    config = changed(classifier, tmp_path, "val_dataloader = dict(dataset=dict(data_root='other'))")
    with pytest.raises(
        AdoptionError, match=r"--data-root=.* replaces the one .*this one has \['data.*other.* in the written"
    ):
        scalenet_mm.init(config, classifier[1], tmp_path / 'scaled.py', data_root=tmp_path)
    config.write_text('model = dict(\n')
    with pytest.raises(OSError, match=r'changed.py is no Python: .* \(line 1\)'):
        scalenet_mm.init(config, classifier[1], tmp_path / 'scaled.py')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['changed.py', 'link.py']


@pytest.mark.parametrize(
    ('backbone', 'told'),
    [
        ("dict(_delete_=True, type='ResNet', depth=50)", 'model.backbone is a ResNet. Known are .*SwinTransformer'),
        ("dict(type='ScaleNetSwin', scale=dict(times=2))", 'model.backbone is a ScaleNetSwin, which is scaled already'),
        ("dict(type='OwnSwin')", r'model.backbone \(OwnSwin\) changes what its base class computes'),
    ],
)
def test_a_backbone_that_is_none_of_the_known_is_refused_by_name(mask_rcnn, tmp_path, backbone, told):
    from mmdet.models.backbones import SwinTransformer as swin

    class OwnSwin(swin):
        pass

    MODELS.register_module('OwnSwin', force=True, module=OwnSwin)
    config = tmp_path / 'other.py'
    config.write_text(f"_base_ = '{mask_rcnn[0]}'\nmodel = dict(backbone={backbone})\n")
    with pytest.raises(AdoptionError, match=told):
        adopt(config, mask_rcnn[1], tmp_path / 'out.py', scale())
    assert [p.name for p in tmp_path.iterdir()] == ['other.py']


def test_several_backbones_are_named(mask_rcnn, tmp_path):
    config = tmp_path / 'two.py'
    config.write_text(f"_base_ = '{mask_rcnn[0]}'\nmodel = dict(second={{{{_base_.model.backbone}}}})\n")
    with pytest.raises(AdoptionError, match='several backbones that can be scaled: model.backbone, model.second'):
        adopt(config, mask_rcnn[1], tmp_path / 'out.py', scale())


def test_nothing_is_written_over_and_nothing_is_left_behind(mask_rcnn, tmp_path):
    config, checkpoint = mask_rcnn
    out = tmp_path / 'mine.py'
    out.write_text('kept')
    with pytest.raises(AdoptionError, match='mine.py exists and is not written over'):
        adopt(config, checkpoint, out, scale())
    assert out.read_text() == 'kept'
    state = torch.load(checkpoint)['state_dict']
    del state['neck.fpn_convs.0.conv.weight']
    torch.save(dict(state_dict=state), tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match=r'(?s)half.pth: .*neck.fpn_convs.0.conv.weight.*named with --also'):
        adopt(config, tmp_path / 'half.pth', tmp_path / 'out.py', scale())
    assert sorted(p.name for p in tmp_path.iterdir()) == ['half.pth', 'mine.py']


def test_a_class_that_computes_something_else_is_found_before_anything_is_written(mask_rcnn, tmp_path, monkeypatch):
    from scalenet_mm.backbones import ScaleNetSwin

    inner = ScaleNetSwin.forward
    monkeypatch.setattr(ScaleNetSwin, 'forward', lambda self, x: tuple(y * 1.0000002 for y in inner(self, x)))
    with pytest.raises(
        ValueError, match='ScaleNetSwin differs from SwinTransformer by up to .* on images of 267 x 293'
    ):
        adopt(*mask_rcnn, tmp_path / 'out.py', scale())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('broken', [('ours',), ('theirs',), ('ours', 'theirs')])
def test_outputs_that_are_no_numbers_are_not_the_same(broken):
    """NaN is above no bound, and behind a number no maximum of Python's."""

    class TwoMaps(torch.nn.Conv2d):
        def forward(self, images):
            return super().forward(images), super().forward(images) * self.second

    nets = {side: TwoMaps(3, 2, 1) for side in ('theirs', 'ours')}
    nets['ours'].load_state_dict(nets['theirs'].state_dict())
    for side, net in nets.items():
        net.second = float('nan') if side in broken else 1.0
    with pytest.raises(ValueError, match='differs from TwoMaps by up to nan'):
        adoption_proofs.compare_outputs(nets['theirs'], nets['ours'], 32, 0.0)
    for net in nets.values():
        net.second = 1.0
    adoption_proofs.compare_outputs(nets['theirs'], nets['ours'], 32, 0.0)


def test_a_model_that_takes_no_step_is_told_apart_from_a_scaled_one_that_takes_none(mask_rcnn, tmp_path, monkeypatch):
    """mmdet's Grounding DINO takes none in some versions, whoever asks."""
    from mmdet.models import MaskRCNN

    inner = MaskRCNN.loss

    def fails(self, *given, only=()):
        if not only or type(self.backbone).__name__ in only:
            raise RuntimeError('mat1 and mat2 shapes cannot be multiplied\nmore')
        return inner(self, *given)

    monkeypatch.setattr(MaskRCNN, 'loss', fails)
    with pytest.raises(ValueError, match=r'own\.py itself takes no training step .*: RuntimeError: .* multiplied$'):
        adopt(*mask_rcnn, tmp_path / 'out.py', scale())
    monkeypatch.setattr(MaskRCNN, 'loss', lambda self, *given: fails(self, *given, only=('ScaleNetSwin',)))
    with pytest.raises(ValueError, match=r'^The scaled model takes no training step .*multiplied\. Nothing was'):
        adopt(*mask_rcnn, tmp_path / 'out.py', scale())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('with_mask', 'there'), [(True, True), (False, False), (None, True)])
def test_made_up_objects_have_masks_where_the_config_s_own_have_them(with_mask, there):
    """RTMDet weighs boxes by masks wherever there are any."""
    steps = [] if with_mask is None else [dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask)]
    cfg = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dict(dataset=dict(pipeline=steps)))))
    _, samples = made_up(cfg, 256)
    assert all(('masks' in sample.gt_instances) == there for sample in samples)


def test_a_loss_that_does_not_reach_what_is_trained_is_found(mask_rcnn, tmp_path, monkeypatch):
    inner, calls = adoption_proofs.losses, []

    def cut(model, images, samples):
        calls.append(model)
        loss = inner(model, images, samples)
        return loss if len(calls) == 1 else loss.detach() + 0 * model.roi_head.bbox_head.fc_cls.weight.sum()

    monkeypatch.setattr(adoption_proofs, 'losses', cut)
    with pytest.raises(ValueError, match='trained parameters get no gradient, such as'):
        adopt(*mask_rcnn, tmp_path / 'out.py', scale())
    assert not list(tmp_path.iterdir())


# --- the command


def test_the_command_tells_layers_roles_proofs_and_what_comes_next(mask_rcnn, tmp_path, capsys):
    out = tmp_path / 'mine.py'
    command.main([*map(str, mask_rcnn), '-o', str(out), '--rank', '4'])
    said = capsys.readouterr().out
    for text in (
        'source     0  0*',
        'adjustment: adapters',
        'bit for bit',
        f'scalenet train {out} --dry-run',
        'No dry run yet',
    ):
        assert text in said
    assert out.read_text() in said


def test_a_config_without_data_is_not_tried_out(capsys):
    command.try_out(SimpleNamespace(config=Config(dict(model=dict(type='ImageClassifier')))))
    assert 'No dry run: the config has no train_dataloader.' in capsys.readouterr().out


def test_what_ends_a_trial_run_is_told_and_leaves_what_was_written(monkeypatch, capsys):
    def fails(cfg):
        raise AssertionError('no GPU\nand more')

    for name in ('preflight', 'dry_run'):
        monkeypatch.setattr(command, name, fails if name == 'dry_run' else lambda cfg: None)
    command.try_out(SimpleNamespace(config=Config(dict(train_dataloader=dict(batch_size=1)))))
    assert capsys.readouterr().out == '\nNo dry run: it ended with AssertionError: no GPU\n'


@pytest.mark.slow
def test_json_says_the_same_to_programs(classifier, tmp_path):
    """A classifier of which mmpretrain has something to say while it is built."""
    out = tmp_path / 'mine.py'
    config = changed(classifier, tmp_path, "model = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))")
    options = ['-o', out, '--json', '--times', '1.5', '--layers', '[0,1]']
    done = subprocess.run([*scalenet('init', config, classifier[1]), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said['config'] == str(out) and said['whole'] and said['backbone'] == 'model.backbone'
    assert said['report']['layer_maps'] == {'backbone.layers': [0, 0, 1]}
    model = build_model(Config.fromfile(out))
    scalenet_mm.TrainPolicy().apply(model)
    assert said['trained'] == [name for name, p in model.named_parameters() if p.requires_grad]


# --- the text


def test_the_text_read_back_is_what_was_wanted():
    before = dict(a=1, b=dict(c=2, d=[1, 2]), e=[dict(f=1)])
    after = dict(a=1, b=dict(c=2, d=[1, 3]), e=[dict(f=1), dict(g=None)], h={'i.j': (1,)}, k=float('inf'))
    changed = difference(before, after)
    assert changed == dict(b=dict(d=[1, 3]), e=[dict(f=1), dict(g=None)], h={'i.j': (1,)}, k=float('inf'))
    read = Config.fromstring(leaf_text([], changed, 'model.backbone'), '.py')
    assert read._cfg_dict.to_dict() == changed


@pytest.mark.parametrize('width', [10, 40, 80, 120])
def test_long_statements_are_broken_into_the_same_values(width, monkeypatch):
    from scalenet_mm.models import adoption_text

    monkeypatch.setattr(adoption_text, 'WIDTH', width)
    value = dict(model=dict(backbone=dict(type='A', scale=dict(times=2, stages=(3,)), keys={'a.b': [1, 2]}, none=None)))
    text = leaf_text([], value, 'model.backbone')
    assert Config.fromstring(text, '.py')._cfg_dict.to_dict() == value


def test_the_own_scope_is_left_out_and_another_s_stays():
    node = dict(a=[dict(type='X', _scope_='mmdet'), dict(type='Y', _scope_='mmseg')])
    assert without_scope(node, 'mmdet') == dict(a=[dict(type='X'), dict(type='Y', _scope_='mmseg')])


@pytest.mark.parametrize(
    ('schedulers', 'expected'),
    [
        ([dict(type='CosineAnnealingLR', by_epoch=True, begin=20, T_max=280)], dict(begin=7, T_max=93)),
        (
            [dict(type='LinearLR', end=20, by_epoch=True), dict(type='CosineAnnealingLR', begin=20, T_max=280)],
            dict(begin=20, T_max=80),
        ),
        ([dict(type='MultiStepLR', end=300, milestones=[200, 270])], dict(end=100, milestones=[66, 90])),
        ([dict(type='LinearLR', start_factor=1.0, end_factor=0.01, by_epoch=False, end=90_000)], dict(end=30_000)),
        ([dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=500)], dict(end=500)),
        ([dict(type='LinearLR', end=15), dict(type='StepLR', step_size=15)], dict(step_size=5)),
        ([dict(type='PolyLR', by_epoch=False, begin=0, end=90_000)], dict(begin=0, end=30_000)),
        ([dict(type='MultiStepLR', milestones=(200, 270))], dict(milestones=(66, 90))),
        ([dict(type='StepLR', step_size=120)], dict(step_size=40)),
        ([dict(type='OneCycleLR', eta_max=1.0, total_steps=300)], dict(total_steps=100)),
        ([dict(type='CosineRestartLR', periods=[100, 200], restart_weights=[1, 0.5])], dict(periods=[33, 67])),
    ],
)
def test_a_third_of_the_schedule_keeps_its_shape(schedulers, expected):
    cfg = Config(dict(train_cfg=dict(max_epochs=300), default_scope='mmdet', param_scheduler=schedulers))
    shorten(cfg)
    assert cfg.train_cfg.max_epochs == 100
    assert {key: cfg.param_scheduler[-1][key] for key in expected} == expected


def test_a_warm_up_as_long_as_what_is_left_gives_way():
    schedulers = [dict(type='LinearLR', end=1), dict(type='CosineAnnealingLR', begin=1, end=3, T_max=2)]
    cfg = Config(dict(train_cfg=dict(max_epochs=3), default_scope='mmdet', param_scheduler=schedulers))
    shorten(cfg)
    assert cfg.train_cfg.max_epochs == 1
    assert cfg.param_scheduler == [dict(type='CosineAnnealingLR', begin=0, end=1, T_max=1)]


@pytest.mark.parametrize(
    ('epochs', 'schedulers', 'expected'),
    [
        (  # mmpretrain's T2T-ViT cools down at its end
            310,
            [
                dict(type='LinearLR', start_factor=1e-4, begin=0, end=10),
                dict(type='CosineAnnealingLR', T_max=290, begin=10, end=300),
                dict(type='ConstantLR', factor=0.1, begin=300, end=310),
            ],
            [(0, 10), (10, 100), (100, 103)],
        ),
        (12, [dict(type='ConstantLR', factor=0.5), dict(type='MultiStepLR', milestones=[8, 11])], [None, None]),
        (  # a rise over the whole training
            12,
            [dict(type='LinearLR', begin=0, end=12), dict(type='CosineAnnealingLR', T_max=12, begin=0, end=12)],
            [(0, 4), (0, 4)],
        ),
        (
            10,
            (
                dict(type='ConstantLR', begin=0, end=1),
                dict(type='LinearLR', begin=1, end=3),
                dict(type='CosineAnnealingLR', T_max=7, begin=3, end=10),
            ),
            [(0, 1), (1, 3)],
        ),
    ],
)
def test_what_is_no_warm_up_stays_and_every_span_has_time(epochs, schedulers, expected):
    cfg = Config(dict(train_cfg=dict(max_epochs=epochs), default_scope='mmdet', param_scheduler=schedulers))
    shorten(cfg)
    spans = [(s['begin'], s['end']) if 'end' in s and 'begin' in s else None for s in cfg.param_scheduler]
    assert spans == expected


@pytest.mark.parametrize('channels', [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_model_of_other_images_than_red_green_and_blue_gets_its_config(channels, tmp_path):
    base, rest = UPERNET
    swin = SWIN.format((0, 1, 2, 3)).replace('dict(', f'dict(in_channels={channels}, ', 1)
    of_channels = 'data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False)'
    config, checkpoint = own(tmp_path, base, f'{rest}, {of_channels}', swin)
    adoption.init(config, checkpoint, tmp_path / 'scaled.py', **scale())
    assert read_config(tmp_path / 'scaled.py').model.backbone.in_channels == channels


def test_what_happens_late_in_a_schedule_happens_late_in_its_third():
    """As of RTMDet's and SAN's shipped configs: strong augmentation to the end, or no validation at all."""
    hooks = [
        dict(type='PipelineSwitchHook', switch_epoch=240, switch_pipeline=[dict(type='RandomResize', begin=7)]),
        dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=150, train_augments=None)]),
        dict(type='EMAHook', begin_epoch=0, momentum=2e-4),
    ]
    loop = dict(max_epochs=300, val_begin=270, val_interval=10, dynamic_intervals=[(280, 1), (291, 300)])
    checkpoint = dict(type='CheckpointHook', interval=10, save_begin=200)
    cfg = Config(dict(train_cfg=loop, custom_hooks=hooks, default_hooks=dict(checkpoint=checkpoint)))
    cfg.default_scope = 'mmdet'
    shorten(cfg)
    switch, recipe, ema = cfg.custom_hooks
    assert (switch.switch_epoch, recipe.schedule[0].action_epoch, ema.begin_epoch) == (80, 50, 0)
    assert switch.switch_pipeline == [dict(type='RandomResize', begin=7)]
    assert (cfg.train_cfg.val_begin, cfg.train_cfg.val_interval) == (90, 10)
    assert [tuple(x) for x in cfg.train_cfg.dynamic_intervals] == [(93, 1), (97, 100)]
    assert (cfg.default_hooks.checkpoint.interval, cfg.default_hooks.checkpoint.save_begin) == (10, 67)


@pytest.mark.parametrize('name', ['mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py'])
def test_a_shipped_schedule_with_two_stages_is_shortened_as_a_whole(name):
    cfg = read_config(name)
    cfg.default_scope = 'mmdet'
    whole = next(h for h in cfg.custom_hooks if h.type == 'PipelineSwitchHook').switch_epoch, cfg.train_cfg.max_epochs
    shorten(cfg)
    short = next(h for h in cfg.custom_hooks if h.type == 'PipelineSwitchHook').switch_epoch, cfg.train_cfg.max_epochs
    assert whole == (90, 100) and short == (30, 33)
