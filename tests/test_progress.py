"""Progress on a real terminal (a pty), in a log (a pipe) and in TensorBoard's files."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from scalenet_mm.progress import Progress
from scalenet_mm.runner.progress_hook import ProgressHook, log_to_tensorboard, show_progress

ROOT = Path(__file__).parents[1]
RUN = """
import sys, time, torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from scalenet_mm.runner.progress_hook import log_to_tensorboard, show_progress

FAIL_AT, WORK_DIR, DO = int(sys.argv[1]), sys.argv[2], sys.argv[3]

@MODELS.register_module()
class Tiny(BaseModel):
    def __init__(self):
        super().__init__()
        self.w, self.calls = torch.nn.Parameter(torch.zeros(1)), 0
    def forward(self, inputs, mode='loss'):
        time.sleep(0.02)
        if mode != 'loss':
            return [dict(right=1)]
        self.calls += 1
        if self.calls == FAIL_AT:
            raise RuntimeError('the disk is full')
        return dict(loss=(self.w - 1).square().sum())

@DATASETS.register_module()
class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 20
    def __getitem__(self, i):
        return torch.zeros(1)

@METRICS.register_module()
class Right(BaseMetric):
    def process(self, batch, samples):
        self.results += samples
    def compute_metrics(self, results):
        print('Running per image evaluation...')
        return dict(right=len(results))

loader = dict(batch_size=1, num_workers=0, dataset=dict(type='Numbers'),
              sampler=dict(type='DefaultSampler', shuffle=False))
cfg = Config(dict(
    model=dict(type='Tiny'), work_dir=WORK_DIR, default_scope='mmengine',
    train_dataloader=loader, val_dataloader=loader, test_dataloader=loader,
    train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1), val_cfg=dict(), test_cfg=dict(),
    val_evaluator=dict(type='Right'), test_evaluator=dict(type='Right'),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    default_hooks=dict(logger=dict(type='LoggerHook', interval=5)),
))
show_progress(cfg, 'tiny run')
cfg.custom_hooks[-1]['every'] = 0.2
log_to_tensorboard(cfg)
runner = Runner.from_cfg(cfg)
for do in DO.split('+'):
    getattr(runner, do)()
print('after the run')
"""


def command(tmp_path: Path, do: str = 'train', fail_at: int = 0) -> tuple[list[str], dict]:
    script = tmp_path / 'run.py'
    script.write_text(RUN)
    args = [sys.executable, str(script), str(fail_at), str(tmp_path / 'work'), do]
    return args, dict(cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))


def on_a_terminal(args: list[str], columns: int = 120, **kwargs) -> tuple[str, int]:
    """All that a process writes to a terminal of its own, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 50, columns, 0, 0))
    process = subprocess.Popen(args, stdin=theirs, stdout=theirs, stderr=theirs, **kwargs)
    os.close(theirs)
    text, end = b'', time.time() + 120
    while time.time() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                text += os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
    os.close(ours)
    return text.decode(errors='replace'), process.wait(10)


def screen(text: str) -> list[str]:
    """What stays on a terminal wide enough: carriage returns and moves up overwrite (an interpreter of its own)."""
    lines, row, column = [''], 0, 0
    for token in re.findall(r'\x1b\[[0-9;]*[A-Za-z]|[\r\n]|[^\r\n\x1b]+', text):
        if token == '\r':
            column = 0
        elif token == '\n':
            row += 1
            lines += [''] * (row + 1 - len(lines))
        elif token == '\x1b[A':
            row -= 1
        elif token.startswith('\x1b'):
            continue
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines]


@pytest.mark.slow
def test_a_terminal_shows_a_live_bar_that_log_lines_and_prints_do_not_tear(tmp_path):
    args, kwargs = command(tmp_path)
    text, code = on_a_terminal(args, **kwargs)
    assert code == 0, text
    drawn = text.split('\r')
    bars = [d for d in drawn if re.search(r'tiny run: +\d+%\|.*\| \d+/40 \[', d)]
    assert len(bars) > 4  # redrawn in place
    assert any(re.search(r'\[\d\d:\d\d<\d\d:\d\d,.*loss \d\.\d+, memory \d+\.\d GB\]', b) for b in bars)
    assert any(re.search(r'validation: +\d+%\|.*/20 \[', d) for d in drawn)
    left = screen(text)
    kept = [line for line in left if 'tiny run:' in line]
    assert len(kept) == 1 and '40/40' in kept[0]  # one bar at the end, finished
    assert not any('validation:' in line for line in left)
    for line in left:  # a torn line would carry a bar's end before or after its own text
        if ' - mmengine - ' in line:
            assert re.match(r'\d\d/\d\d ', line) and '|' not in line and 'tiny run' not in line
    assert left.count('Running per image evaluation...') == 2
    assert left[-2:] == ['after the run', '']


