"""Tables and plots of the study's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...tables import markdown_table
from .claims import NOT_REPRODUCED, REPRODUCED, UNDECIDED, Verdict, paired
from .rows import ROWS
from .stats import Interval, interval

Records = Mapping[tuple[str, int], Mapping[str, Any]]
HEAD = (
    'row',
    'seeds',
    'top-1 %',
    'difference',
    'loss',
    'top-1 %, seen digits',
    'parameters',
    'trained',
    'MFLOPs',
    'CPU minutes',
    'paper',
)
LEGEND = (
    'top-1: share of the cells of 10,000 scenes of held-out digits whose rank is right; loss: cross-entropy in nats; '
    'mean ± half-width of the 95 % t-interval over seeds. difference: top-1 minus that of the row marked *, seed by '
    'seed. seen digits: 2,000 scenes of the digit images of training. CPU minutes: of training, one core, median. '
    'paper: top-1 % on ImageNet, as printed, of the row that this one stands for.'
)


def of_row(records: Records, key: str, metric: str) -> list[float]:
    """A metric of a row's finished runs, by seed."""
    chosen = sorted((s, r) for (row, s), r in records.items() if row == key)
    return [r[metric] for _, r in chosen if r['status'] == 'done']


def groups(rows: Sequence[str]) -> list[list[str]]:
    """The rows of each host, in their order."""
    hosts = dict.fromkeys(key.partition('/')[0] for key in rows)
    return [[key for key in rows if key.startswith(f'{host}/')] for host in hosts]


def reference(rows: Sequence[str]) -> str:
    """The row of a host that the others are compared with: its source trained on, or the first."""
    host = rows[0].partition('/')[0]
    return next((f'{host}/{row}' for row in ('on', 'on_long') if f'{host}/{row}' in rows), rows[0])


def table(records: Records, rows: Sequence[str], printed: Mapping[str, str]) -> list[list[str]]:
    """Cells of the rows of one host, as text.

    Args:
        printed: the paper's figure by key of its row.
    """
    base = reference(rows)
    lines = []
    for key in rows:
        row, done = ROWS[key], of_row(records, key, 'top1')
        failed = sum(r['status'] != 'done' for (k, _), r in records.items() if k == key)
        seeds = f'{len(done)}' + (f' ({failed} failed)' if failed else '')
        if not done:
            lines.append([row.title, seeds, *['not run'] + ['–'] * 7, printed.get(row.paper, '–')])
            continue
        one = next(r for (k, _), r in records.items() if k == key and r['status'] == 'done')
        differences = paired(records, key, base, 'top1')
        minutes = sorted(of_row(records, key, 'cpu_minutes'))
        lines.append(
            [
                row.title,
                seeds,
                str(interval(done)),
                '*' if key == base else signed(interval(differences)) if differences else '–',
                f'{interval(of_row(records, key, "loss")).mean:.3f}',
                f'{interval(of_row(records, key, "seen_top1")).mean:.2f}',
                f'{one["params"]:,}',
                f'{one["trainable"]:,}',
                f'{one["mflops"]:.2f}',
                f'{minutes[len(minutes) // 2]:.1f}',
                printed.get(row.paper, '–'),
            ]
        )
    return lines


def signed(i: Interval) -> str:
    return f'{i.mean:+.2f} ± {i.half:.2f}' if i.n > 1 else f'{i.mean:+.2f}'


def page(name: str, records: Records, rows: Sequence[str], printed: Mapping[str, str], command: str) -> str:
    """One study as a Markdown page, one table a host, with its plot."""
    parts = [f'# {name}, demo scale', f'Made by `{command}`.', f'![{name}]({name}.png)']
    parts += [markdown_table(HEAD, table(records, group, printed)) for group in groups(rows)]
    return '\n\n'.join([*parts, LEGEND]) + '\n'


# Of questions that the paper does not answer.
OURS = {REPRODUCED: 'yes', NOT_REPRODUCED: 'no, worse', UNDECIDED: UNDECIDED}
VERDICT_HEAD = ('claim', 'better', 'worse', 'seeds', 'top-1 difference', 'loss difference', 'p (Holm)', 'verdict')


def verdict_lines(found: Sequence[Verdict]) -> list[list[str]]:
    return [
        [
            v.claim.text,
            ROWS[v.claim.better].title,
            ROWS[v.claim.worse].title,
            str(v.top1.n),
            signed(v.top1),
            f'{v.loss.mean:+.3f} ± {v.loss.half:.3f}',
            f'{v.p:.4f}',
            f'**{OURS[v.word] if v.claim.ours else v.word}**',
        ]
        for v in found
    ]


def plot(records: Records, rows: Sequence[str], file: Path, title: str) -> None:
    """Paired differences from each host's reference row with 95 % intervals, seeds beside them; means as text."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    panels = [[k for k in group if of_row(records, k, 'top1')] for group in groups(rows)]
    panels = [p for p in panels if p]
    heights = [len(p) for p in panels]
    size = (10, 1.9 + 0.9 * len(panels) + 0.36 * sum(heights))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=size, height_ratios=heights, squeeze=False, layout='constrained'
    )
    for axis, panel in zip(axes[:, 0], panels):
        base = reference(panel)
        for y, key in enumerate(reversed(panel)):
            values = paired(records, key, base, 'top1')
            mean = interval(of_row(records, key, 'top1')).mean
            axis.annotate(f'{mean:.2f}', (1.01, y), xycoords=('axes fraction', 'data'), va='center', fontsize=12)
            if not values:
                continue
            found = interval(values)
            colour = '#d1495b' if 'scalenet' in key else '#30638e'
            half = found.half if found.n > 1 else None
            axis.plot(values, [y] * len(values), '.', color='#9aa5b1', markersize=7, zorder=1)
            axis.errorbar(found.mean, y, xerr=half, fmt='o', color=colour, capsize=4, zorder=2)
        axis.axvline(0, color='#444444', linewidth=1, zorder=0)
        axis.set_yticks(range(len(panel)), [ROWS[k].title for k in reversed(panel)], fontsize=12)
        axis.set_ylim(-0.7, len(panel) - 0.3)
        axis.grid(axis='x', alpha=0.3)
        axis.tick_params(axis='x', labelsize=12)
        host = {'deit': 'DeiT', 'swin': 'Swin'}[panel[0].partition('/')[0]]
        axis.set_title(f'{host}; right: mean top-1, %', fontsize=12, loc='right')
        axis.set_xlabel(f'top-1 points against: {ROWS[base].title}', fontsize=12)
    figure.suptitle(f'{title} (bars: 95 % intervals, grey: seeds)', fontsize=13)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
