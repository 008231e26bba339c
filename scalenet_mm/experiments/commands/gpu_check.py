"""Training, export, tests and speed on a GPU, in ten minutes: whether all of it runs, and how fast.

    scalenet experiment gpu-check --out work_dirs/gpu_check         # needs a CUDA GPU and no network
    scalenet experiment gpu-check --out work_dirs/gpu_check --dry   # the same road on the CPU, with tiny networks

Trains Mask R-CNN and UPerNet Swin-T at full size with mixed precision on images of digits, continues them, exports and
verifies their increments; trains DeiT-B compiled, where there is a C compiler; runs one process and two by torchrun,
and the tests that need a GPU: these side by side, so that their seconds are no speeds. Then measures the goals of
docs/performance.md, alone, in order of worth. Every result is in OUT/gpu_check.json (speed in OUT/performance_gpu.json)
as soon as it is there; what each step printed is in OUT/logs. A step that fails costs itself alone. Ends with 1 if one
did, or if none was done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...commands.main import command_parser
from ...commands.numbers import above_zero
from ...file_names import a_folder


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('--out', type=a_folder, required=True, help='folder of the results; must be empty or new')
    parser.add_argument('--minutes', type=above_zero, default=10.0, help='time for all steps (10)')
    parser.add_argument('--dry', action='store_true', help='tiny networks on the CPU: whether every step runs at all')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    if args.out.is_dir() and any(args.out.iterdir()):
        raise SystemExit(f'{args.out} is not empty; name another folder, or delete it.')
    import torch

    import scalenet_mm.registration  # noqa: F401  (what the configs name)

    from ..benchmark.first_minutes import RESULTS, run
    from ..benchmark.gpu_steps import DRY, Size

    if not args.dry and not torch.cuda.is_available():
        raise SystemExit('torch sees no CUDA GPU here; --dry tries every step on the CPU, with tiny networks.')
    records = run(DRY if args.dry else Size(), args.out.absolute(), args.minutes)
    number = {s: sum(r['status'] == s for r in records) for s in ('done', 'failed', 'out of time', 'not run')}
    print(f'{", ".join(f"{n} {s}" for s, n in number.items() if n)}: {args.out / RESULTS}')
    return 1 if number['failed'] or not number['done'] else 0
