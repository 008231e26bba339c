"""Results on the same images in columns, differences marked: boxes, masks, label maps or classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from .matching import BOTH_WRONG, DIFFER, ONLY_A_RIGHT, ONLY_B_RIGHT, difference_map, match

# Okabe and Ito's colours, told apart with every common kind of colour vision
BLUE, ORANGE, GREEN, YELLOW = '#56B4E9', '#E69F00', '#009E73', '#F0E442'
DEEP_BLUE, VERMILION, PURPLE = '#0072B2', '#D55E00', '#CC79A7'
PALETTE = (BLUE, ORANGE, GREEN, YELLOW, PURPLE, VERMILION, DEEP_BLUE)
STYLES = {  # kind of mark -> colour, line, meaning
    'found': (BLUE, '-', 'found'),
    'missed': (YELLOW, ':', 'missed'),
    'false': (VERMILION, '--', 'false'),
    'truth': (PURPLE, '-.', 'wrong class, and the true one'),
    'same': (BLUE, '-', 'in both'),
    'only here': (VERMILION, '--', 'only here'),
    'there': (PURPLE, '-.', 'another class there'),
}
AREAS = {  # of a difference map
    DIFFER: (VERMILION, 'they differ'),
    ONLY_A_RIGHT: (VERMILION, 'only {} right'),
    ONLY_B_RIGHT: (BLUE, 'only {} right'),
    BOTH_WRONG: (YELLOW, 'both wrong'),
}
CELL = 3.0  # inches a picture is wide
TINT = 0.5
SMALLEST_NAMED = 0.008  # of the picture's pixels


@dataclass
class Panel:
    """What is drawn over one image; each field may be None.

    Attributes:
        boxes: (N, 4) of ``x1, y1, x2, y2`` in pixels.
        labels: (N,) class indices; with neither boxes nor masks, the classes of the whole image.
        scores: (N,) in 0..1.
        masks: (N, H, W) bool.
        semantic: (H, W) class index of every pixel; indices outside the classes are not drawn.
        marks: N short strings, see ``STYLES`` (text after a colon is shown); other strings are shown as they are.
        difference: (H, W) codes of ``matching.difference_map``.
    """

    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None
    semantic: np.ndarray | None = None
    marks: Sequence[str] | None = None
    difference: np.ndarray | None = None


@dataclass
class Row:
    """One image, (H, W, 3) uint8 RGB, and a panel for each column."""

    image: np.ndarray
    panels: list[Panel]


def mark_pair(a: Panel, b: Panel, classes: Sequence[str]) -> tuple[Panel, Panel]:
    """Two detections with each object marked 'same', 'only here' or 'there: <class in the other>'."""
    found = match(a.boxes, a.labels, b.boxes, b.labels)
    marks_a, marks_b = ['only here'] * len(a.boxes), ['only here'] * len(b.boxes)
    for i, j in found.same:
        marks_a[i] = marks_b[j] = 'same'
    for i, j in found.changed:
        marks_a[i], marks_b[j] = (f'there: {classes[b.labels[j]]}', f'there: {classes[a.labels[i]]}')
    return replace(a, marks=marks_a), replace(b, marks=marks_b)


def mark_against(truth: Panel, predicted: Panel, classes: Sequence[str]) -> Panel:
    """A detection with each object marked 'found', 'false' or 'truth: <class>', and the 'missed' ones added."""
    found = match(truth.boxes, truth.labels, predicted.boxes, predicted.labels)
    marks = ['false'] * len(predicted.boxes)
    for _, j in found.same:
        marks[j] = 'found'
    for i, j in found.changed:
        marks[j] = f'truth: {classes[truth.labels[i]]}'
    missed, n = found.only_a, len(found.only_a)

    def joined(mine, added):
        return None if mine is None else np.concatenate([np.asarray(mine), added])

    return replace(
        predicted,
        boxes=joined(predicted.boxes, np.asarray(truth.boxes, float).reshape(-1, 4)[missed]),
        labels=joined(predicted.labels, np.asarray(truth.labels, int).reshape(-1)[missed]),
        scores=joined(predicted.scores, np.full(n, np.nan)),
        masks=None
        if predicted.masks is None
        else joined(predicted.masks, np.zeros((n, *np.shape(predicted.masks)[1:]), bool)),
        marks=[*marks, *['missed'] * n],
    )


def difference_panel(a: Panel, b: Panel, truth: Panel | None = None) -> Panel:
    """Where two label maps differ, and who is right where there is ground truth."""
    return Panel(difference=difference_map(a.semantic, b.semantic, truth.semantic if truth else None))


def draw_side_by_side(
    rows: list[Row],
    columns: list[str],
    path: str | Path,
    classes: list[str],
    title: str = '',
    compared: tuple[str, str] = ('A', 'B'),
) -> None:
    """Writes a picture with one row an image and one column a result.

    Args:
        rows: the images and what is drawn over them.
        columns: the head of each column.
        path: where the picture goes; its folder is made.
        classes: name of each class index.
        title: above everything.
        compared: names of the two results of difference maps, for the legend.

    Raises:
        ValueError: if a row has another number of panels than there are columns, or there is no row.
    """
    wrong = [len(r.panels) for r in rows if len(r.panels) != len(columns)]
    if wrong or not rows:
        raise ValueError(
            f'A picture needs rows with a panel for each of the {len(columns)} columns; got {len(rows)} rows'
            + (f', one of them with {wrong[0]} panels.' if wrong else '.')
        )
    heights = [CELL * r.image.shape[0] / r.image.shape[1] for r in rows]
    size = CELL * len(columns) + 0.3, sum(heights) + 0.25 * len(rows) + 0.9
    figure = Figure(figsize=size, layout='constrained')
    cells = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for row, axes_of_row in zip(rows, cells):
        for panel, axes in zip(row.panels, axes_of_row):
            axes.set(xticks=[], yticks=[])
            _draw(axes, row.image, panel, classes)
    for axes, head in zip(cells[0], columns):
        axes.set_title(_plain(head), fontsize=14)
    if title:
        figure.suptitle(_plain(title), fontsize=15)
    if handles := _legend([p for r in rows for p in r.panels], compared):
        figure.legend(handles=handles, loc='outside lower center', ncols=3, fontsize=11)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _plain(text: str) -> str:
    """A name as it is: matplotlib takes what stands between two $ for a formula."""
    return text.replace('$', r'\$')


def _draw(axes: Axes, image: np.ndarray, panel: Panel, classes) -> None:
    height, width = image.shape[:2]
    picture = np.asarray(image, np.float32).copy()
    if panel.semantic is not None:
        for k in range(len(classes)):
            _tint(picture, panel.semantic == k, PALETTE[k % len(PALETTE)])
    if panel.difference is not None:
        picture = picture.mean(-1, keepdims=True).repeat(3, -1)  # grey: only what differs is in colour
        for code, (colour, _) in AREAS.items():
            _tint(picture, panel.difference == code, colour, 0.75)
    objects = _objects(panel, classes)
    masks = [] if panel.masks is None else np.asarray(panel.masks, bool)
    for mask, drawn in zip(masks, objects):
        _tint(picture, mask, drawn.colour)
    axes.imshow(picture.round().astype(np.uint8))
    for mask, drawn in zip(masks, objects):
        if mask.any() and not mask.all():
            axes.contour(mask, [0.5], colors=[drawn.colour], linewidths=1.2)
    if panel.semantic is not None:
        _name_regions(axes, panel.semantic, classes)
    if panel.boxes is not None:
        for drawn in objects:
            _draw_box(axes, drawn, height, width)
    elif panel.masks is None and objects:
        frame = dict(boxstyle='square,pad=0.2', fc=objects[0].colour, ec='none')
        text = '\n'.join(o.text for o in objects)
        axes.set_xlabel(_plain(text), fontsize=11, bbox=frame if panel.marks else None)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


class _Drawn(NamedTuple):
    box: np.ndarray | None
    colour: str | tuple
    line: str
    text: str
    low: bool  # its text goes to the lower edge, clear of those of what was found


def _objects(panel: Panel, classes) -> list[_Drawn]:
    n = next((len(x) for x in (panel.boxes, panel.masks, panel.labels) if x is not None), 0)
    found = []
    for i in range(n):
        label = None if panel.labels is None else int(panel.labels[i])
        mark = '' if panel.marks is None else panel.marks[i]
        kind = mark.split(':')[0]
        colour, line, _ = STYLES.get(kind, (PALETTE[(label or 0) % len(PALETTE)], '-', ''))
        words = [] if label is None else [classes[label]]
        if panel.scores is not None and np.isfinite(panel.scores[i]):
            words.append(f'{panel.scores[i]:.2f}')
        if mark and kind not in ('found', 'same'):
            words.append(f'({mark})')
        box = None if panel.boxes is None else np.asarray(panel.boxes[i], float) - 0.5
        found.append(_Drawn(box, colour, line, ' '.join(words), kind in ('false', 'only here')))
    return found


def _draw_box(axes: Axes, drawn: _Drawn, height: int, width: int) -> None:
    """The box and its label: outside the box, or inside where it would leave the picture."""
    x1, y1, x2, y2 = drawn.box
    for colour, lw, line in (('black', 3.2, '-'), (drawn.colour, 2, drawn.line)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=lw, ls=line))
    left = x1 < 0.7 * width
    outside = y2 < 0.94 * height if drawn.low else y1 > 0.06 * height
    axes.text(
        float(np.clip(x1 if left else x2, 0, width - 1)),
        float(np.clip(y2 if drawn.low else y1, 0, height - 1)),
        _plain(drawn.text),
        ha='left' if left else 'right',
        va='top' if outside == drawn.low else 'bottom',
        fontsize=9,
        clip_on=True,
        zorder=5,
        bbox=dict(boxstyle='square,pad=0.12', fc=drawn.colour, ec='none', alpha=0.85),
    )


def _tint(picture: np.ndarray, where: np.ndarray, colour, strength: float = TINT) -> None:
    picture[where] = (1 - strength) * picture[where] + strength * 255 * np.array(to_rgb(colour))


def _name_regions(axes: Axes, semantic: np.ndarray, classes) -> None:
    """Writes its class into the innermost point of each large region: colours alone tell too few classes apart."""
    for k in range(len(classes)):
        _, regions, stats, _ = cv2.connectedComponentsWithStats((semantic == k).astype(np.uint8))
        for region in range(1, len(stats)):
            if stats[region, cv2.CC_STAT_AREA] < SMALLEST_NAMED * semantic.size:
                continue
            inside = np.pad((regions == region).astype(np.uint8), 1)
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            text = axes.text(x, y, _plain(classes[k]), ha='center', va='center', fontsize=10, color='white')
            text.set_path_effects([withStroke(linewidth=2.5, foreground='black')])


def _legend(panels: list[Panel], compared: tuple[str, str]) -> list:
    marks = {m.split(':')[0] for p in panels for m in p.marks or ()}
    handles = [
        Line2D([], [], color=colour, ls=line, lw=3, label=meaning)
        for kind, (colour, line, meaning) in STYLES.items()
        if kind in marks
    ]
    codes = {int(c) for p in panels if p.difference is not None for c in np.unique(p.difference)}
    names = {ONLY_A_RIGHT: compared[0], ONLY_B_RIGHT: compared[1]}
    handles += [
        Patch(color=colour, label=_plain(meaning.format(names.get(code, ''))))
        for code, (colour, meaning) in AREAS.items()
        if code in codes
    ]
    return handles
