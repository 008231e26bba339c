"""Your own model, scaled: a short config that inherits from yours, written once everything in it has been proved.

    scalenet init my_detector.py my_detector.pth -o my_scalenet.py
    scalenet init mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py work_dirs/mine/epoch_12.pth --data-root data/mine

The backbone is found in the config; what is trained is found in the model. Before the file is written, the library's
class and ours are compared, the checkpoint is read into everything that stays frozen, and a step is made.
"""

from __future__ import annotations

import ast
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

from ..compat import quiet
from ..core.adapters import ADAPTER_RANK
from ..file_names import file_ending
from ..models.adoption import Adopted, adopt
from ..models.counts import Report, inspect
from ..runner.dry_run import dry_run
from ..runner.launch import prepare
from ..runner.preflight import preflight
from .inspect import as_text
from .main import command_parser
from .numbers import at_least_one, depth_factor, from_zero


def literal(text: str) -> Any:
    """A number or a list as it is typed; a word stays one."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def told(adopted: Adopted, report: Report, out: Path) -> str:
    """What a person wants to know before training."""
    proofs = adopted.proofs
    held = 'the whole model' if proofs.whole else 'the backbone; everything outside it is trained'
    equal = 'bit for bit' if proofs.same_code else 'in double precision, up to its rounding'
    lines = [
        as_text(report),
        '',
        'Proved:',
        f'* at times=1 {adopted.backbone} gives the outputs of the class that it replaces, {equal}',
        f'* the checkpoint holds {held}: nothing is frozen at values that came from no file',
        f'* a step gives a gradient to {len(proofs.trained) - len(proofs.unused)} trained tensors and to nothing else',
    ]
    if proofs.unused:
        lines.append(f'* no loss depends on {", ".join(proofs.unused)}, as in the config itself')
    lines += ['', f'Written: {out}', '', adopted.text, 'Next:', *(f'    {line}' for line in following(out))]
    return '\n'.join(lines)


def following(out: Path) -> list[str]:
    return [f'scalenet train {shlex.quote(str(out))}{more}' for more in (' --dry-run', '')]


def main(argv: Sequence[str]) -> None:
    p = command_parser(__doc__)
    p.add_argument('config', help='config of mmdet, mmseg or mmpretrain: a file, or mmdet::... and the like')
    p.add_argument('checkpoint', help='of the whole model or its backbone; any dialect, http(s):// and hf:// too')
    p.add_argument('-o', '--out', type=file_ending('.py'), default=Path('my_scalenet.py'), help='default: %(default)s')
    p.add_argument('--times', type=depth_factor, default=2, help='how often each layer is used')
    p.add_argument('--order', choices=('interpolate', 'stack'), help="default: the paper's for that network")
    p.add_argument(
        '--stages', type=from_zero, nargs='+', help="counted from 0; default: the paper's, the last one of a Swin"
    )
    p.add_argument('--layers', type=literal, help="'all', or a list of pretrained layers as [8,9,10,11]")
    p.add_argument('--rank', type=at_least_one, default=ADAPTER_RANK, help='of the adapters; default: %(default)s')
    p.add_argument('--also', nargs='+', default=[], metavar='PATTERN', help='train these besides, such as neck')
    p.add_argument('--start', choices=('paper', 'function'), default='paper', help="'function' starts as the source")
    p.add_argument('--data-root', help='replaces the folder of the data')
    p.add_argument('--keep-schedule', action='store_true', help="the config's own length and learning rate")
    p.add_argument('--json', action='store_true', help='print JSON')
    args = p.parse_args(argv)
    if not args.json:
        print('Building both models, reading the checkpoint, comparing: about a minute.', file=sys.stderr, flush=True)
    scale = dict(
        times=int(args.times) if args.times == int(args.times) else args.times,
        order=args.order,
        stages=tuple(args.stages) if args.stages else None,
        layers=args.layers,
        rank=args.rank,
        start=args.start,
    )
    with ExitStack() as silent:
        if args.json:  # the libraries print and log
            silent.enter_context(quiet())
            silent.enter_context(redirect_stdout(sys.stderr))
        adopted = adopt(args.config, args.checkpoint, args.out, scale, args.also, args.data_root, args.keep_schedule)
        report = inspect(adopted.config)
    if args.json:
        print(json.dumps(as_json(adopted, report, args.out), indent=1))
        return
    print(told(adopted, report, args.out))
    try_out(adopted)


def as_json(adopted: Adopted, report: Report, out: Path) -> dict[str, Any]:
    proofs = adopted.proofs
    return dict(
        config=str(out),
        backbone=adopted.backbone,
        whole=proofs.whole,
        also=list(proofs.also),
        trained=list(proofs.trained),
        unused=list(proofs.unused),
        report=report.to_json(),
        next=following(out),
    )


def try_out(adopted: Adopted) -> None:
    """Two iterations on eight images where the data are there: memory and hours of the whole run."""
    cfg = adopted.config
    if not cfg.get('train_dataloader'):
        print('\nNo dry run: the config has no train_dataloader.')
        return
    cfg.work_dir, cfg.launcher = str(Path('work_dirs') / 'init'), 'none'
    try:
        preflight(cfg)
    except SystemExit as end:
        print(f'\nNo dry run yet. {end}')
        return
    prepare('none', cfg)
    try:
        dry_run(cfg)
    except Exception as error:  # what is written stays: it was proved without the data
        said = f'{type(error).__name__}: {error}'.strip().splitlines()[0]
        print(f'\nNo dry run: it ended with {said}')
