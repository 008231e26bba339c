"""Accuracy against depth of scaled networks, and early exits against fixed depths at equal FLOPs, on the rank task.

    scalenet experiment early-exits --seeds 5              # trains what is missing, writes tables and a figure
    scalenet experiment early-exits --seeds 5 --reuse work_dirs/study/demo   # takes runs that `study` made
    scalenet experiment early-exits --seeds 5 --report     # of what is done, nothing is trained

About half an hour a seed on one core. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ...commands.main import command_parser
from ...commands.numbers import at_least_one
from ...file_names import a_file, a_folder


def results_folder(text: str) -> Path:
    return a_file(f'{text}/results.jsonl').parent


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('--seeds', type=at_least_one, default=3, help='how many, from 0 on (default 3)')
    parser.add_argument('--jobs', type=at_least_one, default=1, help='runs at a time (default 1)')
    parser.add_argument('--shorten', type=at_least_one, default=1, metavar='N', help='N times fewer steps, to try it')
    parser.add_argument(
        '--reuse',
        type=results_folder,
        metavar='DIR',
        help='folder with results.jsonl of a study: its finished runs of the same settings are taken',
    )
    parser.add_argument('--report', action='store_true', help='measure and write what is done, train nothing')
    parser.add_argument('--work-dir', type=a_folder, default=Path('work_dirs/elastic'))
    parser.add_argument('--out', type=a_folder, help='where tables and figure go (default: WORK_DIR/demo)')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    from ..study import exits, exits_page, runs
    from ..study.pool import conduct

    root = args.work_dir / (f'{args.shorten}_times_shorter' if args.shorten > 1 else 'demo')
    rows = [runs.shortened(row, args.shorten) for row in exits.ROWS.values()]
    jobs = runs.jobs_of(product(rows, range(args.seeds)))
    if args.reuse:
        print(f'{exits.adopt(jobs, root, args.reuse)} finished runs taken from {args.reuse}.')
    short = f' --shorten {args.shorten}' if args.shorten > 1 else ''
    command = f'scalenet experiment early-exits --seeds {args.seeds}{short}'
    return conduct(
        jobs,
        root,
        runs.train,
        runs.TOLD,
        lambda records: exits_page.report(records, root, args.out or root, command),
        run=not args.report,
        at_once=args.jobs,
    )
