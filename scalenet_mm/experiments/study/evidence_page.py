"""Tables, plots and verdicts of the records of the rank task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from ...tables import markdown_table
from ..paper.recount import ROWS as PAPER
from . import gradient_curves, pays
from .claims import (
    EARLY,
    FAMILIES,
    NOT_REPRODUCED,
    PRIMARY,
    REPRODUCED,
    UNDECIDED,
    Claim,
    Family,
    Verdict,
    asked,
    verdicts,
)
from .rows import AT_OWN_RATE
from .stats import MOST_SEEDS, Records, interval, minus, paired, pooled_spread, values
from .studies import ROWS, SEEDS, STUDIES

PRINTED = {row.key: row.result['top-1'] for row in PAPER if 'top-1' in row.result}
PAPER_MODEL = {row.key: row.model for row in PAPER}
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


NOT_RUN = 'not run'
OWN_PAGES = {'gradients': gradient_curves.report, 'pays': pays.report}  # studies that are no table of rows


def groups(rows: Sequence[str]) -> list[list[str]]:
    """The rows that are compared, host by host and training set by training set, in their order."""
    hosts = dict.fromkeys(key.partition('/')[0] for key in rows)
    return [[key for key in rows if key.startswith(f'{host}/')] for host in hosts]


def reference(rows: Sequence[str]) -> str:
    """The row of a group that the others are compared with: its source trained on, or the first."""
    on = f'{ROWS[rows[0]].group}/on'
    return on if on in rows else rows[0]


def table(records: Records, rows: Sequence[str]) -> list[list[str]]:
    """Cells of the rows of one host, as text."""
    base = reference(rows)
    lines = []
    for key in rows:
        row, done = ROWS[key], values(records, key, 'top1')
        failed = sum(r['status'] != 'done' for (k, _), r in records.items() if k == key)
        begin = [row.title, f'{len(done)}' + (f' ({failed} failed)' if failed else '')]
        end = f'{PRINTED[row.paper]:.2f} ({PAPER_MODEL[row.paper]})' if row.paper in PRINTED else '–'
        if not done:
            lines.append([*begin, NOT_RUN, *['–'] * 7, end])
            continue
        one = records[key, next(iter(done))]
        differences = minus(done, values(records, base, 'top1'))
        minutes = values(records, key, 'cpu_minutes').values()
        lines.append(
            [
                *begin,
                str(interval(done.values())),
                '*' if key == base else interval(differences).signed if differences else '–',
                f'{interval(values(records, key, "loss").values()).mean:.3f}',
                f'{interval(values(records, key, "seen_top1").values()).mean:.2f}',
                f'{one["params"]:,}',
                f'{one["trainable"]:,}',
                f'{one["mflops"]:.2f}',
                f'{median(minutes):.1f}',
                end,
            ]
        )
    return lines


def page(name: str, records: Records, rows: Sequence[str], command: str) -> str:
    """One study as a Markdown page, one table a host, with its plot."""
    parts = [f'# {name}, demo scale', f'Made by `{command}`.', f'![{name}]({name}.png)']
    parts += [markdown_table(HEAD, table(records, group)) for group in groups(rows)]
    return '\n\n'.join([*parts, LEGEND]) + '\n'


# Of questions that the paper does not answer.
OURS = {REPRODUCED: 'yes', NOT_REPRODUCED: 'no, worse', UNDECIDED: UNDECIDED}
VERDICT_HEAD = (
    'claim',
    'better',
    'worse',
    'seeds',
    'top-1 difference',
    'loss difference',
    'p (Holm)',
    'verdict',
    'paper',
    'decidable',
    'seeds needed',
)
VERDICT_LEGEND = (
    'Differences are paired by seed: mean ± half-width of the 95 % t-interval, top-1 in points. paper: the same '
    'difference between its rows on ImageNet. decidable: the smallest difference that the planned seeds find with a '
    'chance of 80 %, the correction of the family included, at the spread of the seeds that are there, or before there '
    'are two at that of the pilot. seeds needed: for an undecided claim, to decide with that chance a difference as '
    'large as the one seen or that it lies within the margin.'
)


def printed(claim: Claim) -> str:
    """The difference in the paper, in points: of its first row and the best of its others."""
    if not claim.paper:
        return '–'
    better, *others = (PRINTED[key] for key in claim.paper)
    return f'{better - max(others):+.2f}'


def pilot_spread(records: Records) -> float:
    """Standard deviation of the differences, in points, between ScaleNet and the other rows of the study 'spread'."""
    main, pilot = 'deit/scalenet', {k: r for k, r in records.items() if k[1] in SEEDS['spread']}
    others = [row for row in STUDIES['spread'] if row not in (main, 'deit/source')]
    return pooled_spread([paired(pilot, row, main, 'top1') for row in others])


def word(v: Verdict) -> str:
    """The verdict, by what its claim is: the paper's or a question of ours."""
    return OURS.get(v.word, v.word) if v.claim.ours else v.word


