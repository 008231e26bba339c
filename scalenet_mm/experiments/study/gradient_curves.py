"""Fig. 3 at demo scale: gradient norms of the source's layers with and without adjustment, before and after
training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...tables import markdown_table
from ..figures.gradients import gradient_norms
from .rank import RankBatches
from .runs import trained
from .stats import CONFIDENCE, Records, holm, interval
from .studies import ROWS

IMAGES, BATCHES = 256, 2  # Sec. IV-B1: a batch of 256, accumulated
STREAM = 9  # of scenes, beside those of ``run``
# name -> (row whose network it is, row whose checkpoint it holds, colour, line)
NETWORKS = {
    'source': ('source', 'source', '#444444', '-'),
    'source trained on': ('on', 'on', '#444444', '--'),
    'tied x2, untrained': ('tied', 'source', '#30638e', ':'),
    'ScaleNet x2, untrained': ('scalenet', 'source', '#d1495b', ':'),
    'tied x2, trained': ('tied', 'tied', '#30638e', '-'),
    'ScaleNet x2, trained': ('scalenet', 'scalenet', '#d1495b', '-'),
}
OURS, OTHERS = 'ScaleNet x2, trained', ('source', 'source trained on', 'tied x2, trained')
Norms = Mapping[str, Mapping[int, list[float]]]


def measure(records: Records, root: Path, host: str = 'deit') -> Norms:
    """Norm of each source layer, by network and seed, of every seed whose rows are done."""
    keys = {f'{host}/{row}' for pair in NETWORKS.values() for row in pair[:2]}
    done = {s for _, s in records if all(records.get((k, s), {}).get('status') == 'done' for k in keys)}
    done = {s for s in done if all((root / records[k, s]['checkpoint']).is_file() for k in keys)}
    found: dict[str, dict[int, list[float]]] = {name: {} for name in NETWORKS}
    for seed in sorted(done):
        data = RankBatches('train', BATCHES, IMAGES // BATCHES, (seed, STREAM))
        for name, (network, weights, *_) in NETWORKS.items():
            checkpoint = records[f'{host}/{weights}', seed]['checkpoint']
            model = trained(ROWS[f'{host}/{network}'], seed, root, checkpoint)
            norms, _, _ = gradient_norms(model, (data[i] for i in range(BATCHES)))
            found[name][seed] = list(norms.values())
    return found


def report(records: Records, root: Path, out: Path, command: str) -> Iterator[Path]:
    """Writes gradients.md, .json and .png; yields the page."""
    found = measure(records, root)
    seeds = list(found[OURS])
    if not seeds:
        return
    (out / 'gradients.json').write_text(json.dumps(found, indent=1) + '\n')
    draw(found, out / 'gradients.png')
    lines = [
        [name, *(str(interval(layer)) for layer in zip(*by_seed.values())), str(interval(means(by_seed)))]
        for name, by_seed in found.items()
    ]
    head = ('network', *(f'layer {i + 1}' for i in range(len(lines[0]) - 2)), 'mean of the layers')
    (out / 'gradients.md').write_text(
        '\n\n'.join(
            (
                '# gradients, demo scale (Fig. 3)',
                f'Made by `{command}`.',
                '![gradient norms](gradients.png)',
                markdown_table(head, lines),
                f'l2 norm of the gradient of the weights that instances share, a batch of {IMAGES} scenes of training '
                f'digits, mean ± half-width of the 95 % interval over {len(seeds)} seeds.',
                "The paper: ScaleNet's norms are lower than those of the source and of sharing without adjustment "
                '(Sec. IV-B1). Ratios of the means of the layers, with 95 % intervals:',
                markdown_table(('ratio', 'value', 'p (Holm)', 'verdict'), judged(found)),
            )
        )
        + '\n'
    )
    yield out / 'gradients.md'


def judged(found: Norms) -> list[list[str]]:
    """For each of the other networks: how many times ScaleNet's norms its are, with interval, p and verdict."""
    tests = [interval(np.log(means(found[other])) - np.log(means(found[OURS]))) for other in OTHERS]
    lines = []
    for other, test, p in zip(OTHERS, tests, holm([t.p for t in tests])):
        low, mean, high = (float(np.exp(v)) for v in (test.low, test.mean, test.high))
        sure = test.n > 1 and p <= 1 - CONFIDENCE and not low <= 1 <= high
        word = ('reproduced' if mean > 1 else 'not reproduced') if sure else 'undecided'
        between, chance = (f' ({low:.2f} to {high:.2f})', f'{p:.4f}') if test.n > 1 else ('', '–')
        lines.append([f'{other} / {OURS}', f'{mean:.2f}{between}', chance, f'**{word}**'])
    return lines


def means(by_seed: Mapping[int, list[float]]) -> np.ndarray:
    """Mean over layers, by seed."""
    return np.array([np.mean(norms) for norms in by_seed.values()])


def draw(found: Norms, file: Path) -> None:
    """One line a network, with the seeds' interval."""
    figure = Figure(figsize=(8, 5))
    axis = figure.subplots()
    for name, (_, _, colour, style) in NETWORKS.items():
        layers = [interval(layer) for layer in zip(*found[name].values())]
        x = np.arange(1, len(layers) + 1)
        half = [i.half if i.n > 1 else 0 for i in layers]
        axis.errorbar(x, [i.mean for i in layers], half, color=colour, ls=style, marker='o', capsize=4, label=name)
    axis.set_xticks(x)
    axis.set_xlabel('source layer', fontsize=13)
    axis.set_ylabel('l2 norm of the gradient', fontsize=13)
    axis.set_title('Gradient norms, rank task, batch of 256 (bars: 95 % intervals)', fontsize=13)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=12)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
