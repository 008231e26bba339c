"""Where it pays: ScaleNet's gain against how far the source is trained, for how many steps, on how many scenes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ...tables import markdown_table
from .rows import SOURCE_STEPS, STEPS
from .stats import Interval, Records, interval, paired
from .studies import LENGTHS, SETS, YOUNGER_STEPS, at_own_rate

BASE = 'on'  # every point is a difference from the source trained on for equal steps
LINES = {  # row -> title, colour
    'scalenet': ('ScaleNet x2, all trained', '#d1495b'),
    'scalenet_increments': ('ScaleNet x2, increments trained', '#edae49'),
    'on_time': ('source trained on, equal time', '#30638e'),
}
# Panel -> where on its axis -> the rows there.
PANELS: Mapping[str, Mapping[str, str]] = {
    'steps of the source': {
        **{f'{steps:,}': f'deit/{{}}_of_{steps}' for steps in YOUNGER_STEPS},
        f'{SOURCE_STEPS:,}': 'deit/{}',
    },
    'steps after the source': {
        f'{steps:,}': 'deit/{}' if steps == STEPS else f'deit/{{}}_for_{steps}' for steps in sorted({*LENGTHS, STEPS})
    },
    'scenes for training': {**{f'{scenes:,}': f'deit{scenes}/{{}}' for scenes in SETS}, 'without end': 'deit/{}'},
}
Gains = dict[str, dict[str, dict[str, Interval]]]


def key(rows: str, name: str) -> str:
    """The row of this name in a place of a panel."""
    return at_own_rate(rows.format(name))


def gains(records: Records) -> Gains:
    """Panel -> where -> row -> differences of top-1 from training on, where there are any."""
    found: Gains = {}
    for panel, places in PANELS.items():
        found[panel] = {}
        for place, rows in places.items():
            pairs = {name: paired(records, key(rows, name), key(rows, BASE), 'top1') for name in LINES}
            found[panel][place] = {name: interval(values) for name, values in pairs.items() if values}
    return found


def report(records: Records, root: Path, out: Path, command: str) -> Iterator[Path]:
    """Writes pays.md and pays.png; yields the page."""
    found = gains(records)
    if not any(lines for places in found.values() for lines in places.values()):
        return
    draw(found, out / 'pays.png')
    head = ('', *(title for title, _ in LINES.values()), 'seeds')
    tables = []
    for panel, places in found.items():
        lines = [
            [
                place,
                *(points[name].signed if name in points else 'not run' for name in LINES),
                f'{min((i.n for i in points.values()), default=0)}',
            ]
            for place, points in places.items()
        ]
        tables.append(markdown_table((panel, *head[1:]), lines))
    (out / 'pays.md').write_text(
        '\n\n'.join(
            (
                '# Where it pays, demo scale',
                f'Made by `{command}`.',
                '![Where it pays](pays.png)',
                'Points of held-out top-1 above the source trained on for equal steps, paired by seed, mean ± half of '
                'the 95 % t-interval.',
                *tables,
            )
        )
        + '\n'
    )
    yield out / 'pays.md'


def draw(found: Gains, file: Path) -> None:
    """A panel a question, a line a way to go on."""
    figure = Figure(figsize=(13, 4.6), layout='constrained')
    for axis, (panel, places) in zip(figure.subplots(1, len(found), sharey=True), found.items()):
        for aside, (name, (title, colour)) in zip((-0.08, 0, 0.08), LINES.items()):  # bars beside each other
            x = [i + aside for i, points in enumerate(places.values()) if name in points]
            points = [points[name] for points in places.values() if name in points]
            half = [p.half if p.n > 1 else 0 for p in points]
            axis.errorbar(x, [p.mean for p in points], half, color=colour, marker='o', capsize=4, label=title)
        axis.axhline(0, color='#444444', linewidth=1, zorder=0)
        axis.set_xticks(range(len(places)), list(places))
        axis.set_xlabel(panel, fontsize=13)
        axis.tick_params(labelsize=12)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel('top-1 points above the source\ntrained on for equal steps', fontsize=13)
    figure.axes[0].legend(fontsize=11)
    figure.suptitle('Where ScaleNet pays, rank task (bars: 95 % intervals)', fontsize=13)
    figure.savefig(file, dpi=110)
