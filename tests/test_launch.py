"""The commands that start several processes, as users call them; without a GPU, on CPU with gloo."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from scalenet_mm.runner.launch import require_gpu

ROOT = Path(__file__).parents[1]
TIMEOUT = 600  # seconds
STARTED_BY = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'PORT', 'NNODES')
ENV = {**{k: v for k, v in os.environ.items() if k not in STARTED_BY}, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """The demo scenes in ADE20K layout, few."""
    from scalenet_mm.experiments.data import make_demo_data

    return make_demo_data(tmp_path_factory.mktemp('scenes'), ['ade'], train=12, val=4)['ade']


def test_asking_for_more_gpus_than_there_are_ends_at_once():
    require_gpu(local_rank=7, gpus=0)  # on CPU
    require_gpu(local_rank=1, gpus=2)
    with pytest.raises(SystemExit, match='at most 2 processes; under Slurm.*--gpus-per-node'):
        require_gpu(local_rank=2, gpus=2)


def tool(name, *args, cwd, **variables):
    env = {**ENV, 'SCALENET_ENV': str(Path(sys.executable).parents[1]), **variables}
    command = ['bash', str(ROOT / 'tools' / name), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT)


def stand_in(folder: Path, scripts: dict[str, str]) -> Path:
    """A folder whose bin/ holds shell scripts in place of programs that this machine has not."""
    (folder / 'bin').mkdir(parents=True)
    for name, script in scripts.items():
        (folder / 'bin' / name).write_text('#!/usr/bin/env bash\n' + script)
        (folder / 'bin' / name).chmod(0o755)
    return folder


@pytest.mark.parametrize('command', ['dist_train.sh', 'dist_test.sh'])
def test_the_launchers_pass_everything_on_and_refuse_what_cannot_start(command, tmp_path):
    """A machine with two GPUs, as far as the script can see."""
    python = '[[ $1 == -c ]] && { echo 2; exit; }\necho "$OMP_NUM_THREADS" "$@"\n'
    seen = stand_in(tmp_path / 'env', {'python': python})
    variables = dict(SCALENET_ENV=str(seen), OMP_NUM_THREADS='3')
    rest = ['--work-dir', 'a b', '--cfg-options', 'x=1']
    checkpoint = ['c.pth'] if command == 'dist_test.sh' else []

    def launched(gpus, **more):
        return tool(command, 'c.py', *checkpoint, gpus, *rest, cwd=tmp_path, **variables, **more)

    script = command.removeprefix('dist_').removesuffix('.sh')
    told = ' '.join([f'{ROOT}/tools/{script}.py c.py', *checkpoint, *rest, '--launcher pytorch'])
    assert launched(2).stdout.startswith('3 -m torch.distributed.run --rdzv-backend=c10d --rdzv-endpoint=localhost:0 ')
    assert f'--nproc-per-node=2 {told}' in launched(2).stdout
    assert '--master-addr=127.0.0.1 --master-port=29511' in launched(2, PORT='29511').stdout
    nodes = launched(2, NNODES='2', NODE_RANK='1', MASTER_ADDR='first')
    assert '--nnodes=2 --node-rank=1 --master-addr=first --master-port=29500' in nodes.stdout
    for gpus, more, message in (
        (4, {}, '4 GPUs were asked for, but this machine has 2'),
        ('all', {}, 'whole number'),
        (2, dict(NNODES='2'), 'NNODES=2 needs MASTER_ADDR'),
        (2, dict(NNODES='1:2'), "NNODES must be a whole number >= 1, got '1:2'"),
        (2, dict(NNODES='two'), "NNODES must be a whole number >= 1, got 'two'"),
    ):
        refused = launched(gpus, **more)
        assert refused.returncode == 2 and message in refused.stderr and not refused.stdout


CONFIG = ROOT / 'configs' / 'demo' / 'upernet_scalenet_swin_digits.py'
SHORT = dict(
    _base_=str(CONFIG),
    custom_imports=dict(imports=['scalenet_mm', 'dying']),
    custom_hooks=[dict(type='ReseedHook'), dict(type='DyingHook', rank=-1)],
    train_cfg=dict(max_iters=3, val_interval=3),
    train_dataloader=dict(batch_size=2, num_workers=0, persistent_workers=False),
    val_dataloader=dict(batch_size=2, num_workers=0, persistent_workers=False),
    test_dataloader=dict(batch_size=2, num_workers=0, persistent_workers=False),
    load_from=None,
)
DYING = """
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class DyingHook(Hook):
    def __init__(self, rank):
        self.rank = rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if get_rank() == self.rank and runner.iter == 1:
            raise RuntimeError('process 1 was told to die')
"""
SRUN = """
for arg in "$@"; do
  case "$arg" in
    --ntasks=*) n=${arg#*=} ;;
    -*) ;;
    *) break ;;
  esac
  shift
