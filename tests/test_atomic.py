"""A killed process, a full disk or a lost folder leaves the last checkpoint whole, and a resume is exact."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint
from toy_run import kill_at, toy_config, write_base

from scalenet_mm.checkpoint.reading import read_checkpoint
from scalenet_mm.checkpoint.writing import write_atomically
from scalenet_mm.file_names import DIGEST
from scalenet_mm.runner.atomic import make_atomic
from scalenet_mm.runner.config import build_runner
from scalenet_mm.runner.resume import make_resumable

ROOT = Path(__file__).parents[1]
LOOPS = {'epochs': 'epoch_{}.pth', 'iterations': 'iter_{}.pth'}
# where in the run of four checkpoints the process dies: at the n-th of these system calls
KILLED = {
    'in the second checkpoint': ('fsync', 3),
    'between the second checkpoint and the name of the last one': ('fsync', 4),
    'before the first checkpoint is removed': ('remove', 1),
}


@pytest.fixture(autouse=True)
def one_thread():
    """A forked process cannot use its parent's threads, and the number of threads changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def atomic(cfg: Config, resume: bool = False) -> Config:
    make_resumable(cfg)
    make_atomic(cfg)
    latest = find_latest_checkpoint(cfg.work_dir) if resume else None
    if latest:
        cfg.load_from, cfg.resume = latest, True
    return cfg


def in_a_process(work, *args) -> int:
    """The exit code of ``work(*args)`` in a forked process; minus the signal that ended it."""

    process = multiprocessing.get_context('fork').Process(target=work, args=args)
    process.start()
    process.join(300)
    return process.exitcode


def train(cfg: Config, *kill) -> None:
    if kill:
        kill_at(*kill)
    Runner.from_cfg(cfg).train()


def last(work_dir: Path) -> dict:
    path = Path((work_dir / 'last_checkpoint').read_text())
    return torch.load(path, weights_only=False)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize('where', KILLED)
def test_a_run_killed_while_it_saves_keeps_a_checkpoint_and_resumes_to_the_same_bits(where, loop, tmp_path):
    base = write_base(tmp_path / 'base.pth')

    def config(name):
        return toy_config(tmp_path / name, base, loop, max_keep_ckpts=1)

    train(atomic(config('whole')))
    assert in_a_process(train, atomic(config('killed')), *KILLED[where]) == -signal.SIGKILL
    left = sorted(p.name for p in (tmp_path / 'killed').glob('*.pth*'))
    first, second = (LOOPS[loop].format(n * (1 if loop == 'epochs' else 4)) for n in (1, 2))
    names = {
        'in the second checkpoint': [first, second + '.unfinished'],
        'between the second checkpoint and the name of the last one': [first, second],
        'before the first checkpoint is removed': [first, second],
    }
    assert left == names[where]
    assert last(tmp_path / 'killed')['state_dict'], 'the last checkpoint is whole'
    (tmp_path / 'killed' / 'best.pth.unfinished').write_bytes(b'of a run killed before')
    train(atomic(config('killed'), resume=True))
    whole, killed = last(tmp_path / 'whole'), last(tmp_path / 'killed')
    assert whole['meta']['iter'] == killed['meta']['iter'] == 16
    assert same(whole['state_dict'], killed['state_dict'])
    for i, state in whole['optimizer']['state'].items():
        assert same(state, killed['optimizer']['state'][i])
    files = [
        {p.name for p in (tmp_path / n).iterdir() if p.is_file() and p.suffix != '.py'} for n in ('whole', 'killed')
    ]
    assert files[0] == files[1], 'no unfinished and no outdated file is left'


def test_the_best_checkpoint_is_removed_after_the_better_one_is_written(tmp_path):
    base = write_base(tmp_path / 'base.pth')
    cfg = toy_config(tmp_path / 'w', base, max_keep_ckpts=1, save_best='acc')
    # files written: epoch_1, last_checkpoint, best_1, epoch_1, last_checkpoint, epoch_2, last_checkpoint, best_2
    assert in_a_process(train, atomic(cfg), 'fsync', 8) == -signal.SIGKILL
    left = {p.name for p in (tmp_path / 'w').glob('*best*')}
    assert left == {'best_acc_epoch_1.pth', 'best_acc_epoch_2.pth.unfinished'}
    assert torch.load(tmp_path / 'w' / 'best_acc_epoch_1.pth', weights_only=False)['state_dict']
    train(atomic(toy_config(tmp_path / 'w', base, max_keep_ckpts=1, save_best='acc'), True))
    left = {p.name for p in (tmp_path / 'w').glob('*.pth*')}
    assert left == {'epoch_4.pth', 'best_acc_epoch_4.pth'}


def test_what_is_kept_is_what_mmengine_keeps(tmp_path):
    base = write_base(tmp_path / 'base.pth')
    kept = {}
    for name in ('stock', 'atomic'):
        cfg = toy_config(tmp_path / name, base, max_keep_ckpts=2, save_best='acc')
        cfg.val_evaluator.peak = 2
        train(atomic(cfg) if name == 'atomic' else cfg)
        info = last(tmp_path / name)['message_hub']['runtime_info']
        kept[name] = {p.name for p in (tmp_path / name).glob('*.pth')}
        kept[name].add(Path(info['best_ckpt']).name)
    assert kept['atomic'] == kept['stock'] == {'epoch_3.pth', 'epoch_4.pth', 'best_acc_epoch_2.pth'}


