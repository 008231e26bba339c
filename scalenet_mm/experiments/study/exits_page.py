"""Tables and figure of the elastic-depth study."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...tables import markdown_table
from .evidence_page import signed
from .exits import CASCADES, CONTROL, SCALED, at_equal_flops
from .rows import ROWS
from .stats import Interval, interval

Measured = Mapping[str, Mapping[int, Mapping[str, Any]]]  # row -> seed -> what `elastic.measure` returns
TITLES = {
    'deit/scalenet': 'interpolated, ordinary training',
    'deit/scalenet_random': 'interpolated, random depth',
    'deit/stacked': 'stacked, ordinary training',
    'deit/stacked_random': 'stacked, random depth',
}
COLOURS = {'deit/scalenet': '#30638e', 'deit/scalenet_random': '#d1495b'}
COLOURS |= {'deit/stacked': '#30638e', 'deit/stacked_random': '#d1495b'}
WORDS = dict(two='smallest, then full depth', all='all depths in turn')
LEGEND = (
    'top-1: share of the cells of 10,000 scenes of held-out digits whose rank is right; mean ± half-width of the 95 % '
    't-interval over seeds, differences paired by seed. MFLOPs: millions of multiply-adds a scene, adapters included; '
    'of an exit all passes together, what a pass repeats counted again. A depth is a number of layer instances.'
)


def write(measured: Measured, out: Path, command: str) -> Iterator[Path]:
    """Writes elastic.json, .md and .png; yields them."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {k: {s: _thin(m) for s, m in seeds.items()} for k, seeds in measured.items()}
    (out / 'elastic.json').write_text(json.dumps(dict(command=command, rows=figures)) + '\n')
    (out / 'elastic.md').write_text(page(measured, command))
    draw(measured, out / 'elastic.png')
    yield from (out / f'elastic.{kind}' for kind in ('json', 'md', 'png'))


def page(measured: Measured, command: str) -> str:
    rows = [key for key in SCALED if key in measured]
    seeds = sorted({s for per_seed in measured.values() for s in per_seed})
    parts = [
        '# Elastic depth, demo scale',
        f'Made by `{command}`; seeds {seeds}.',
        '![Accuracy against depth and against FLOPs](elastic.png)',
        '## Accuracy at fixed depths\n\n' + by_depth(measured, rows),
        '## Early exits at equal mean FLOPs\n\n' + exits(measured, rows),
        LEGEND,
    ]
    return '\n\n'.join(parts) + '\n'


def by_depth(measured: Measured, rows: list[str]) -> str:
    depths = list(next(iter(measured[rows[0]].values()))['depths'].items())
    head = ['top-1 %', *(f'depth {d} ({v["mflops"]:.2f} MFLOPs)' for d, v in depths)]
    lines = [
        [TITLES[key], *(str(over(measured, key, lambda m, d=d: m['depths'][d]['top1'])) for d, _ in depths)]
        for key in rows
    ]
    for key in rows:
        plain = key.removesuffix('_random')
        if key != plain and plain in measured:
            gains = [signed(paired(measured, key, plain, lambda m, d=d: m['depths'][d]['top1'])) for d, _ in depths]
            lines.append([f'{TITLES[key]} minus ordinary', *gains])
    if CONTROL in measured:
        value = over(measured, CONTROL, control)
        mflops = over(measured, CONTROL, lambda m: next(iter(m['depths'].values()))['mflops'])
        lines.append([f'{ROWS[CONTROL].title} ({mflops.mean:.2f} MFLOPs)', str(value), *['–'] * (len(depths) - 1)])
    return markdown_table(head, lines)


def exits(measured: Measured, rows: list[str]) -> str:
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
    for key in rows:
        for cascade in CASCADES:
            for depth in at_equal_flops(next(iter(measured[key].values())), cascade):

                def value(m, name, cascade=cascade, depth=depth):
                    return at_equal_flops(m, cascade)[depth][name]

                found = [
                    over(measured, key, lambda m, n=name: value(m, 'exit') - value(m, n))
                    for name in ('fixed', 'mixture')
                ]
                both = sorted(set(measured[key]) & set(measured.get(CONTROL, ())))
                ahead = [value(measured[key][s], 'exit') - control(measured[CONTROL][s]) for s in both]
                lines.append(
                    [
                        TITLES[key],
                        WORDS[cascade],
                        f'depth {depth}',
                        str(over(measured, key, lambda m: value(m, 'exit'))),
                        *map(signed, found),
                        signed(interval(ahead)) if ahead else '–',
                    ]
                )
    return markdown_table(head, lines)


def over(measured: Measured, key: str, value: Callable[[Mapping], float]) -> Interval:
    return interval([value(m) for _, m in sorted(measured[key].items())])


def paired(measured: Measured, a: str, b: str, value: Callable[[Mapping], float]) -> Interval:
    both = sorted(set(measured[a]) & set(measured[b]))
    return interval([value(measured[a][s]) - value(measured[b][s]) for s in both])


def control(measurement: Mapping) -> float:
    """Top-1 of a network with one depth."""
    return next(iter(measurement['depths'].values()))['top1']


def draw(measured: Measured, file: Path) -> None:
    """Three panels: top-1 against depth; against mean MFLOPs, interpolated and stacked."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout='constrained', sharey=True)
    for key in (k for k in SCALED if k in measured):
        runs = list(measured[key].values())
        stacked = 'stacked' in key
        depths = [int(d) for d in runs[0]['depths']]
        top1 = np.array([[v['top1'] for v in m['depths'].values()] for m in runs])
        cost = [v['mflops'] for v in runs[0]['depths'].values()]
        style = dict(color=COLOURS[key], linewidth=1.5)
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
        one = next(iter(measured[CONTROL].values()))['depths']
        (depth, v), value = next(iter(one.items())), over(measured, CONTROL, control).mean
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
    plt.close(figure)


def _thin(measurement: Mapping) -> dict:
    """Without the thresholds that change nothing, in five digits."""
    exits = {}
    for name, points in measurement['exits'].items():
        costs = [p['mflops'] for p in points]
        kept = [p for i, p in enumerate(points) if costs[i] not in (costs[i - 1] if i else None,)]
        exits[name] = [{k: round(v, 5) for k, v in p.items()} for p in kept]
    return dict(depths=measurement['depths'], exits=exits)
