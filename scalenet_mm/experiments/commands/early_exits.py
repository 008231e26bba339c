"""Accuracy against depth of scaled networks, and early exits against fixed depths at equal FLOPs, on the rank task.

    scalenet experiment early-exits --seeds 5              # trains what is missing, writes tables and a figure
    scalenet experiment early-exits --seeds 5 --reuse work_dirs/study/demo   # takes runs that `study` made
    scalenet experiment early-exits --seeds 5 --report     # of what is done, nothing is trained

About five minutes a seed on one core. Interrupted, the same command continues.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...commands.main import command_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('--seeds', type=int, default=3, help='how many, from 0 on (default 3)')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time (default 1)')
    parser.add_argument('--shorten', type=int, default=1, metavar='N', help='N times fewer steps, to try it')
    parser.add_argument(
        '--reuse',
        type=Path,
        metavar='DIR',
        help='folder with results.jsonl of a study: its finished runs of the same settings are taken',
    )
    parser.add_argument('--report', action='store_true', help='measure and write what is done, train nothing')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/elastic'))
    parser.add_argument('--out', type=Path, help='where tables and figure go (default: WORK_DIR)')
    args = parser.parse_args(argv)
    if min(args.seeds, args.jobs, args.shorten) < 1:
        parser.error('--seeds, --jobs and --shorten must be at least 1.')
    return args


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    from ..study import exits as elastic
    from ..study import exits_page as elastic_report
    from ..study.pool import RESULTS, latest, read_results, run_all

    root = args.work_dir / (f'{args.shorten}_times_shorter' if args.shorten > 1 else 'demo')
    jobs = elastic.jobs(range(args.seeds), args.shorten)
    if args.reuse:
        print(f'{elastic.adopt(jobs, root, args.reuse)} finished runs taken from {args.reuse}.')
    if not args.report:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends its runs too
        try:
            run_all(jobs, root, args.jobs, partial(elastic.run, shorten=args.shorten))
        except KeyboardInterrupt:
            print('\nStopped; the same command continues.', file=sys.stderr)
            return 130
    wanted = {(j.row, j.seed): j.digest for j in jobs}
    known = latest(read_results(root / RESULTS))
    records = {k: r for k, r in known.items() if wanted.get(k) == r['digest']}
    failed = [r for r in records.values() if r['status'] != 'done']
    for record in failed:
        print(f'FAILED: {record["row"]} seed {record["seed"]}: {record["error"]}', file=sys.stderr)
    measured = elastic.measure_all(records, root)
    if not measured:
        print(f'{root / RESULTS} has no finished run of these rows; leave --report out.', file=sys.stderr)
        return 2
    command = f'scalenet experiment early-exits --seeds {args.seeds}'
    for file in elastic_report.write(measured, args.out or root, command):
        print(f'wrote {file}')
    return 1 if failed else 0
