"""The paper's claims as differences between rows, and what the study says of them. Fixed before the seeds that
count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .stats import CONFIDENCE, Interval, holm, interval

REPRODUCED, NOT_REPRODUCED, UNDECIDED = 'reproduced', 'not reproduced', 'undecided'


@dataclass(frozen=True)
class Claim:
    """Row ``better`` has a higher top-1 than row ``worse``, seed by seed.

    Attributes:
        text: the claim, with its place in the paper.
        ours: whether it is a question of ours that the paper does not answer.
    """

    text: str
    better: str
    worse: str
    ours: bool = False


def _against(text: str, others: str, better: str = 'deit/scalenet', **kw) -> tuple[Claim, ...]:
    host = better.partition('/')[0]
    return tuple(Claim(text, better, f'{host}/{other}', **kw) for other in others.split())


CLAIMS = (
    *_against(
        'Table I: better than as many independent layers as reach its size (DeiT)', 'random stack interpolate swa'
    ),
    *_against('Table I: better than one independent layer (Swin)', 'stack', 'swin/scalenet'),
    *_against(
        'beyond the paper: better than zero-initialised blocks and than tied layers with LoRA alone',
        'zero peft',
        ours=True,
    ),
    *_against('Table I: better than its source', 'source'),
    *_against('Table I: better than its source (Swin)', 'source', 'swin/scalenet'),
    *_against(
        'control: better than its source trained on, for equal steps and for equal time', 'on on_time', ours=True
    ),
    *_against('control: better than its source trained on, for equal steps (Swin)', 'on', 'swin/scalenet', ours=True),
    *_against('Table II: sharing without adjustment is better than the source', 'source', 'deit/tied'),
    *_against('Table II: adapters add to sharing', 'tied'),
    *_against('Table II: adapters add to sharing (Swin)', 'tied', 'swin/scalenet'),
    *_against('Table II: sharing adds to adapters', 'adapter'),
    *_against(
        'Table II: sharing adds to adapters, increments alone trained', 'adapter_increments', 'deit/scalenet_increments'
    ),
    *_against('Tables II, VI: adapters are better than LoRA on tied layers', 'tied_lora'),
    *_against('Table II: adapters are better than LoRA at the old depth', 'lora', 'deit/adapter'),
    *_against('Table III: all layers are better than some', 'layer1 layer2 layer3'),
    *_against('Table IV: twice is better than three times', 'times3'),
    *_against('Table IV, continued: twice is better than four times', 'times4', ours=True),
    *_against('Table V: DeiT is better interpolated than stacked', 'stacked'),
    *_against('Table V: Swin is better stacked than interpolated', 'interpolated', 'swin/scalenet'),
    *_against(
        'Table VII: better than the deep net from scratch, for equal and for three times the steps', 'scratch scratch3'
    ),
    *_against('Table VII: better than the deep net from scratch, for equal steps (Swin)', 'scratch', 'swin/scalenet'),
    *_against(
        'increments alone are better than training everything', 'scalenet', 'deit/scalenet_increments', ours=True
    ),
    *_against(
        "start: the function-preserving start is better than the paper's", 'scalenet', 'deit/function', ours=True
    ),
    *_against('distillation of logits helps', 'scalenet', 'deit/distill_logits', ours=True),
    *_against('distillation of layers helps', 'scalenet', 'deit/distill_layers', ours=True),
)


# Added after the results of the claims above were seen: the second row, and four times the steps.
FOLLOW_UP = (
    *_against(
        'increments alone are better than the baselines and controls',
        'on on_time random stack interpolate swa zero peft tied',
        'deit/scalenet_increments',
        ours=True,
    ),
    *_against(
        'increments alone are better than the baselines (Swin)', 'on stack', 'swin/scalenet_increments', ours=True
    ),
    *_against(
        'depth pays at once: an untied copy is better than the source trained on',
        'on on_time',
        'deit/untied',
        ours=True,
    ),
    *_against('ScaleNet is better than its source trained on', 'on_long', 'deit/scalenet_long', ours=True),
    *_against('ScaleNet is better than one independent layer', 'stack_long', 'deit/scalenet_long', ours=True),
    *_against(
        'increments alone are better than the source trained on', 'on_long', 'deit/scalenet_increments_long', ours=True
    ),
    *_against(
        'increments alone are better than one independent layer',
        'stack_long',
        'deit/scalenet_increments_long',
        ours=True,
    ),
    *_against(
        'depth pays: an untied copy is better than the source trained on', 'on_long', 'deit/untied_long', ours=True
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What paired seeds say of a claim; ``p`` is Holm-corrected over all claims that were tested."""

    claim: Claim
    top1: Interval
    loss: Interval
    p: float

    @property
    def word(self) -> str:
        """By the rule of docs/evidence.md: the 95 % interval of the paired difference must not hold 0, nor may the
        corrected p exceed 5 %.
        """
        if not self.p <= 1 - CONFIDENCE or self.top1.low <= 0 <= self.top1.high:
            return UNDECIDED
        return REPRODUCED if self.top1.mean > 0 else NOT_REPRODUCED


def paired(records: Mapping[tuple[str, int], Mapping[str, Any]], a: str, b: str, key: str) -> list[float]:
    """Differences ``a - b`` of a metric over the seeds that both rows have done, by seed."""
    rows = [{s: r[key] for (row, s), r in records.items() if row == k and r['status'] == 'done'} for k in (a, b)]
    return [rows[0][seed] - rows[1][seed] for seed in sorted(rows[0].keys() & rows[1].keys())]


def verdicts(records: Mapping[tuple[str, int], Mapping[str, Any]], claims: Iterable[Claim] = CLAIMS) -> list[Verdict]:
    """Judges the claims whose rows have at least two common seeds."""
    tested = []
    for claim in claims:
        top1 = paired(records, claim.better, claim.worse, 'top1')
        if len(top1) > 1:
            loss = paired(records, claim.better, claim.worse, 'loss')
            tested.append((claim, interval(top1), interval(loss)))
    corrected = holm([top1.p for _, top1, _ in tested])
    return [Verdict(*t, p) for t, p in zip(tested, corrected)]
