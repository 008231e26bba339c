"""The rows of Tables I to IX and Fig. 6: what is built, how it is trained, which config does it, and what is
printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...backbones.scaled import UNSCALED
from ...compat import configs_dir
from ...core.flops import INPUT_SIZE
from ...core.growth import layers_to_reach
from . import printed
from .printed import BASE, EXTRA, LOST, SCALENET, Printed, elsewhere


@dataclass(frozen=True)
class Row:
    """One line of a table; ``params``, ``flops``, ``result`` and ``remark`` as printed, see ``Printed``."""

    table: str  # its Roman numeral, or 'Fig. 6'
    model: str  # as in the paper
    variant: str  # what the line is, in our words (layers 1-based, as printed)
    parent: str  # ScaleNet's config of this model and task, relative to ``configs/``
    config: str  # the row's own; ScaleNet rows have no other than ``parent``
    scale: Mapping[str, Any] | None = None  # replaces the parent's; None keeps it
    train: str = 'increments'  # see ``TrainPolicy``
    drop_path_rate: float | None = None  # None where the host's default stays
    epochs: int | None = 100  # 0: the pretrained network is tested as it is; None: a number of iterations
    pretrained: bool = True  # False where training starts from random weights
    note: str = ''  # what the paper leaves open here, and what was chosen
    params: float | None = None
    flops: float | None = None
    result: Mapping[str, float] = field(default_factory=dict)
    remark: str = ''
    input_size: tuple[int, int] = INPUT_SIZE  # (H, W) that FLOPs are counted at; of a detector the backbone's

    @property
    def key(self) -> str:
        """Unique: ``'table1/deit_t/stack'``, ``'fig6/deit_b/drop_path_0.5'``."""
        numbered = self.table in NUMERALS
        place = f'table{NUMERALS.index(self.table) + 1}' if numbered else slug(re.sub('[ .]', '', self.table))
        return f'{place}/{slug(self.model)}/{slug(self.variant)}'

    @property
    def is_scalenet(self) -> bool:
        return self.config == self.parent

    @property
    def build(self) -> dict[str, Any]:
        """Arguments of ``scalenet_mm.build``: the parent's config, which says what the row leaves open."""
        return dict(model=str(configs_dir() / self.parent), scale=self.scale)


NUMERALS = ('I', 'II', 'III', 'IV', 'V', 'VI', 'VII', 'VIII', 'IX', 'X')
PARENT = 'scalenet_{}_100e.py'
# Sec. IV-A1 and IV-C4, where a model differs from the others.
TRAIN = {'DeiT-T': 'all', 'DeiT-S': 'all'}
DROP_PATH = {'DeiT-T': 0.0, 'DeiT-B': 0.5, 'Swin-B': 0.5}
SCRATCH_DROP_PATH = 0.1  # DeiT's official script

# Parameters of the base, of one layer (of Swin: of stage 3, as the printed counts prove), of ScaleNet.
SIZES = {
    'DeiT-T': (5_717_416, 444_864, 6_463_912),
    'DeiT-S': (22_050_664, 1_774_464, 23_543_656),
    'DeiT-B': (86_567_656, 7_087_872, 89_553_640),
    'Swin-T': (28_288_354, 1_776_492, 29_246_818),
    'Swin-S': (49_606_258, 1_776_492, 51_302_002),
    'Swin-B': (87_768_224, 3_155_088, 90_029_216),
}
NEW_LAYERS = {model: layers_to_reach(*sizes) for model, sizes in SIZES.items()}  # Sec. IV-A2
# LoRA on all four linears costs 16 r d an instance, adapters 10 r d: with this rank as much as with adapters of 16.
TIED_LORA_RANK = 10

TRAINED_WHOLE = 'All is trained; the paper does not say what is.'
GROWN = "Added one by one until ScaleNet's size is reached (Sec. IV-A2): {}.\n" + TRAINED_WHOLE
ZEROED = "Copies with zeroed outputs (LLaMA Pro), up to ScaleNet's size: {}. All is trained, as in the baselines."
REPLICATED = "Shared layers with LoRA of ScaleNet's size (PEFT's layer replication); only LoRA is trained."
SCRATCH = (
    'As the official DeiT (Sec. IV-D): lr 5e-4 a batch of 512 down to 1e-5, 5 epochs of warm-up, drop path 0.1, no\n'
    'clipping. Left out: its repeated augmentation, EMA and 10 epochs of cool-down.'
)


