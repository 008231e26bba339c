"""The optimizer-wrapper constructor and what it promises, with the real Runner on real images."""

import argparse
import copy
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEIT, SWIN
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner

import scalenet_mm
from scalenet_mm.core.roles import Role, TrainPolicy, roles
from scalenet_mm.engine import ScaleNetOptimWrapperConstructor
from scalenet_mm.runner.config import build_runner
from scalenet_mm.runner.resume import ReseedHook

CONFIGS = Path(__file__).parents[1] / 'configs'
BACKBONES = {
    'deit': dict(type='ScaleNetDeiT', arch=DEIT, img_size=32, patch_size=8, out_type='avg_featmap'),
    'swin': dict(type='ScaleNetSwin', arch=SWIN, window_size=4, patch_size=2, pad_small_map=True, drop_path_rate=0.3),
}


def build(host='deit', **scale):
    backbone = dict(BACKBONES[host], scale=scale)
    return MODELS.build(copy.deepcopy(backbone))


def wrapper_for(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='ScaleNetOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=paramwise,
        ),
    )


def settings(wrapper):
    return {id(p): (g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups for p in g['params']}


def test_the_optimizer_holds_the_trainable_set_once():
    for host in BACKBONES:
        model = build(host)
        wrapper = wrapper_for(model)
        params = [p for g in wrapper.optimizer.param_groups for p in g['params']]
        found = roles(model)
        expected = {n for n, r in found.items() if r in (Role.ADJUSTMENT, Role.NORM)}
        assert len({id(p) for p in params}) == len(params) == len(expected)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == expected
        everything = wrapper_for(build(host), policy=dict(train='all'))
        flat = [p for g in everything.optimizer.param_groups for p in g['params']]
        assert len({id(p) for p in flat}) == len(flat) == len(found)


def test_groups_are_merged_by_setting():
    model = build(start='function')
    wrapper = wrapper_for(
        model, norm_decay_mult=0.0, policy=dict(train='all'), custom_keys={'pos_embed': dict(lr_mult=0.1)}
    )
    by_name = {n: settings(wrapper)[id(p)] for n, p in model.named_parameters()}
    assert len(wrapper.optimizer.param_groups) == len(set(by_name.values())) == 3
    assert by_name['layers.0.ln1.weight'] == (1e-3, 0.0)
    assert by_name['pos_embed'] == (1e-4, 0.05)
    assert by_name['layers.1.ffn.layers.1.gate.scale'] == (1e-3, 0.0), 'gates are never decayed'
    assert by_name['layers.1.ffn.layers.1.adapter.up'] == (1e-3, 0.05)


def test_inherited_paramwise_keys_are_honoured_as_the_default_constructor_does():
    paramwise = dict(bias_lr_mult=2.0, bias_decay_mult=0.0, norm_decay_mult=0.5, flat_decay_mult=0.25)
    model = build('swin', times=1)
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    reference = settings(build_optim_wrapper(model, dict(cfg, paramwise_cfg=paramwise)))
    assert settings(wrapper_for(model, policy=dict(train='all'), **paramwise)) == reference
    assert len(set(reference.values())) == 3


def test_foreign_keys_and_policies_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\['layer_decay_rate'\]"):
        wrapper_for(build(), layer_decay_rate=0.9)
    with pytest.raises(ValueError, match='adapters'):
        wrapper_for(build(), policy=dict(train='adapters'))
    with pytest.raises(ValueError, match='matches none'):
        wrapper_for(build(), policy=dict(also=['head.fc']))


def test_the_table_names_roles_parameters_and_rates():
    model = build(start='function')
    constructor = ScaleNetOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05)), dict(norm_decay_mult=0.0)
    )
    table = constructor.table(model, constructor(model))
    lines = [line.split() for line in table.splitlines()[2:]]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lines[-1] == ['trained', str(sum(p.requires_grad for p in model.parameters())), f'{trained:,}']
    assert {line[0] for line in lines[:-1]} == {'shared', 'norm', 'adjustment', 'outer'}
    assert [line[3:] for line in lines if line[0] == 'norm'] == [['0.0002', '0']]
    assert [line[3:] for line in lines if line[0] == 'shared'] == [['frozen']]


def test_the_table_tells_what_the_model_froze_from_what_the_policy_froze():
    """A fixed encoder, or a teacher: mmengine's constructor leaves such tensors out, and so does ours."""
    model = torch.nn.ModuleDict(dict(backbone=build(), encoder=torch.nn.Linear(3, 5).requires_grad_(False)))
    for train, frozen in (('all', {'frozen by the model'}), ('increments', {'frozen by the model', 'frozen'})):
        constructor = ScaleNetOptimWrapperConstructor(
            dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)), dict(policy=dict(train=train))
        )
        wrapper = constructor(model)
        held = {id(p) for group in wrapper.optimizer.param_groups for p in group['params']}
        assert id(model['encoder'].weight) not in held
        lines = [line for line in constructor.table(model, wrapper).splitlines() if 'frozen' in line]
        assert {' '.join(line.split()[3:]) for line in lines} == frozen
        (mine,) = (line.split() for line in lines if 'by the model' in line)
        assert mine[:3] == ['outer', '2', '20']


def test_a_wrapper_that_was_not_frozen_before_is_refused():
    from mmengine.registry import MODEL_WRAPPERS

    @MODEL_WRAPPERS.register_module(name='PlainWrapperForTest', force=True)
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    with pytest.raises(RuntimeError, match='ScaleNetDistributedDataParallel'):
        wrapper_for(Wrapper(build()))
    frozen = build()
    TrainPolicy().apply(frozen)
    assert wrapper_for(Wrapper(frozen)).optimizer.param_groups


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """The demo data set, small."""
    from scalenet_mm.experiments.data import make_demo_data

    return make_demo_data(tmp_path_factory.mktemp('digits'), ['imagenet'], train=190, val=57)['imagenet']


