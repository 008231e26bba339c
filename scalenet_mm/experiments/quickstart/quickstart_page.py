"""What the quickstart shows: one table and one picture."""

from __future__ import annotations

import json
from pathlib import Path

import cv2

from ...models.side_by_side import Row, draw_side_by_side
from ...tables import format_table
from .quickstart_runs import Result
from .quickstart_tasks import Task

HEAD = ('parameters', 'trained', 'delta kB', 'MFLOPs', 'minutes')


def gain(value: float, source: float, of_the_source: bool) -> str:
    return '' if of_the_source else f'{value - source:+.1f}'


def table(rows: list[Result], task: Task) -> str:
    head = ('model', *(h for m in task.metrics for h in (m, 'gain')), *HEAD)
    source = rows[0]
    return format_table(
        head,
        [
            (
                r.name,
                *(cell for m, v in r.metrics.items() for cell in (f'{v:.1f}', gain(v, source.metrics[m], r is source))),
                r.params,
                r.trainable,
                f'{r.delta / 1e3:,.0f}',
                f'{r.gflops * 1e3:.1f}',
                f'{r.minutes:.1f}',
            )
            for r in rows
        ],
    )


def notes(task: Task, images: int, seed: int) -> str:
    return (
        f'On {images} scenes of digits never trained on; one seed ({seed}). {task.note}\n'
        'delta: what has to be kept beside the source. Sharing saves parameters, not arithmetic.'
    )


def picture(before: Result, after: Result, task: Task, path: Path) -> None:
    """Ground truth, before and after of some validation images, side by side."""
    rows = []
    for a, b in zip(before.samples, after.samples):
        (truth, first), (_, second) = task.read(a), task.read(b)
        image = cv2.cvtColor(cv2.imread(a.img_path), cv2.COLOR_BGR2RGB)
        rows.append(Row(image, task.panels(truth, first, second, task.classes)))
    title = ', '.join(
        f'{column} {before.metrics[column]:.1f} -> {after.metrics[column]:.1f}' for column in task.metrics
    )
    draw_side_by_side(rows, list(task.columns), path, task.classes, title=title, compared=('before', 'after'))


def write(rows: list[Result], task: Task, text: str, folder: Path) -> None:
    """result.json, result.txt and result.png."""
    plain = [{k: v for k, v in vars(r).items() if k != 'samples'} for r in rows]
    (folder / 'result.json').write_text(json.dumps(plain, indent=1))
    (folder / 'result.txt').write_text(text + '\n')
    picture(rows[0], rows[-1], task, folder / 'result.png')
