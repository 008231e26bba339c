"""Figures 3 to 6 of the paper for any models, and what each layer is worth: a picture and its numbers in --out DIR.

    scalenet experiment analyze gradients CONFIG CKPT [...]         # Fig. 3: gradient norm of every source layer
    scalenet experiment analyze features  CONFIG CKPT [...]         # Fig. 4: histograms of activations
    scalenet experiment analyze cka       CONFIG CKPT CONFIG CKPT   # Fig. 5: the first model against each other one
    scalenet experiment analyze droppath  CONFIG RATE=CKPT [...]    # Fig. 6: top-1 and loss against drop path
    scalenet experiment analyze lesions   CONFIG CKPT [...]         # top-1 without each layer

CKPT is a checkpoint of any dialect, BASE+DELTA, the folder of a run, or none for random weights. A checkpoint of the
unscaled network under a scaled config gives the scaled network before training. All models see the same images, drawn
from the first config's data, or images of noise (--random). docs/analysis.md says what the numbers are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ...commands.main import command_parser
from ...commands.numbers import at_least_one, seed
from ...core.layers import TENSORS
from ...file_names import a_file, a_folder
from ...progress import Progress
from ...runner.progress_hook import peak_memory
from ..figures import plots
from ..figures.accuracy import evaluate
from ..figures.batches import SPLITS, Batches, random_batches
from ..figures.cka import cka
from ..figures.droppath import curve, rates, read_results
from ..figures.features import BINS, RANGE, histograms
from ..figures.given import Given, pairs, parts_of
from ..figures.gradients import gradient_norms
from ..figures.lesions import lesions


def images_of(args: argparse.Namespace, first: Given, size: int) -> Batches:
    """The images that all models see, in batches of at most ``size``."""
    if args.random:
        labels = args.figure == 'gradients'
        return random_batches(first.load('cpu'), args.images, size, args.size, labels, args.seed)
    return Batches(first.cfg, args.split, args.images, size, args.seed)


def shown(batches: Batches, what: str) -> Iterator[dict]:
    """The batches, with a progress line."""
    with Progress(what, len(batches), unit='batch') as progress:
        for i, batch in enumerate(batches, 1):
            yield batch
            progress.update(i, memory=peak_memory())


def gradients(args: argparse.Namespace) -> dict:
    models = pairs(args.models, args.labels)
    batches, told, lines = images_of(args, models[0], args.micro_batch), [], {}
    for given in models:
        found, loss, images = gradient_norms(
            given.load(args.device), shown(batches, given.label), args.tensors, args.layers
        )
        told.append(dict(**asdict(given), images=images, loss=loss, gradient_norms=found))
        lines[given.label] = list(found.values())
    plots.draw_gradients(lines, images, args.out / 'gradients.png')
    return dict(tensors=args.tensors, micro_batch=args.micro_batch, models=told)


def features(args: argparse.Namespace) -> dict:
    models = pairs(args.models, args.labels)
    batches, told, panels = images_of(args, models[0], args.batch), [], {}
    for given in models:
        found = histograms(given.load(args.device), shown(batches, given.label), args.panels, args.bins, args.layers)
        told.append(dict(**asdict(given), layers=found))
        panels[given.label] = found
    plots.draw_features(panels, args.out / 'features.png')
    return dict(range=RANGE, bins=args.bins, models=told)


def similarity(args: argparse.Namespace) -> dict:
    first, *others = pairs(args.models, args.labels)
    if not others:
        raise ValueError('cka compares two models or more: CONFIG CKPT CONFIG CKPT.')
    batches, told, maps = images_of(args, first, args.batch), [], {}
    for other in others:
        models = first.load(args.device), other.load(args.device)
        values, images = cka(*models, shown(batches, other.label), args.batch, args.layers)
        told.append(dict(a=asdict(first), b=asdict(other), images=images, cka=values.tolist()))
        maps[first.label, other.label] = values.numpy()
    plots.draw_cka(maps, images, args.out / 'cka.png')
    return dict(minibatch=args.batch, pairs=told)


def droppath(args: argparse.Namespace) -> dict:
    named = rates(args.runs)
    rows = {row: rate for rate, row in rates(args.rows)}
    runs = read_results(args.results, rows, args.sweep) if args.results else []
    for _, checkpoint in named:
        parts_of(checkpoint)
    if not named and not runs:
        raise ValueError('Name runs as RATE=CKPT, or a file of results with --results.')
    if bool(named) != bool(args.config):
        raise ValueError(f'Name a config and then its runs, CONFIG RATE=CKPT ...; got {[args.config, *args.runs]}.')
    for rate, checkpoint in named:
        given = Given(args.config, checkpoint, f'drop path {rate:g}')
        batches = Batches(given.cfg, args.split, args.images, args.batch, args.seed)
        (found,) = evaluate(given.load(args.device), given.cfg, batches, args.split)
        print(f'drop path {rate:g}: top-1 {found["top1"]:.2f} %, loss {found["loss"]:.4f}')
        runs.append(dict(drop_path=rate, checkpoint=checkpoint, **found))
    points = curve(runs)
    plots.draw_droppath(points, args.out / 'droppath.png')
    return dict(config=args.config, runs=runs, curve=points)


def without_each_layer(args: argparse.Namespace) -> dict:
    models = pairs(args.models, args.labels)
    batches, told, panels = images_of(args, models[0], args.batch), [], {}
    for given in models:
        model, show = given.load(args.device), partial(shown, what=given.label)
        found = lesions(model, partial(evaluate, model, given.cfg, batches, args.split, shown=show), args.layers)
        added = found['without_added']
        print(
            f'{given.label}: top-1 {found["whole"]["top1"]:.2f} %'
            + (f', {added["top1"]:.2f} % without all layers that were added' if added else '')
        )
        told.append(dict(**asdict(given), **found))
        panels[given.label] = found
    plots.draw_lesions(panels, args.out / 'lesions.png')
    return dict(models=told)


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    figures = p.add_subparsers(dest='figure', required=True, metavar='FIGURE')

    def figure(name: str, make, text: str, split: str, images: int, batch: int | None):
        f = figures.add_parser(name, help=text, description=text)
        f.set_defaults(make=make, random=False)
        f.add_argument('--out', type=a_folder, default=Path('work_dirs/analysis'), metavar='DIR')
        f.add_argument('--split', choices=SPLITS, default=split, help=f'whose images ({split})')
        if batch:
            f.add_argument('--images', type=at_least_one, default=images, help=f'how many ({images})')
            f.add_argument('--batch', type=at_least_one, default=batch, help=f'at a time ({batch})')
        f.add_argument('--seed', type=seed, default=0, help='of the draw of images')
        f.add_argument('--device', help='by default a GPU where there is one')
        return f

    def of_models(f: argparse.ArgumentParser) -> argparse.ArgumentParser:
        f.add_argument('models', nargs='+', metavar='CONFIG CKPT')
        f.add_argument('--labels', nargs='+', help='names in the legend, one a model')
        f.add_argument(
            '--layers', nargs='+', default=(), metavar='PATTERN', help='containers of layers of an unknown host'
        )
        return f

    def or_noise(f: argparse.ArgumentParser) -> argparse.ArgumentParser:
        f.add_argument('--random', action='store_true', help='images of noise, random labels')
        f.add_argument(
            '--size', nargs=2, type=at_least_one, metavar=('H', 'W'), help="of --random; default: the model's"
        )
        return f

    f = figure('gradients', gradients, 'gradient norm of every source layer', 'train', 256, None)
    or_noise(of_models(f))
    f.add_argument(
        '--batch', dest='images', type=at_least_one, default=256, help='images whose mean loss is derived (256)'
    )
    f.add_argument(
        '--micro-batch', type=at_least_one, default=16, help='images at a time; changes memory, not norms (16)'
    )
    f.add_argument('--tensors', choices=TENSORS, default='shared', help='shared weights, or norms and adapters too')
    f = figure('features', features, 'histograms of activations', 'val', 256, 16)
    or_noise(of_models(f))
    f.add_argument('--panels', type=at_least_one, default=4, metavar='N', help='layers a model (4)')
    f.add_argument('--bins', type=at_least_one, default=BINS, help=f'over {RANGE[0]:g}..{RANGE[1]:g} ({BINS})')
    f = figure('cka', similarity, 'linear CKA between the layers of two models', 'val', 512, 64)
    or_noise(of_models(f))
    of_models(figure('lesions', without_each_layer, 'top-1 without each layer', 'val', 1024, 64))
    f = figure('droppath', droppath, 'top-1 and loss against drop path', 'val', 10**9, 64)
    f.add_argument('config', nargs='?', metavar='CONFIG')
    f.add_argument('runs', nargs='*', metavar='RATE=CKPT')
    f.add_argument(
        '--results',
        type=a_file,
        nargs='+',
        default=(),
        metavar='FILE',
        help='JSON lines of scalenet experiment study, or: drop_path, top1, loss',
    )
    f.add_argument(
        '--sweep', metavar='NAME', help='of FILE the rows NAME_drop_path_RATE, where it holds several sweeps'
    )
    f.add_argument('--rows', nargs='+', default=(), metavar='RATE=ROW', help='rows of FILE whose name has no rate')
    return p


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    numbers = args.make(args)
    numbers = dict(figure=args.figure, split='noise' if args.random else args.split, seed=args.seed, **numbers)
    numbers['peak_memory'] = peak_memory()
    file = args.out / f'{args.figure}.json'
    file.write_text(json.dumps(numbers, indent=1))
    print(f'Picture: {file.with_suffix(".png")}   Numbers: {file}   Most memory: {peak_memory()}')
