"""The paper's claims as differences between rows, and what the study says of them. Fixed before the seeds that
count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .stats import CONFIDENCE, Interval, Records, holm, interval, paired

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


def _claims(table: str) -> tuple[Claim, ...]:
    """Reads lines ``row > other rows of its host | text``; a question of ours begins with ``?``, a DeiT has no host."""
    found: list[Claim] = []
    for line in table.strip().splitlines():
        rows, _, text = line.partition(' | ')
        better, _, others = rows.partition(' > ')
        host, _, name = better.rpartition('/')
        host = host or 'deit'
        found += [
            Claim(text.removeprefix('? '), f'{host}/{name}', f'{host}/{other}', text.startswith('?'))
            for other in others.split()
        ]
    return tuple(found)


CLAIMS = _claims("""
scalenet > random stack interpolate swa | Table I: better than as many independent layers as reach its size (DeiT)
swin/scalenet > stack | Table I: better than one independent layer (Swin)
scalenet > zero peft | ? beyond the paper: better than zero-initialised blocks and than tied layers with LoRA alone
scalenet > source | Table I: better than its source
swin/scalenet > source | Table I: better than its source (Swin)
scalenet > on on_time | ? control: better than its source trained on, for equal steps and for equal time
swin/scalenet > on | ? control: better than its source trained on, for equal steps (Swin)
tied > source | Table II: sharing without adjustment is better than the source
scalenet > tied | Table II: adapters add to sharing
swin/scalenet > tied | Table II: adapters add to sharing (Swin)
scalenet > adapter | Table II: sharing adds to adapters
scalenet_increments > adapter_increments | Table II: sharing adds to adapters, increments alone trained
scalenet > tied_lora | Tables II, VI: adapters are better than LoRA on tied layers
adapter > lora | Table II: adapters are better than LoRA at the old depth
scalenet > layer1 layer2 layer3 | Table III: all layers are better than some
scalenet > times3 | Table IV: twice is better than three times
scalenet > times4 | ? Table IV, continued: twice is better than four times
scalenet > stacked | Table V: DeiT is better interpolated than stacked
swin/scalenet > interpolated | Table V: Swin is better stacked than interpolated
scalenet > scratch scratch3 | Table VII: better than the deep net from scratch, for equal and for three times the steps
swin/scalenet > scratch | Table VII: better than the deep net from scratch, for equal steps (Swin)
scalenet_increments > scalenet | ? increments alone are better than training everything
function > scalenet | ? start: the function-preserving start is better than the paper's
distill_logits > scalenet | ? distillation of logits helps
distill_layers > scalenet | ? distillation of layers helps
""")

# Added after the results of the claims above were seen: the second row, and four times the steps.
FOLLOW_UP = _claims("""
scalenet_increments > on on_time random stack | ? increments alone are better than the baselines and controls
scalenet_increments > interpolate swa zero peft tied | ? increments alone are better than the baselines and controls
swin/scalenet_increments > on stack | ? increments alone are better than the baselines (Swin)
untied > on on_time | ? depth pays at once: an untied copy is better than the source trained on
scalenet_long > on_long | ? ScaleNet is better than its source trained on
scalenet_long > stack_long | ? ScaleNet is better than one independent layer
scalenet_increments_long > on_long | ? increments alone are better than the source trained on
scalenet_increments_long > stack_long | ? increments alone are better than one independent layer
untied_long > on_long | ? depth pays: an untied copy is better than the source trained on
""")


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


def verdicts(records: Records, claims: Iterable[Claim] = CLAIMS) -> list[Verdict]:
    """Judges the claims whose rows have at least two common seeds."""
    tested = []
    for claim in claims:
        top1 = paired(records, claim.better, claim.worse, 'top1')
        if len(top1) > 1:
            loss = paired(records, claim.better, claim.worse, 'loss')
            tested.append((claim, interval(top1), interval(loss)))
    corrected = holm([top1.p for _, top1, _ in tested])
    return [Verdict(*t, p) for t, p in zip(tested, corrected)]
