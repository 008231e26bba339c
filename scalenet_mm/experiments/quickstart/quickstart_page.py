"""What the quickstart shows: one table and one picture."""

from __future__ import annotations

import json
from pathlib import Path

import cv2

from ...models.side_by_side import Row, draw_side_by_side
from ...tables import format_table
from .quickstart_runs import Result
from .quickstart_tasks import Task

SHOWN = 4  # scenes in the picture
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
    note = task.note.format(images=images, draw=98 / images**0.5)  # of a share of a half, where it is widest
    return (
        f'On {images} scenes of digits never trained on; one seed ({seed}). {note}\n'
        'delta: what has to be kept beside the source. Sharing saves parameters, not arithmetic.'
    )


def spread(items: list, n: int) -> list:
    """``n`` of them, evenly, or all."""
    n = min(n, len(items))
    return [items[int(len(items) / n * (i + 0.37))] for i in range(n)]


def choose(gains: list[float], n: int = SHOWN) -> tuple[list[int], str]:
    """Scenes on which two models differ, those that got better and those that got worse in proportion, and the words
    that say so; of equal models any scenes.
    """
    better, worse = ([i for i, gain in enumerate(gains) if sign * gain > 0] for sign in (1, -1))
    if not better + worse:
        return spread(list(range(len(gains))), n), f'alike on all {len(gains)} scenes'
    some = round(n * len(better) / len(better + worse))
    some = min(max(some, bool(better)), n - bool(worse))  # one of either kind where there is one
    said = f'better on {len(better)} of {len(gains)} scenes, worse on {len(worse)}: shown in this proportion'
    return spread(better, some) + spread(worse, n - some), said


def picture(before: Result, after: Result, task: Task, path: Path) -> None:
    """Ground truth, before and after of some validation scenes, side by side."""
    pairs = list(zip(before.scenes, after.scenes, strict=True))
    assert all(a.file == b.file for a, b in pairs)
    chosen, said = choose([task.right(b.truth, b.predicted) - task.right(a.truth, a.predicted) for a, b in pairs])
    rows = []
    for a, b in (pairs[i] for i in chosen):
        image = cv2.cvtColor(cv2.imread(a.file), cv2.COLOR_BGR2RGB)
        rows.append(Row(image, task.panels(a.truth, a.predicted, b.predicted, task.classes)))
    title = ', '.join(
        f'{column} {before.metrics[column]:.1f} -> {after.metrics[column]:.1f}' for column in task.metrics
    )
    title = f'{title}\n{said}'
    draw_side_by_side(rows, list(task.columns), path, task.classes, title=title, compared=('before', 'after'))


def write(rows: list[Result], task: Task, text: str, folder: Path) -> None:
    """result.json, result.txt and result.png."""
    plain = [{k: v for k, v in vars(r).items() if k != 'scenes'} for r in rows]
    (folder / 'result.json').write_text(json.dumps(plain, indent=1))
    (folder / 'result.txt').write_text(text + '\n')
    picture(rows[0], rows[-1], task, folder / 'result.png')
