"""The study's rows on scenes without end, fixed before the seeds that count were drawn (docs/evidence.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

SOURCE_STEPS, STEPS = 12_000, 4_000  # a third, as the paper's 100 of 300 epochs
RANK = 4  # adapters of 10 % of the source's parameters: the share is DeiT-S's to DeiT-T's

# By what is trained, chosen on the pilot's seed: `scalenet experiment study pilot`. 'deep': all of a net of twice the
# source's depth or more.
LEARNING_RATES = {'scratch': 8e-3, 'deep scratch': 3e-3, 'all': 1e-3, 'deep': 8e-3, 'increments': 4e-3}
# Of rows that at first borrowed one of these, where `scalenet experiment study pilot_own` found a better one. Rows of
# the primary family keep what they were run with; rows of this ending stand beside them. Fixed sets take these at once.
OWN_RATES = {'interpolate': 4e-3, 'on_time': 2e-3, 'stacked': 1e-3, 'times3': 4e-3}
AT_OWN_RATE = '_own_rate'
# Of Swin's rows, each swept by itself before any of them counted: `scalenet experiment study pilot_swin`.
SWIN_RATES = {
    'source': 8e-3,
    **dict.fromkeys(('on', 'stack', 'scalenet', 'tied'), 1e-3),
    **dict.fromkeys(('on_time', 'scalenet_increments'), 2e-3),
    'interpolated': 4e-3,
    'scratch3': 6e-3,
}


@dataclass(frozen=True, eq=False)
class Row:
    """One way to get a model.

    Attributes:
        name: unique among the rows of a group.
        title: what a table prints.
        host: ``'deit'`` or ``'swin'``: the config ``rank_<host>.py`` is the source.
        scale: the backbone's ``scale``; None for the source's own.
        train: what is trained, see ``TrainPolicy``.
        steps: training steps.
        source: the row whose model of the same seed it starts from; None for random weights.
        options: other settings, as ``--cfg-options`` takes them.
        lr: learning rate; by default that of ``LEARNING_RATES``.
        drop_path: 0 was best in the pilots, on scenes without end and on fixed ones.
        scenes: of a fixed training set; 0: drawn without end.
        paper: key of the paper's row beside it, see ``paper.recount``.
    """

    name: str
    title: str
    host: str = 'deit'
    scale: Mapping[str, Any] | None = None
    train: str = 'all'
    steps: int = STEPS
    source: Row | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    drop_path: float = 0.0
    scenes: int = 0
    paper: str = ''

    @property
    def group(self) -> str:
        """Host and training set; rows of one group are compared."""
        return f'{self.host}{self.scenes or ""}'

    @property
    def key(self) -> str:
        return f'{self.group}/{self.name}'

    @property
    def depth(self) -> float:
        """In depths of the source."""
        scale = self.scale or {}
        return 4 / 3 if 'new_layers' in scale else scale.get('times', 2 if scale else 1)

    @property
    def kind(self) -> str:
        """What it takes its learning rate from."""
        if self.train != 'all':
            return 'increments'
        deep = self.depth >= 2
        if self.source is None:
            return 'deep scratch' if deep else 'scratch'
        return 'deep' if deep else 'all'

    @property
    def rate(self) -> float:
        return self.lr or LEARNING_RATES[self.kind]


def adapter(rank: int = RANK) -> dict:
    return dict(type='ParallelAdapter', rank=rank)


def lora(rank: int) -> dict:
    return dict(type='LoRA', rank=rank)


LORA_RANK = 2  # 2 x (64+192 + 64+64 + 2 x (64+256)) = 2048 parameters an instance beside the adapters' 2560
TWICE = dict(times=2, adjust=adapter())
GROWN = 1  # the fewest own layers whose parameters reach ScaleNet's (growth.layers_to_reach)
DEEP = dict(growth='interpolate', times=2)
OLD_DEPTH = dict(times=1, adjust=adapter(2 * RANK))


def _of_rank(rank: int) -> dict:
    return dict(TWICE, adjust=adapter(rank))


def _also(*patterns: str) -> dict:
    return {'optim_wrapper.paramwise_cfg.policy': dict(train='increments', also=list(patterns))}


def _distilled(**weights: float) -> dict:
    return {'model.type': 'DistilledClassifier', 'model.distill': dict(weights)}


_source = partial(Row, 'source', steps=SOURCE_STEPS)
DEIT_SOURCE = _source('source (3 layers)', paper='table1/deit_t/base')
SWIN_SOURCE = _source('source (1 + 3 layers)', 'swin', lr=SWIN_RATES['source'], paper='table1/swin_t/base')
_deit = partial(Row, host='deit', source=DEIT_SOURCE)


def _swin(name: str, title: str, source: Row | None = SWIN_SOURCE, **settings: Any) -> Row:
    return Row(name, title, 'swin', source=source, lr=SWIN_RATES[name], **settings)


def _grown(how: str) -> dict:
    return dict(growth=how, new_layers=GROWN)


DEIT = (
    DEIT_SOURCE,
    _deit('on', 'source trained on, equal steps'),
    _deit('on_time', 'source trained on, equal time', steps=2 * STEPS),
    *(
        _deit(how.lower(), f'+1 own layer, {how}', scale=_grown(how.lower()), paper=f'table1/deit_t/{how.lower()}')
        for how in ('Random', 'Stack', 'Interpolate', 'SWA')
    ),
    _deit('zero', '+1 own layer, zero-initialised', scale=_grown('zero')),
    _deit('peft', 'tied x2, LoRA alone trained', scale=dict(times=2, adjust=lora(LORA_RANK)), train='adjustments'),
    _deit('scalenet', 'ScaleNet x2, all trained', scale=TWICE, paper='table1/deit_t/scalenet'),
    _deit(
        'scalenet_increments',
        'ScaleNet x2, increments trained',
        scale=TWICE,
        train='increments',
        paper='table1/deit_b/scalenet',
    ),
    _deit('tied', 'tied x2, no adjustment (WSPT)', scale=dict(times=2, adjust=None), paper='table2/deit_t/wspt'),
    _deit('tied_lora', 'tied x2 + LoRA, all trained', scale=dict(times=2, adjust=lora(LORA_RANK))),
    _deit('lora', 'LoRA, old depth', scale=dict(times=1, adjust=lora(2 * LORA_RANK)), paper='table2/deit_t/lora_r16'),
    _deit('adapter', 'adapters, old depth', scale=OLD_DEPTH, paper='table2/deit_t/adapter_r32'),
    _deit('adapter_increments', 'adapters, old depth, increments trained', scale=OLD_DEPTH, train='increments'),
    _deit('stacked', 'ScaleNet x2, stack order', scale=dict(TWICE, order='stack'), paper='table5/deit_b/stack'),
    _deit('times3', 'ScaleNet x3', scale=dict(TWICE, times=3), paper='table4/deit_b/x3'),
    _deit('times4', 'ScaleNet x4', scale=dict(TWICE, times=4), lr=OWN_RATES['times3']),
    _deit('function', 'ScaleNet x2, function-preserving start', scale=dict(TWICE, start='function')),
    _deit('distill_logits', 'ScaleNet x2, distilled: logits', scale=TWICE, options=_distilled(logits=1.0, layers=0.0)),
    _deit('distill_layers', 'ScaleNet x2, distilled: layers', scale=TWICE, options=_distilled(logits=0.0, layers=1.0)),
    _deit('untied', 'untied copy x2 (1.8 x the parameters)', scale=DEEP),
    *(
        Row(
            name,
            f'6 layers from scratch, {words} steps',
            scale=DEEP,
            steps=times * STEPS,
            paper=f'table7/deit_s/scratch_{times}00_epochs',
        )
        for name, words, times in (('scratch', 'equal', 1), ('scratch3', '3 x the', 3))
    ),
    *(
        _deit(f'layer{i + 1}', f'ScaleNet, layer {i + 1} reused', scale=dict(TWICE, layers=(i,), adjust_on='reused'))
        for i in range(3)
    ),
    _deit('adapter_r2', 'adapter r=2', scale=_of_rank(2), paper='table6/deit_b/adapter_r8'),
    _deit('adapter_r8', 'adapter r=8', scale=_of_rank(8), paper='table6/deit_b/adapter_r32'),
    _deit('lora_r4', 'LoRA r=4', scale=dict(times=2, adjust=lora(4)), paper='table6/deit_b/lora_r16'),
    *(_deit(f'drop_path_{p}', f'drop path {p}', scale=TWICE, drop_path=p) for p in (0.05, 0.1, 0.2)),
    # What holds increments back, one factor a row.
    *(
        _deit(f'increments_r{r}', f'increments trained, adapters of rank {r}', scale=_of_rank(r), train='increments')
        for r in (8, 16, 32)
    ),
    _deit('adjustments', 'adapters alone trained, no norms', scale=TWICE, train='adjustments'),
    _deit('increments_head', 'increments and head trained', scale=TWICE, train='increments', options=_also('head')),
    _deit(
        'increments_embed',
        'increments and embedding trained',
        scale=TWICE,
        train='increments',
        options=_also('backbone.patch_embed', 'backbone.pos_embed'),
    ),
    _deit(
        'increments_function',
        'increments trained, function-preserving start',
        scale=dict(TWICE, start='function'),
        train='increments',
    ),
)

LAST = dict(stages=(1,))
LAST_TWICE = dict(LAST, **TWICE)
SWIN = (
    SWIN_SOURCE,
    _swin('on', 'source trained on, equal steps'),
    _swin('on_time', 'source trained on, equal time', steps=2 * STEPS),
    _swin('stack', '+1 own layer, Stack', scale=dict(LAST, **_grown('stack')), paper='table1/swin_t/stack'),
    _swin('scalenet', 'ScaleNet x2, all trained', scale=LAST_TWICE, paper='table1/swin_t/scalenet'),
    _swin(
        'scalenet_increments',
        'ScaleNet x2, increments trained',
        scale=LAST_TWICE,
        train='increments',
        paper='table1/swin_b/scalenet',
    ),
    _swin('tied', 'tied x2, no adjustment (WSPT)', scale=dict(LAST_TWICE, adjust=None), paper='table2/swin_t/wspt'),
    _swin(
        'interpolated',
        'ScaleNet x2, interpolate order',
        scale=dict(LAST_TWICE, order='interpolate'),
        paper='table5/swin_b/interpolate',
    ),
    _swin('scratch3', '1 + 6 layers from scratch, 3 x the steps', None, scale=dict(LAST, **DEEP), steps=3 * STEPS),
)
