"""What a whole model's checkpoint must supply: a micro Mask R-CNN with a frozen head, the real Runner, real files."""

import copy
import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import in_two_processes
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict

from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.checkpoint.supplied import check_supplied, unsupplied, watch
from scalenet_mm.commands.main import main
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.engine import AnyDialectHook
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.runner import ScaleNetRunner
from scalenet_mm.runner.config import build_runner, load_config

DEMO = Path(__file__).parents[1] / 'configs' / 'demo'
LAST = ['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg']
LOGITS = 'roi_head.mask_head.conv_logits'


def build(model: dict) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(copy.deepcopy(model))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('coco')
    return make_demo_data(folder, ['coco'], train=2, val=2, size=64)['coco']


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A file of the pretrained detector: ten classes, weights and statistics of its own."""
    torch.manual_seed(1)
    model = build(load_config(str(DEMO / 'mask_rcnn_swin_digits.py')).model)
    path = tmp_path_factory.mktemp('source') / 'source.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def config(data: Path, source: Path, work_dir: Path, classes: int = 10, also=LAST) -> Config:
    options = {
        'data_root': str(data),
        'load_from': str(source),
        'policy.also': list(also),
        'model.roi_head.bbox_head.num_classes': classes,
        'model.roi_head.mask_head.num_classes': classes,
        'train_dataloader.batch_size': 1,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
    }
    cfg = load_config(str(DEMO / 'mask_rcnn_scalenet_swin_digits.py'), str(work_dir), options)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    if classes != 10:
        cfg.train_dataloader.dataset.metainfo = dict(classes=[str(i) for i in range(classes)])
    return cfg


def written(path: Path, state: dict) -> Path:
    torch.save(dict(state_dict=state, meta={}), path)
    return path


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)['state_dict']


def test_new_classes_train_a_new_head_and_the_rest_is_the_files(data, source, tmp_path):
    runner = build_runner(config(data, source, tmp_path / 'a', classes=3))
    with pytest.raises(CheckpointError, match=f"add '{LOGITS}' to policy.also") as e:
        runner.train()
    assert f'{LOGITS}.weight: expected (3, 24, 1, 1), the file has (10, 24, 1, 1)' in str(e.value)
    assert 'fc_cls' not in str(e.value), 'trained, so it may differ'
    runner = build_runner(config(data, source, tmp_path / 'b', 3, [*LAST, LOGITS]))
    runner.train()
    theirs, mine = state_of(source), runner.model.state_dict()
    frozen = {n for n, p in runner.model.named_parameters() if not p.requires_grad}
    beside = {n for n in frozen if not n.startswith('backbone.')}
    assert len(beside) > 20 and all(torch.equal(mine[n], theirs[n]) for n in beside)
    log = next((tmp_path / 'b').rglob('*.log')).read_text()
    (line,) = (x for x in log.splitlines() if 'load_from: ' in x)
    assert line.endswith(f'of another shape in the file, so as initialised: {", ".join(sorted([*LAST, LOGITS]))}.')


def test_a_file_without_a_frozen_part_is_of_another_architecture(data, source, tmp_path):
    state = {k: v for k, v in state_of(source).items() if not k.startswith('roi_head.mask_head.')}
    faster = written(tmp_path / 'faster.pth', state)
    with pytest.raises(CheckpointError, match='another architecture') as e:
        build_runner(config(data, faster, tmp_path / 'w')).train()
    assert "add 'roi_head.mask_head' to policy.also" in str(e.value)


@pytest.mark.parametrize('kind', ['a bare backbone', 'a classifier'])
def test_a_detector_does_not_start_from(kind, data, source, tmp_path):
    state = {k: v for k, v in state_of(source).items() if k.startswith('backbone.')}
    if kind == 'a bare backbone':
        state = {k.removeprefix('backbone.'): v for k, v in state.items()}
    else:
        state['head.fc.weight'] = torch.zeros(1000, 256)
    path = written(tmp_path / 'backbone.pth', state)
    with pytest.raises(CheckpointError, match='init_cfg=dict') as e:
        build_runner(config(data, path, tmp_path / 'w')).train()
    assert "nothing in it is of 'neck', 'roi_head', 'rpn_head'" in str(e.value)


def test_a_segmentor_is_named_as_a_model_of_other_parts(data, source, tmp_path, monkeypatch, capsys):
    state = {k: v for k, v in state_of(source).items() if k.startswith('backbone.')}
    path = written(tmp_path / 'upernet.pth', {**state, 'decode_head.conv_seg.bias': torch.zeros(11)})
    cfg = config(data, path, tmp_path / 'w')
    cfg.dump(tmp_path / 'c.py')
    monkeypatch.setattr('sys.argv', ['scalenet'])
    assert main(['train', str(tmp_path / 'c.py'), '--work-dir', str(tmp_path / 'w')]) == 2
    told = capsys.readouterr().err
    assert "holds a model of other parts, 'decode_head': nothing in it is of 'neck'" in told
    assert 'upernet.pth' in told and 'Traceback' not in told


class Net(torch.nn.Module):
    """A frozen and a trained part, each with statistics."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.BatchNorm1d(2)
        self.trained = torch.nn.BatchNorm1d(2)
        self.statistics = torch.nn.BatchNorm1d(2, affine=False)
        TrainPolicy('adjustments', also=['trained']).apply(self)