def verdict_lines(records: Records, family: Family, spread: float) -> list[list[str]]:
    """Every claim of a family, those without two common seeds too.

    Args:
        spread: of the pilot; nan where it was not run.
    """
    before = f'{family.detectable(spread):.2f}' if isfinite(spread) else '–'
    found = {v.claim: v for v in verdicts(records, family)}
    lines = []
    for claim in family.claims:
        v = found.get(claim)
        better, worse = ROWS[claim.better].title, ' or '.join(ROWS[key].title for key in claim.worse)
        if v is None:
            lines.append([claim.text, better, worse, '–', NOT_RUN, *['–'] * 3, printed(claim), before, '–'])
            continue
        needed = f'{v.needed}' if v.needed < MOST_SEEDS else f'over {MOST_SEEDS}'
        lines.append(
            [
                claim.text,
                better,
                ROWS[v.worse].title,
                f'{v.top1.n} of {family.seeds}' + (f' ({v.failed} diverged)' if v.failed else ''),
                v.top1.signed,
                f'{v.loss.mean:+.3f} ± {v.loss.half:.3f}',
                '–' if v.word == EARLY else f'{v.p:.4f}',
                f'**{word(v)}**',
                printed(claim),
                f'{v.decidable:.2f}',
                needed if v.word == UNDECIDED else '–',
            ]
        )
    return lines


SHORT = ('claim', 'seeds', 'top-1 difference', 'verdict', 'paper', 'decidable')
ELSEWHERE = tuple(family for family in FAMILIES if family.short)
CHOICE = ('network', 'top-1 %', 'parameters', 'MFLOPs', 'CPU minutes')
CHOICES = tuple(
    f'deit/{name}'
    for name in (
        *('source', f'on_time{AT_OWN_RATE}', f'interpolate{AT_OWN_RATE}', 'tied', 'scalenet'),
        *(f'times3{AT_OWN_RATE}', 'scratch3'),
    )
)  # of the studies 'primary' and 'own_rates'


def short_tables(records: Records, spread: float) -> tuple[str, str, str]:
    """What docs/evidence.md and evidence_details.md show: the primary family, what others say of its claims, costs."""
    columns = [VERDICT_HEAD.index(name) for name in SHORT]
    primary = [[line[i] for i in columns] for line in verdict_lines(records, PRIMARY, spread)]
    others = {family: {v.claim: v for v in verdicts(records, family)} for family in ELSEWHERE}
    others = {family: found for family, found in others.items() if found}
    lines = [
        [claim.text, *(asked_again(claim, family, found) for family, found in others.items())]
        for claim in PRIMARY.claims
    ]
    first = {k: r for k, r in records.items() if k[1] in SEEDS['own_rates']}
    costs = [dict(zip(HEAD, line)) for line in table(first, CHOICES)]
    costs = [[line['row'], *(line[name] for name in CHOICE[1:])] for line in costs if line['top-1 %'] != NOT_RUN]
    head = ('claim', *(f'{family.short}, {family.seeds} seeds' for family in others))
    return markdown_table(SHORT, primary), markdown_table(head, lines), markdown_table(CHOICE, costs)


