"""Cores that a process may use, of real bindings and rations, and of rations as the kernel writes them."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import wait_policy
from conftest import scalenet
from mmengine.config import ConfigDict

from scalenet_mm.cores import LOAD, at_once, bound, cores, others_run, prepare_threads, quotas
from scalenet_mm.runner.config import ScaleNetRunner

ASK = [sys.executable, '-c', 'from scalenet_mm.cores import cores; print(cores())']


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


VERSION_2 = {
    'self': '0::/pods/mine\n',
    'fs/pods/cpu.max': '150000 100000\n',
    'fs/pods/mine/cpu.max': 'max 100000\n',
    'fs/other/cpu.max': '10000 100000\n',
}
VERSION_1 = {
    'self': '5:memory:/m\n4:cpu,cpuacct:/job\n0::/\n',
    'fs/cpu,cpuacct/job/cpu.cfs_quota_us': '300000\n',
    'fs/cpu,cpuacct/job/cpu.cfs_period_us': '100000\n',
    'fs/cpu,cpuacct/cpu.cfs_quota_us': '-1\n',
    'fs/cpu,cpuacct/cpu.cfs_period_us': '100000\n',
}
# a container's own group lies at the mount, whatever path it has outside
CONTAINER = VERSION_1 | {'self': '4:cpu,cpuacct:/outside\n', 'fs/cpu,cpuacct/cpu.cfs_quota_us': '50000\n'}


@pytest.mark.parametrize(
    ('files', 'expected'), [(VERSION_2, [1.5]), (VERSION_1, [3.0]), (CONTAINER, [0.5])], ids=['2', '1', 'container']
)
def test_rations_are_those_of_a_job_and_of_everything_around_it(tmp_path, files, expected):
    at = written(tmp_path, files)
    assert list(quotas(at / 'self', at / 'fs')) == expected


def test_without_cgroups_the_cores_are_those_that_a_process_is_bound_to(tmp_path):
    assert list(quotas(tmp_path / 'none', tmp_path)) == []
    one = subprocess.run(ASK, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {0}))
    assert one.stdout.strip() == '1', one.stderr


@pytest.fixture
def rationed():
    """Command line -> its output in a cgroup that has the time of one core."""
    free = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
    with ExitStack() as stack:
        try:
            enter = stack.enter_context(wait_policy.rationed())
        except OSError as e:
            pytest.skip(f'no cgroup can be made here: {e}')
        yield (
            lambda *words, **env: (
                subprocess.run(
                    words, capture_output=True, text=True, check=True, preexec_fn=enter, env=free | env
                ).stdout
            )
        )


@pytest.mark.slow
def test_a_rationed_command_has_threads_for_its_ration(rationed, tmp_path):
    assert rationed(*ASK).strip() == '1'
    told = tmp_path / 'told.py'
    told.write_text('import torch; print("threads", torch.get_num_threads())')
    assert 'threads 1' in rationed(*scalenet('run', told))
    assert 'threads 2' in rationed(*scalenet('run', told), OMP_NUM_THREADS='2')


def prepared(loads: bool = False, **given) -> dict[str, str]:
    environment = dict(given)
    prepare_threads(loads, environment)
    return environment


def test_threads_are_left_to_torch_where_nothing_is_rationed_and_nothing_else_runs(monkeypatch):
    monkeypatch.setattr('scalenet_mm.cores.quotas', lambda: iter(()))
    monkeypatch.setattr('scalenet_mm.cores.others_run', lambda threads: False)
    assert prepared() == {}
    assert prepared(loads=True) == {'OMP_WAIT_POLICY': 'PASSIVE'}
    assert prepared(loads=True, OMP_WAIT_POLICY='ACTIVE') == {'OMP_WAIT_POLICY': 'ACTIVE'}
    monkeypatch.setattr('scalenet_mm.cores.others_run', lambda threads: True)
    assert prepared() == {'OMP_WAIT_POLICY': 'PASSIVE'}
    monkeypatch.setattr('scalenet_mm.cores.quotas', lambda: iter([0.3]))
    monkeypatch.setattr('scalenet_mm.cores.bound', lambda: 8)
    assert prepared() == {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE'}


def test_others_run_while_they_do(monkeypatch, tmp_path):
    load, machine = tmp_path / 'loadavg', os.cpu_count()
    monkeypatch.setattr('scalenet_mm.cores.LOAD', load)
    assert not others_run(machine)  # no such file
    load.write_text('9.00 9.00 9.00 1/200 4711\n')  # what was, is over
    assert not others_run(machine)
    load.write_text('0.00 0.00 0.00 2/200 4711\n')
    assert others_run(machine)
    assert not others_run(machine - 1)  # one core is left for it


@pytest.mark.skipif(not LOAD.is_file(), reason='the system does not tell what runs')
def test_a_process_that_computes_is_seen():
    busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(os.cpu_count())]
    try:
        for process in busy:
            while Path(f'/proc/{process.pid}/stat').read_text().split()[2] != 'R':
                time.sleep(0.01)
        assert others_run(os.cpu_count())
    finally:
        for process in busy:
            process.kill()


def test_workers_of_a_loader_do_not_outnumber_the_cores(caplog):
    assert cores() <= bound()
    assert at_once(0) == 0 and at_once(1, processes=64) == 1 and at_once(10**6) == cores()
    data = torch.utils.data.TensorDataset(torch.arange(4))
    cfg = ConfigDict(
        dataset=data, batch_size=2, num_workers=999, persistent_workers=True, sampler=dict(type='DefaultSampler')
    )
    loader = ScaleNetRunner.build_dataloader(cfg)
    assert loader.num_workers == cores() and cfg.num_workers == 999
    assert ScaleNetRunner.build_dataloader(loader) is loader
