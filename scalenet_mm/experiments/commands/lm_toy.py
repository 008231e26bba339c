"""Train a small Llama on generated tasks and compare ScaleNet with its source, the deep copy and full fine-tuning.

scalenet experiment lm-toy --seeds 3                     # 18 minutes on one thread; continues where it stopped
scalenet experiment lm-toy --seeds 3 --out docs/results  # lm_toy.json, lm_toy.md and lm_toy.png there
scalenet experiment lm-toy --shorten 100                 # everything, 100 times fewer steps, to try it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...commands.main import command_parser
from ...commands.numbers import at_least_one
from ...file_names import a_folder


def main(argv: Sequence[str]) -> int:
    from ...lm import require_extras

    parser = command_parser(__doc__)
    parser.add_argument('--seeds', type=at_least_one, default=3)
    parser.add_argument('--shorten', type=at_least_one, default=1, metavar='N', help='N times fewer steps')
    parser.add_argument('--work-dir', type=a_folder, default=Path('work_dirs/lm_toy'))
    parser.add_argument('--out', type=a_folder, help='folder of table and picture (default: WORK_DIR)')
    args = parser.parse_args(argv)
    require_extras('transformers', 'accelerate', 'matplotlib')
    from ..study import lm_study
    from ..study.pool import conduct

    short = f' --shorten {args.shorten}' if args.shorten > 1 else ''
    root = args.work_dir / (f'{args.shorten}_times_shorter' if args.shorten > 1 else '')
    command = f'scalenet experiment lm-toy --seeds {args.seeds}{short}' + (f' --out {args.out}' if args.out else '')
    return conduct(
        lm_study.jobs(range(args.seeds), args.shorten),
        root,
        lm_study.train,
        lm_study.TOLD,
        lambda records: lm_study.report(records, args.out or root, command),
    )
