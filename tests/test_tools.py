"""The command lines, as a stranger calls them."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


def call(tool: str, *args, cwd=ROOT, timeout=500) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=ENV)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    from scalenet_mm.experiments.data import make_demo_data

    return make_demo_data(tmp_path_factory.mktemp('digits'), ['imagenet'], train=266, val=57)['imagenet']


def options(digits):
    return [
        f'train_dataloader.dataset.data_root={digits}',
        f'val_dataloader.dataset.data_root={digits}',
        f'test_dataloader.dataset.data_root={digits}',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
    ]


def test_train_then_test_gives_the_same_accuracy(digits, tmp_path):
    config = ROOT / 'configs' / 'demo' / 'deit_digits.py'
    done = call('train.py', config, '--work-dir', tmp_path, '--cfg-options', *options(digits))
    assert done.returncode == 0, done.stderr[-2000:]
    (trained,) = (
        json.loads(line) for line in next(tmp_path.rglob('scalars.json')).read_text().splitlines() if 'accuracy' in line
    )
    out = tmp_path / 'metrics.json'
    done = call(
        'test.py',
        config,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 't',
        '--out',
        out,
        '--cfg-options',
        *options(digits),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(out.read_text())['accuracy/top1'] == trained['accuracy/top1']
    scaled = ROOT / 'configs' / 'demo' / 'scalenet_deit_digits.py'
    done = call(
        'train.py',
        scaled,
        '--work-dir',
        tmp_path / 's',
        '--cfg-options',
        *options(digits),
        f'load_from={tmp_path / "epoch_1.pth"}',
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'not match exactly' not in done.stdout + done.stderr and 'What is trained:' in done.stdout + done.stderr


@pytest.mark.parametrize(
    ('command', 'args', 'says'),
    [
        ('train', ['configs/nothing.py'], 'scalenet_swin_t_100e.py'),
        ('train', ['configs/demo/deit_digits.py', '--amp'], 'needs a GPU'),
        ('train', ['configs/demo/deit_digits.py', '--auto-scale-lr'], 'base_batch_size'),
        (
            'train',
            ['configs/demo/deit_digits.py', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'],
            'base_batch_size',
        ),
        (
            'train',
            ['configs/demo/deit_digits.py', '--cfg-options', 'optim_wrapper.type=AmpOptimWrapper'],
            "type='AmpOptimWrapper' needs a GPU",
        ),
        ('test', ['configs/demo/deit_digits.py', 'nothing.pth'], 'no checkpoint nothing.pth'),
        (
            'train',
            ['configs/scalenet_swin_t_100e.py', '--no-preflight', '--cfg-options', 'model.backbone.frozen_stages=1'],
            'frozen_stages=1',
        ),
    ],
)
def test_bad_calls_end_with_one_clear_sentence(command, args, says, tmp_path, monkeypatch, capsys):
    import torch

    if '--amp' in args and torch.cuda.is_available():
        pytest.skip('there is a GPU here, so --amp is right')
    monkeypatch.chdir(ROOT)
    with pytest.raises((Exception, SystemExit)) as told:
        import_module(f'scalenet_mm.commands.{command}').main([*args, '--work-dir', str(tmp_path)])
    said = capsys.readouterr().err if told.value.args == (2,) else str(told.value)  # argparse's, or raised
    assert says in said.strip().splitlines()[-1]


def test_the_second_evaluation_of_an_average_is_of_the_weights_it_names(digits, tmp_path):
    """mmpretrain's EMAHook then writes into weights whose packed copies an evaluation would keep."""
    import torch
    from conftest import perturb

    import scalenet_mm
    from scalenet_mm.commands.main import main

    config = ROOT / 'configs' / 'demo' / 'scalenet_deit_digits.py'
    raw, average = (perturb(scalenet_mm.build(config), seed, 0.02).state_dict() for seed in (1, 2))
    named = {f'module.{name}': value for name, value in raw.items()}  # a checkpoint holds the two the other way round
    files = dict(raw=dict(state_dict=raw), average=dict(state_dict=average))
    files['both'] = dict(state_dict=average, ema_state_dict={'steps': torch.tensor(1), **named})
    found = {}
    for name, content in files.items():
        torch.save(content, tmp_path / f'{name}.pth')
        mine = tmp_path / f'{name}.py'
        hooks = [dict(type='EMAHook', momentum=0.5, evaluate_on_origin=True)] if name == 'both' else []
        mine.write_text(
            f"""_base_ = '{config}'
model = dict(backbone=dict(ops=dict(linear='onednn')))
test_dataloader = dict(dataset=dict(data_root='{digits}'))
test_evaluator = [dict(type='Accuracy', topk=(1,)), dict(type='SingleLabelMetric')]
custom_hooks = {hooks}
"""
        )
        words = ['test', str(mine), str(tmp_path / f'{name}.pth'), '--work-dir', str(tmp_path / name)]
        assert main(words) == 0
        (log,) = (tmp_path / name).glob('*/*.json')  # mmengine's, of both evaluations
        found[name] = {k: v for k, v in json.loads(log.read_text()).items() if 'time' not in k}
    assert found['raw'] != found['average']
    told = {k: v for k, v in found['both'].items() if 'origin' not in k}
    assert told == found['average']
    assert {k.replace('_origin', ''): v for k, v in found['both'].items() if 'origin' in k} == found['raw']


@pytest.mark.slow
def test_resume_before_the_first_checkpoint_starts_from_the_pretrained_file(digits, tmp_path):
    """And ``policy`` is one setting, wherever it is changed."""
    import torch
    from mmengine.config import Config

    import scalenet_mm

    config = ROOT / 'configs' / 'demo' / 'scalenet_deit_digits.py'
    source = scalenet_mm.build(
        dict(Config.fromfile(config).model, backbone=Config.fromfile(config.with_name('deit_digits.py')).model.backbone)
    )
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'source.pth')
    done = call(
        'train.py',
        config,
        '--work-dir',
        tmp_path / 'run',
        '--resume',
        '--cfg-options',
        *options(digits),
        f'load_from={tmp_path / "source.pth"}',
        'policy.train=increments',
        "policy.also=['head']",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'starts from its beginning' in done.stdout
    state = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert torch.equal(
        state['backbone.layers.0.attn.qkv.weight'], source.state_dict()['backbone.layers.0.attn.qkv.weight']
    )
    assert not torch.equal(state['head.fc.weight'], source.state_dict()['head.fc.weight']), 'the head is trained too'


class Evil:
    def __reduce__(self):
        return print, ('code of the file ran',)


@pytest.mark.slow
def test_load_from_runs_no_code_of_the_file(digits, tmp_path):
    import torch

    torch.save({'state_dict': {}, 'evil': Evil()}, tmp_path / 'evil.pth')
    config = ROOT / 'configs' / 'demo' / 'scalenet_deit_digits.py'
    done = call(
        'train.py',
        config,
        '--work-dir',
        tmp_path / 'run',
        '--cfg-options',
        *options(digits),
        f'load_from={tmp_path / "evil.pth"}',
    )
    assert done.returncode != 0 and 'code of the file ran' not in done.stdout
    assert 'evil.pth was refused: it stores' in done.stderr