def asked_again(claim: Claim, family: Family, found: Mapping[Claim, Verdict]) -> str:
    """What another family says of a claim."""
    again = family.again(claim)
    if again is None:
        return 'not asked'
    return told(found[again], len(claim.worse)) if again in found else NOT_RUN


def told(v: Verdict, rivals: int = 1) -> str:
    """A verdict in a cell, with the rival where there were several."""
    against = f' ({asked(v.worse)})' if rivals > 1 else ''
    return f'{v.top1.signed}{against}, ' + (f'{v.top1.n} seeds' if v.word == EARLY else f'**{word(v)}**')


def plot(records: Records, rows: Sequence[str], file: Path, title: str) -> None:
    """Paired differences from each host's reference row with 95 % intervals, seeds beside them; means as text."""
    panels = [[k for k in group if values(records, k, 'top1')] for group in groups(rows)]
    panels = [p for p in panels if p]
    heights = [len(p) for p in panels]
    size = (10, 1.9 + 0.9 * len(panels) + 0.36 * sum(heights))
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
    for axis, panel in zip(axes[:, 0], panels):
        base = reference(panel)
        for y, key in enumerate(reversed(panel)):
            differences = paired(records, key, base, 'top1')
            mean = interval(values(records, key, 'top1').values()).mean
            axis.annotate(f'{mean:.2f}', (1.01, y), xycoords=('axes fraction', 'data'), va='center', fontsize=12)
            if not differences:
                continue
            found = interval(differences)
            colour = '#d1495b' if 'scalenet' in key else '#30638e'
            half = found.half if found.n > 1 else None
            axis.plot(differences, [y] * len(differences), '.', color='#9aa5b1', markersize=7, zorder=1)
            axis.errorbar(found.mean, y, xerr=half, fmt='o', color=colour, capsize=4, zorder=2)
        axis.axvline(0, color='#444444', linewidth=1, zorder=0)
        axis.set_yticks(range(len(panel)), [ROWS[k].title for k in reversed(panel)], fontsize=12)
        axis.set_ylim(-0.7, len(panel) - 0.3)
        axis.grid(axis='x', alpha=0.3)
        axis.tick_params(axis='x', labelsize=12)
        one = ROWS[panel[0]]
        host = {'deit': 'DeiT', 'swin': 'Swin'}[one.host] + (f', {one.scenes:,} scenes' if one.scenes else '')
        axis.set_title(f'{host}; right: mean top-1, %', fontsize=12, loc='right')
        axis.set_xlabel(f'top-1 points against: {ROWS[base].title}', fontsize=12)
    figure.suptitle(f'{title} (bars: 95 % intervals, grey: seeds)', fontsize=13)
    figure.savefig(file, dpi=110)


def report(studies: Sequence[str], records: Records, root: Path, out: Path, command: str) -> Iterator[Path]:
    """Writes a page and a plot of each study that has a finished run, and the verdicts on all claims; yields the
    pages.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in studies:
        rows = STUDIES[name]
        mine = {k: r for k, r in records.items() if k[0] not in rows or k[1] in SEEDS[name]}
        if name in OWN_PAGES:
            yield from OWN_PAGES[name](mine, root, out, command)
        elif any(values(mine, key, 'top1') for key in rows):
            plot(mine, rows, out / f'{name}.png', f'{name}: rank task, demo scale')
            (out / f'{name}.md').write_text(page(name, mine, rows, command))
            yield out / f'{name}.md'
    spread = pilot_spread(records)
    judged = {f: verdict_lines(records, f, spread) for f in FAMILIES if verdicts(records, f)}
    if judged:
        begin = ['# Claims, demo scale', f'Made by `{command}`.', *short_tables(records, spread)]
        tables = [f'## {family.title}\n\n{markdown_table(VERDICT_HEAD, lines)}' for family, lines in judged.items()]
        (out / 'claims.md').write_text('\n\n'.join([*begin, *tables, VERDICT_LEGEND]) + '\n')
        yield out / 'claims.md'
