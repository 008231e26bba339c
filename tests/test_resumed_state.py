"""A resumed run takes the states of optimizers and schedulers as they were, or refuses the file by name."""

import copy
import hashlib
import re

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from toy_run import ToyClassifier, toy_config, write_base

from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.runner.config import build_runner


@MODELS.register_module()
class TwoOptimizers(ToyClassifier):
    def train_step(self, data, optim_wrapper):
        loss = self(**data, mode='loss')['loss']
        optim_wrapper['net'].zero_grad(), optim_wrapper['head'].zero_grad()
        loss.backward()
        optim_wrapper['net'].step(), optim_wrapper['head'].step()
        return dict(loss=loss)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ForTwo:
    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        head = torch.optim.SGD(model.fc.parameters(), lr=0.01, momentum=0.9)
        net = torch.optim.AdamW(model.backbone.parameters(), lr=0.01)
        return OptimWrapperDict(net=OptimWrapper(net), head=OptimWrapper(head))


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp('base') / 'base.pth')


def config(folder, base, epochs, change=None):
    cfg = toy_config(folder, base)
    cfg.train_cfg.max_epochs, cfg.val_cfg, cfg.val_dataloader, cfg.val_evaluator = epochs, None, None, None
    cfg.train_cfg.pop('val_interval')
    cfg.param_scheduler[0]['end'] = 16  # or else that of the shorter run
    if change:
        change(cfg)
    return cfg


def resume(cfg, file):
    cfg.resume, cfg.load_from = True, str(file)
    return build_runner(cfg).train()


@pytest.fixture(scope='module')
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp('work') / 'run'
    build_runner(config(folder, base, 1)).train()
    return torch.load(folder / 'epoch_1.pth', weights_only=False)


def exp_avg(change):
    def damage(file):
        state = next(iter(file['optimizer']['state'].values()))
        state['exp_avg'] = change(state['exp_avg'])

    return damage


def settings(**values):
    return lambda file: file['optimizer']['param_groups'][0].update(values)


def scheduler(**values):
    return lambda file: file['param_schedulers'][0].update(values)


DAMAGE = {
    'NaN state': (exp_avg(lambda t: t * float('nan')), r'exp_avg with NaN or infinity of backbone\.'),
    'integer state': (exp_avg(lambda t: t.to(torch.int8)), r'exp_avg of torch\.int8 .* of backbone\.'),
    'state of another shape': (exp_avg(lambda t: t.flatten()[:1]), r'exp_avg of torch\.float32 \(1,\) for .* of back'),
    'half a state': (lambda f: next(iter(f['optimizer']['state'].values())).pop('exp_avg_sq'), 'no exp_avg_sq of back'),
    'NaN learning rate': (settings(lr=float('nan')), r'group 0 has lr=nan'),
    'learning rate of text': (settings(lr='x'), r"group 0 has lr='x'"),
    'no learning rate': (lambda f: f['optimizer']['param_groups'][0].pop('lr'), 'group 0 has lr=None'),
    'a parameter less': (lambda f: f['optimizer']['param_groups'][0]['params'].pop(), 'parameter groups of .* run'),
    'no optimizer': (lambda f: f.pop('optimizer'), 'has no optimizer'),
    'a list for an optimizer': (lambda f: f.update(optimizer=[1]), 'built otherwise'),
    'no scheduler': (lambda f: f.update(param_schedulers=[]), '0 param_schedulers, where this run has 1'),
    'no schedulers at all': (lambda f: f.pop('param_schedulers'), 'has no param_schedulers'),
    'NaN in a scheduler': (scheduler(base_values=[float('nan')]), r'param_schedulers\[0\] has base_values='),
    'text in a scheduler': (scheduler(last_step='x'), r"param_schedulers\[0\] has last_step='x'"),
    'text for an epoch': (lambda f: f['meta'].update(epoch='x'), "it has epoch='x'"),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_state_that_a_run_cannot_continue_with_is_refused_by_name(kind, run, base, tmp_path):
    damage, said = DAMAGE[kind]
    broken, file = copy.deepcopy(run), tmp_path / 'run' / 'epoch_1.pth'
    damage(broken)
    file.parent.mkdir()
    torch.save(broken, file)
    before = hashlib.sha256(file.read_bytes()).digest()
    with pytest.raises(CheckpointError, match=f'{file}.* {said}') as refused:
        resume(config(file.parent, base, 2), file)
    assert '\n' not in str(refused.value) and f'load_from={file}' in str(refused.value)
    assert [p.name for p in file.parent.glob('*.pth')] == ['epoch_1.pth']
    assert hashlib.sha256(file.read_bytes()).digest() == before


def two_optimizers(cfg):
    cfg.model.type, cfg.param_scheduler = 'TwoOptimizers', None
    cfg.optim_wrapper = dict(constructor='ForTwo')


def optimizer(**settings):
    def change(cfg):
        cfg.optim_wrapper.optimizer = settings

    return change


def stateless(cfg):
    cfg.optim_wrapper.optimizer, cfg.param_scheduler = dict(type='SGD', lr=0.01), None


def averaged(cfg):
    cfg.custom_hooks.append(dict(type='EMAHook'))


def plateau(cfg):  # its best is infinite until it has seen one
    cfg.param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='loss', rule='less', by_epoch=True)]


