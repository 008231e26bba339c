"""The main job, small: scale a trained network x2 with shared layers, train it, compare with training the source on.

    scalenet experiment quickstart [--task cls|det|seg] [--work-dir DIR] [--data DIR] [--epochs N] [--seed N] [--lr X]

Real handwritten digits (no download), trained sources that come with the package, the shipped configs, the real Runner.
An interrupted call continues where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ...commands.main import command_parser
from ...commands.numbers import above_zero, at_least_one, seed
from ...file_names import a_folder
from ...one_run import one_run
from ..data import make_demo_data
from ..quickstart import quickstart_page as report
from ..quickstart.quickstart_runs import Job, Result
from ..quickstart.quickstart_tasks import TASKS

STEPS = 5


def say(step: int, text: str) -> None:
    print(f'[{step}/{STEPS}] {text}', flush=True)


def make_data(job: Job) -> None:
    train, val = job.scenes
    try:
        make_demo_data(job.data, [job.task.layout], train=train, val=val, workers=2, progress=True)
    except (OSError, ValueError, ImportError) as e:
        raise SystemExit(str(e)) from e


def train_on(job: Job, source: str) -> list[Result]:
    """Source, and the source trained on."""
    task = job.task
    cfg = job.config(task.source, 'control', job.epochs, source, job.control_options)
    rows = [job.evaluate('source', cfg, task.source, source, 0.0)]
    return [*rows, job.evaluate('source trained on (control)', cfg, task.source, *job.train(cfg))]


def train_scaled(job: Job, source: str) -> list[Result]:
    """Scaled and not trained; trained."""
    task = job.task
    cfg = job.config(task.scaled, 'scalenet', job.epochs, source, job.scaled_options)
    rows = [job.evaluate('scaled x2, not yet trained', cfg, task.scaled, source, 0.0)]
    return [*rows, job.evaluate('ScaleNet x2, trained', cfg, task.scaled, *job.train(cfg))]


def run(job: Job) -> list[Result]:
    """Source, control, scaled untrained, scaled trained."""
    task, source = job.task, str(job.task.weights)
    say(1, f'Data: scenes of handwritten digits in {task.layout} layout -> {job.data}')
    make_data(job)
    say(2, f'Source: {task.what[0]}, trained before: {source}')
    say(3, f'Control: the source trained on; epochs: {job.epochs}')
    rows = train_on(job, source)
    say(4, f'ScaleNet: {task.what[1]}; epochs: {job.epochs}')
    return [*rows, *train_scaled(job, source)]


def main(argv: Sequence[str]) -> None:
    p = command_parser(__doc__)
    add = p.add_argument
    add('--task', choices=list(TASKS), default='cls', help='default: cls')
    add(
        '--work-dir',
        type=a_folder,
        default=Path('work_dirs/quickstart'),
        help='receives one folder a task: checkpoints, logs, table, picture',
    )
    add('--data', type=a_folder, default=Path('data/quickstart'), help='where the scenes are, or are made')
    add('--epochs', type=at_least_one, help="of ScaleNet and of the control; default: the config's own")
    add('--scenes', type=at_least_one, nargs=2, metavar=('TRAIN', 'VAL'), help='for a trial on less data; default: all')
    add('--seed', type=seed, default=1, help='default: 1; on 0 the settings were chosen')
    add('--lr', type=above_zero, help="ScaleNet's learning rate; default: the config's, chosen on seed 0")
    add('--control-lr', type=above_zero, help="the control's; default: chosen on seed 0")
    args = p.parse_args(argv)
    begin, task = time.time(), TASKS[args.task]
    print(f'{args.task}: about {task.minutes} minutes on two idle cores.', flush=True)
    folder = args.work_dir / args.task
    job = Job(task, folder, args.data, args.epochs, args.scenes, args.seed, (args.lr, args.control_lr))
    with one_run(folder):
        rows = run(job)
    say(5, 'Result')
    text = report.table(rows, task) + '\n\n' + report.notes(task, job.scenes[1], args.seed)
    print(f'\n{text}\n')
    report.write(rows, task, text, folder)
    print(f'Picture: {folder / "result.png"}   Table: {folder / "result.txt"}')
    print(f'{(time.time() - begin) / 60:.1f} minutes in all, this call.')
