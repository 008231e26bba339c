"""What sharing and freezing save a cluster, on paper: step time, memory and traffic for 1 to 512 GPUs.

    scalenet experiment cluster                              # DeiT-B and Swin-S, twice as deep
    scalenet experiment cluster --networks 1 --tflops 90     # with what you have measured of your own

Parameters, arithmetic and saved bytes are counted from the networks; rates are assumptions, all of them options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...commands.main import command_parser
from ...commands.numbers import above_zero, at_least_one
from ...tables import markdown_table

GPUS = (1, 8, 64, 512)
NETWORKS = ('DeiT-B', 'Swin-S')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    p = command_parser(__doc__)
    p.add_argument('--tflops', type=above_zero, default=200.0, help='TFLOP/s of a GPU in a training step (200)')
    p.add_argument('--memory', type=above_zero, default=2500.0, help='GB/s of its memory (2500)')
    p.add_argument(
        '--networks',
        type=above_zero,
        nargs='+',
        default=[40.0, 3.0],
        metavar='GB/s',
        help='that each GPU sends while it receives as many (40: an adapter of 400 Gb/s each; 3: one of 200 for eight)',
    )
    p.add_argument('--batch', type=at_least_one, default=64, help='images of a GPU (64)')
    p.add_argument('--micro', action='store_true', help=argparse.SUPPRESS)
    return p.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    from ..benchmark.many_gpus import Cluster, ways
    from ..benchmark.settings import Settings

    s = Settings(size='micro' if args.micro else 'full')
    head = [
        '',
        'trained',
        'state',
        'saved',
        'GFLOP, 2 a multiply-add',
        'sent',
        *(f'{g:g} GB/s, {n}' for g in args.networks for n in GPUS),
    ]
    for name in NETWORKS:
        rows = []
        for way in ways(s, name):
            clusters = [Cluster(1e12 * args.tflops, 1e9 * args.memory, 1e9 * network) for network in args.networks]
            times = [f'{1e3 * c.step(way, gpus, args.batch):.0f}' for c in clusters for gpus in GPUS]
            counted = (
                f'{way.trained / 1e6:.1f} M',
                f'{way.state / 1e6:.0f} MB',
                f'{way.saved * args.batch / 1e9:.1f} GB',
                f'{way.step / 1e9:.1f}',
                f'{way.traffic(GPUS[-1]) / 1e6:.0f} MB',
            )
            rows.append((way.name, *counted, *times))
        print(f'{name}, twice as deep; milliseconds of a step of {args.batch} images a GPU:\n')
        print(markdown_table(head, rows) + '\n')
    return 0
