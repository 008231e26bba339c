"""Count the networks of the paper's tables and set the counts beside the printed figures.

    scalenet experiment paper-tables                     # all tables as text
    scalenet experiment paper-tables --table III VI --json
    scalenet experiment paper-tables --out docs/results  # writes paper_tables.md and paper_tables.json

Every number is counted from a built model's unique parameters and dispatched operations; none is adjusted to a printed
one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from ...commands.main import command_parser
from ...file_names import a_folder
from ...tables import format_table, markdown_table
from ..paper.recount import DECIMALS, NEW_LAYERS, ROWS, TABLES, compute

HEAD = ('model', '#Params', 'M', 'paper', 'diff', 'FLOPs G', 'paper', 'diff', '+adjust.')
UNITS = (
    '#Params: unique parameters of the built model, 1000 classes; M: the same in millions, beside the printed figure '
    'and ours minus printed. FLOPs: G multiply-adds of one 224 x 224 image in matrix products and convolutions, '
    "adapters and LoRA left out as in the paper; '+adjust.' counts them too. '-': not printed. Tables VIII and IX: "
    '#Params of the whole detector (80 classes) and segmentor (150, with its auxiliary head), FLOPs of the backbone '
    'alone, at 800 x 1344 and 512 x 512; the paper prints none. Table X: FLOPs of one token, attention to other '
    'tokens left out; the paper prints none. Fig. 6 is left out: drop path costs nothing.'
)
JSON_UNITS = (
    'JSON: a list of rows with key, table, model, variant, config (below configs/), params (whole number), '
    'params_paper (M, as printed), params_diff (M, ours minus printed), flops, flops_paper, flops_diff, '
    'flops_with_adjustments (G multiply-adds), input_size (H, W of the image the FLOPs are of), result (as printed), '
    'remark; null where nothing is printed, and for config and input_size in Table X.'
)
COUNTED = (*(table for table in TABLES if not table.startswith('Fig')), 'X')
ROMAN = dict(zip(map(str, range(1, 11)), ('I', 'II', 'III', 'IV', 'V', 'VI', 'VII', 'VIII', 'IX', 'X')))


def cells(row: dict) -> tuple[str, ...]:
    """One line of a table, as text."""

    def shown(value: float | None, form: str) -> str:
        return '-' if value is None else format(value, form)

    return (
        f'{row["model"]} {row["variant"]}',
        f'{row["params"]:,}',
        f'{row["params"] / 1e6:.3f}',
        shown(row['params_paper'], f'.{DECIMALS.get(row["table"], 2)}f'),
        shown(row['params_diff'], '+.3f'),
        f'{row["flops"]:.2f}',
        shown(row['flops_paper'], '.1f'),
        shown(row['flops_diff'], '+.2f'),
        f'{row["flops_with_adjustments"]:.2f}',
    )


def by_table(rows: list[dict]) -> Iterator[tuple[str, list[dict], dict[str, int]]]:
    """Name, rows and numbered remarks of each table."""
    for table in dict.fromkeys(row['table'] for row in rows):
        chosen = [row for row in rows if row['table'] == table]
        remarks = dict.fromkeys(part for row in chosen for part in row['remark'].split('; ') if part)
        yield table, chosen, {remark: i for i, remark in enumerate(remarks, 1)}


def size_rule(rows: list[dict]) -> str:
    """How many layers Table I's baselines get, and which printed counts follow from that."""
    grown = {row['model']: row for row in rows if row['table'] == 'I' and row['variant'] == 'Stack'}
    followed = {True: [], False: [], None: []}
    for model, row in grown.items():
        printed = row['params_paper']
        fits = None if printed is None else f'{row["params"] / 1e6:.2f}' == f'{printed:.2f}'
        followed[fits].append(model)
    told = {key: ', '.join(models) or 'none' for key, models in followed.items()}
    layers = ', '.join(f'{model} {NEW_LAYERS[model]}' for model in grown)
    return (
        "Baselines: independent layers (Swin: of stage 3) are added one by one until ScaleNet's size is reached: "
        f'{layers}. Printed #Params that follow from the rule: {told[True]}; that do not: {told[False]}; not legible: '
        f'{told[None]}. Zero and Tied LoRA are our rows.'
    )