def fill_the_disk(path: Path) -> None:
    """A limit on the size of files stands for the full disk: the system refuses to write past it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match=r'new\.pth \(5,000 bytes\) could not be written: File too'):
        write_atomically(path, b'x' * 5000)


def test_a_published_checkpoint_is_read_by_the_digest_in_its_name(tmp_path):
    cfg = toy_config(tmp_path / 'w', published_keys=['meta', 'state_dict'], save_best='acc')
    cfg.train_cfg.max_epochs = 1
    build_runner(cfg).train()
    last = torch.load(tmp_path / 'w' / 'epoch_1.pth', weights_only=False)
    published = [p for p in (tmp_path / 'w').glob('*.pth') if DIGEST.search(p.name)]
    assert sorted(p.name.rpartition('-')[0] for p in published) == ['best_acc_epoch_1', 'epoch_1']
    for path in published:
        content = read_checkpoint(path)
        assert content.keys() == {'meta', 'state_dict'}
        assert all(torch.equal(content['state_dict'][key], value) for key, value in last['state_dict'].items())


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'new.pth'
    write_atomically(path, b'old')
    assert in_a_process(fill_the_disk, path) == 0
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['new.pth']


def test_the_file_behind_a_link_is_written(tmp_path):
    (tmp_path / 'big disk').mkdir()
    for name in ('old.pth', 'new.pth'):
        (tmp_path / name).symlink_to(tmp_path / 'big disk' / name)
    (tmp_path / 'big disk' / 'old.pth').write_bytes(b'old')
    for name in ('old.pth', 'new.pth'):
        write_atomically(tmp_path / name, b'new')
        assert (tmp_path / name).is_symlink() and (tmp_path / 'big disk' / name).read_bytes() == b'new'
    assert sorted(os.listdir(tmp_path / 'big disk')) == ['new.pth', 'old.pth']


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('kept')
    with pytest.raises(OSError, match=r'a\.pth \(3 bytes\) could not be written: (Not a d|File ex)'):
        write_atomically(tmp_path / 'file' / 'a.pth', b'new')
    assert (tmp_path / 'file').read_text() == 'kept'


def test_a_run_stopped_by_a_full_disk_keeps_its_checkpoint(tmp_path):
    base = write_base(tmp_path / 'base.pth')
    cfg = atomic(toy_config(tmp_path / 'w', base, max_keep_ckpts=1))

    def stopped():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        runner = Runner.from_cfg(cfg)
        runner.register_hook(FillsTheDisk())
        with pytest.raises(OSError, match='continues with --resume'):
            runner.train()

    assert in_a_process(stopped) == 0
    assert {p.name for p in (tmp_path / 'w').glob('*.pth*')} == {'epoch_1.pth'}
    assert last(tmp_path / 'w')['meta']['epoch'] == 1


class FillsTheDisk(CheckpointHook.__bases__[0]):
    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))


def test_make_atomic_changes_mmengines_hook_only():
    cases = {
        'absent': (dict(), dict(type='ScaleNetCheckpointHook', interval=1)),
        'named': (
            dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=7))),
            dict(type='ScaleNetCheckpointHook', interval=7),
        ),
        'class': (
            dict(default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=3))),
            dict(type='ScaleNetCheckpointHook', interval=3),
        ),
        'own': (dict(default_hooks=dict(checkpoint=dict(type='MyHook'))), dict(type='MyHook')),
        'off': (dict(default_hooks=dict(checkpoint=None)), None),
    }
    for name, (given, expected) in cases.items():
        cfg = Config(given)
        make_atomic(cfg)
        make_atomic(cfg)
        assert cfg.default_hooks['checkpoint'] == expected, name


@pytest.mark.slow
@pytest.mark.parametrize('loop', LOOPS)
def test_the_training_tool_survives_kill_9_in_a_checkpoint(loop, tmp_path):
    base = write_base(tmp_path / 'base.pth')
    cfg = toy_config(tmp_path / 'unused', base, loop, max_keep_ckpts=1)
    make_atomic(cfg)
    cfg.dump(tmp_path / 'config.py')

    def run(name, *args, kill=''):
        env = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(ROOT / 'tests'), str(ROOT)]),
            'TOY_KILL': kill,
            'OMP_NUM_THREADS': '1',
        }
        command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(tmp_path / 'config.py')]
        return subprocess.run(
            [*command, '--work-dir', str(tmp_path / name), *args],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    assert run('whole').returncode == 0
    killed = run('killed', kill='fsync:5')  # in the third checkpoint
    assert killed.returncode == -signal.SIGKILL, killed.stdout[-2000:]
    resumed = run('killed', '--resume')
    assert resumed.returncode == 0, resumed.stdout[-2000:]
    whole, again = last(tmp_path / 'whole'), last(tmp_path / 'killed')
    assert same(whole['state_dict'], again['state_dict'])
