"""What the study runs: every row of it, fixed before the seeds that count were drawn (docs/evidence.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SOURCE_STEPS = dict(deit=3000, swin=3000)
STEPS = 500
RANK = 4  # adapters of 6.1 % of the parameters of three layers of width 64, twice: the share is DeiT-S's to DeiT-T's

# Best of three on the pilot's seed, by what is trained: `scalenet experiment study pilot`.
LEARNING_RATES = {'scratch': 8e-3, 'all': 2e-3, 'increments': 16e-3}


@dataclass(frozen=True)
class Row:
    """One way to get a model.

    Attributes:
        name: unique among the rows of a host.
        title: what a table prints.
        host: ``'deit'`` or ``'swin'``: the config ``rank_<host>.py`` is the source.
        scale: the backbone's ``scale``; None for the source's own.
        train: what is trained, see ``TrainPolicy``.
        steps: training steps.
        pretrained: whether it starts from the seed's source model.
        options: other settings, as ``--cfg-options`` takes them.
        lr: learning rate; by default that of ``LEARNING_RATES``.
        paper: key of the paper's row beside it, see ``paper.recount``.
    """

    name: str
    title: str
    host: str = 'deit'
    scale: Mapping[str, Any] | None = None
    train: str = 'all'
    steps: int = STEPS
    pretrained: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    paper: str = ''

    @property
    def key(self) -> str:
        return f'{self.host}/{self.name}'

    @property
    def rate(self) -> float:
        kind = self.train if self.pretrained else 'scratch'
        return self.lr or LEARNING_RATES['increments' if kind == 'adjustments' else kind]


def adapter(rank: int = RANK) -> dict:
    return dict(type='ParallelAdapter', rank=rank)


def lora(rank: int) -> dict:
    return dict(type='LoRA', rank=rank)


LORA_RANK = 2  # 2 x (64+192 + 64+64 + 2 x (64+256)) = 2048 parameters an instance beside the adapters' 2560
TWICE = dict(times=2, adjust=adapter())
GROWN = 1  # the fewest own layers whose parameters reach ScaleNet's (growth.layers_to_reach)
DEEP = dict(growth='interpolate', times=2)


def _distilled(**weights: float) -> dict:
    return {'model.type': 'DistilledClassifier', 'model.distill': dict(weights)}


DEIT = (
    Row('source', 'source (3 layers)', steps=SOURCE_STEPS['deit'], pretrained=False, paper='table1/deit_t/base'),
    Row('on', 'source trained on, equal steps'),
    Row('on_time', 'source trained on, equal time', steps=2 * STEPS),
    Row('random', '+1 own layer, Random', scale=dict(growth='random', new_layers=GROWN), paper='table1/deit_t/random'),
    Row('stack', '+1 own layer, Stack', scale=dict(growth='stack', new_layers=GROWN), paper='table1/deit_t/stack'),
    Row(
        'interpolate',
        '+1 own layer, Interpolate',
        scale=dict(growth='interpolate', new_layers=GROWN),
        paper='table1/deit_t/interpolate',
    ),
    Row('swa', '+1 own layer, SWA', scale=dict(growth='swa', new_layers=GROWN), paper='table1/deit_t/swa'),
    Row('zero', '+1 own layer, zero-initialised', scale=dict(growth='zero', new_layers=GROWN)),
    Row('peft', 'tied x2, LoRA alone trained', scale=dict(times=2, adjust=lora(LORA_RANK)), train='adjustments'),
    Row('scalenet', 'ScaleNet x2, all trained', scale=TWICE, paper='table1/deit_t/scalenet'),
    Row(
        'scalenet_increments',
        'ScaleNet x2, increments trained',
        scale=TWICE,
        train='increments',
        paper='table1/deit_b/scalenet',
    ),
    Row('tied', 'tied x2, no adjustment (WSPT)', scale=dict(times=2, adjust=None), paper='table2/deit_t/wspt'),
    Row('tied_lora', 'tied x2 + LoRA, all trained', scale=dict(times=2, adjust=lora(LORA_RANK))),
    Row('lora', 'LoRA, old depth', scale=dict(times=1, adjust=lora(2 * LORA_RANK)), paper='table2/deit_t/lora_r16'),
    Row(
        'adapter',
        'adapters, old depth',
        scale=dict(times=1, adjust=adapter(2 * RANK)),
        paper='table2/deit_t/adapter_r32',
    ),
    Row(
        'adapter_increments',
        'adapters, old depth, increments trained',
        scale=dict(times=1, adjust=adapter(2 * RANK)),
        train='increments',
    ),
    Row('stacked', 'ScaleNet x2, stack order', scale=dict(TWICE, order='stack'), paper='table5/deit_b/stack'),
    Row('times3', 'ScaleNet x3', scale=dict(times=3, adjust=adapter()), paper='table4/deit_b/x3'),
    Row('times4', 'ScaleNet x4', scale=dict(times=4, adjust=adapter())),
    Row('function', 'ScaleNet x2, function-preserving start', scale=dict(TWICE, start='function')),
    Row('distill_logits', 'ScaleNet x2, distilled: logits', scale=TWICE, options=_distilled(logits=1.0, layers=0.0)),
    Row('distill_layers', 'ScaleNet x2, distilled: layers', scale=TWICE, options=_distilled(logits=0.0, layers=1.0)),
    Row('untied', 'untied copy x2 (1.8 x the parameters)', scale=DEEP),
    Row(
        'scratch',
        '6 layers from scratch, equal steps',
        scale=DEEP,
        pretrained=False,
        paper='table7/deit_s/scratch_100_epochs',
    ),
    Row(
        'scratch3',
        '6 layers from scratch, 3 x the steps',
        scale=DEEP,
        pretrained=False,
        steps=3 * STEPS,
        paper='table7/deit_s/scratch_300_epochs',
    ),
    *(
        Row(f'layer{i + 1}', f'ScaleNet, layer {i + 1} reused', scale=dict(TWICE, layers=(i,), adjust_on='reused'))
        for i in range(3)
    ),
    Row('adapter_r2', 'adapter r=2', scale=dict(times=2, adjust=adapter(2)), paper='table6/deit_b/adapter_r8'),
    Row('adapter_r8', 'adapter r=8', scale=dict(times=2, adjust=adapter(8)), paper='table6/deit_b/adapter_r32'),
    Row('lora_r4', 'LoRA r=4', scale=dict(times=2, adjust=lora(4)), paper='table6/deit_b/lora_r16'),
    *(
        Row(f'drop_path_{p}', f'drop path {p}', scale=TWICE, options={'model.backbone.drop_path_rate': p})
        for p in (0.05, 0.1, 0.2)
    ),
)

LAST = dict(stages=(1,))
SWIN = (
    Row(
        'source',
        'source (1 + 3 layers)',
        'swin',
        steps=SOURCE_STEPS['swin'],
        pretrained=False,
        paper='table1/swin_t/base',
    ),
    Row('on', 'source trained on, equal steps', 'swin'),
    Row(
        'stack',
        '+1 own layer, Stack',
        'swin',
        dict(LAST, growth='stack', new_layers=GROWN),
        paper='table1/swin_t/stack',
    ),
    Row('scalenet', 'ScaleNet x2, all trained', 'swin', dict(LAST, **TWICE), paper='table1/swin_t/scalenet'),
    Row(
        'scalenet_increments',
        'ScaleNet x2, increments trained',
        'swin',
        dict(LAST, **TWICE),
        'increments',
        paper='table1/swin_b/scalenet',
    ),
    Row('tied', 'tied x2, no adjustment (WSPT)', 'swin', dict(LAST, times=2, adjust=None), paper='table2/swin_t/wspt'),
    Row(
        'interpolated',
        'ScaleNet x2, interpolate order',
        'swin',
        dict(LAST, **TWICE, order='interpolate'),
        paper='table5/swin_b/interpolate',
    ),
    Row('scratch', '1 + 6 layers from scratch, equal steps', 'swin', dict(LAST, **DEEP), pretrained=False),
)

# Added after the results of the rows above: were their steps too few to use the depth?
LONGER = tuple(
    replace(row, name=f'{row.name}_long', title=f'{row.title}, 4 x the steps', steps=4 * row.steps)
    for row in DEIT
    if row.name in ('on', 'stack', 'scalenet', 'scalenet_increments', 'untied')
)

# On the pilot's seed alone: three learning rates a policy.
PILOT_SEED = 100
PILOT = tuple(
    replace(row, name=f'{row.name}_lr_{lr:g}', title=f'{row.title}, lr {lr:g}', lr=lr, paper='')
    for row in DEIT
    for lr in {
        'source': (2e-3, 4e-3, 8e-3),
        'on': (2e-3, 4e-3, 8e-3),
        'stack': (2e-3, 4e-3, 8e-3),
        'scalenet': (2e-3, 4e-3, 8e-3),
        'scalenet_increments': (4e-3, 8e-3, 16e-3),
    }.get(row.name, ())
)

ROWS = {row.key: row for row in (*DEIT, *SWIN, *LONGER, *PILOT)}


def _keys(host: str, *names: str) -> tuple[str, ...]:
    return tuple(f'{host}/{name}' for name in names)


# Study -> rows, in the order of its table; `report.reference` is what the others are compared with.
STUDIES = {
    'table1': (
        *_keys(
            'deit',
            'source',
            'on',
            'on_time',
            'random',
            'stack',
            'interpolate',
            'swa',
            'zero',
            'peft',
            'scalenet',
            'scalenet_increments',
        ),
        *_keys('swin', 'source', 'on', 'stack', 'scalenet', 'scalenet_increments'),
    ),
    'table2': (
        *_keys(
            'deit',
            'source',
            'on',
            'tied',
            'lora',
            'adapter',
            'adapter_increments',
            'tied_lora',
            'scalenet',
            'scalenet_increments',
        ),
        *_keys('swin', 'source', 'on', 'tied', 'scalenet'),
    ),
    'table3': _keys('deit', 'source', 'on', 'layer1', 'layer2', 'layer3', 'scalenet'),
    'table4': _keys('deit', 'source', 'on', 'adapter', 'scalenet', 'times3', 'times4'),
    'table5': (*_keys('deit', 'scalenet', 'stacked'), *_keys('swin', 'scalenet', 'interpolated')),
    'table6': _keys('deit', 'source', 'on', 'adapter_r2', 'scalenet', 'adapter_r8', 'tied_lora', 'lora_r4'),
    'table7': (
        *_keys('deit', 'source', 'on', 'scratch', 'scratch3', 'untied', 'scalenet', 'scalenet_increments'),
        *_keys('swin', 'source', 'scratch', 'scalenet'),
    ),
    'fig6': _keys('deit', 'scalenet', 'drop_path_0.05', 'drop_path_0.1', 'drop_path_0.2'),
    'start': _keys('deit', 'on', 'scalenet', 'function'),
    'longer': ('deit/source', *(row.key for row in LONGER)),
    'gradients': _keys('deit', 'source', 'tied', 'scalenet'),
    'pilot': tuple(row.key for row in PILOT),
    'distill': _keys('deit', 'on', 'scalenet', 'distill_logits', 'distill_layers'),
}
