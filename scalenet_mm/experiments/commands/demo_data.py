"""Make the demo data set from scikit-learn's handwritten digits.

    scalenet experiment demo-data data/demo                      # all three layouts
    scalenet experiment demo-data data/demo --layout coco --preview work_dirs/demo_data.png

A second call with the same parameters verifies what is there and returns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from ...commands.main import command_parser
from ...commands.numbers import at_least_one, seed
from ...file_names import a_folder, file_ending
from ..data import LAYOUTS, make_demo_data
from ..data.preview import draw_preview


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    defaults = ', '.join(f'{name} {spec.train}/{spec.val} at {spec.size} px' for name, spec in LAYOUTS.items())
    parser = command_parser(f'{__doc__}\nDefaults (train/val scenes): {defaults}.')
    parser.add_argument('out', type=a_folder, help='folder that receives one folder a layout')
    parser.add_argument('--layout', nargs='+', default=['all'], choices=[*LAYOUTS, 'all'])
    parser.add_argument('--train', type=at_least_one, help='training scenes of each layout')
    parser.add_argument('--val', type=at_least_one, help='validation scenes of each layout')
    parser.add_argument('--size', type=at_least_one, help='side of the images in pixels')
    parser.add_argument('--seed', type=seed, default=0)
    parser.add_argument('--workers', type=at_least_one, default=1, help='processes; same files for any')
    parser.add_argument('--overwrite', action='store_true', help='replace other demo data there')
    parser.add_argument('--preview', type=file_ending('.png'), metavar='PNG', help='also draw some scenes here')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    layouts = tuple(LAYOUTS) if 'all' in args.layout else tuple(dict.fromkeys(args.layout))
    start = time.monotonic()
    made = make_demo_data(
        args.out,
        layouts,
        train=args.train,
        val=args.val,
        size=args.size,
        seed=args.seed,
        workers=args.workers,
        overwrite=args.overwrite,
        progress=True,
    )
    for name, folder in made.items():
        print(f'{name}: ready in {folder}')
    if args.preview:
        draw_preview(made, args.preview)
        print(f'preview: {args.preview}')
    print(f'done in {time.monotonic() - start:.1f} s')
    return 0