def not_saved(cfg):
    cfg.default_hooks.checkpoint.update(save_optimizer=False, save_param_scheduler=False)


def accumulated(cfg):  # no step was taken at the first checkpoint
    cfg.optim_wrapper.accumulative_counts = 8


RIGHT = {
    'SGD without momentum, no scheduler': stateless,
    'SGD with momentum': optimizer(type='SGD', lr=0.01, momentum=0.9, nesterov=True),
    'Adagrad, which keeps a state before its first step': optimizer(type='Adagrad', lr=0.01),
    'Adafactor, whose states are of other shapes': optimizer(type='TorchAdafactor', lr=0.01),
    'AdamW with all it can keep': optimizer(type='AdamW', lr=0.01, amsgrad=True),
    'an average': averaged,
    'a plateau': plateau,
    'several optimizers': two_optimizers,
    'gradients that are still added up': accumulated,
    'a hook that writes no states': not_saved,
}


@pytest.mark.parametrize('kind', RIGHT)
def test_what_a_right_run_wrote_is_continued(kind, base, tmp_path):
    change = RIGHT[kind]
    whole = build_runner(config(tmp_path / 'whole', base, 2, change)).train()
    build_runner(config(tmp_path / 'run', base, 1, change)).train()
    resumed = resume(config(tmp_path / 'run', base, 2, change), tmp_path / 'run' / 'epoch_1.pth')
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    if change not in (not_saved, accumulated):
        assert [k for k, v in whole.state_dict().items() if not torch.equal(v, resumed.state_dict()[k])] == []


def test_states_of_bfloat16_and_steps_that_are_plain_numbers_are_taken(run, base, tmp_path):
    changed = copy.deepcopy(run)
    for state in changed['optimizer']['state'].values():  # as torch wrote them before 1.12
        state.update(step=int(state['step']), exp_avg=state['exp_avg'].bfloat16())
    (tmp_path / 'run').mkdir()
    torch.save(changed, tmp_path / 'run' / 'epoch_1.pth')
    resume(config(tmp_path / 'run', base, 2), tmp_path / 'run' / 'epoch_1.pth')


def test_a_parameter_without_a_state_is_told_and_not_refused(run, base, tmp_path):
    changed = copy.deepcopy(run)
    changed['optimizer']['state'].popitem()
    (tmp_path / 'run').mkdir()
    torch.save(changed, tmp_path / 'run' / 'epoch_1.pth')
    resume(config(tmp_path / 'run', base, 2), tmp_path / 'run' / 'epoch_1.pth')
    (log,) = (tmp_path / 'run').rglob('*.log')
    assert re.search(r'1 of 38 parameters have no state in its optimizer, .*: fc\.bias\n', log.read_text())


def test_several_optimizers_are_refused_by_the_name_of_each(base, tmp_path):
    build_runner(config(tmp_path / 'run', base, 1, two_optimizers)).train()
    file = tmp_path / 'run' / 'epoch_1.pth'
    good = torch.load(file, weights_only=False)
    broken = copy.deepcopy(good)
    broken['optimizer']['head']['state'][0]['momentum_buffer'][:] = float('inf')
    torch.save(broken, file)
    with pytest.raises(CheckpointError, match=r'head: momentum_buffer with NaN or infinity of fc\.weight'):
        resume(config(tmp_path / 'run', base, 2, two_optimizers), file)
    del good['optimizer']['head']
    torch.save(good, file)
    with pytest.raises(CheckpointError, match=r"optimizers \['net'\], where this run has \['net', 'head'\]"):
        resume(config(tmp_path / 'run', base, 2, two_optimizers), file)
