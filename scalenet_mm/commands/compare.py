"""Two detectors or two segmentors side by side on the same images, with their differences marked.

    scalenet compare CONFIG_A CKPT_A CONFIG_B CKPT_B IMAGE [IMAGE ...] [--delta-a FILE] [--delta-b FILE]
        [--ann FILE | --gt] [--out DIR] [--score-thr 0.3] [--names A B] [--rows 4]

Configs of mmdet or mmseg, ours and others; IMAGE is a file, a folder or a quoted pattern. Ground truth: --gt takes that
of config A's test data, --ann a COCO json or a folder of label maps. Writes DIR/page_1.png, ... and
DIR/differences.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..file_names import a_folder, require_other
from ..models.comparison import compare, task_of, totals, truth_of
from ..models.inference import SCORE, as_panel, as_picture, find_images, load_model, predict, read_image
from ..models.side_by_side import Row, draw_side_by_side
from ..progress import Progress
from ..tables import format_table
from .main import command_parser
from .numbers import at_least_one, share


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    p = command_parser(__doc__)
    for side in 'AB':
        p.add_argument(f'config_{side.lower()}', metavar=f'CONFIG_{side}')
        p.add_argument(f'checkpoint_{side.lower()}', metavar=f'CKPT_{side}')
        p.add_argument(f'--delta-{side.lower()}', help=f'increments of {side}, on CKPT_{side}')
    p.add_argument('images', metavar='IMAGE', nargs='+')
    truth = p.add_mutually_exclusive_group()
    truth.add_argument('--ann', type=Path, help='ground truth: a COCO json, or a folder of label maps')
    truth.add_argument('--gt', action='store_true', help="ground truth: config A's test data")
    p.add_argument('--out', type=a_folder, default=Path('work_dirs/compare'), metavar='DIR')
    p.add_argument('--score-thr', type=share, default=SCORE, help=f'least score of an object ({SCORE})')
    p.add_argument('--names', nargs=2, default=('A', 'B'), metavar=('A', 'B'), help='heads of the columns')
    p.add_argument('--rows', type=at_least_one, default=4, help='images a page (4)')
    p.add_argument('--device', help='by default a GPU where there is one')
    return p.parse_args(argv)


def _drawn_before(folder: Path, file: Path) -> list[Path]:
    """The pages of an earlier call, as its ``differences.json`` lists them.

    Raises:
        ValueError: if there are others, or another such file, which would be written over.
    """
    there = [p for p in folder.glob('page_*.png') if p.stem.removeprefix('page_').isdecimal()]
    others, mine = [], []
    if file.exists():
        try:
            mine = json.loads(file.read_text())['pages']
        except (ValueError, KeyError, TypeError):
            others = [file.name]
    if others := [*others, *sorted(p.name for p in there if p.name not in mine)]:
        raise ValueError(
            f'{folder} has {", ".join(others[:3])}, which this command did not write ({file.name} lists what it did); '
            'name another --out, or move them.'
        )
    return there


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    images = find_images(args.images)
    pages = -(-len(images) // args.rows)
    drawn, file = [args.out / f'page_{n + 1}.png' for n in range(pages)], args.out / 'differences.json'
    require_other([*drawn, file], [*images, *([args.ann] if args.ann else [])])
    if args.out.resolve() in {image.resolve().parent for image in images}:
        raise ValueError(f'--out {args.out} is the folder of the images, among which its pages would be; name another.')
    old = _drawn_before(args.out, file)
    a = load_model(args.config_a, args.checkpoint_a, args.delta_a, args.device)
    b = load_model(args.config_b, args.checkpoint_b, args.delta_b, args.device)
    task = task_of(a, b)
    shapes = {}
    for image in images:
        sizes = [read_image(m, image)['img_shape'] for m in (a, b)]
        shapes[image] = sizes[0][:2]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f'A reads {image} as {sizes[0]} (height, width), B as {sizes[1]}: compare models whose test pipelines '
                'load images alike (color_type, EXIF orientation).'
            )
    truths = dict.fromkeys(images)
    if args.ann or args.gt:
        truth = truth_of(a, args.ann)
        truths = {image: truth(image, shapes[image]) for image in images}
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({'pages': [page.name for page in {*old, *drawn}]}))  # they are ours, if this is ended
    columns = ['ground truth'] * bool(args.ann or args.gt) + list(args.names)
    columns += ['difference'] * (task == 'segmentation')
    classes, reports, rows = list(a.dataset_meta['classes']), {}, []
    with Progress('comparing', len(images), unit='image') as progress:
        for i, image in enumerate(images, 1):
            sample = read_image(a, image)
            pixels = as_picture(sample)
            results = [as_panel(predict(m, x), args.score_thr) for m, x in ((a, sample), (b, image))]
            panels, reports[str(image)] = compare(*results, truths[image], classes)
            rows.append(Row(pixels, panels))
            if len(rows) == args.rows or i == len(images):
                draw_side_by_side(rows, columns, drawn[(i - 1) // args.rows], classes, compared=tuple(args.names))
                rows = []
            progress.update(i)
    summed = totals(list(reports.values()))
    told = {
        'a': dict(name=args.names[0], config=args.config_a, checkpoint=args.checkpoint_a, delta=args.delta_a),
        'b': dict(name=args.names[1], config=args.config_b, checkpoint=args.checkpoint_b, delta=args.delta_b),
        'score_thr': args.score_thr,
        'total': summed,
        'pages': [page.name for page in drawn],
        'images': reports,
    }
    file.write_text(json.dumps(told, indent=1))
    for page in set(old).difference(drawn):  # of a call with more images
        page.unlink()
    shown = [(k, v) for k, v in summed.items() if not k.startswith('by_class.')]
    print(format_table((f'{len(images)} images', ''), shown))
    print(f'Pictures: {args.out}/page_1.png ... page_{pages}.png   Differences: {args.out}/differences.json')