done
export SLURM_NTASKS=$n SLURM_JOB_ID=4242 SLURM_NODELIST='node[1-1]'
for ((i = 0; i < n; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
wait -n && wait -n
"""


@pytest.fixture
def job_folder(tmp_path):
    """A folder with a short config of its own, whose hook can make a process die."""
    lines = [f'{key} = {value!r}' for key, value in SHORT.items()]
    (tmp_path / 'short.py').write_text('\n'.join(lines))
    (tmp_path / 'dying.py').write_text(DYING)
    return tmp_path


def launch(folder, scenes, work_dir, *more, gpus=2, **variables):
    """dist_train.sh in ``folder``; also says how long it took."""
    args = ['short.py', gpus, '--work-dir', work_dir, '--cfg-options', f'data_root={scenes}']
    begin = time.time()
    done = tool('dist_train.sh', *args, *more, cwd=folder, PYTHONPATH=str(folder), **variables)
    return done, time.time() - begin


def require_same_end(folder, *work_dirs):
    files = [torch.load(folder / d / 'iter_3.pth', weights_only=False)['state_dict'] for d in work_dirs]
    for other in files[1:]:
        assert files[0].keys() == other.keys()
        assert all(torch.equal(t, other[k]) for k, t in files[0].items())


@pytest.mark.slow
def test_two_jobs_on_one_machine_and_a_dying_process_ends_its_job_with_its_message(scenes, job_folder):
    with ThreadPoolExecutor() as pool:
        fine = pool.submit(launch, job_folder, scenes, 'fine')
        ill = pool.submit(launch, job_folder, scenes, 'ill', 'custom_hooks.1.rank=1')
    (done, whole), (dead, seconds) = fine.result(), ill.result()
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'No GPU: 2 processes on CPU (gloo), 1 threads each.' in done.stderr
    assert dead.returncode != 0 and seconds < whole + 60, (
        'no later than the other job, which trains to its end beside it'
    )
    assert 'RuntimeError: process 1 was told to die' in dead.stderr
    assert not list((job_folder / 'ill').glob('*.pth'))


def test_slurm_is_asked_for_whole_numbers_of_processes_alone(tmp_path):
    seen = stand_in(tmp_path, {'srun': 'echo "$@"'})
    submit = partial(tool, 'slurm_train.sh', 'part', 'job', 'c.py', 'work', cwd=tmp_path)
    variables = dict(PATH=f'{seen / "bin"}:{os.environ["PATH"]}')
    assert '--ntasks=16' in submit(GPUS='16', **variables).stdout
    assert '--gres' not in submit(GPUS='2', GPUS_PER_NODE='0', **variables).stdout
    for wrong in (
        dict(GPUS='abc'),
        dict(GPUS='0'),
        dict(GPUS_PER_NODE='2.5'),
        dict(GPUS_PER_NODE='08'),
        dict(CPUS_PER_TASK='0'),
    ):
        refused = submit(**variables, **wrong)
        ((name, value),) = wrong.items()
        assert refused.returncode == 2 and not refused.stdout
        assert f"{name} must be a whole number >= 1 (GPUS_PER_NODE: or 0), got '{value}'." in refused.stderr


@pytest.mark.slow
def test_one_machine_two_machines_and_slurm_train_to_the_same_bits(scenes, job_folder):
    """Two machines: two torchruns that meet at a port; Slurm: its command and variables, stood in for."""
    one, _ = launch(job_folder, scenes, 'one')
    assert one.returncode == 0, one.stderr[-3000:]

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        there = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(free.getsockname()[1]))
    with ThreadPoolExecutor() as pool:
        nodes = [pool.submit(launch, job_folder, scenes, 'two', gpus=1, NODE_RANK=str(r), **there) for r in (0, 1)]
    for node in nodes:
        assert node.result()[0].returncode == 0, node.result()[0].stderr[-3000:]

    folder = stand_in(job_folder / 'slurm', {'srun': SRUN, 'scontrol': 'echo 127.0.0.1'})
    variables = dict(PATH=f'{folder / "bin"}:{os.environ["PATH"]}', GPUS='2', GPUS_PER_NODE='0')
    args = ['part', 'job', 'short.py', 'slurm_run', '--cfg-options', f'data_root={scenes}']
    slurm = tool('slurm_train.sh', *args, cwd=job_folder, PYTHONPATH=str(job_folder), **variables)
    assert slurm.returncode == 0, slurm.stderr[-3000:]
    require_same_end(job_folder, 'one', 'two', 'slurm_run')


@pytest.mark.slow
def test_two_processes_evaluate_to_the_numbers_of_one(scenes, job_folder):
    assert launch(job_folder, scenes, 'work')[0].returncode == 0
    model, path = ['short.py', 'work/iter_3.pth'], f'{ROOT}:{job_folder}'
    rest = ['--cfg-options', f'data_root={scenes}', '--work-dir']
    two = tool('dist_test.sh', *model, 2, *rest, 'two', cwd=job_folder, PYTHONPATH=path)
    assert two.returncode == 0, two.stderr[-3000:]
    alone = [sys.executable, str(ROOT / 'tools' / 'test.py'), *model, *rest, 'one']
    env = {**ENV, 'PYTHONPATH': path}
    one = subprocess.run(alone, cwd=job_folder, env=env, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr[-3000:]
    one, two = (json.loads(next((job_folder / d).glob('*/*.json')).read_text()) for d in ('one', 'two'))
    scores = {'aAcc', 'mIoU', 'mAcc'}
    assert {k: one[k] for k in scores} == {k: two[k] for k in scores} and one['mIoU'] > 0
