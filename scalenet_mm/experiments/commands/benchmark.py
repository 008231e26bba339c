"""The goals of docs/performance.md, measured side by side with the stock networks of mmdet, mmpretrain and timm.

    scalenet experiment benchmark --json docs/results/performance_cpu.json  # P1 ... P10 on the CPU
    scalenet experiment benchmark --pairs P1,P3 --quick --rounds 3  # a first look
    scalenet experiment benchmark --pairs P1 --ops 'linear=plain'  # with one of our fast paths off
    scalenet experiment benchmark --pairs ablation  # each fast path alone, together, all but one
    scalenet experiment benchmark --device cuda --compiled --json docs/results/performance_gpu.json
    scalenet experiment benchmark --report docs/results/performance_*.json  # the table of what was measured

Both sides run in one process with the same inputs, weights, dtype and gradient flags, in turn (ABBA). A row whose sides
do not compute the same tells no speed. Ends with 1 if a row failed or lost parity; a goal that was missed is no
failure.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...commands.main import command_parser
from ...commands.numbers import at_least_one
from ...file_names import a_file, file_ending

OUT = Path('docs/results/performance.md')


def parser() -> argparse.ArgumentParser:
    p = command_parser(__doc__)
    p.add_argument('--pairs', help='comma-separated, see --list (default: P1 to P10)')
    p.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    p.add_argument('--dtype', help="fp32, bf16 or both, comma-separated (default: each pair's own)")
    p.add_argument('--case', default='', metavar='TEXT', help="only cases with this in their name, such as 'Swin-T'")
    p.add_argument('--json', type=file_ending('.json'), metavar='FILE', help='add the run to this file')
    p.add_argument('--size', choices=['full', 'quick', 'micro'], default='full', help=argparse.SUPPRESS)
    p.add_argument('--quick', action='store_const', dest='size', const='quick', help='one image a batch')
    p.add_argument('--rounds', type=at_least_one, default=7, metavar='N', help='rounds after warm-up (7)')
    p.add_argument('--ops', default='', help="our switches, as 'linear=plain,recompute=True'")
    p.add_argument(
        '--compiled', action='store_true', help='torch.compile both sides too; takes minutes a network on a CPU'
    )
    p.add_argument('--list', action='store_true', help='print pairs, goals and switches')
    p.add_argument(
        '--report', type=a_file, nargs='+', metavar='JSON', help='measure nothing, write the table of these files'
    )
    p.add_argument('--out', type=file_ending('.md'), default=OUT, help=f'where --report writes ({OUT})')
    return p


def settings(args: argparse.Namespace):
    """What the command line asks for.

    Raises:
        ValueError: for a dtype or switch that is none.
    """
    from ..benchmark.settings import DTYPES, Settings, parse_ops

    dtypes = tuple(args.dtype.split(',')) if args.dtype else None
    if set(dtypes or ()) - set(DTYPES):
        raise ValueError(f'--dtype takes {", ".join(DTYPES)}, got {args.dtype}.')
    ops = parse_ops(args.ops)
    return Settings(args.device, args.size, args.rounds, 2, ops, dtypes, args.compiled, args.case)


def print_list() -> None:
    from ...ops import SWITCHES
    from ..benchmark.goals import GOALS

    for goal in GOALS.values():
        bounds = ', '.join(f'{k} {goal.text(v)}' for k, v in goal.bounds.items())
        floor = f'; floor: {goal.floor}' if goal.floor else ''
        print(f'{goal.id:9} {goal.what}\n          {bounds or "no goal"}{floor}')
    print('\nSwitches (--ops):')
    for name, switch in SWITCHES.items():
        choices = ', '.join(map(str, switch.choices))
        print(f'{name:9} {switch.text}\n          {choices}; by default {switch.default}')


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.list:
        print_list()
        return 0
    import scalenet_mm.engine  # noqa: F401  (registers what the configs of P8 name)

    from ..benchmark import speed_page as report
    from ..benchmark.goals import DEFAULT
    from ..benchmark.measure import BAD, run

    if args.report:
        report.write(args.report, args.out)
        print(f'wrote {args.out}')
        return 0
    names = args.pairs.split(',') if args.pairs else DEFAULT
    result = run(names, settings(args), args.json)
    shown = ', '.join(f'{k} {v:.0f}' for k, v in result['rates'].items())
    print(f'Rates in this run (GFLOP/s; copy GB/s): {shown}\n')
    print(report.terminal(result['rows']))
    return 1 if any(row['status'] in BAD for row in result['rows']) else 0