@pytest.mark.parametrize(
    ('left_out', 'training', 'fits'),
    [
        ('frozen.weight', True, False),
        ('frozen.running_mean', True, False),
        ('frozen.num_batches_tracked', True, True),
        ('trained.weight', True, True),
        ('trained.running_mean', True, True),
        ('trained.weight', False, False),
        ('trained.running_mean', False, False),
        ('trained.num_batches_tracked', False, True),
        ('statistics.running_mean', True, True),  # beside something that is trained
    ],
)
def test_what_a_file_may_lack(left_out, training, fits):
    model, state = Net(), Net().state_dict()
    del state[left_out]
    if fits:
        check_supplied(model, state, training)
    else:
        with pytest.raises(CheckpointError) as e:
            check_supplied(model, state, training)
        assert list(e.value.differences.missing) == [left_out]
    check_supplied(model, state, training, later={left_out})  # a delta brings it


def test_an_evaluation_requires_every_tensor(data, source, tmp_path):
    cfg = config(data, source, tmp_path / 'w', classes=3, also=[*LAST, LOGITS])
    with pytest.raises(CheckpointError, match='config that the checkpoint was trained with'):
        build_runner(cfg).test()


def test_so_does_one_by_a_config_that_names_a_scaled_backbone_alone(data, source, tmp_path):
    state = state_of(source)
    del state['rpn_head.rpn_cls.bias']
    cfg = config(data, written(tmp_path / 'lacks.pth', state), tmp_path / 'w')
    for key in ('policy', 'runner_type', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader'):
        cfg.pop(key, None)
    cfg.merge_from_dict({'test_dataloader.num_workers': 0, 'test_dataloader.persistent_workers': False})
    with pytest.raises(CheckpointError, match=r'rpn_head\.rpn_cls\.bias'):
        build_runner(cfg).test()


def test_what_a_file_has_besides_is_told(tmp_path):
    state = {**Net().state_dict(), 'head.fc.weight': torch.zeros(2), 'head.fc.bias': torch.zeros(2)}
    logger = MMLogger.get_instance('besides', log_file=str(tmp_path / 'log'))
    check_supplied(Net(), state, training=True)
    for handler in logger.handlers:
        handler.flush()
    assert 'load_from: in the file but not used here: head.' in (tmp_path / 'log').read_text()


def test_the_rule_looks_into_ddp(data, source, tmp_path):
    """The wrapper's own keys begin with `module.`; the model inside is frozen by then."""
    import torch.distributed as dist

    from scalenet_mm.engine import ScaleNetDistributedDataParallel

    cfg = config(data, source, tmp_path / 'w', classes=3)
    runner = build_runner(cfg)
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        runner.model = ScaleNetDistributedDataParallel(runner.model, policy=dict(also=LAST))
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        with pytest.raises(CheckpointError, match=f"add '{LOGITS}' to policy.also"):
            runner.load_or_resume()
    finally:
        dist.destroy_process_group()


def run(work_dir: Path, runner=Runner, **changes) -> str:
    """One iteration of a network whose head is frozen, with a config that has no hook of ours; its log."""
    from toy_run import toy_config

    cfg = toy_config(work_dir, loop='iterations', policy=dict(train='increments'))
    cfg.merge_from_dict({**changes, 'train_cfg.max_iters': 1, 'custom_hooks': []})
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    runner.from_cfg(cfg).train()
    return next(work_dir.rglob('*.log')).read_text()


UNSUPPLIED = 'stay frozen at values that no file supplied'


@pytest.mark.parametrize('runner', [Runner, ScaleNetRunner])
def test_whoever_freezes_checks_whatever_hooks_and_runner_a_config_has(runner, tmp_path):
    from toy_run import write_base

    headless = write_base(tmp_path / 'headless.pth', head=False)
    with pytest.raises(CheckpointError, match='must supply everything that stays frozen') as e:
        run(tmp_path / 'refused', runner, load_from=str(headless))
    assert "add 'bn', 'fc' to policy.also" in str(e.value)
    log = run(tmp_path / 'whole', runner, load_from=str(write_base(tmp_path / 'whole.pth')))
    assert UNSUPPLIED not in log


@pytest.mark.parametrize('resume', [False, True], ids=['', 'resume=True, and nothing to resume from'])
def test_what_no_file_supplied_is_named_before_the_first_step(resume, tmp_path):
    from toy_run import write_base

    log = run(tmp_path / 'random', resume=resume)
    assert f'backbone, bn, fc (24 tensors) {UNSUPPLIED}' in log
    pretrained = dict(
        type='mmengine.model.weight_init.PretrainedInit', checkpoint=str(write_base(tmp_path / 'base.pth'))
    )
    log = run(tmp_path / 'backbone', resume=resume, **{'model.backbone.init_cfg': pretrained})
    assert f'bn, fc (4 tensors) {UNSUPPLIED}' in log, 'init_cfg supplied the backbone'


def test_a_file_supplies_what_it_holds_in_its_shape_to_any_part_of_a_watched_model():
    """mmengine's ``Pretrained`` loads with strict=False: a file of a part may lack some of it, or fit in name only."""
    model = Net()
    model.fixed = torch.nn.Linear(2, 2).requires_grad_(False)  # by the model itself
    watch(model)
    assert unsupplied(model) == {'frozen.weight', 'frozen.bias', 'fixed.weight', 'fixed.bias'}
    load_state_dict(model.frozen, dict(weight=torch.ones(2), bias=torch.ones(3)), logger='silent')
    assert unsupplied(model) == {'frozen.bias', 'fixed.weight', 'fixed.bias'}
    assert unsupplied(copy.deepcopy(model)) == unsupplied(model)
    with pytest.raises(CheckpointError) as e:
        load_state_dict(model, dict(trained=torch.ones(2)), logger='silent')
    assert set(e.value.differences.missing) >= {'frozen.bias', 'frozen.running_mean'}
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('fixed')}
    load_state_dict(model, state, logger='silent')
    assert unsupplied(model) == {'fixed.weight', 'fixed.bias'}, 'what the model froze it may have filled itself'


