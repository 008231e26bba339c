"""The main job, small: train a "pretrained" detector, scale it x2 with shared layers, train the increments, compare.

    scalenet experiment quickstart [--task det|seg|cls] [--work-dir DIR] [--data DIR] [--epochs N N] [--seed N]

Real handwritten digits (no download), the shipped configs, the real Runner. An interrupted call continues where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ...commands.main import command_parser
from ...file_names import a_folder
from ...one_run import one_run
from ..data import make_demo_data
from ..quickstart import quickstart_page as report
from ..quickstart.quickstart_runs import Job, Result
from ..quickstart.quickstart_tasks import TASKS

STEPS = 5


def say(step: int, text: str) -> None:
    print(f'[{step}/{STEPS}] {text}', flush=True)


def run(job: Job, floor: float) -> list[Result]:
    """Source, control, scaled untrained, scaled trained."""
    task, (source_epochs, epochs) = job.task, job.epochs
    say(1, f'Data: scenes of handwritten digits in {task.layout} layout -> {job.data}')
    try:
        train, val = job.scenes
        make_demo_data(job.data, [task.layout], train=train, val=val, workers=2, progress=True)
    except (OSError, ValueError, ImportError) as e:
        raise SystemExit(str(e)) from e
    say(2, f'Source: {task.what[0]}, from scratch; epochs: {source_epochs}')
    cfg = job.config(task.source, 'source', source_epochs)
    source, minutes = job.train(cfg)
    rows = [job.evaluate('source', cfg, task.source, source, minutes)]
    column, reached = next(iter(rows[0].metrics.items()))
    if reached < floor:
        raise SystemExit(
            f'The source reached {column} {reached:.1f}, below the floor of {floor:.1f}: what follows would compare '
            f'nothing. Its log: {Path(cfg.work_dir) / "console.log"}; --floor 0 goes on regardless.'
        )
    say(3, f'Control: the source trained on, everything; epochs: {epochs}')
    cfg = job.config(task.source, 'control', epochs, source)
    rows.append(job.evaluate('source trained on (control)', cfg, task.source, *job.train(cfg)))
    say(4, f'ScaleNet: {task.what[1]}; the increments trained; epochs: {epochs}')
    cfg = job.config(task.scaled, 'scalenet', epochs, source)
    rows.append(job.evaluate('scaled x2, not yet trained', cfg, task.scaled, source, 0.0))
    rows.append(job.evaluate('ScaleNet x2, increments trained', cfg, task.scaled, *job.train(cfg)))
    return rows


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {value}')
    return value


def main(argv: Sequence[str]) -> None:
    p = command_parser(__doc__)
    add = p.add_argument
    add('--task', choices=list(TASKS), default='det', help='default: det')
    add(
        '--work-dir',
        type=a_folder,
        default=Path('work_dirs/quickstart'),
        help='receives one folder a task: checkpoints, logs, table, picture',
    )
    add('--data', type=a_folder, default=Path('data/demo'), help='where the demo data is, or is made')
    add('--epochs', type=positive, nargs=2, metavar=('SOURCE', 'AFTER'), help="default: the configs' own")
    add('--scenes', type=positive, nargs=2, metavar=('TRAIN', 'VAL'), help='for a trial on less data; default: all')
    add('--seed', type=int, default=0)
    add('--floor', type=float, help="what the source must reach; default: the task's own")
    args = p.parse_args(argv)
    begin, task = time.time(), TASKS[args.task]
    print(f'{args.task}: about {task.minutes} minutes on two idle cores.', flush=True)
    folder = args.work_dir / args.task
    job = Job(task, folder, args.data, args.epochs, args.scenes, args.seed)
    with one_run(folder):
        rows = run(job, task.floor if args.floor is None else args.floor)
    say(5, 'Result')
    text = report.table(rows, task) + '\n\n' + report.notes(task, job.scenes[1], args.seed)
    print(f'\n{text}\n')
    report.write(rows, task, text, folder)
    print(f'Picture: {folder / "result.png"}   Table: {folder / "result.txt"}')
    print(f'{(time.time() - begin) / 60:.1f} minutes in all, this call.')
