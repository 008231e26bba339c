"""Write the configs of the paper's baselines and ablations, one for every network and training of its tables.

    scalenet experiment make-configs           # writes configs/baselines/ and configs/ablations/
    scalenet experiment make-configs --check   # writes nothing; ends with 1 and names each file that differs

They are made from the rows in `scalenet_mm/experiments/paper/paper_rows.py`: change a row there, not a config here.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...commands.main import command_parser
from ..paper.recount import DECIMALS, ROWS, Row

CONFIGS = Path(__file__).resolve().parents[3] / 'configs'
WIDTH = 120  # ruff.toml
FOLDERS = ('ablations', 'baselines')
UNITS = {'top-1': '{:.2f} % top-1', 'hours': '{:g} h on 8 GPUs', 'mIoU': 'mIoU {:.2f}'}
SCRATCH = """\
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs={})
load_from = None
"""


def leaves() -> dict[str, str]:
    """Text of every config that is made here, by its path below ``configs/``.

    Raises:
        ValueError: if two rows that share a config ask for different networks or trainings.
    """
    shared: dict[str, list[Row]] = {}
    for row in ROWS:
        if not row.is_scalenet:
            shared.setdefault(row.config, []).append(row)
    for config, rows in shared.items():
        if len({repr(_training(row)) for row in rows}) > 1:
            raise ValueError(
                f'{config} stands for {[row.key for row in rows]}, which differ in network or training; '
                'give each a config of its own.'
            )
    return {config: '\n'.join(_lines(rows)) + '\n' for config, rows in sorted(shared.items())}


def _training(row: Row) -> tuple:
    return row.parent, row.scale, row.train, row.drop_path_rate, row.epochs, row.pretrained


def _lines(rows: list[Row]) -> Iterator[str]:
    row = next((r for r in rows if r.result), rows[0])
    usual = next(r for r in ROWS if r.config == row.parent)
    yield from (f'# {part}' for line in _head(row, rows) for part in textwrap.wrap(line, WIDTH - 2))
    yield f"_base_ = '../{row.parent}'"
    backbone = {}
    if row.drop_path_rate != usual.drop_path_rate:
        backbone['drop_path_rate'] = row.drop_path_rate
    if row.scale is not None:
        backbone['scale'] = {'_delete_': True, **row.scale}
    settings = [f'{key}={_code(value)}' for key, value in backbone.items()]
    backbone = f'backbone=dict({", ".join(settings)})'
    if len(f'model = dict({backbone})') <= WIDTH:
        yield f'model = dict({backbone})'
    else:
        yield from ('model = dict(', f'    {backbone}', ')')
    wrapper = []
    if not row.pretrained:
        wrapper += ['optimizer=dict(lr=5e-4)', 'clip_grad=None']
    if row.train != usual.train:
        yield f"policy = dict(train='{row.train}')"
    if wrapper:
        yield f'optim_wrapper = dict({", ".join(wrapper)})'
    if not row.pretrained:
        yield SCRATCH.format(row.epochs).rstrip()


def _head(row: Row, rows: list[Row]) -> Iterator[str]:
    tested = row.epochs == 0
    checkpoint = ' CHECKPOINT' if tested else ''
    yield f'python tools/{"test" if tested else "train"}.py configs/{row.config}{checkpoint}'
    others = sorted({r.table for r in rows} - {row.table}, key=[r.table for r in ROWS].index)
    also = f' (also {", ".join(others)})' if others else ''
    table = row.table if row.table.startswith('Fig') else f'Table {row.table}'
    yield f'{table}{also}, {row.model} {row.variant}: {_printed(row)}. Not run here.'
    if tested:
        yield f'CHECKPOINT is the load_from of {row.parent}, unscaled as it is published.'
    if row.note:
        yield from row.note.split('\n')


def _printed(row: Row) -> str:
    """What the paper prints of a row, in words."""
    found = [UNITS.get(name, f'{name} {{:.1f}}').format(v) for name, v in row.result.items()]
    if row.params is not None:
        found.append(f'{row.params:.{DECIMALS.get(row.table, 2)}f} M parameters')
    if row.flops is not None:
        found.append(f'{row.flops} GFLOPs')
    return ', '.join(found) or row.remark


def _code(value: Any) -> str:
    """
    >>> _code(dict(times=1, adjust=dict(type='LoRA', rank=4)))
    "dict(times=1, adjust=dict(type='LoRA', rank=4))"
    """
    if not isinstance(value, Mapping):
        return repr(value)
    return f'dict({", ".join(f"{key}={_code(v)}" for key, v in value.items())})'


def differences(made: Mapping[str, str]) -> Iterator[str]:
    """One line for each file that is not as the rows say."""
    for config, text in made.items():
        path = CONFIGS / config
        if not path.is_file():
            yield f'configs/{config} is missing'
        elif path.read_text() != text:
            yield f'configs/{config} differs from its row'
    there = {f'{folder}/{p.name}' for folder in FOLDERS for p in (CONFIGS / folder).glob('*.py')}
    yield from (f'configs/{config} belongs to no row' for config in sorted(there - set(made)))


def main(argv: Sequence[str]) -> int:
    parser = command_parser(__doc__, epilog='The rows are in scalenet_mm/experiments/paper/paper_rows.py.')
    parser.add_argument('--check', action='store_true', help='write nothing, compare')
    args = parser.parse_args(argv)
    made = leaves()
    wrong = list(differences(made))
    if args.check:
        if wrong:
            sys.exit('\n'.join([*wrong, 'Write them anew with: scalenet experiment make-configs']))
        print(f'{len(made)} configs are as the rows of the paper say.')
        return 0
    for config, text in made.items():
        (CONFIGS / config).parent.mkdir(exist_ok=True)
        (CONFIGS / config).write_text(text)
    print(f'wrote {len(made)} configs, {len(wrong)} of them new or changed')
    for line in differences(made):  # what a row no longer asks for is left for you to remove
        print(line, file=sys.stderr)
    return 0
