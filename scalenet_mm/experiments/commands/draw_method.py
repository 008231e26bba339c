"""Draw the picture of the method in the README.

scalenet experiment draw-method [docs/figures/method.png]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ... import LayerMap
from ...commands.main import command_parser
from ...file_names import file_ending

COLOURS = ['#aed6f1', '#a9dfbf', '#f9e79f']
ADAPTER, NORM = '#e67e22', '#8e44ad'
HEIGHT, STEP = 0.62, 0.86


def box(ax, x, y, width, height, colour, text='', size=9, dashed=False):
    style = dict(boxstyle='round,pad=0.02,rounding_size=0.08', facecolor=colour, edgecolor='#34495e')
    ax.add_patch(FancyBboxPatch((x, y), width, height, linestyle='--' if dashed else '-', linewidth=1.2, **style))
    ax.text(x + width / 2, y + height / 2, text, ha='center', va='center', fontsize=size)


def column(ax, x, layer_map, title, scaled):
    ax.text(x + 1.0, len(layer_map) * STEP + 0.25, title, ha='center', fontsize=11, weight='bold')
    for i, source in enumerate(layer_map.sources):
        y = i * STEP
        again = layer_map.owner(i) != i
        box(
            ax,
            x,
            y,
            2.0,
            HEIGHT,
            COLOURS[source],
            f'layer {source + 1}' + (' (same tensors)' if again else ''),
            dashed=again,
        )
        if scaled:
            box(ax, x + 2.08, y, 0.2, HEIGHT, NORM)
            box(ax, x + 2.36, y, 0.2, HEIGHT, ADAPTER)
        if i:
            ax.add_patch(
                FancyArrowPatch(
                    (x + 1, y - STEP + HEIGHT), (x + 1, y), arrowstyle='->', mutation_scale=9, color='#34495e'
                )
            )


def main(argv: Sequence[str]) -> None:
    p = command_parser(__doc__)
    p.add_argument('path', nargs='?', type=file_ending('.png', '.svg', '.pdf'), default=Path('docs/figures/method.png'))
    path = p.parse_args(argv).path
    fig, ax = plt.subplots(figsize=(12.5, 5.4), layout='constrained')
    column(ax, 0, LayerMap((0, 1, 2)), 'pretrained', scaled=False)
    column(ax, 3.3, LayerMap.build(3, 2, 'interpolate'), 'ScaleNet x2, interpolated', scaled=True)
    column(ax, 7.0, LayerMap.build(3, 2, 'stack'), 'ScaleNet x2, stacked', scaled=True)
    x, y = 10.6, 1.5
    ax.text(x + 1.25, y + 3.1, 'one MLP linear of one instance', ha='center', fontsize=11, weight='bold')
    box(ax, x - 0.1, y + 0.9, 1.5, 1.0, COLOURS[0], 'W, shared,\nfrozen', 10)
    box(ax, x + 1.7, y + 0.7, 0.9, 0.4, ADAPTER, 'A', 10)
    box(ax, x + 1.7, y + 1.7, 0.9, 0.4, ADAPTER, 'B', 10)
    ax.text(x + 2.15, y + 1.4, 'σ', ha='center', va='center', fontsize=12)
    ax.text(x + 1.25, y - 0.05, 'x', ha='center', fontsize=12)
    ax.text(x + 1.25, y + 2.62, 'W x + B σ(A x)', ha='center', fontsize=12)
    for a, b in (
        ((1.25, 0.18), (0.65, 0.88)),
        ((1.25, 0.18), (2.15, 0.68)),
        ((0.65, 1.92), (1.1, 2.55)),
        ((2.15, 2.12), (1.4, 2.55)),
    ):
        arrow = FancyArrowPatch(
            (x + a[0], y + a[1]), (x + b[0], y + b[1]), arrowstyle='->', mutation_scale=10, color='#34495e'
        )
        ax.add_patch(arrow)
    box(ax, 10.5, 0.62, 0.2, 0.3, ADAPTER)
    ax.text(10.85, 0.77, 'adapters: own, trained', va='center', fontsize=10)
    box(ax, 10.5, 0.12, 0.2, 0.3, NORM)
    ax.text(10.85, 0.27, 'normalisation: own, trained', va='center', fontsize=10)
    ax.set(xlim=(-0.2, 13.6), ylim=(-0.15, 5.75), aspect='equal')
    ax.axis('off')
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=90)