def slug(text: str) -> str:
    """
    >>> slug('WSPT + Adapter r=16'), slug('layers (1, 2, 3)'), slug('drop path 0.5')
    ('wspt_adapter_r16', 'layers_1_2_3', 'drop_path_0.5')
    """
    return re.sub(r'[^a-z0-9.]+', '_', text.lower().replace('=', '')).strip('_')


def _scalenet(table: str, model: str, variant: str, about: Printed, **settings: Any) -> Row:
    usual = dict(
        parent=PARENT.format(slug(model)),
        config=PARENT.format(slug(model)),
        train=TRAIN.get(model, 'increments'),
        drop_path_rate=DROP_PATH.get(model, 0.2),
    )
    return Row(table, model, variant, **{**usual, **about._asdict(), **settings})


def _row(table: str, model: str, variant: str, about: Printed, leaf: str = '', **settings: Any) -> Row:
    """A row with a config of its own: ``leaf`` is the folder, or the folder and the name after the model's."""
    folder, _, name = (leaf or 'ablations').partition('/')
    name = (name or slug(variant)).replace('.', '')  # mmengine takes no dots in a name
    config = f'{folder}/{slug(model)}_{name}_{settings.get("epochs", 100)}e.py'
    return _scalenet(table, model, variant, about, **{'config': config, **settings})


def _base(table: str, model: str, about: Printed | None = None) -> Row:
    config = f'baselines/{slug(model)}_base.py'
    about = about or elsewhere(BASE[model])
    return _scalenet(table, model, 'base', about, config=config, scale=UNSCALED, epochs=0)


def _adjust(kind: str = 'ParallelAdapter', rank: int = 16, **scale: Any) -> dict:
    """By default as ScaleNet in the paper (Sec. IV-A1), whatever our default is."""
    return dict(scale, adjust=dict(type=kind, rank=rank))


def _table_1() -> Iterator[Row]:
    for model in SIZES:
        params, flops, remark, top1 = printed.BASELINES.get(model, (None, None, '', None))
        new, where = NEW_LAYERS[model], {} if model.startswith('DeiT') else dict(stages=(2,))
        layers = f'{new} independent layer{"s" if new > 1 else ""}'
        yield _base('I', model, BASE[model])
        for i, method in enumerate(('Random', 'Stack', 'Interpolate', 'SWA', 'Zero')):
            extra = method == 'Zero'
            scores = Printed(params, flops, {'top-1': top1[i]}, remark) if top1 and not extra else LOST
            yield _row(
                'I',
                model,
                method,
                EXTRA if extra else scores,
                'baselines',
                scale=dict(growth=method.lower(), new_layers=new, **where),
                train='all',
                note=(ZEROED if extra else GROWN).format(layers),
            )
        yield _row(
            'I',
            model,
            f'Tied LoRA r={TIED_LORA_RANK}',
            EXTRA,
            'baselines',
            scale=_adjust('LoRA', TIED_LORA_RANK),
            train='adjustments',
            note=REPLICATED,
        )
        yield _scalenet('I', model, 'ScaleNet', SCALENET[model])


def _table_2() -> Iterator[Row]:
    for model, (wspt, lora, adapter) in printed.TABLE_2.items():
        r, s = printed.TABLE_2_RANKS[model.partition('-')[0]]
        yield _base('II', model)
        bare = dict(scale=dict(adjust=None), train='all', note=f'No adjustments. {TRAINED_WHOLE}')
        yield _row('II', model, 'WSPT', wspt, **bare)
        yield _row('II', model, f'LoRA r={r}', lora, scale=_adjust('LoRA', r, times=1))
        yield _row('II', model, f'Adapter r={s}', adapter, scale=_adjust('ParallelAdapter', s, times=1))
        yield _row('II', model, f'WSPT + LoRA r={r}', EXTRA, scale=_adjust('LoRA', r))
        yield _scalenet('II', model, 'WSPT + Adapter r=16', elsewhere(SCALENET[model]))


