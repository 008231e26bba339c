"""The paper's printed figures, and the rules that some of them follow; Table X's metrics stand in ``lm.evaluation``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...lm.evaluation import PRINTED


class Printed(NamedTuple):
    """What the paper prints of one network; what it does not (legibly) print is None or left out."""

    params: float | None = None  # in millions
    flops: float | None = None  # in G multiply-adds, adjustments left out; only Table I prints them
    result: Mapping[str, float] = {}  # {'top-1': 76.46} (%), {'box AP': 46.7}, {'hours': 15.8} (on 8 GPUs)
    remark: str = ''  # why params or flops are not the built model's, or something is missing; joined by '; '


def top1(value: float, params: float | None = None, remark: str = '') -> Printed:
    return Printed(params, None, {'top-1': value}, remark)


TIED_NORMS = 'printed #Params counts the norms of new layers as tied, ours have their own'
STAGE_3 = 'printed #Params is that of stage 3 x2 (the printed FLOPs are those of stage 4 x2)'
STAGE_3_AGAIN = 'printed #Params is that of stage 3 x2, ours of stage 4 x2'
EXTRAPOLATED = 'printed #Params is the base plus a multiple of the r = 16, x2 increment'
UNDERIVABLE = 'printed #Params not derivable'
TWICE = "printed FLOPs are twice the base's, but embedding and head run once"
ONE_MORE = "printed FLOPs agree with the base's printed (rounded) 8.8 and 0.35 of one layer"
WITH_NORMS = 'printed FLOPs agree with a count that adds 5 operations per LayerNorm element, as fvcore does'
SCALENETS = "printed #Params is ScaleNet's, r = 16 on 24 layers"
ILLEGIBLE = 'not legible in the source text'
NO_PARAMS = 'number of parameters not legible in the source text'
OURS = "our row, not in the paper's table"
SWEEP = "the paper's curve has no figures; its text names the best value"


def elsewhere(printed: Printed, **changed: Any) -> Printed:
    """A network of Table I where another table prints it again: without FLOPs and what was remarked on them."""
    about = [part for part in printed.remark.split('; ') if not part.startswith('printed FLOPs')]
    return printed._replace(flops=None, remark='; '.join(about))._replace(**changed)


LOST = Printed(remark=ILLEGIBLE)
EXTRA = Printed(remark=OURS)

BASE = {
    'DeiT-T': Printed(5.72, 1.3, {'top-1': 72.16}),
    'DeiT-S': Printed(22.05, 4.6, {'top-1': 79.86}),
    'DeiT-B': Printed(86.57, 17.6, {'top-1': 81.80}),
    'Swin-T': Printed(28.29, 4.5, {'top-1': 81.20}),
    'Swin-S': Printed(49.61, 8.8, {'top-1': 83.22}, WITH_NORMS),
    'Swin-B': Printed(87.77, 15.5, {'top-1': 83.50}, WITH_NORMS),
}
# Remarks on #Params first: other tables print those, but no FLOPs.
SCALENET = {
    'DeiT-T': Printed(6.45, 2.6, {'top-1': 76.46}, f'{TIED_NORMS}; {TWICE}'),
    'DeiT-S': Printed(23.53, 9.2, {'top-1': 81.13}, f'{TIED_NORMS}; {TWICE}'),
    'DeiT-B': Printed(89.55, 35.2, {'top-1': 82.53}, TWICE),
    'Swin-T': Printed(29.37, 5.2, {'top-1': 81.43}, STAGE_3),
    'Swin-S': Printed(51.30, 9.5, {'top-1': 83.34}, WITH_NORMS),
    'Swin-B': Printed(90.03, 16.7, {'top-1': 83.69}),
}
# Table I's baselines: #Params, FLOPs, remark; top-1 of Random, Stack, Interpolate, SWA. DeiT-S is lost in the source.
BASELINES = {
    'DeiT-T': (6.61, 1.5, '', (75.01, 75.37, 75.39, 75.23)),
    'DeiT-B': (93.66, 19.0, '', (82.22, 82.27, 82.27, 82.34)),
    'Swin-T': (30.06, 4.8, '', (81.16, 81.14, 81.14, 81.28)),
    'Swin-S': (51.38, 9.2, ONE_MORE, (83.18, 83.07, 83.05, 83.18)),
    'Swin-B': (90.92, 16.1, '', (83.57, 83.53, 83.52, 83.63)),
}
# Table II: WSPT alone, LoRA and adapters at the original depth.
TABLE_2 = {
    'DeiT-T': (top1(75.58, 5.72, TIED_NORMS), top1(74.86, 6.31), top1(75.07, 6.45)),
    'DeiT-S': (top1(80.56, 22.05, TIED_NORMS), top1(80.02, 23.23), LOST),
    'DeiT-B': (LOST, top1(82.19, 88.93), top1(82.28, 89.55, SCALENETS)),
    'Swin-T': (top1(81.23, 28.29), top1(80.95, 28.85), top1(81.32, 28.99)),
    'Swin-S': (top1(83.09, 49.61), top1(82.93, 50.76), top1(83.24, 51.05)),
    'Swin-B': (top1(83.61, 87.77, TIED_NORMS), top1(83.26, 89.31), top1(83.56, 89.69)),
}
# Ranks that the printed counts of Table II prove: of LoRA, of adapters.
TABLE_2_RANKS = {'DeiT': (16, 32), 'Swin': (8, 16)}

# Table III by the first of three reused layers of DeiT-B (1-based), by the stage of Swin-B.
TABLE_3_LAYERS = {1: top1(82.11, 87.31), 4: top1(82.17, 87.31), 7: top1(82.13, 87.31), 10: top1(82.30, 87.31)}
TABLE_3_STAGES = {1: top1(83.56, 89.74), 2: top1(83.63, 89.78), 3: LOST}
TABLE_3_ALL_STAGES = top1(83.48, remark=NO_PARAMS)

TABLE_4 = {
    'DeiT-B': {3: top1(82.27, 92.53, EXTRAPOLATED), 4: EXTRA},
    'Swin-B': {3: top1(83.58, 91.39, UNDERIVABLE), 4: EXTRA},
}
TABLE_5 = {'DeiT-B': ('stack', top1(82.23)), 'Swin-B': ('interpolate', top1(83.51))}
TABLE_6 = {
    ('LoRA', 4): top1(82.15, 87.75, TIED_NORMS),
    ('LoRA', 8): top1(82.17, 88.93, TIED_NORMS),
    ('LoRA', 16): top1(82.18, 91.29, TIED_NORMS),
    ('ParallelAdapter', 8): top1(82.37, 88.06, EXTRAPOLATED),
    ('ParallelAdapter', 16): elsewhere(SCALENET['DeiT-B']),
    ('ParallelAdapter', 32): top1(82.44, 92.53, EXTRAPOLATED),
}
# Table VII: (epochs of training from scratch, or 0: ScaleNet's 100) -> hours on 8 GPUs, top-1.
TABLE_7 = {
    'DeiT-S': {100: (22.5, 77.32), 300: (47.3, 79.31), 0: (15.8, 81.13)},
    'DeiT-B': {100: (29.8, 68.91), 300: (89.5, 75.11), 0: (19.8, 82.53)},
}
# Fig. 6: the best value; the others are ours, the paper's are not legible.
FIGURE_6 = {'DeiT-S': 0.2, 'DeiT-B': 0.5}
DROP_PATHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def _coco(params: float, ap: float, ap50: float, ap75: float, remark: str = '') -> Printed:
    return Printed(params, None, {'box AP': ap, 'box AP50': ap50, 'box AP75': ap75}, remark)


def _ade(params: float, miou: float, remark: str = '') -> Printed:
    return Printed(params, None, {'mIoU': miou}, remark)


# Of each model: base, ScaleNet.
TABLE_8 = {
    'Swin-T': (_coco(47.8, 46.0, 68.1, 50.6), _coco(48.9, 46.7, 68.7, 51.2, STAGE_3_AGAIN)),
    'Swin-S': (_coco(69.1, 48.2, 69.8, 52.8), _coco(70.8, 48.4, 70.1, 53.1)),
}
TABLE_9 = {
    'Swin-T': (_ade(59.9, 44.41), _ade(63.1, 44.69, UNDERIVABLE)),
    'Swin-S': (_ade(81.3, 47.72), _ade(84.4, 48.13, UNDERIVABLE)),
}
# Llama-3.2-1B; the rank is not named.
_BETWEEN = f'{UNDERIVABLE}: the rank is not named, 1265 lies between r = 16 and r = 32'
TABLE_10 = {
    'base': Printed(1236, None, PRINTED['base']),
    'ScaleNet': Printed(1265, None, PRINTED['ScaleNet'], _BETWEEN),
}
DECIMALS = {'VIII': 1, 'IX': 1, 'X': 0}  # of printed #Params; elsewhere 2
