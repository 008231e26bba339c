"""Layer maps drawn as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_lowercase

from ..core.layer_map import LayerMap

WIDTH = 96


def draw_maps(maps: Mapping[str, LayerMap], adjustments: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    """Every container of a scaled network: which source each instance uses, and which adjustments it has.

    ``*`` marks an instance that shares the tensors of an earlier one. Containers without such an instance take one
    line; where not every instance of the network is adjusted alike, each is marked with the letter of its adjustments.

    Args:
        maps: the layer map of each container.
        adjustments: of each instance of each container, see ``counts.adjustments``.
    """
    kinds = list(dict.fromkeys(_words(made) for name in maps for made in adjustments[name]))
    letters = dict(zip(kinds, ascii_lowercase))
    lines = []
    for name, layer_map in maps.items():
        depth, instances = layer_map.depth, len(layer_map)
        lines.append(f'{name}: {depth} source layers -> {instances} instances')
        rows = {
            'instance': [f'{i} ' for i in range(instances)],
            'source': [f'{s}{" *"[layer_map.owner(i) != i]}' for i, s in enumerate(layer_map.sources)],
        }
        if len(kinds) > 1:
            rows['adjusted'] = [f'{letters[_words(made)]} ' for made in adjustments[name]]
        if instances > depth or len(kinds) > 1:
            lines += _wrapped(rows)
    legend = [f'{letters[k]} = {k}' for k in kinds] if len(kinds) > 1 else [f'{kinds[0]}, on every instance']
    return '\n'.join([*lines, 'adjustments: ' + '\n             '.join(legend)])


def _words(made: Mapping[str, str]) -> str:
    """``{'fc1': a, 'fc2': a}`` -> ``'a on fc1, fc2'``."""
    by_kind: dict[str, list[str]] = {}
    for target, kind in made.items():
        by_kind.setdefault(kind, []).append(target)
    return '; '.join(f'{kind} on {", ".join(targets)}' for kind, targets in by_kind.items()) or 'none'


def _wrapped(rows: Mapping[str, list[str]]) -> list[str]:
    """Rows of equal length as text, cut evenly into pieces that fit ``WIDTH``."""
    label = 4 + max(map(len, rows))
    cell = 1 + max(len(c) for row in rows.values() for c in row)
    count = len(next(iter(rows.values())))
    pieces = -(-count * cell // (WIDTH - label))
    each = -(-count // pieces)
    return [
        f'  {name}'.ljust(label) + ''.join(c.rjust(cell) for c in row[at : at + each]).rstrip()
        for at in range(0, count, each)
        for name, row in rows.items()
    ]
