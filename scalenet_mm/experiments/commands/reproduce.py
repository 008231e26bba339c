"""Everything for one row of the paper: data, checkpoint, commands and expected figures; or run it and keep a bundle.

scalenet experiment reproduce --list                   # keys of all rows
scalenet experiment reproduce table8/swin_t            # what it needs, and the commands
scalenet experiment reproduce table8/swin_t --check    # are data and checkpoint in place?
scalenet experiment reproduce table8/swin_t --run      # checks, trains, tests, writes the bundle; continues
scalenet experiment reproduce configs/demo/scalenet_deit_digits.py --run --cpu --cfg-options load_from=FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ...commands.main import command_parser
from ...commands.numbers import at_least_one, seed
from ...file_names import a_folder
from ...tables import format_table
from ..paper import check, make_plan, run
from ..paper.instructions import as_dict, describe
from ..paper.recount import ROWS


def rows() -> str:
    """All rows as a table."""
    body = [(row.key, row.config, ', '.join(f'{k} {v}' for k, v in row.result.items()) or '-') for row in ROWS]
    return format_table(('row', 'config', 'paper'), body)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    p = command_parser(__doc__)
    add = p.add_argument
    add('row', nargs='?', help="a row's key (table8/swin_t), or the path of a config")
    add('--list', action='store_true', help='print all rows')
    add('--json', action='store_true', help='print as JSON')
    add('--check', action='store_true', help='check GPUs, data and checkpoint (which is fetched)')
    add('--run', action='store_true', help='check, train, test and write the bundle')
    add('--out', type=a_folder, default=Path('work_dirs/reproduce'), help='receives a folder a run')
    add('--gpus', type=at_least_one, help="default: the paper's 8; 1 for a config; without a GPU add --cpu")
    add('--cpu', action='store_true', help='go on where there is no GPU')
    add('--seed', type=seed, default=0)
    add('--checkpoint', help="file or address instead of the config's")
    add('--other-data', action='store_true', help='go on with a part of the data set')
    add('--amp', action='store_true', help='mixed precision, as in tools/train.py')
    add('--auto-scale-lr', action='store_true', help='as in tools/train.py')
    add('--cfg-options', nargs='+', action='extend', default=[], help='as in tools/train.py')
    args = p.parse_args(argv)
    if args.json and (args.check or args.run):
        p.error('--json is of the plan, or of --list; leave it out.')
    if not args.list and not args.row:
        p.error('name a row (--list prints all) or a config.')
    return args


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.list:
        listed = [dict(row=row.key, config=row.config, paper=row.result) for row in ROWS]
        print(json.dumps(listed, indent=1) if args.json else rows())
        return
    extra = ['--amp'] * args.amp + ['--auto-scale-lr'] * args.auto_scale_lr
    plan = make_plan(
        args.row,
        gpus=args.gpus,
        seed=args.seed,
        checkpoint=args.checkpoint,
        options=args.cfg_options,
        extra=extra,
        cpu=args.cpu,
        other_data=args.other_data,
    )
    if args.run:
        run(plan, args.out / plan.slug)
    elif args.check:
        file = check(plan)
        found = plan.checkpoint and f'{plan.checkpoint.address}, which the libraries find'
        print(f'In place: data, and {file or found or "no checkpoint, as the run starts from random weights"}.')
    else:
        print(json.dumps(as_dict(plan), indent=1) if args.json else describe(plan))