def test_a_resumed_file_must_fit_whole(source):
    class Resumed:
        _resume, optim_wrapper, hooks = True, None, []

    Resumed.model = build(load_config(str(DEMO / 'mask_rcnn_swin_digits.py')).model)
    TrainPolicy().apply(Resumed.model)
    state = state_of(source)
    AnyDialectHook().after_load_checkpoint(Resumed, dict(state_dict=state))
    del state['roi_head.bbox_head.fc_cls.weight']
    with pytest.raises(CheckpointError, match='every tensor of the model'):
        AnyDialectHook().after_load_checkpoint(Resumed, dict(state_dict=state))


WORKER = """
import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS
from toy_run import ToyClassifier, toy_config

from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.core.roles import frozen_by_model
from scalenet_mm.runner import launch
from scalenet_mm.runner.config import build_runner

@MODELS.register_module()
class FixedNorm(ToyClassifier):
    def __init__(self, backbone):
        super().__init__(backbone)
        self.bn.requires_grad_(False)

def run(name, train, file):
    cfg = toy_config(folder / name, folder / file, loop='iterations', policy=dict(train=train))
    cfg.merge_from_dict({'train_cfg.max_iters': 1, 'custom_hooks': [dict(type='EMAHook')], 'model.type': 'FixedNorm'})
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.launcher = 'pytorch'
    launch.prepare('pytorch', cfg)
    runner = build_runner(cfg)
    runner.train()
    return runner.model.module

folder = Path(sys.argv[1])
try:
    run('refused', 'increments', 'headless.pth')
except CheckpointError as e:
    assert "add 'fc' to policy.also" in str(e), e
model, given = run('trained', 'all', 'whole.pth'), torch.load(folder / 'whole.pth')['state_dict']
own = frozen_by_model(model)
assert own == {'bn.weight', 'bn.bias'}
assert all(torch.equal(model.get_parameter(n), given[n]) for n in own)
assert not torch.equal(model.fc.weight, given['fc.weight'])
(folder / f'done.{torch.distributed.get_rank()}').touch()
"""


@pytest.mark.slow
def test_on_two_processes_what_a_policy_froze_is_checked_and_what_the_model_froze_stays(tmp_path):
    from toy_run import write_base

    write_base(tmp_path / 'headless.pth', head=False)
    write_base(tmp_path / 'whole.pth')
    (tmp_path / 'worker.py').write_text(WORKER)
    tests = Path(__file__).parent
    command = in_two_processes(tmp_path / 'worker.py', tmp_path)
    env = {**os.environ, 'PYTHONPATH': f'{tests.parent}:{tests}', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert sorted(p.name for p in tmp_path.glob('done.*')) == ['done.0', 'done.1'], done.stderr[-3000:]
