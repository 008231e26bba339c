"""Run a named study of the paper's experiments: a demo-scale task on any machine, or the paper's own configs.

    scalenet experiment study primary --seeds 10 --resume   # the eight claims that decide; continues what was stopped
    scalenet experiment study table1 --seeds 5          # rows of Table I at demo scale; about five minutes a run
    scalenet experiment study all --report              # tables, plots, verdicts of what is there, nothing is run
    scalenet experiment study table8 --scale paper      # the paper's configs, by `reproduce`

Every finished or crashed run is a line of results.jsonl in WORK_DIR/demo or WORK_DIR/paper; tables and plots are
written again at the end of a call.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...commands.main import command_parser
from ...commands.numbers import at_least_one, seed
from ...cores import cores
from ...file_names import a_folder

WORK_DIR = Path('work_dirs/study')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    from ..study import paper_scale
    from ..study.studies import STUDIES

    parser = command_parser(__doc__)
    names = sorted({*STUDIES, *paper_scale.STUDIES, 'all'})
    parser.add_argument('study', nargs='+', choices=names, metavar='STUDY', help=', '.join(names))
    parser.add_argument('--scale', choices=['demo', 'paper'], default='demo')
    parser.add_argument('--seeds', type=at_least_one, default=1, help='how many, from --first-seed on (default 1)')
    parser.add_argument('--first-seed', type=seed, help="default: the study's own (docs/evidence_plan.md)")
    parser.add_argument('--resume', action='store_true', help='continue: skip what results.jsonl has done')
    parser.add_argument('--report', action='store_true', help='write tables and plots of what is done, run nothing')
    parser.add_argument('--jobs', type=at_least_one, help='runs at a time (default: one a core or GPU; paper scale: 1)')
    parser.add_argument(
        '--shorten', type=at_least_one, default=1, metavar='N', help='demo scale: N times fewer steps, to try it'
    )
    parser.add_argument(
        '--reproduce', default='', metavar='OPTIONS', help='paper scale: options of scalenet experiment reproduce'
    )
    parser.add_argument('--work-dir', type=a_folder, default=WORK_DIR)
    parser.add_argument('--out', type=a_folder, help='where tables and plots go (default: beside results.jsonl)')
    args = parser.parse_args(argv)
    if args.shorten > 1 and args.scale == 'paper':
        parser.error('--shorten is for demo scale alone; leave it out.')
    return args


def chosen(args: argparse.Namespace) -> tuple[Iterable[str], dict[str, range]]:
    """The studies that there are at this scale, and the seeds of those that are named (all: all but the pilots).

    Raises:
        SystemExit: if a study is of the other scale, or a seed is another study's.
    """
    from ..study import paper_scale
    from ..study.studies import PILOTS, SEEDS, STUDIES

    scales = dict(demo=STUDIES, paper=paper_scale.STUDIES)
    there = scales.pop(args.scale)
    unknown = sorted(set(args.study) - {*there, 'all'})
    if unknown:
        raise SystemExit(
            f'{unknown} runs at {next(iter(scales))} scale only; at {args.scale} scale there are {sorted(there)}.'
        )
    named = [name for name in there if name not in PILOTS] if 'all' in args.study else args.study
    own = SEEDS if args.scale == 'demo' else dict.fromkeys(there, range(sys.maxsize))
    seeds = {}
    for name in named:
        first = own[name][0] if args.first_seed is None else args.first_seed
        seeds[name] = range(first, first + args.seeds)
        if others := [s for s in seeds[name] if s not in own[name]]:
            raise SystemExit(
                f'Seeds {others} are not those of {name}, {own[name][0]} to {own[name][-1]}: rows of a seed start from '
                'one source, and seeds of pilots chose the learning rates; give fewer --seeds or leave --first-seed '
                'out.'
            )
    return there, seeds


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    there, seeds = chosen(args)
    import torch

    from ..study import evidence_page, paper_scale, runs
    from ..study.pool import FAILED, RESULTS, conduct, latest, read_results

    if args.scale == 'demo':
        scale, report, option = runs, evidence_page.report, args.shorten
        devices, usable = torch.cuda.device_count(), cores()
        at_once = min(usable, 4 * devices) if devices else usable
    else:
        scale, report, option = paper_scale, paper_scale.report, shlex.split(args.reproduce)
        devices, at_once = 0, 1  # each run on all GPUs
    root = args.work_dir / (args.scale + (f'_{args.shorten}_times_shorter' if args.shorten > 1 else ''))
    jobs = scale.jobs(seeds, option)
    known = latest(read_results(root / RESULTS))
    recorded = [(job, known[job.key]) for job in jobs if job.key in known]
    if recorded and not args.report and not args.resume:
        same = [record for job, record in recorded if record['digest'] == job.digest]
        done, others = sum(record['status'] != FAILED for record in same), len(recorded) - len(same)
        differ = f', and {others} runs of these rows with other settings, which would be run again' * bool(others)
        print(
            f'{root / RESULTS} has {done} of these {len(jobs)} runs{differ}; --resume runs what is missing, --report '
            'shows what is there, another --work-dir starts anew.',
            file=sys.stderr,
        )
        return 2
    seeded = f' --seeds {args.seeds}' if args.seeds > 1 else ''
    seeded += f' --first-seed {args.first_seed}' if args.first_seed is not None else ''
    otherwise = f' --reproduce {shlex.quote(args.reproduce)}' if args.reproduce else ''
    otherwise += f' --shorten {args.shorten}' if args.shorten > 1 else ''
    otherwise += ' --report' if args.report else ''
    otherwise += f' --work-dir {shlex.quote(str(args.work_dir))}' if args.work_dir != WORK_DIR else ''
    otherwise += f' --out {shlex.quote(str(args.out))}' if args.out else ''
    command = f'scalenet experiment study {" ".join(args.study)} --scale {args.scale}{seeded}{otherwise}'
    return conduct(
        jobs,
        root,
        scale.train,
        scale.TOLD,
        lambda records: report(list(seeds), records, root, args.out or root, command),
        run=not args.report,
        shown=scale.jobs({name: {seed for _, seed in known} for name in there}, option, known),
        at_once=args.jobs or at_once,
        devices=devices,
        again='the same command with --resume',
    )
