"""Data-parallel training on paper: its arithmetic by hand, and what two real processes send to each other."""

import subprocess
from pathlib import Path

import pytest
from conftest import in_two_processes, scalenet

from scalenet_mm.experiments.benchmark.many_gpus import BUCKET, LATENCY, Cluster, Counted, ways
from scalenet_mm.experiments.benchmark.settings import Settings

GPU = Cluster(flops=1e12, memory=1e12, network=1e9)
NET = Counted('', params=100_000_000, trained=25_000_000, forward=10**9, step=3 * 10**9, saved=0)  # 100 MB of gradients


def test_state_and_traffic_by_hand():
    assert NET.state == 400e6 + 300e6
    assert NET.traffic(2) == 100e6 and NET.traffic(8) == 175e6


def test_the_exchange_hides_behind_the_backward_pass_but_for_its_last_bucket():
    assert GPU.step(NET, 1, 10) == pytest.approx(0.030 + 0.0007)
    exchange = 0.1 + 2 * LATENCY * 4  # two GPUs, four buckets
    assert -(-100_000_000 // BUCKET) == 4
    assert GPU.step(NET, 2, 10) == pytest.approx(0.030 + (exchange - 0.020) + 0.0007)
    assert GPU.step(NET, 2, 100) == pytest.approx(0.300 + exchange / 4 + 0.0007)


def test_what_is_counted_orders_the_ways_to_train():
    increments, whole, unshared, source = ways(Settings(size='micro'), 'DeiT-T')
    assert increments.trained < source.trained < whole.trained < unshared.trained == unshared.params
    assert whole.params == increments.params and whole.forward == increments.forward
    assert increments.step < whole.step and source.forward < unshared.forward < 2 * source.forward
    assert increments.saved < unshared.saved


@pytest.mark.slow
def test_the_table_has_a_row_a_way_and_a_column_a_size():
    done = subprocess.run(
        scalenet('experiment', 'cluster', '--micro', '--networks', '5'), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith('| ScaleNet, increments')]
    assert len(rows) == 2 and rows[0].count('|') == 1 + 6 + 4


DDP = """
import os, sys
import torch, torch.distributed as dist
from pathlib import Path

def received():
    lines = Path('/proc/net/dev').read_text().splitlines()
    return int(next(x for x in lines if x.strip().startswith('lo:')).split(':')[1].split()[0])

dist.init_process_group('gloo')
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(8)))
for p in model[4:].parameters():
    p.requires_grad_(False)
ddp = torch.nn.parallel.DistributedDataParallel(model)
def step():
    ddp(torch.randn(4, 1024)).sum().backward()
for _ in range(2):
    step()
dist.barrier()
before = received()
for _ in range(20):
    step()
dist.barrier()
if dist.get_rank() == 0:
    print('received', (received() - before) / 20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/net/dev').is_file(), reason='the system does not count what is sent')
def test_two_processes_send_what_the_model_says(tmp_path):
    """Both processes' share goes over the loopback interface, whose counter other programs use too, but little."""
    (tmp_path / 'ddp.py').write_text(DDP)
    done = subprocess.run(in_two_processes(tmp_path / 'ddp.py'), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    net = Counted('', 8 * 1024**2, 4 * 1024**2, 1, 2, 0)
    sent = float(done.stdout.split('received')[1].split()[0])
    assert sent == pytest.approx(2 * net.traffic(2), rel=0.1)