def demo_config(digits, work_dir, host='deit', **changes) -> Config:
    cfg = Config.fromfile(CONFIGS / '_base_' / 'demo_cls.py')
    cfg.model.backbone = copy.deepcopy(BACKBONES[host])
    if host == 'swin':
        cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head.in_channels = dict(deit=32, swin=128)[host]
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        data = loader.dataset.get('dataset', loader.dataset)
        data.data_root = str(digits)
        loader.batch_size = 32
        loader.num_workers, loader.persistent_workers = 0, False
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        constructor='ScaleNetOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
    )
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
    cfg.work_dir = str(work_dir)
    cfg.merge_from_dict(changes)
    return cfg


def hashes(model):
    def digest(t):
        return hashlib.sha256(t.detach().contiguous().view(-1).numpy().tobytes()).hexdigest()

    return {n: digest(t) for n, t in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize('host', BACKBONES)
def test_training_moves_every_trainable_tensor_and_no_frozen_bit(host, digits, tmp_path):
    cfg = demo_config(digits, tmp_path, host, **{'train_cfg.max_epochs': 2})
    runner = Runner.from_cfg(cfg)
    runner.model.head.bn = torch.nn.BatchNorm1d(4)  # a frozen BatchNorm beside
    runner.model.init_weights()
    before = hashes(runner.model)
    runner.train()
    after, model = hashes(runner.model), runner.model
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    moved = {n for n in before if before[n] != after[n]}
    assert moved == trained
    assert trained == {n for n, r in roles(model).items() if r in (Role.ADJUSTMENT, Role.NORM)}


@pytest.mark.parametrize(
    'changes',
    [
        {'optim_wrapper.accumulative_counts': 2},
        {'custom_hooks': [dict(type='EMAHook', momentum=0.1), dict(type='ReseedHook')]},
        {'optim_wrapper.clip_grad': dict(max_norm=1.0), 'model.backbone.with_cp': True},
        {'optim_wrapper.paramwise_cfg': dict(policy=dict(train='all'))},
    ],
    ids=['accumulation', 'EMA', 'clipping and checkpointing', 'everything trained'],
)
def test_the_runners_features_keep_the_ties(changes, digits, tmp_path):
    runner = Runner.from_cfg(demo_config(digits, tmp_path, **changes))
    runner.train()
    nets = [runner.model, *(hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model'))]
    assert (len(nets) == 2) == ('EMAHook' in str(changes))
    for net in nets:
        layers = net.backbone.layers
        assert layers[0].attn.qkv.weight is layers[1].attn.qkv.weight
        assert not torch.equal(layers[0].ln1.weight, layers[1].ln1.weight)
    state = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    keys = set(runner.model.state_dict())
    assert set(state['state_dict']) == keys
    if len(nets) == 2:
        assert {k.removeprefix('module.') for k in state['ema_state_dict']} - {'steps'} == keys


def test_an_iterations_randomness_depends_on_its_number_only(digits, tmp_path):
    cfg = demo_config(digits, tmp_path, custom_hooks=[dict(type='ReseedHook')])
    runner = Runner.from_cfg(cfg)
    (hook,) = (h for h in runner.hooks if isinstance(h, ReseedHook))
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)

    def draws(iteration: int) -> tuple:
        runner.train_loop._iter = iteration
        hook.before_train_iter(runner, batch_idx=0)
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    first = draws(3)
    torch.rand(7), np.random.rand(7), random.random()  # such as a validation in between
    assert draws(3) == first
    assert not set(draws(4)) & set(first), 'each of the three generators moves on'


def test_auto_scale_lr_scales_every_group(digits, tmp_path):
    cfg = demo_config(digits, tmp_path, auto_scale_lr=dict(base_batch_size=64, enable=True))
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert {g['lr'] for g in runner.optim_wrapper.optimizer.param_groups} == {1e-2 / 2}


def test_one_table_and_no_line_for_each_tensor_is_logged(digits, tmp_path):
    runner = Runner.from_cfg(demo_config(digits, tmp_path))
    runner.train()
    log = next(Path(tmp_path).rglob('*.log')).read_text()
    assert log.count('What is trained:') == 1
    assert 'paramwise_options' not in log and 'is skipped since its requires_grad' not in log
    assert MMLogger.get_current_instance() is not None and scalenet_mm.__version__


def test_load_from_takes_an_official_file(digits, tmp_path, monkeypatch):
    """timm's ViT has the key names of the official DeiT files."""
    import timm

    source = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, num_classes=19
    ).eval()
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')  # as `scalenet train` does
    torch.save({'model': source.state_dict(), 'args': argparse.Namespace(lr=1)}, tmp_path / 'official.pth')
    backbone = dict(type='ScaleNetDeiT', arch=DEIT, img_size=32, patch_size=8, scale=dict(start='function'))
    cfg = demo_config(digits, tmp_path, load_from=str(tmp_path / 'official.pth'))
    cfg.model.backbone = backbone
    cfg.model.head = dict(
        type='VisionTransformerClsHead', num_classes=19, in_channels=32, loss=dict(type='CrossEntropyLoss')
    )
    runner = build_runner(cfg)
    runner.load_or_resume()
    x = torch.randn(2, 3, 32, 32)
    runner.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(runner.model(x), source(x), rtol=1e-4, atol=1e-5)
    cfg.custom_hooks = []
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    with pytest.raises(Exception, match=r'scalenet convert'):
        Runner.from_cfg(Config({**cfg, 'experiment_name': 'again'})).load_or_resume()
