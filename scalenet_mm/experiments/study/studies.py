"""What the study runs beside them: fixed sets, younger sources, other lengths, pilots; and which rows a study has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .rows import AT_OWN_RATE, DEIT, DEIT_SOURCE, OWN_RATES, STEPS, SWIN, Row

SETS = (2_000, 5_000, 20_000)  # fixed scenes; 12,000 steps of 128 are 300 epochs of 5,000
_BY_KEY = {row.key: row for row in (*DEIT, *SWIN)}


def named(names: str, host: str = 'deit') -> list[Row]:
    """Rows on scenes without end."""
    return [_BY_KEY[f'{host}/{name}'] for name in names.split()]


PRIMARY = named('source on on_time random stack interpolate swa adapter tied scalenet stacked times3 scratch3')
CONTROLS = named('on on_time scalenet scalenet_increments')


OWN_RATE = tuple(
    replace(row, name=row.name + AT_OWN_RATE, title=f'{row.title}, own rate', lr=OWN_RATES[row.name], paper='')
    for row in named(' '.join(OWN_RATES))
)


def at_own_rate(key: str) -> str:
    """The row of this key, at a learning rate of its own where it has one."""
    return next((row.key for row in OWN_RATE if row.key == key + AT_OWN_RATE), key)


HERE = tuple(at_own_rate(row.key) for row in CONTROLS)  # what other lengths and sources stand beside


def _fixed(scenes: int) -> tuple[Row, ...]:
    """The rows on a fixed set, in as many epochs as on 5,000 scenes."""

    def on(row: Row, source: Row | None = None) -> Row:
        steps = row.steps * scenes // SETS[1]
        return replace(row, scenes=scenes, steps=steps, source=source, lr=OWN_RATES.get(row.name, row.lr))

    source = on(DEIT_SOURCE)
    others = [row for row in (*PRIMARY, *named('scalenet_increments untied')) if row is not DEIT_SOURCE]
    return (source, *(on(row, row.source and source) for row in others))


FIXED = tuple(row for scenes in SETS for row in _fixed(scenes))


# Where it pays: a source less far trained; more and fewer steps. Rates are those of 4,000 steps, their own at once.
def _younger(steps: int) -> tuple[Row, ...]:
    source = replace(DEIT_SOURCE, name=f'source_{steps}', title=f'source of {steps:,} steps', steps=steps, paper='')
    rows = (
        replace(
            r,
            name=f'{r.name}_of_{steps}',
            title=f'{r.title}, of {steps:,} steps',
            source=source,
            lr=OWN_RATES.get(r.name, r.lr),
            paper='',
        )
        for r in CONTROLS
    )
    return (source, *rows)


YOUNGER_STEPS = (3_000, 6_000)
YOUNGER = tuple(row for steps in YOUNGER_STEPS for row in _younger(steps))
LENGTHS = (500, 1_000, 2_000, 8_000)
OF_LENGTH = tuple(
    replace(
        row,
        name=f'{row.name}_for_{steps}',
        title=f'{row.title}, {steps:,} steps',
        steps=row.steps * steps // STEPS,
        lr=OWN_RATES.get(row.name, row.lr),
        paper='',
    )
    for steps in LENGTHS
    for row in CONTROLS
)


def _tried(row: Row, **settings: float) -> Row:
    ((what, value),) = settings.items()
    words = {'lr': 'lr', 'drop_path': 'drop path'}[what]
    return replace(
        row, name=f'{row.name}_{what}_{value:g}', title=f'{row.title}, {words} {value:g}', paper='', **settings
    )


_RATES = {
    'source': (4e-3, 16e-3),  # beside its own, 8e-3
    'scratch3': (1.5e-3, 3e-3, 6e-3, 12e-3),
    **dict.fromkeys(('on', 'stack'), (5e-4, 1e-3, 2e-3, 4e-3)),
    **dict.fromkeys(('scalenet', 'tied'), (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)),
    'scalenet_increments': (2e-3, 4e-3, 8e-3, 16e-3, 32e-3),
}


def _longer(source: Row) -> Row:
    """Whether a source is trained to its end."""
    return replace(
        source, name='source_longer', title='source, 30 % more steps', steps=source.steps * 13 // 10, paper=''
    )


PILOT = (
    *(_tried(row, lr=lr) for row in DEIT for lr in _RATES.get(row.name, ())),
    *(_tried(row, drop_path=p) for row in named('scalenet') for p in (0.05, 0.1)),
    _longer(DEIT_SOURCE),
)
# Rates of their own for rows that borrow one, asked after the first counted runs (docs/evidence_plan.md).
_OWN_RATES = {
    **dict.fromkeys(('random', 'interpolate', 'swa'), (1e-3, 2e-3, 4e-3, 8e-3)),
    'adapter': (5e-4, 1e-3, 2e-3, 4e-3),
    'on_time': (5e-4, 1e-3, 2e-3, 4e-3),
    'stacked': (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    'times3': (2e-3, 4e-3, 8e-3, 16e-3),
}
_SWIN_RATES = {
    'source': (4e-3, 16e-3),  # beside its own, 8e-3
    'on': (5e-4, 1e-3, 2e-3),
    'on_time': (1e-3, 2e-3, 4e-3),
    'stack': (5e-4, 1e-3, 2e-3, 4e-3),
    **dict.fromkeys(('scalenet', 'tied'), (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3)),
    'interpolated': (1e-3, 4e-3, 8e-3),  # the order that is not Swin's; DeiT's such order had its best at 1e-3
    'scalenet_increments': (1e-3, 2e-3, 4e-3, 8e-3),
    'scratch3': (1.5e-3, 3e-3, 6e-3, 12e-3),
}


def _sweep(rates: Mapping[str, tuple[float, ...]], host: str = 'deit') -> tuple[Row, ...]:
    return tuple(_tried(row, lr=lr) for name, some in rates.items() for row in named(name, host) for lr in some)


PILOT_OWN, PILOT_SWIN = _sweep(_OWN_RATES), _sweep(_SWIN_RATES, 'swin')
_DROPPED = {'source': (0.0, 0.1, 0.2), 'on': (0.0, 0.1, 0.2), 'scalenet': (0.0, 0.1, 0.2, 0.3)}
_OF_5000 = {row.name: row for row in FIXED if row.scenes == SETS[1]}
PILOT_FIXED = (
    *(_tried(_OF_5000[name], drop_path=p) for name, swept in _DROPPED.items() for p in swept),
    _longer(_OF_5000['source']),
)

PILOT_ROWS = (*PILOT, *PILOT_OWN, *PILOT_SWIN, *PILOT_FIXED)
ROWS = {row.key: row for row in (*DEIT, *OWN_RATE, *SWIN, *FIXED, *YOUNGER, *OF_LENGTH, *PILOT_ROWS)}


def keys(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(row.key for row in rows)


def _keys(**names: str) -> tuple[str, ...]:
    return tuple(f'{group}/{name}' for group, some in names.items() for name in some.split())


# Study -> rows, in the order of its table; `evidence_page.reference` is what the others are compared with.
STUDIES = {
    'primary': keys(PRIMARY),
    'own_rates': keys(
        r for row in PRIMARY for r in (row, *(own for own in OWN_RATE if own.name == row.name + AT_OWN_RATE))
    ),
    'swin': keys(SWIN),
    **{f'fixed{scenes}': keys(row for row in FIXED if row.scenes == scenes) for scenes in SETS},
    'pays': (*keys((*YOUNGER, *OF_LENGTH)), *HERE),  # its page shows the fixed sets' rows too
    'table1': _keys(deit='source on on_time random stack interpolate swa zero peft scalenet scalenet_increments'),
    'table2': _keys(deit='source on tied lora adapter adapter_increments tied_lora scalenet scalenet_increments'),
    'table3': _keys(deit='source on layer1 layer2 layer3 scalenet'),
    'table4': _keys(deit='source on adapter scalenet times3 times4'),
    'table5': _keys(deit='scalenet stacked', swin='scalenet interpolated'),
    'table6': _keys(deit='source on adapter_r2 scalenet adapter_r8 tied_lora lora_r4'),
    'table7': _keys(deit='source on scratch scratch3 untied scalenet scalenet_increments'),
    'increments': _keys(
        deit='on scalenet scalenet_increments increments_r8 increments_r16 increments_r32 adjustments increments_head '
        'increments_embed increments_function'
    ),
    'fig6': _keys(deit='scalenet drop_path_0.05 drop_path_0.1 drop_path_0.2'),
    'start': _keys(deit='on scalenet function'),
    'distill': _keys(deit='on scalenet distill_logits distill_layers'),
    'gradients': _keys(deit='source on tied scalenet'),
    'pilot': ('deit/source', *keys(PILOT)),
    'pilot_own': keys(PILOT_OWN),
    'pilot_swin': keys(PILOT_SWIN),
    'pilot_fixed': keys(PILOT_FIXED),
    'spread': _keys(deit='source on stack tied scalenet scalenet_increments'),
}
PILOTS = ('pilot', 'pilot_own', 'pilot_swin', 'pilot_fixed', 'spread')
# Rows of one seed are compared, so they start from one source: studies begun where the first sources were no longer at
# hand have seeds of their own, and so have pilots, whose seeds do not count.
SEEDS = {
    **dict.fromkeys(STUDIES, range(50)),
    **{name: range(50, 100) for name in STUDIES if name.startswith('table') and name != 'table5'},
    **dict.fromkeys(('pays', 'increments', 'fig6', 'start', 'distill'), range(50, 100)),
    **dict.fromkeys(PILOTS, range(100, 150)),
}
