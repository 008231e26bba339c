"""The figures of `analyze` from their numbers. Legible on a slide; Okabe and Ito's colours and matplotlib's viridis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...models.side_by_side import DEEP_BLUE, GREEN, ORANGE, PURPLE, VERMILION
from .features import RANGE

COLOURS = (DEEP_BLUE, VERMILION, GREEN, PURPLE, ORANGE)
MARKERS = 'osD^v'
TEXT = {  # in points, on figures of 5 to 6 inches a panel
    'font.size': 13,
    'axes.titlesize': 14,
    'axes.labelsize': 14,
    'xtick.labelsize': 12,
    'ytick.labelsize': 12,
    'legend.fontsize': 12,
}


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout='constrained')


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _tidy(axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)


@matplotlib.rc_context(TEXT)
def draw_gradients(models: Mapping[str, Sequence[float]], images: int, path: str | Path) -> None:
    """Fig. 3: one line a model, the source layers (from 1) on the x axis."""
    figure = _figure(7.5, 4.8)
    axes = figure.subplots()
    for i, (label, values) in enumerate(models.items()):
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linewidth=2,
            markersize=7,
            label=label,
        )
    axes.set(
        xlabel='source layer',
        ylabel='$\\ell_2$ norm of the gradient',
        title=f'Gradient of the mean loss of {images:,} images',
    )
    depth = max(map(len, models.values()))
    axes.set_xlim(0.9 - 0.02 * depth, 0.1 + 1.02 * depth)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _tidy(axes)
    figure.legend(loc='outside lower center', ncols=min(len(models), 3))
    _save(figure, path)


@matplotlib.rc_context(TEXT)
def draw_features(models: Mapping[str, Mapping[str, dict]], path: str | Path) -> None:
    """Fig. 4: one panel a model, one line a layer, the same density scale on all."""
    figure = _figure(4.6 * len(models) + 0.6, 4.8)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, (label, layers) in zip(panels, models.items()):
        shades = matplotlib.colormaps['viridis'](np.linspace(0, 0.85, len(layers)))
        for shade, entry in zip(shades, layers.values()):
            edges = np.linspace(*RANGE, len(entry['density']) + 1)
            axes.stairs(entry['density'], edges, color=shade, linewidth=2, label=f'layer {entry["layer"] + 1}')
        axes.set(xlim=RANGE, xticks=np.linspace(*RANGE, 5), xlabel='activation', title=label)
        _tidy(axes)
        axes.legend(loc='upper right', handlelength=1.2)
    panels[0].set(ylabel='density')
    panels[0].set_ylim(bottom=0)
    _save(figure, path)


@matplotlib.rc_context(TEXT)
def draw_cka(pairs: Mapping[tuple[str, str], np.ndarray], images: int, path: str | Path) -> None:
    """Fig. 5: one heat map a pair of models, from 0 to 1 on all of them; layers from 1.

    Args:
        pairs: (name of A, name of B) -> (layers of A, layers of B).
    """
    figure = _figure(5.6 * len(pairs) + 1.0, 5.2)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, ((a, b), values) in zip(panels, pairs.items()):
        depth_a, depth_b = values.shape
        drawn = axes.imshow(
            values,
            origin='lower',
            cmap='viridis',
            vmin=0,
            vmax=1,
            extent=(0.5, depth_b + 0.5, 0.5, depth_a + 0.5),
            aspect='auto',
        )
        axes.set(xlabel=f'layer of {b}', ylabel=f'layer of {a}')
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.colorbar(drawn, ax=list(panels), label=f'linear CKA, {images:,} images')
    _save(figure, path)


@matplotlib.rc_context(TEXT)
def draw_droppath(points: Sequence[dict], path: str | Path) -> None:
    """Fig. 6: top-1 and loss side by side; bars from the least to the greatest where a rate has several runs."""
    figure = _figure(10, 4.4)
    rate = [p['drop_path'] for p in points]
    several = any(p['runs'] > 1 for p in points)
    quantities = (('top1', 'top-1 (%)', DEEP_BLUE), ('loss', 'loss (nats)', VERMILION))
    for axes, (key, name, colour) in zip(figure.subplots(1, 2), quantities):
        mean = np.array([p[key]['mean'] for p in points])
        spread = [mean - [p[key]['least'] for p in points], [p[key]['greatest'] for p in points] - mean]
        axes.errorbar(
            rate,
            mean,
            yerr=np.maximum(spread, 0) if several else None,
            color=colour,
            marker='o',
            linewidth=2,
            capsize=5,
        )
        axes.set(xlabel='drop path of the training', ylabel=name, xticks=rate)
        _tidy(axes)
    _save(figure, path)


@matplotlib.rc_context(TEXT)
def draw_lesions(models: Mapping[str, dict], path: str | Path) -> None:
    """Points of top-1 that are lost without each layer instance; one panel a model, on one scale.

    Args:
        models: label -> ``lesions.lesions``.
    """
    wide = max(0.55 * len(found['layers']) + 1.2 for found in models.values())
    figure = _figure(max(4.6, wide) * len(models) + 0.6, 4.8)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    named: dict[str, Any] = {}
    for axes, (label, found) in zip(panels, models.items()):
        layers, whole = found['layers'], found['whole']['top1']
        for i, layer in enumerate(layers):
            colour = VERMILION if layer['added'] else DEEP_BLUE
            lost = whole - layer['top1']
            bar = axes.bar(i, lost, color=colour)
            axes.bar_label(bar, fmt='%.1f', padding=2, fontsize=12)
            named.setdefault('added' if layer['added'] else "the source's", bar)
        axes.set_xticks(range(len(layers)), [f'{x["source"] + 1}{"*" * x["added"]}' for x in layers])
        axes.set(xlabel='source layer of the instance', title=f'{label}: {whole:.1f} %')
        axes.margins(y=0.12)
        axes.axhline(0, color='black', linewidth=0.8)
        _tidy(axes)
    panels[0].set(ylabel='top-1 points lost without it')
    figure.legend(named.values(), named.keys(), loc='outside lower center', ncols=2)
    _save(figure, path)
