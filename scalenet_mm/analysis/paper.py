"""The paper's tables as data, and as this code counts them.

One ``Row`` is one printed line; a table is added by adding rows. Printed figures stand here and nowhere else, and no
count is ever adjusted to them: where they follow another rule, ``remark`` says so. Left out: top-1 (nothing is trained
here) and the baselines of Table I that grow by independent layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..api import build
from ..compat import configs_dir
from .counts import UNSCALED, Cost, measure
from .flops import INPUT_SIZE, meta_parameters


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        table: its Roman numeral.
        model: name as in the paper.
        variant: what the line is, in our words (layers 1-based, as printed).
        build: arguments of ``scalenet_mm.build``.
        params: printed, in millions; None where nothing is (legibly) printed.
        flops: printed, in G multiply-adds, adjustments left out; only Table I prints them.
        input_size: (H, W) in pixels of the image that FLOPs are counted for; of a detector or segmentor the backbone's.
        remark: the rule that a printed figure follows, where it is not the built model's; several are joined by '; '.
    """

    table: str
    model: str
    variant: str
    build: Mapping[str, Any]
    params: float | None = None
    flops: float | None = None
    remark: str = ''
    input_size: tuple[int, int] = INPUT_SIZE


MODELS = {
    'DeiT-T': 'deit_t',
    'DeiT-S': 'deit_s',
    'DeiT-B': 'deit_b',
    'Swin-T': 'swin_t',
    'Swin-S': 'swin_s',
    'Swin-B': 'swin_b',
}

TIED_NORMS = 'printed #Params counts the norms of new layers as tied, ours have their own'
STAGE_3 = 'printed #Params is that of stage 3 x2 (the printed FLOPs are those of stage 4 x2)'
STAGE_3_AGAIN = 'printed #Params is that of stage 3 x2, ours of stage 4 x2'
EXTRAPOLATED = 'printed #Params is the base plus a multiple of the r = 16, x2 increment'
UNDERIVABLE = 'printed #Params not derivable'
ILLEGIBLE = 'not legible in the source text'
TWICE = "printed FLOPs are twice the base's, but embedding and head run once"
WITH_NORMS = (
    'printed FLOPs agree with a count that adds 5 operations per LayerNorm element, as fvcore does'
)


def _row(
    table: str,
    model: str,
    variant: str,
    scale: dict | None,
    params=None,
    flops=None,
    remark: str = '',
) -> Row:
    return Row(table, model, variant, dict(model=MODELS[model], scale=scale), params, flops, remark)


def _lora(rank: int, **scale: Any) -> dict:
    return dict(adjust=dict(type='LoRA', rank=rank), **scale)


def _adapter(rank: int, **scale: Any) -> dict:
    return dict(adjust=dict(type='ParallelAdapter', rank=rank), **scale)


# Of each model: base (#Params, FLOPs, remark on FLOPs), ScaleNet (#Params, FLOPs, remarks on either).
TABLE_1 = {
    'DeiT-T': ((5.72, 1.3, ''), (6.45, 2.6, TIED_NORMS, TWICE)),
    'DeiT-S': ((22.05, 4.6, ''), (23.53, 9.2, TIED_NORMS, TWICE)),
    'DeiT-B': ((86.57, 17.6, ''), (89.55, 35.2, '', TWICE)),
    'Swin-T': ((28.29, 4.5, ''), (29.37, 5.2, STAGE_3, '')),
    'Swin-S': ((49.61, 8.8, WITH_NORMS), (51.30, 9.5, '', WITH_NORMS)),
    'Swin-B': ((87.77, 15.5, WITH_NORMS), (90.03, 16.7, '', '')),
}

# Of each model: (#Params, remark) of WSPT alone, of LoRA and of adapters at the original depth.
TABLE_2 = {
    'DeiT-T': ((5.72, TIED_NORMS), (6.31, ''), (6.45, '')),
    'DeiT-S': ((22.05, TIED_NORMS), (23.23, ''), (None, ILLEGIBLE)),
    'DeiT-B': (
        (None, ILLEGIBLE),
        (88.93, ''),
        (89.55, "printed #Params is ScaleNet's, r = 16 on 24 layers"),
    ),
    'Swin-T': ((28.29, ''), (28.85, ''), (28.99, '')),
    'Swin-S': ((49.61, ''), (50.76, ''), (51.05, '')),
    'Swin-B': ((87.77, TIED_NORMS), (89.31, ''), (89.69, '')),
}
# Ranks that the printed counts of Table II prove: of LoRA, of adapters.
TABLE_2_RANKS = {'DeiT': (16, 32), 'Swin': (8, 16)}

# Config, (H, W) of a test image as it reaches the backbone; of each model: #Params of the base, of ScaleNet, its remark.
# Detector and segmentor are counted whole, the auxiliary head included.
DENSE = {
    'VIII': (
        'mask_rcnn_scalenet_{}_1x.py',
        (800, 1344),  # mmdet's 1333 x 800, padded
        {'Swin-T': (47.8, 48.9, STAGE_3_AGAIN), 'Swin-S': (69.1, 70.8, '')},
    ),
    'IX': (
        'upernet_scalenet_{}_40k.py',
        (512, 512),
        {'Swin-T': (59.9, 63.1, UNDERIVABLE), 'Swin-S': (81.3, 84.4, UNDERIVABLE)},
    ),
}
DECIMALS = dict.fromkeys(DENSE, 1)  # of printed #Params; elsewhere 2


