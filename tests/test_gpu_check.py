"""The command for a GPU's first minutes, as far as it goes without one."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import scalenet

from scalenet_mm.checkpoint.delta_file import read_delta
from scalenet_mm.experiments.benchmark import first_minutes
from scalenet_mm.experiments.benchmark.first_minutes import carry_out, run
from scalenet_mm.experiments.benchmark.goals import DEFAULT
from scalenet_mm.experiments.benchmark.gpu_steps import DRY, Size, Step, chains, last_logged, speeds
from scalenet_mm.experiments.commands.gpu_check import main
from scalenet_mm.one_run import Stopped, ending_cleanly


@pytest.mark.slow
def test_every_step_runs_on_the_cpu(tmp_path):
    out = tmp_path / 'out'
    done = subprocess.run(scalenet('experiment', 'gpu-check', '--out', out, '--dry'), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((out / 'gpu_check.json').read_text())
    found = {s['step']: s for s in result['steps']}
    assert {s['status'] for s in result['steps']} == {'done'} and 'cpu' in result['machine']
    ends = {'detection: train': 4, 'segmentation: train': 4, 'classification: train, compiled': 4}
    assert {name: found[name]['iter'] for name in ends} == ends
    assert all(0 < found[name]['loss'] < 100 for name in ends)
    assert found['detection: resume']['iter'] == 6 and found['segmentation: torchrun, 2']['iter'] == 4
    assert found['detection: train']['command'].startswith('python -m scalenet_mm train OUT/detection/')
    delta = out / 'detection' / 'exported.delta.safetensors'
    assert found['detection: delta verify']['bytes'] == delta.stat().st_size
    assert read_delta(delta).position['iter'] == 6
    (speed,) = json.loads((out / 'performance_gpu.json').read_text())['runs']
    assert [row['pair'] for row in speed['rows']] == ['P7', 'P7']


def all_steps(size: Size, out: Path) -> list[Step]:
    return [*itertools.chain.from_iterable(chains(size, out).values()), *speeds(size, out)]


def test_on_a_gpu_everything_is_done_at_full_size(tmp_path):
    named = {s.name: ' '.join(s.command) for s in all_steps(Size(), tmp_path)}
    assert '--amp' in named['detection: train'] and 'mask_rcnn_scalenet_swin_t_1x.py' in named['detection: train']
    assert 'ops.compile=True' in named['classification: train, compiled']
    measured = [c for n, c in named.items() if n.startswith('speed')]
    assert all('--device cuda' in c for c in measured)
    pairs = set(','.join(re.search(r'--pairs (\S+)', c).group(1) for c in measured).split(','))
    assert {*DEFAULT, 'latency', 'kernels', 'ablation'} == pairs
    assert any('-m gpu' in c for c in named.values())


def test_speeds_are_measured_alone_and_chains_are_not(tmp_path, monkeypatch):
    wait = 'import time; time.sleep(3)'
    apart = {'a': [one(wait, 'first')], 'b': [one(wait, 'second')]}
    monkeypatch.setattr(first_minutes, 'chains', lambda size, out: apart)
    monkeypatch.setattr(first_minutes, 'speeds', lambda size, out: [one('pass', 'speed')])
    begin, told = time.monotonic(), []
    records = run(replace(DRY, at_once=2), tmp_path, 1, lambda line: told.append((time.monotonic() - begin, line)))
    assert [r['step'] for r in records] == ['first', 'second', 'speed'] and {r['status'] for r in records} == {'done'}
    (one_ended, _), (other_ended, _), (_, last) = told
    assert abs(other_ended - one_ended) < 2.5 and 'speed' in last


def one(code: str, name: str = 'one', needs: str = '') -> Step:
    return Step(name, (sys.executable, '-c', code), lambda: dict(read=1), needs)


def test_a_step_that_fails_costs_itself_and_what_needs_it_alone(tmp_path, monkeypatch):
    fails = one('print("a log"); raise SystemExit("it broke")', 'fails')
    todo = [fails, one('pass', 'needs it', 'fails'), one('pass', 'another')]
    monkeypatch.setattr(first_minutes, 'chains', lambda size, out: {'one': todo})
    monkeypatch.setattr(first_minutes, 'speeds', lambda size, out: [])
    told = []
    records = run(DRY, tmp_path, 1, told.append)
    assert [r['status'] for r in records] == ['failed', 'not run', 'done']
    assert records[0]['error'] == 'it broke' and records[0]['exit'] == 1 and records[2]['read'] == 1
    assert json.loads((tmp_path / 'gpu_check.json').read_text())['steps'] == records
    assert 'a log' in (tmp_path / 'logs' / records[0]['log']).read_text() and len(told) == 3
    assert [r['why'] for r in run(DRY, tmp_path, 0.1)] == ['no time was left', 'fails is not done', 'no time was left']


def test_images_that_cannot_be_made_cost_their_own_chain_alone(tmp_path, monkeypatch):
    apart = {'detection': [one('pass', 'train'), one('pass', 'resume', 'train')], 'tests': [one('pass', 'tests')]}
    monkeypatch.setattr(first_minutes, 'chains', lambda size, out: apart)
    monkeypatch.setattr(first_minutes, 'speeds', lambda size, out: [one('pass', 'speed')])
    (tmp_path / 'detection').write_text('a file where a folder is to be')
    found = {r['step']: r for r in run(DRY, tmp_path, 1, str)}
    assert {n: r['status'] for n, r in found.items()} == dict(
        train='failed', resume='failed', tests='done', speed='done'
    )
    assert 'could not be made: FileExistsError' in found['train']['error']


def test_the_line_of_a_log_that_tells_what_failed(tmp_path):
    (tmp_path / 'log').write_text('begins\nValueError: no weights\n\nIf that is wrong, --no-preflight\n=======\n')
    assert first_minutes.what_failed(tmp_path / 'log') == 'ValueError: no weights'
    (tmp_path / 'log').write_text('begins\nit broke\n=====\n')
    assert first_minutes.what_failed(tmp_path / 'log') == 'it broke'


def test_a_check_that_is_told_to_end_begins_nothing_else_and_ends_what_runs(tmp_path, monkeypatch):
    wait = f'from pathlib import Path; import time; Path({str(tmp_path / "runs")!r}).touch(); time.sleep(60)'
    todo = [one(wait, 'first'), one('pass', 'second')]
    monkeypatch.setattr(first_minutes, 'chains', lambda size, out: {'one': todo})
    monkeypatch.setattr(first_minutes, 'speeds', lambda size, out: [one('pass', 'speed')])

    def stop():
        while not (tmp_path / 'runs').exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    begin = time.monotonic()
    with pytest.raises(Stopped), ending_cleanly():
        run(DRY, tmp_path, 5, str)
    assert time.monotonic() - begin < 30
    steps = (
        json.loads((tmp_path / 'gpu_check.json').read_text())['steps'] if (tmp_path / 'gpu_check.json').exists() else []
    )
    assert {'second', 'speed'}.isdisjoint(s['step'] for s in steps)


def test_a_check_that_did_nothing_has_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(first_minutes, 'chains', lambda size, out: {'one': [one('pass')]})
    monkeypatch.setattr(first_minutes, 'speeds', lambda size, out: [])
    assert main(['--out', str(tmp_path / 'a'), '--dry', '--minutes', '0.1']) == 1
    assert main(['--out', str(tmp_path / 'b'), '--dry', '--minutes', '1']) == 0


def test_what_is_compiled_is_not_begun_without_a_compiler(tmp_path, monkeypatch):
    words = '--compiled', 'model.backbone.ops.compile=True'
    todo = [Step(word, (sys.executable, '-c', 'pass', word)) for word in words]
    monkeypatch.setattr(first_minutes, 'chains', lambda size, out: {'one': [*todo, one('pass', 'another')]})
    monkeypatch.setattr(first_minutes, 'speeds', lambda size, out: [])
    monkeypatch.delenv('CC', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    records = run(DRY, tmp_path, 1, str)
    assert [r['status'] for r in records] == ['not run', 'not run', 'done'] and 'set CC' in records[0]['why']
    (tmp_path / 'gcc').write_text('')
    (tmp_path / 'gcc').chmod(0o755)
    assert {r['status'] for r in run(DRY, tmp_path, 1, str)} == {'done'}


WORKER = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"


def test_a_step_has_what_is_left_of_the_time_and_leaves_no_process(tmp_path):
    begin = time.monotonic()
    record = carry_out(one(f'{WORKER}; print(p.pid, flush=True); time.sleep(60)'), 5, tmp_path / 'log')
    assert record['status'] == 'out of time' and time.monotonic() - begin < 30
    worker = Path(f'/proc/{int((tmp_path / "log").read_text())}/stat')

    def ended() -> bool:
        with suppress(OSError):  # it is gone
            return worker.read_text().split()[2] == 'Z'
        return True

    while not ended() and time.monotonic() - begin < 30:  # a busy machine ends it a moment after the signal
        time.sleep(0.05)
    assert ended()


def test_a_step_that_has_not_written_what_it_should_have_failed(tmp_path):
    step = Step('train', (sys.executable, '-c', 'pass'), lambda: last_logged(tmp_path / 'nowhere'))
    record = carry_out(step, 60, tmp_path / 'log')
    assert record['status'] == 'failed' and record['error'].startswith('IndexError')


def test_what_continues_a_run_needs_that_run(tmp_path):
    needs = {s.name: s.needs for s in all_steps(Size(), tmp_path)}
    assert needs['detection: resume'] == 'detection: train'
    assert needs['detection: delta export'] == 'detection: resume'
    assert needs['detection: delta verify'] == 'detection: delta export'
    assert set(filter(None, needs.values())) <= set(needs)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_or_with_a_folder_in_use_nothing_is_begun(tmp_path):
    with pytest.raises(SystemExit, match='sees no CUDA GPU here; --dry'):
        main(['--out', str(tmp_path / 'new')])
    assert not (tmp_path / 'new').exists()
    (tmp_path / 'kept.txt').touch()
    with pytest.raises(SystemExit, match='is not empty; name another folder'):
        main(['--out', str(tmp_path), '--dry'])
