"""The one-liners of a notebook."""

import doctest

import pytest
import torch
from conftest import DEIT, perturb
from mmengine.config import Config

import scalenet_mm
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.models import build as api

SMALL = dict(img_size=32)


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(api)
    assert result.attempted and not result.failed


def test_build_initialises_and_honours_init_cfg(tmp_path):
    net = scalenet_mm.build('deit_t', num_classes=None, **SMALL)
    assert net.pos_embed.abs().max() > 0
    perturb(net)
    torch.save(net.state_dict(), tmp_path / 'a.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    twin = scalenet_mm.build('deit_t', num_classes=None, init_cfg=init_cfg, **SMALL)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in twin.state_dict().items())
    twin.init_weights()  # a second call changes nothing
    with pytest.raises(FileNotFoundError):
        scalenet_mm.build(
            'deit_t', num_classes=None, init_cfg=dict(type='Pretrained', checkpoint='nothing.pth'), **SMALL
        )


def test_a_second_init_weights_keeps_what_was_trained():
    net = scalenet_mm.build('deit_t', num_classes=None, **SMALL)
    perturb(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_configs_and_dicts_are_built_with_the_classes_asked_for():
    backbone = dict(type='ScaleNetDeiT', arch=DEIT, patch_size=8, **SMALL)
    assert type(scalenet_mm.build(backbone)).__name__ == 'ScaleNetDeiT'
    config = 'configs/demo/scalenet_deit_digits.py'
    assert scalenet_mm.build(config)(torch.zeros(1, 3, 32, 32)).shape == (1, 19)
    assert scalenet_mm.build(config, num_classes=7)(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert scalenet_mm.build(config, num_classes=1000)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000), 'asked for too'
    with pytest.raises(ValueError, match=r'num_classes=7 .* no head.num_classes'):
        scalenet_mm.build('configs/demo/mask_rcnn_scalenet_swin_digits.py', num_classes=7)
    assert isinstance(scalenet_mm.build(config, num_classes=None)(torch.zeros(1, 3, 32, 32)), tuple)
    assert scalenet_mm.build(config, scale=dict(times=3)).backbone.num_layers == 12


def test_a_config_that_is_built_differently_stays_as_it_was():
    cfg = Config.fromfile('configs/demo/scalenet_deit_digits.py')
    before = cfg.model.to_dict()
    assert scalenet_mm.build(cfg.model, num_classes=7, scale=dict(times=3)).backbone.num_layers == 12
    assert cfg.model.to_dict() == before


def test_a_file_of_other_classes_is_refused_before_anything_changes(tmp_path):
    source = scalenet_mm.build('deit_t', num_classes=4, **SMALL)
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='num_classes=None'):
        scalenet_mm.load('deit_t', str(tmp_path / 'a.pth'), num_classes=5, **SMALL)
    backbone = scalenet_mm.load('deit_t', str(tmp_path / 'a.pth'), num_classes=None, **SMALL)
    assert torch.equal(backbone.pos_embed, source.backbone.pos_embed)


@pytest.mark.parametrize('model', ['deit_t', 'configs/demo/scalenet_deit_digits.py'])
@pytest.mark.parametrize(('wrong', 'right'), [('num_class', 'num_classes'), ('img_sise', 'img_size')])
def test_a_misspelt_argument_of_build_is_refused_with_the_nearest_of_all_it_takes(model, wrong, right):
    with pytest.raises(TypeError, match=rf"\['{wrong}'\] \(near are: {right},"):
        scalenet_mm.build(model, **{wrong: 7})
