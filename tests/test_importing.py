"""A process that imports scalenet_mm treats models without scaled layers as a process that does not."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    'started',
    [
        ['-m', 'their_package'],
        pytest.param(['-m', 'their_package.train'], marks=pytest.mark.slow),
        pytest.param(['run.py'], marks=pytest.mark.slow),
    ],
)
def test_a_package_that_imports_it_has_the_backbones_however_it_is_started(started, tmp_path):
    package = tmp_path / 'their_package'
    package.mkdir()
    says = "from mmengine.registry import MODELS\nprint('ScaleNetSwin' in MODELS.module_dict)\n"
    (package / '__init__.py').write_text('import scalenet_mm\n')
    for file in ('__main__.py', 'train.py', '../run.py'):
        (package / file).write_text('import their_package\n' + says)
    env = {**os.environ, 'PYTHONPATH': f'{ROOT}:{tmp_path}'}
    done = subprocess.run([sys.executable, *started], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip().endswith('True'), done.stdout + done.stderr


CODE = """
import argparse, io, json, logging, pickle, sys, types, warnings
import mmengine.config, mmengine.fileio, mmengine.hooks, mmengine.model, mmengine.optim, mmengine.runner
import mmpretrain.models, torch
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import DefaultScope
from torch import nn

def functions():
    found = {}
    for name, module in list(sys.modules.items()):
        if module is None or name.split('.')[0] not in ('mmengine', 'mmcv', 'mmpretrain'):
            continue
        for kind in [module, *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name)]:
            where = name if kind is module else kind.__qualname__
            held = {k: v.__func__ if isinstance(v, (classmethod, staticmethod)) else v for k, v in vars(kind).items()}
            found |= {f'{where}.{k}': v for k, v in held.items() if isinstance(v, types.FunctionType)}
    return found

def state():
    backends, loggers = torch.backends, logging.Logger.manager.loggerDict
    return dict(
        torch=repr((torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), backends.mkldnn.enabled, backends.cudnn.benchmark,
            torch.initial_seed(), torch.get_rng_state().sum().item())),
        logging=repr((logging.root.level, logging.root.handlers, [loggers.get(n) for n in ('mmengine', 'mmpretrain')],
            MMLogger._instance_dict, [str(f) for f in warnings.filters if 'onnx' not in str(f)])),
        scope=repr(DefaultScope._instance_dict))

before, was = functions(), state()
if sys.argv[1] == 'with':
    import scalenet_mm
after, now = functions(), state()

class Palette(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_map, self.out = {'road': 0}, nn.Linear(2, 2)

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(2, 2))
        self.b = nn.Sequential(self.a[0])

told = []
for make in (Palette, lambda: nn.Sequential(Palette()), Twice):
    for paramwise in (dict(norm_decay_mult=0.0), dict(norm_decay_mult=0.0, bypass_duplicate=True)):
        cfg = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1))
        try:
            told.append(len(DefaultOptimWrapperConstructor(cfg, paramwise)(make()).optimizer.param_groups))
        except Exception as e:
            told.append(f'{type(e).__name__}: {e}')
buffer = io.BytesIO()
torch.save(dict(args=argparse.Namespace(rank=1)), buffer)
buffer.seek(0)
try:
    told.append(str(torch.load(buffer, weights_only=True)))
except pickle.UnpicklingError:
    told.append('refused')
changed = sorted(k for k in before if after.get(k) is not before[k])
print(json.dumps(dict(told=told, changed=changed, same=was == now, differ=[k for k in was if was[k] != now[k]])))
"""


@pytest.fixture(scope='module')
def processes():
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    run = [
        subprocess.run([sys.executable, '-c', CODE, word], capture_output=True, text=True, env=env, cwd=ROOT)
        for word in ('without', 'with')
    ]
    assert not any(p.returncode for p in run), run[-1].stderr[-2000:]
    return [json.loads(p.stdout.splitlines()[-1]) for p in run]


@pytest.mark.slow
def test_mmengines_constructor_groups_and_refuses_models_of_others_as_before(processes):
    plain, beside = (p['told'] for p in processes)
    assert beside == plain
    assert 'more than one parameter group' in plain[4] and plain[5] == 2, 'a tensor met twice: refused, or told'
    assert plain[6] == 'refused', 'a file that names more than tensors'


def test_three_functions_of_the_libraries_are_replaced_and_no_default_is_changed(processes):
    """Each adds a case of ours and hands the rest on: a `scalenet_mm::` config, and layers that share tensors."""
    plain, beside = processes
    assert plain['changed'] == []
    assert beside['changed'] == [
        'Config._get_cfg_path',
        'DefaultOptimWrapperConstructor.__call__',
        'DefaultOptimWrapperConstructor.add_params',
    ]
    assert beside['same'], beside['differ']


@pytest.mark.slow
def test_a_folder_of_the_packages_name_does_not_hide_it(tmp_path):
    """As the folder above a clone holds one; where the set-up installed the package."""
    if list(Path(sysconfig.get_path('purelib')).glob('__editable___scalenet_mm*finder.py')):
        pytest.skip("installed by setuptools' finder, as before the set-up installed a path")
    (tmp_path / 'scalenet_mm').mkdir()
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    code = 'import scalenet_mm, mmcv.ops; print(scalenet_mm.scale)'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
