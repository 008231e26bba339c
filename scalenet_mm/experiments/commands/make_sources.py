"""Trains the models that the quickstart starts from, each to its end, and writes their card.

    scalenet experiment make-sources [det seg cls] [--work-dir work_dirs/sources] [--out DIR]

Half an hour to an hour each on two cores; an interrupted call continues. A source counts as trained to its end if the
quickstart's control, which trains it on, gains next to nothing; the card says how much, and the goal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ...commands.convert import convert, write
from ...commands.main import command_parser
from ...file_names import a_folder
from ...one_run import one_run
from ...tables import markdown_table
from ..data import LAYOUTS
from ..quickstart.quickstart_runs import Job, Result
from ..quickstart.quickstart_tasks import SOURCES, TASKS, Task
from .quickstart import make_data, train_on

SEED = 0
CARD = f"""# The models that the quickstart starts from

Made by `scalenet experiment make-sources` (seed {SEED}) from
[scikit-learn's handwritten digits](../../../../docs/demo_data.md). Toys, of no use but to show the method.
"Trained on": what training them on for the quickstart's budget gains ([more](../../../../docs/quickstart.md)).
A file made again on the same kind of machine holds the same tensors; its header, and so its SHA-256, may differ.

{{table}}
"""


def make(task: Task, work_dir: Path, data: Path, out: Path) -> dict[str, str]:
    """Trains, stores and tries one source; a line of the card."""
    validation = LAYOUTS[task.layout].val
    training = Job(task, work_dir, data / 'source', scenes=(task.source_scenes, validation), seed=SEED)
    job = Job(task, work_dir, data / 'quickstart', seed=SEED)
    make_data(training)
    make_data(job)
    settings = training.config(task.source, 'source', training.epochs_of(task.source))
    checkpoint, minutes = training.train(settings)
    _, state, _ = convert(checkpoint)
    write(state, file := work_dir / task.weights.name, dict(made_by='scalenet experiment make-sources'))
    source, control = train_on(job, str(file))
    out.mkdir(parents=True, exist_ok=True)
    (out / file.name).write_bytes(file.read_bytes())
    return line(task, source, control, minutes, out / file.name)


def line(task: Task, source: Result, control: Result, minutes: float, file: Path) -> dict[str, str]:
    return {
        'file': file.name,
        'config': f'configs/demo/{task.source}',
        'parameters': f'{source.params:,}',
        'scenes': f'{task.source_scenes:,}',
        'hours': f'{minutes / 60:.1f}',
        'reaches': ', '.join(f'{name} {value:.1f}' for name, value in source.metrics.items()),
        'trained on': ', '.join(f'{value - source.metrics[name]:+.1f}' for name, value in control.metrics.items()),
        'goal': f'below +{task.converged}',
        'SHA-256': hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def write_card(made: dict[str, dict[str, str]], out: Path) -> None:
    """card.json, which keeps the lines of sources that were not made again, and README.md."""
    known = out / 'card.json'
    lines = {**(json.loads(known.read_text()) if known.exists() else {}), **made}
    known.write_text(json.dumps(lines, indent=1) + '\n')
    rows = [lines[name] for name in TASKS if name in lines]
    table = markdown_table(list(rows[0]), [row.values() for row in rows])
    (out / 'README.md').write_text(CARD.format(table=table))


def main(argv: Sequence[str]) -> None:
    p = command_parser(__doc__)
    p.add_argument('task', nargs='*', help=f'of {", ".join(TASKS)} (default: all)')
    p.add_argument('--work-dir', type=a_folder, default=Path('work_dirs/sources'))
    p.add_argument('--data', type=a_folder, default=Path('data/sources'), help='where the scenes are, or are made')
    p.add_argument('--out', type=a_folder, default=SOURCES)
    args = p.parse_args(argv)
    if unknown := set(args.task) - set(TASKS):
        p.error(f'no source {", ".join(sorted(unknown))}; there are {", ".join(TASKS)}')
    for name in args.task or TASKS:
        with one_run(args.work_dir / name):
            made = make(TASKS[name], args.work_dir / name, args.data, args.out)
        write_card({name: made}, args.out)
        print('\n'.join(f'{key}: {value}' for key, value in made.items()), flush=True)
