"""Run a named study of the paper's experiments: a demo-scale task on any machine, or the paper's own configs.

    scalenet experiment study table1 --seeds 5          # rows of Table I at demo scale; about a minute a run
    scalenet experiment study all --seeds 5 --resume    # everything; continues, skips what is done
    scalenet experiment study all --report              # tables, plots, verdicts of what is there, nothing is run
    scalenet experiment study table8 --scale paper      # the paper's configs, by `reproduce`

Every finished or crashed run is a line of WORK_DIR/results.jsonl; tables and plots are written again at the end of a
call.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ...commands.main import command_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    from ..study.paper_scale import PAPER_STUDIES
    from ..study.rows import STUDIES

    parser = command_parser(__doc__)
    names = sorted({*STUDIES, *PAPER_STUDIES, 'all'})
    parser.add_argument('study', nargs='+', choices=names, metavar='STUDY', help=', '.join(names))
    parser.add_argument('--scale', choices=['demo', 'paper'], default='demo')
    parser.add_argument('--seeds', type=int, default=1, help='how many, from --first-seed on (default 1)')
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--resume', action='store_true', help='continue: skip what results.jsonl has done')
    parser.add_argument('--report', action='store_true', help='write tables and plots of what is done, run nothing')
    parser.add_argument('--jobs', type=int, help='runs at a time (default: one a core or GPU; paper scale: 1)')
    parser.add_argument(
        '--shorten', type=int, default=1, metavar='N', help='demo scale: N times fewer steps, to try it'
    )
    parser.add_argument(
        '--reproduce', default='', metavar='OPTIONS', help='paper scale: options of scalenet experiment reproduce'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/study'))
    parser.add_argument('--out', type=Path, help='where tables and plots go (default: WORK_DIR)')
    args = parser.parse_args(argv)
    if args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        parser.error('--seeds and --jobs must be at least 1.')
    if args.shorten < 1 or (args.shorten > 1 and args.scale == 'paper'):
        parser.error('--shorten takes a number from 1 on, at demo scale alone.')
    return args


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    from ..study import demo_scale, paper_scale
    from ..study.pool import RESULTS, latest, read_results, run_all

    scale = demo_scale if args.scale == 'demo' else paper_scale
    studies = scale.chosen(args.study)
    name = args.scale + (f'_{args.shorten}_times_shorter' if args.shorten > 1 else '')
    root = args.work_dir / name
    results = root / RESULTS
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    if not args.report:
        jobs = scale.jobs(studies, seeds, args.shorten)
        known = latest(read_results(results))
        there = sum((j.row, j.seed) in known for j in jobs)
        if there and not args.resume:
            print(
                f'{results} has {there} of these {len(jobs)} runs; --resume runs the others, --report shows them, '
                'another --work-dir starts anew.',
                file=sys.stderr,
            )
            return 2
        at_once, devices = scale.capacity(args.jobs)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends its runs too
        try:
            target = scale.target(args.shorten if args.scale == 'demo' else shlex.split(args.reproduce))
            run_all(jobs, root, at_once, target, devices)
        except KeyboardInterrupt:
            print('\nStopped; the same command with --resume continues.', file=sys.stderr)
            return 130
    known = latest(read_results(results))
    wanted = scale.digests(args.shorten) if known else {}
    records = {k: r for k, r in known.items() if wanted.get(k[0]) == r['digest']}
    if len(records) < len(known):
        print(f'{len(known) - len(records)} runs are of other settings than these rows: left out.')
    if not records:
        print(f'{results} has no run of these rows yet; leave --report out.', file=sys.stderr)
        return 2
    failed = [r for k, r in records.items() if r['status'] != 'done']
    seeded = f' --seeds {args.seeds}' if args.seeds > 1 else ''
    command = f'scalenet experiment study {" ".join(args.study)} --scale {args.scale}{seeded}'
    for file in scale.report(studies, records, root, args.out or root, command):
        print(f'wrote {file}')
    for record in failed:
        print(f'FAILED: {record["row"]} seed {record["seed"]}: {record["error"]}', file=sys.stderr)
    return 1 if failed else 0
