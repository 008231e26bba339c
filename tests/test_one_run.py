"""One run a folder, and nothing left of it when it is told to end: real runs in real processes."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from conftest import ROOT, scalenet

from scalenet_mm.commands.main import main
from scalenet_mm.one_run import LOCK, _held, ending_cleanly, one_run, only_process

CONFIG = ROOT / 'configs' / 'demo' / 'rank_deit.py'
WORKERS = ('train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True')
LONG = ('train_cfg.max_iters=100000', 'train_dataloader.dataset.batch=2')


def begin(folder, *more):
    """A training that goes on, once it has trained."""
    words = scalenet('train', CONFIG, '--work-dir', folder, '--cfg-options', *LONG, *more)
    words.insert(1, '-Xfaulthandler')  # says where, should it crash
    # tests that are run by nohup ignore SIGHUP, and what they start would too
    heed = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = subprocess.Popen(words, cwd=ROOT, preexec_fn=heed, **pipes)
    for line in run.stdout:
        if re.search(r'Iter\(train\)', line):
            return run
    raise AssertionError(f'ended with {run.wait()}')


def family(pid: int) -> set[int]:
    """The processes below one."""
    table = subprocess.run(['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True).stdout.split()
    parents = dict(zip(map(int, table[::2]), map(int, table[1::2])))
    found, new = set(), {pid}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in new} - found
    return found - {pid}


def alive(pids) -> set[int]:
    """Those that run: a zombie has ended."""
    return {p for p in pids if os.path.exists(f'/proc/{p}/stat') and ' Z ' not in open(f'/proc/{p}/stat').read()}


def soon(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_does_not_block(tmp_path):
    first = begin(tmp_path, *WORKERS)
    try:
        words = scalenet('train', CONFIG, '--work-dir', tmp_path)
        before = sorted(p for p in tmp_path.rglob('*') if p.name.endswith('.log'))
        second = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        assert second.returncode == 2 and f'process {first.pid} on' in second.stderr, second.stderr
        assert 'choose another folder' in second.stderr and 'Traceback' not in second.stderr
        assert before == sorted(p for p in tmp_path.rglob('*') if p.name.endswith('.log')), 'it started'
        with one_run(tmp_path / 'other'):
            pass
    finally:
        first.kill()
        first.wait()
    with one_run(tmp_path):  # at once, whatever the workers of the killed one still do
        pass


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_ends_everything_that_a_run_started(number, tmp_path):
    run = begin(tmp_path, *WORKERS)
    started = family(run.pid)
    assert len(started) >= 2, 'the workers of its loader'
    run.send_signal(number)
    rest, _ = run.communicate(timeout=30)
    assert run.returncode == 128 + number, rest
    assert soon(lambda: not alive(started)), started


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_does_not_take_the_interpreter_down(number, tmp_path):
    """What threads of loaders do then may crash it in place of its status; what was to be done at its end is done."""
    script = tmp_path / 'stopped.py'
    script.write_text(
        'import atexit, os, signal, sys\n'
        'class Crash:\n'
        '    def __del__(self, crash=os._exit):\n'
        '        crash(99)\n'
        "atexit.register(print, 'kept')\n"
        'sys.held = Crash()\n'
        f'sys.file = open({str(tmp_path / "file")!r}, "w")\n'
        "sys.file.write('kept')\n"
        f'signal.raise_signal({int(number)})\n'
    )
    words = scalenet('run', script)
    heed = partial(signal.signal, number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, preexec_fn=heed)
    assert (done.returncode, done.stdout) == (128 + number, 'kept\n'), done
    assert (tmp_path / 'file').read_text() == 'kept'


def test_a_program_that_calls_a_command_goes_on_after_ctrl_c_and_ends_itself_when_it_is_told_to(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, 'argv', ['scalenet'])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    script = tmp_path / 'stopped.py'
    script.write_text('import signal, sys\nsignal.raise_signal(int(sys.argv[1]))\n')
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert main(['run', str(script), str(int(signal.SIGINT))]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.endswith('scalenet run: stopped.\n')
    with pytest.raises(SystemExit) as end:
        main(['run', str(script), str(int(signal.SIGTERM))])
    assert end.value.code == 143


@pytest.mark.slow
def test_another_projects_runner_call_is_held_to_it_too(tmp_path):
    """As mmdet's own tools/train.py ends: `RUNNERS.build(cfg).train()`, without the command line."""
    code = (
        'import scalenet_mm\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import RUNNERS\n'
        f'cfg = Config.fromfile({str(CONFIG)!r})\n'
        f"cfg.merge_from_dict(dict(work_dir={str(tmp_path)!r}, runner_type='ScaleNetRunner', launcher='none'))\n"
        "cfg.merge_from_dict({'train_cfg.max_iters': 4, 'train_cfg.val_interval': 9})\n"
        'RUNNERS.build(cfg).train()\n'
    )
    with one_run(tmp_path):
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and f'process {os.getpid()} on' in done.stderr, done.stderr
    assert not list(tmp_path.glob('iter_*'))


def test_a_forked_process_does_not_keep_what_its_dead_parent_held(tmp_path):
    code = (
        'import os, sys, time\n'
        'from scalenet_mm.one_run import one_run\n'
        'with one_run(sys.argv[1]):\n'
        '    if not os.fork():\n'
        '        time.sleep(60)\n'
        "    print('held', flush=True)\n"
        '    time.sleep(60)\n'
    )
    parent = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout.readline() == 'held\n'
    children = family(parent.pid)
    try:
        with pytest.raises(SystemExit, match=f'process {parent.pid} on'), one_run(tmp_path):
            pass
        parent.kill()
        parent.wait()
        assert alive(children)
        with one_run(tmp_path):
            pass
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_a_file_system_without_locks_keeps_no_run_from_its_work(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.flock', no_locks)  # stands in for such a file system, which is not mounted here
    with one_run(tmp_path):
        pass
    assert f'The file system of {tmp_path / LOCK} keeps no locks' in capsys.readouterr().err


def test_one_process_may_enter_twice_and_only_the_first_of_a_distributed_run_holds(tmp_path, monkeypatch):
    with one_run(tmp_path), one_run(tmp_path):
        pass
    file = tmp_path / LOCK
    with only_process(file, 'held by {holder}'):
        with (
            pytest.raises(BlockingIOError, match=f'held by process {os.getpid()}'),
            only_process(file, 'held by {holder}'),
        ):
            pass
        # torchrun; mpirun, alone and within a job of Slurm; srun
        for names in (
            ('RANK',),
            ('OMPI_COMM_WORLD_RANK',),
            ('OMPI_COMM_WORLD_RANK', 'SLURM_PROCID'),
            ('SLURM_PROCID',),
        ):
            with monkeypatch.context() as patch:
                patch.setitem(_held, file.resolve(), None)
                patch.delitem(_held, file.resolve())  # as in another process
                patch.setenv(names[-1], '0')
                patch.setenv(names[0], '0')
                with pytest.raises(SystemExit, match='a run goes on in'), one_run(tmp_path):
                    pass
                patch.setenv(names[0], '1')
                with one_run(tmp_path):
                    pass


def test_a_handler_of_somebody_elses_stays():
    def mine(*_):
        pass

    old = signal.signal(signal.SIGTERM, mine)
    try:
        with ending_cleanly():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, old)
    with ending_cleanly():
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, old)
    assert signal.getsignal(signal.SIGTERM) is old