def _table_3() -> Iterator[Row]:
    yield _base('III', 'DeiT-B')
    for first, about in printed.TABLE_3_LAYERS.items():
        layers = tuple(range(first, first + 3))
        scale = _adjust(layers=tuple(i - 1 for i in layers))
        yield _row('III', 'DeiT-B', f'layers {layers}', about, scale=scale)
    yield _scalenet('III', 'DeiT-B', 'all layers', elsewhere(SCALENET['DeiT-B']))
    yield _base('III', 'Swin-B')
    for stage, about in printed.TABLE_3_STAGES.items():
        yield _row('III', 'Swin-B', f'stage {stage}', about, scale=_adjust(stages=(stage - 1,)))
    yield _scalenet('III', 'Swin-B', 'stage 4', elsewhere(SCALENET['Swin-B']))
    every = _adjust(stages='all')
    yield _row('III', 'Swin-B', 'all stages', printed.TABLE_3_ALL_STAGES, scale=every)


def _table_4() -> Iterator[Row]:
    for model, more in printed.TABLE_4.items():
        yield _base('IV', model)
        yield _scalenet('IV', model, 'x2', elsewhere(SCALENET[model]))
        for times, about in more.items():
            yield _row('IV', model, f'x{times}', about, scale=_adjust(times=times))


def _table_5() -> Iterator[Row]:
    for model, (order, about) in printed.TABLE_5.items():
        usual = {'stack': 'interpolate', 'interpolate': 'stack'}[order]
        yield _base('V', model, elsewhere(BASE[model], params=None))
        scalenet = elsewhere(SCALENET[model], params=None)
        yield _scalenet('V', model, usual, scalenet)
        yield _row('V', model, order, about, f'ablations/order_{order}', scale=_adjust(order=order))


def _table_6() -> Iterator[Row]:
    yield _base('VI', 'DeiT-B')
    for (kind, rank), about in printed.TABLE_6.items():
        variant = f'{kind.removeprefix("Parallel")} r={rank}'
        if variant == 'Adapter r=16':
            yield _scalenet('VI', 'DeiT-B', variant, about)
        else:
            leaf = f'ablations/{slug(f"WSPT {variant}")}'
            yield _row('VI', 'DeiT-B', variant, about, leaf, scale=_adjust(kind, rank))


def _table_7() -> Iterator[Row]:
    for model, lines in printed.TABLE_7.items():
        for epochs, (hours, top1) in lines.items():
            about = Printed(result={'top-1': top1, 'hours': hours})
            if not epochs:
                yield _scalenet('VII', model, 'ScaleNet', about)
                continue
            yield _row(
                'VII',
                model,
                f'scratch {epochs} epochs',
                about,
                'baselines/scratch',
                scale=dict(growth='random', times=2),
                train='all',
                drop_path_rate=SCRATCH_DROP_PATH,
                epochs=epochs,
                pretrained=False,
                note=SCRATCH,
            )


def _figure_6() -> Iterator[Row]:
    for model, best in printed.FIGURE_6.items():
        for rate in printed.DROP_PATHS:
            variant = f'drop path {rate}'
            if rate == best:
                yield _scalenet('Fig. 6', model, variant, Printed(result=SCALENET[model].result))
            else:
                about = Printed(remark=printed.SWEEP)
                yield _row('Fig. 6', model, variant, about, drop_path_rate=rate)


def _dense() -> Iterator[Row]:
    """Detector and segmentor, counted whole with the auxiliary head; FLOPs at mmdet's padded 1333 x 800, at a crop."""
    for table, name, suffix, epochs, size, models in (
        ('VIII', 'mask_rcnn', '1x', 12, (800, 1344), printed.TABLE_8),
        ('IX', 'upernet', '40k', None, (512, 512), printed.TABLE_9),
    ):
        for model, (base, scaled) in models.items():
            parent = f'{name}_scalenet_{slug(model)}_{suffix}.py'
            common = dict(parent=parent, drop_path_rate=None, input_size=size)
            config = f'baselines/{name}_{slug(model)}_base.py'
            unscaled = dict(config=config, scale=UNSCALED, epochs=0)
            yield _scalenet(table, model, 'base', base, **common, **unscaled)
            yield _scalenet(table, model, 'ScaleNet', scaled, **common, config=parent, epochs=epochs)


ROWS = (
    *_table_1(),
    *_table_2(),
    *_table_3(),
    *_table_4(),
    *_table_5(),
    *_table_6(),
    *_table_7(),
    *_figure_6(),
    *_dense(),
)