def test_an_exception_leaves_the_terminal_clean(tmp_path):
    args, kwargs = command(tmp_path, fail_at=25)
    text, code = on_a_terminal(args, columns=0, **kwargs)  # as of a container: its width is unknown
    left = screen(text)
    assert code == 1 and left[-2:] == ['RuntimeError: the disk is full', '']
    assert 'Traceback (most recent call last):' in left  # on a line of its own
    assert any(re.search(r'tiny run: .*\| 2\d/40', line) for line in left)


def test_a_log_gets_plain_lines_and_tensorboard_the_losses(tmp_path):
    args, kwargs = command(tmp_path, 'train+test')
    done = subprocess.run(args, capture_output=True, text=True, timeout=120, **kwargs)
    assert done.returncode == 0, done.stderr
    assert not re.search(r'[\r\x1b]', done.stdout)
    lines = [line for line in done.stdout.splitlines() if 'tiny run:' in line]
    shape = r'  tiny run: +\d+ %, iteration \d+ of 40, loss \d\.\d{3}, memory \d+\.\d GB, 0:00:\d\d left'
    assert all(re.fullmatch(shape, line) for line in lines)
    assert 2 <= len(lines) <= 12  # 0.8 s and more of training, a line at most every 0.2 s
    assert 'iteration 40 of 40' in lines[-1] and '0:00:00 left' in lines[-1]
    assert sum('validation: 100 %, iteration 20 of 20' in x for x in done.stdout.splitlines()) == 2
    assert re.search(r'  test: 100 %, iteration 20 of 20, memory', done.stdout)
    values = scalars(tmp_path / 'work')
    assert [e.step for e in values['loss']] == [5, 10, 15, 20, 25, 30, 35, 40]
    w = 0.0  # loss (w - 1)^2, SGD with lr 0.1; the log holds the mean of five steps
    expected = []
    for _ in range(40):
        expected.append((w - 1) ** 2)
        w -= 0.1 * 2 * (w - 1)
    assert values['loss'][0].value == pytest.approx(sum(expected[:5]) / 5, rel=1e-5)
    assert [e.value for e in values['right']] == [20, 20]  # a test's metrics are no curve


def scalars(work_dir: Path) -> dict:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = work_dir.rglob('events.out.tfevents*')
    events = EventAccumulator(str(file)).Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()['scalars']}


def test_the_time_left_is_told_from_this_calls_iterations(capsys):
    progress = Progress('resumed', 1000, begin=900, every=0, stream=sys.stdout)
    progress.started -= 50  # ten iterations took 50 s, ninety are left
    progress.update(910)
    assert capsys.readouterr().out == '  resumed:  91 %, iteration 910 of 1000, 0:07:30 left\n'


def test_a_loop_that_passes_its_data_twice_leaves_the_training_bar_alone(monkeypatch):
    hook, runner, shown = ProgressHook(), SimpleNamespace(max_iters=10, iter=2, val_dataloader=range(3)), []
    monkeypatch.setattr(Progress, 'update', lambda bar, done, **_: shown.append((bar.what, done)))
    hook.before_train(runner)
    hook.before_val_epoch(runner)
    for _ in range(2):  # a teacher's pass, then its student's
        for i in range(3):
            hook._after_iter(runner, i, mode='val')
    assert shown == 2 * [('validation', 1), ('validation', 2), ('validation', 3)]
    assert [bar.what for bar in hook.open] == ['training']


def test_only_the_first_process_shows_progress(monkeypatch):
    monkeypatch.setattr('scalenet_mm.runner.progress_hook.is_main_process', lambda: False)
    hook = ProgressHook()
    hook._begin('training', 10)
    assert hook.open == []


def test_the_hook_and_the_curves_are_added_once():
    cfg = Config(dict(custom_hooks=[dict(type='AnyDialectHook')]))
    for _ in range(2):
        show_progress(cfg, 'run')
        log_to_tensorboard(cfg)
    assert [h['type'] for h in cfg.custom_hooks] == ['AnyDialectHook', 'ProgressHook']
    assert cfg.custom_hooks[1]['what'] == 'run'
    assert [b['type'] for b in cfg.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']


def test_a_configs_own_visualizer_keeps_its_type_and_name():
    cfg = Config(
        dict(visualizer=dict(type='DetLocalVisualizer', name='v', vis_backends=[dict(type='LocalVisBackend')]))
    )
    log_to_tensorboard(cfg)
    assert (cfg.visualizer.type, cfg.visualizer.name) == ('DetLocalVisualizer', 'v')