def metrics_10(rows: list[dict]) -> str:
    """What Table X prints beside the counts."""
    printed = {
        row['variant'].partition(' ')[0]: ', '.join(f'{k} {v:.2f}' for k, v in row['result'].items()) for row in rows
    }
    told = '; '.join(f'{variant} {result}' for variant, result in printed.items())
    return f'Zero-shot %, printed: {told}. Here: not run; docs/llama.md has the commands.'


def marks(row: dict, remarks: dict[str, int]) -> str:
    return ','.join(str(remarks[part]) for part in row['remark'].split('; ') if part)


def as_text(rows: list[dict]) -> str:
    parts = []
    for table, chosen, remarks in by_table(rows):
        body = [(*cells(row), marks(row, remarks)) for row in chosen]
        notes = [f'  {number}: {remark}' for remark, number in remarks.items()]
        notes += [f'  {size_rule(chosen)}'] * (table == 'I')
        notes += [f'  {metrics_10(chosen)}'] * (table == 'X')
        parts.append('\n'.join([f'Table {table}', format_table((*HEAD, 'remark'), body), *notes]))
    return '\n\n'.join([*parts, UNITS])


def as_markdown(rows: list[dict], command: str) -> str:
    lines = ["# The paper's tables, counted", '', f'Made by `{command}`.', '', UNITS, '', JSON_UNITS, '']
    lines.append(
        'Every row is a config below `configs/` (JSON: `config`), written from the same rows by '
        '`scalenet experiment make-configs` (Table X has none: `scalenet lm-train`); nothing is trained here.'
    )
    for table, chosen, remarks in by_table(rows):
        lines += ['', f'## Table {table}', '']
        body = [(*cells(row), marks(row, remarks)) for row in chosen]
        lines += [markdown_table((*HEAD, 'remark'), body, 'l' + 'r' * (len(HEAD) - 1) + 'l')]
        lines += [''] * bool(remarks) + [f'{number}. {remark}' for remark, number in remarks.items()]
        lines += ['', size_rule(chosen)] * (table == 'I')
        lines += ['', metrics_10(chosen)] * (table == 'X')
    return '\n'.join(lines) + '\n'


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__, epilog=f'{UNITS.replace("%", "%%")} {JSON_UNITS}')
    parser.add_argument(
        '--table',
        nargs='+',
        type=lambda name: ROMAN.get(name, name.upper()),
        choices=COUNTED,
        default=COUNTED,
        help='only these, also as 1, 2, ...',
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.add_argument('--out', type=a_folder, metavar='DIR', help='write paper_tables.md and .json there instead')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    chosen = [row for row in ROWS if row.table in args.table]
    rows = []
    for row in compute(chosen):
        rows.append(row)
        if sys.stderr.isatty():
            print(f'\r{len(rows)}/{len(chosen)} rows', end='\n' * (len(rows) == len(chosen)), file=sys.stderr)
    if 'X' in args.table:
        if find_spec('transformers'):
            from ..paper.table_10 import table_10

            rows += table_10()
        else:
            print('Table X left out; it needs: pip install scalenet_mm[lm]', file=sys.stderr)
    listed = json.dumps(rows, indent=1)
    if args.out:
        tables = '' if tuple(args.table) == COUNTED else f'--table {" ".join(args.table)} '
        args.out.mkdir(parents=True, exist_ok=True)
        command = f'scalenet experiment paper-tables {tables}--out {args.out}'
        (args.out / 'paper_tables.md').write_text(as_markdown(rows, command))
        (args.out / 'paper_tables.json').write_text(listed + '\n')
        print(f'wrote {args.out}/paper_tables.md and {args.out}/paper_tables.json')
    else:
        print(listed if args.json else as_text(rows))
    return 0
