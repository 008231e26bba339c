"""The paper's tables as this code counts them; none is adjusted to a printed one, ``remark`` says why they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from ...compat import quiet
from ...core.flops import meta_parameters
from ...models.build import build
from ...models.counts import Cost, measure
from .paper_rows import NEW_LAYERS, ROWS, Row
from .printed import DECIMALS

__all__ = ['DECIMALS', 'NEW_LAYERS', 'ROWS', 'TABLES', 'Row', 'compute', 'find']

TABLES = tuple(dict.fromkeys(row.table for row in ROWS))


def find(key: str) -> Row:
    """The row ``'table1/deit_t/stack'``; without its last part the ScaleNet row of that table and model.

    Raises:
        ValueError: if there is none; the message names the nearest keys.
    """
    rows = {row.key: row for row in ROWS}
    rows |= {row.key.rpartition('/')[0]: row for row in ROWS if row.is_scalenet}
    if key not in rows:
        near = get_close_matches(key, rows, n=5, cutoff=0.5) or sorted({k.split('/')[0] for k in rows})
        raise ValueError(f'The paper has no row {key!r}; nearest are {near}.')
    return rows[key]


def compute(rows: Iterable[Row] = ROWS) -> Iterator[dict[str, Any]]:
    """Counts every row; a network that stands in several tables is built once.

    Yields:
        ``key, table, model, variant, config``; ``params`` (whole number), ``params_paper`` (M), ``params_diff`` (M);
        ``flops``, ``flops_paper``, ``flops_diff``, ``flops_with_adjustments`` (G multiply-adds); ``input_size``;
        ``result`` (as printed), ``remark``. What is not printed is None or left out.
    """
    known: dict[str, Cost] = {}
    for row in rows:
        network = repr((row.build, row.input_size))
        if network not in known:
            with meta_parameters(), quiet():
                net = build(**row.build)
            known[network] = measure(net, row.input_size)
        yield beside(row, known[network])


def beside(row: Row, cost: Cost) -> dict[str, Any]:
    params, flops = cost.params / 1e6, cost.flops / 1e9
    return dict(
        key=row.key,
        table=row.table,
        model=row.model,
        variant=row.variant,
        config=row.config,
        params=cost.params,
        params_paper=row.params,
        params_diff=None if row.params is None else round(params - row.params, 6),
        flops=flops,
        flops_paper=row.flops,
        flops_diff=None if row.flops is None else round(flops - row.flops, 9),
        flops_with_adjustments=cost.flops_with_adjustments / 1e9,
        input_size=row.input_size and list(row.input_size),
        result=dict(row.result),
        remark=row.remark,
    )
