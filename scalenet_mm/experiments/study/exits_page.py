"""Tables and figure of the elastic-depth study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...tables import markdown_table
from .exits import CASCADES, CONTROL, ROWS, SCALED, at_equal_flops, measure_all
from .stats import Records, interval, minus, paired, values

Measured = Mapping[str, Mapping[int, Mapping[str, Any]]]  # row -> seed -> what `exits.measure` returns
TITLES = {
    'deit/scalenet': 'interpolated, ordinary training',
    'deit/scalenet_random': 'interpolated, random depth',
    'deit/stacked': 'stacked, ordinary training',
    'deit/stacked_random': 'stacked, random depth',
}
WORDS = dict(two='smallest, then full depth', all='all depths in turn')
LEGEND = (
    'top-1: share of the cells of 10,000 scenes of held-out digits whose rank is right; mean ± half-width of the 95 % '
    't-interval over seeds, differences paired by seed. MFLOPs: millions of multiply-adds a scene, adapters included; '
    'of an exit all passes together, what a pass repeats counted again. A depth is a number of layer instances.'
)


def report(records: Records, root: Path, out: Path, command: str) -> Iterator[Path]:
    """Measures all finished runs; writes elastic.json, .md and .png; yields them."""
    measured = measure_all(records, root)
    if not any(key in measured for key in SCALED):  # the control alone has no depth to choose
        return
    out.mkdir(parents=True, exist_ok=True)
    figures = {k: {s: _thin(m) for s, m in seeds.items()} for k, seeds in measured.items()}
    (out / 'elastic.json').write_text(json.dumps(dict(command=command, rows=figures)) + '\n')
    (out / 'elastic.md').write_text(page(measured, command))
    draw(measured, out / 'elastic.png')
    yield from (out / f'elastic.{kind}' for kind in ('json', 'md', 'png'))


def flat(measured: Measured) -> Records:
    """The measurements as records, with the metrics ``depth``, and ``(cascade, depth, name)`` of `at_equal_flops`."""
    return {
        (row, seed): dict(status='done')
        | {depth: v['top1'] for depth, v in m['depths'].items()}
        | {
            (cascade, depth, name): value
            for cascade in m['exits']
            for depth, at in at_equal_flops(m, cascade).items()
            for name, value in at.items()
        }
        for row, seeds in measured.items()
        for seed, m in seeds.items()
    }


def page(measured: Measured, command: str) -> str:
    records = flat(measured)
    seeds = sorted({seed for _, seed in records})
    parts = [
        '# Elastic depth, demo scale',
        f'Made by `{command}`; seeds {seeds}.',
        '![Accuracy against depth and against FLOPs](elastic.png)',
        '## Accuracy at fixed depths\n\n' + by_depth(measured, records),
        '## Early exits at equal mean FLOPs\n\n' + exits(measured, records),
        LEGEND,
    ]
    return '\n\n'.join(parts) + '\n'


def by_depth(measured: Measured, records: Records) -> str:
    rows = [key for key in SCALED if key in measured]
    depths = next(iter(measured[rows[0]].values()))['depths']
    head = ['top-1 %', *(f'depth {d} ({v["mflops"]:.2f} MFLOPs)' for d, v in depths.items())]
    lines = [[TITLES[key], *(str(interval(values(records, key, d).values())) for d in depths)] for key in rows]
    for key in rows:
        plain = key.removesuffix('_random')
        if key != plain and plain in measured:
            gains = [interval(paired(records, key, plain, d)).signed for d in depths]
            lines.append([f'{TITLES[key]} minus ordinary', *gains])
    if CONTROL in measured:
        ((depth, v),) = next(iter(measured[CONTROL].values()))['depths'].items()
        top1 = interval(values(records, CONTROL, depth).values())
        lines.append([f'{ROWS[CONTROL].title} ({v["mflops"]:.2f} MFLOPs)', str(top1), *['–'] * (len(depths) - 1)])
    return markdown_table(head, lines)


def exits(measured: Measured, records: Records) -> str:
    head = [
        'network',
        'passes',
        'at the cost of',
        'exit, top-1 %',
        'minus that fixed depth',
        'minus the best two fixed depths, mixed at random',
        'minus the source trained on',
    ]
    lines = []
    for key in (key for key in SCALED if key in measured):
        low, *depths = next(iter(measured[key].values()))['depths']
        for cascade, depth in ((c, d) for c in CASCADES for d in depths):
            gained, fixed, mixture = (
                values(records, key, (cascade, depth, name)) for name in ('exit', 'fixed', 'mixture')
            )
            against = [minus(gained, other) for other in (fixed, mixture, values(records, CONTROL, low))]
            lines.append(
                [
                    TITLES[key],
                    WORDS[cascade],
                    f'depth {depth}',
                    str(interval(gained.values())),
                    *(interval(differences).signed if differences else '–' for differences in against),
                ]
            )
    return markdown_table(head, lines)


def draw(measured: Measured, file: Path) -> None:
    """Three panels: top-1 against depth; against mean MFLOPs, interpolated and stacked."""
    figure = Figure(figsize=(16, 5), layout='constrained')
    axes = figure.subplots(1, 3, sharey=True)
    for key in (k for k in SCALED if k in measured):
        runs = list(measured[key].values())
        stacked = 'stacked' in key
        depths = [int(d) for d in runs[0]['depths']]
        top1 = np.array([[v['top1'] for v in m['depths'].values()] for m in runs])
        cost = [v['mflops'] for v in runs[0]['depths'].values()]
        style = dict(color='#d1495b' if 'random' in key else '#30638e', linewidth=1.5)
        error = [interval(column).half for column in top1.T] if len(runs) > 1 else None
        axes[0].errorbar(
            np.add(depths, 0.04 * SCALED.index(key) - 0.06),
            top1.mean(0),
            error,
            marker='s' if stacked else 'o',
            capsize=3,
            linestyle='--' if stacked else '-',
            label=TITLES[key],
            **style,
        )
        axis, kind = axes[1 + stacked], 'random depth' if 'random' in key else 'ordinary'
        axis.plot(cost, top1.mean(0), 'o', markersize=9, label=f'{kind}: fixed depths', **style)
        for cascade, line in zip(CASCADES, ('-', ':')):
            x, y = (np.mean([[p[k] for p in m['exits'][cascade]] for m in runs], 0) for k in ('mflops', 'top1'))
            axis.plot(x, y, line, label=f'{kind}: exits, {WORDS[cascade]}', **style)
    if CONTROL in measured:
        ((depth, v),) = next(iter(measured[CONTROL].values()))['depths'].items()
        value = interval(values(flat(measured), CONTROL, depth).values()).mean
        for axis, x in zip(axes, (int(depth), v['mflops'], v['mflops'])):
            axis.plot(x, value, '*', color='#222222', markersize=14, label=ROWS[CONTROL].title)
    for axis, title in zip(axes, ('fixed depths', 'interpolated order', 'stacked order')):
        axis.set_title(title, fontsize=13)
        axis.set_xlabel('mean MFLOPs a scene' if axis is not axes[0] else 'depth (layer instances)', fontsize=12)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=12)
        axis.legend(fontsize=9, loc='lower right')
    axes[0].set_xticks(depths)
    axes[0].set_ylabel('top-1, % of the cells of held-out scenes', fontsize=12)
    runs = max(len(m) for m in measured.values())
    figure.suptitle(f'Elastic depth, rank task, mean of {runs} seeds (bars: 95 % intervals)', fontsize=13)
    figure.savefig(file, dpi=100)


def _thin(measurement: Mapping) -> dict:
    """Without the thresholds that change nothing, in five digits."""
    exits = {}
    for name, points in measurement['exits'].items():
        costs = [p['mflops'] for p in points]
        kept = [p for i, p in enumerate(points) if costs[i] not in (costs[i - 1] if i else None,)]
        exits[name] = [{k: round(v, 5) for k, v in p.items()} for p in kept]
    return dict(depths=measurement['depths'], exits=exits)