def _table_1() -> Iterator[Row]:
    for model, (base, (params, flops, *remarks)) in TABLE_1.items():
        yield _row('I', model, 'base', UNSCALED, *base)
        yield _row('I', model, 'ScaleNet', None, params, flops, '; '.join(filter(None, remarks)))


def _table_2() -> Iterator[Row]:
    for model, (wspt, lora, adapter) in TABLE_2.items():
        (base, *_), (scaled, _, remark, _) = TABLE_1[model]
        r, s = TABLE_2_RANKS[model.partition('-')[0]]
        yield _row('II', model, 'base', UNSCALED, base)
        for variant, scale, (params, note) in (
            ('WSPT', dict(adjust=None), wspt),
            (f'LoRA r={r}', _lora(r, times=1), lora),
            (f'Adapter r={s}', _adapter(s, times=1), adapter),
            ('WSPT + Adapter r=16', None, (scaled, remark)),
        ):
            yield _row('II', model, variant, scale, params, remark=note)


def _three_layers(first: int, params: float) -> Row:
    layers = tuple(range(first, first + 3))
    return _row(
        'III', 'DeiT-B', f'layers {layers}', dict(layers=tuple(i - 1 for i in layers)), params
    )


def _stage(stage: int, params: float | None, remark: str = '') -> Row:
    return _row('III', 'Swin-B', f'stage {stage}', dict(stages=(stage - 1,)), params, remark=remark)


def _dense() -> Iterator[Row]:
    for table, (config, size, models) in DENSE.items():
        for model, (base, scaled, remark) in models.items():
            path = str(configs_dir() / config.format(MODELS[model]))
            for variant, scale, params, note in (
                ('base', UNSCALED, base, ''),
                ('ScaleNet', None, scaled, remark),
            ):
                built = dict(model=path, scale=scale)
                yield Row(table, model, variant, built, params, remark=note, input_size=size)


ROWS = (
    *_table_1(),
    *_table_2(),
    _row('III', 'DeiT-B', 'base', UNSCALED, 86.57),
    *(_three_layers(first, 87.31) for first in (1, 4, 7, 10)),
    _row('III', 'DeiT-B', 'all layers', None, 89.55),
    _row('III', 'Swin-B', 'base', UNSCALED, 87.77),
    _stage(1, 89.74),
    _stage(2, 89.78),
    _stage(3, None, ILLEGIBLE),
    _stage(4, 90.03),
    _row('III', 'Swin-B', 'all stages', dict(stages='all'), remark=ILLEGIBLE),
    _row('IV', 'DeiT-B', 'base', UNSCALED, 86.57),
    _row('IV', 'DeiT-B', 'x2', dict(times=2), 89.55),
    _row('IV', 'DeiT-B', 'x3', dict(times=3), 92.53, remark=EXTRAPOLATED),
    _row('IV', 'Swin-B', 'base', UNSCALED, 87.77),
    _row('IV', 'Swin-B', 'x2', dict(times=2), 90.03),
    _row('IV', 'Swin-B', 'x3', dict(times=3), 91.39, remark=UNDERIVABLE),
    _row('VI', 'DeiT-B', 'base', UNSCALED, 86.57),
    _row('VI', 'DeiT-B', 'LoRA r=4', _lora(4), 87.75, remark=TIED_NORMS),
    _row('VI', 'DeiT-B', 'LoRA r=8', _lora(8), 88.93, remark=TIED_NORMS),
    _row('VI', 'DeiT-B', 'LoRA r=16', _lora(16), 91.29, remark=TIED_NORMS),
    _row('VI', 'DeiT-B', 'Adapter r=8', _adapter(8), 88.06, remark=EXTRAPOLATED),
    _row('VI', 'DeiT-B', 'Adapter r=16', _adapter(16), 89.55),
    _row('VI', 'DeiT-B', 'Adapter r=32', _adapter(32), 92.53, remark=EXTRAPOLATED),
    *_dense(),
)
TABLES = tuple(dict.fromkeys(row.table for row in ROWS))


def compute(rows: Iterable[Row] = ROWS) -> Iterator[dict[str, Any]]:
    """Counts every row; a network that stands in several tables is built once.

    Yields:
        ``table, model, variant``; ``params`` (whole number), ``params_paper`` (M), ``params_diff`` (M);
        ``flops``, ``flops_paper``, ``flops_diff``, ``flops_with_adjustments`` (G multiply-adds); ``input_size``; ``remark``.
        What is not printed is None.
    """
    known: dict[str, Cost] = {}
    for row in rows:
        key = repr((row.build, row.input_size))
        if key not in known:
            with meta_parameters():
                net = build(**row.build)
            known[key] = measure(net, row.input_size)
        yield _beside(row, known[key])


def _beside(row: Row, cost: Cost) -> dict[str, Any]:
    params, flops = cost.params / 1e6, cost.flops / 1e9
    return dict(
        table=row.table,
        model=row.model,
        variant=row.variant,
        params=cost.params,
        params_paper=row.params,
        params_diff=None if row.params is None else round(params - row.params, 6),
        flops=flops,
        flops_paper=row.flops,
        flops_diff=None if row.flops is None else round(flops - row.flops, 9),
        flops_with_adjustments=cost.flops_with_adjustments / 1e9,
        input_size=list(row.input_size),
        remark=row.remark,
    )
