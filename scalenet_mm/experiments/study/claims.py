"""The paper's claims as differences between rows, in families, and what the study says of them. Fixed before the
seeds that count.
"""

from __future__ import annotations

from dataclasses import dataclass

from .pool import DIVERGED
from .rows import AT_OWN_RATE, OWN_RATES
from .stats import CONFIDENCE, Interval, Records, detectable, holm, interval, paired, seeds_needed, values
from .studies import SEEDS

REPRODUCED, NOT_REPRODUCED, UNDECIDED = 'reproduced', 'not reproduced', 'undecided'
NO_DIFFERENCE, EARLY = 'no difference here', 'seeds missing'
EQUIVALENT = 0.15  # points of top-1


@dataclass(frozen=True)
class Claim:
    """Row ``better`` has a higher top-1 than row ``worse``, seed by seed.

    Attributes:
        text: the claim, with its place in the paper.
        worse: one row, or several of which the one with the best mean over the common seeds is meant.
        ours: whether it is a question of ours that the paper does not answer.
        paper: rows of the paper that stand for these, in the same order; see ``paper.recount``.
    """

    text: str
    better: str
    worse: tuple[str, ...]
    ours: bool = False
    paper: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        return (self.better, *self.worse)


@dataclass(frozen=True)
class Family:
    """Claims that are judged together: Holm's correction is over all of them, whether they have runs yet or not.

    Attributes:
        seeds: paired seeds that a claim needs before it is judged; looking earlier and stopping there would be a
            choice made by the results.
        short: its title in the head of a column.
        study: one that its rows are run by, whose first seeds these are.
    """

    title: str
    seeds: int
    claims: tuple[Claim, ...]
    short: str = ''
    study: str = 'primary'

    def of(self, records: Records) -> Records:
        """The records of its seeds."""
        mine = SEEDS[self.study][: self.seeds]
        return {key: r for key, r in records.items() if key[1] in mine}

    def again(self, claim: Claim) -> Claim | None:
        """What it asks of the question of another family's claim: of the same row, against a rival of that one."""
        rivals = set(map(asked, claim.worse))
        for mine in self.claims:
            if asked(mine.better) == asked(claim.better) and rivals.issuperset(map(asked, mine.worse)):
                return mine
        return None

    def has(self, seeds: int) -> bool:
        """Whether a claim with so many seeds, those that diverged too, is judged."""
        return seeds >= self.seeds

    def detectable(self, spread: float) -> float:
        """The smallest difference, in points, that its seeds find with a chance of 80 % if paired differences have this
        standard deviation.
        """
        return detectable(spread, self.seeds, len(self.claims))


def asked(key: str) -> str:
    """What a row is called whatever its host, its scenes and its learning rate."""
    return key.partition('/')[2].removesuffix(AT_OWN_RATE)


def _claims(table: str, group: str = 'deit') -> tuple[Claim, ...]:
    """Reads lines ``row > another | text | rows of the paper``; ``a or b`` means the better of them, and ``?`` begins a
    question of ours.
    """
    found = []
    for line in table.strip().splitlines():
        rows, text, *printed = line.split(' | ')
        better, _, worse = rows.partition(' > ')
        keys = [f'{group}/{name}' for name in (better, *worse.split(' or '))]
        paper = tuple(printed[0].split()) if printed else ()
        found.append(Claim(text.removeprefix('? '), keys[0], tuple(keys[1:]), text.startswith('?'), paper))
    return tuple(found)


def _at_own_rates(table: str) -> tuple[Claim, ...]:
    """The rival by its row of ``OWN_RATES`` where it has one; where the rate that it borrowed is its best, as it is."""
    for name in OWN_RATES:
        table = table.replace(f'> {name} |', f'> {name}{AT_OWN_RATE} |')
    return _claims(table)


_OWN = ('random', 'stack', 'interpolate', 'swa')
_TABLE_1 = ' '.join(f'table1/deit_t/{row}' for row in ('scalenet', *_OWN))
_TABLE_7 = 'table7/deit_s/scalenet table7/deit_s/scratch_300_epochs'
_BEST = ' or '.join(_OWN)
_PRIMARY = f"""
scalenet > on | ? better than its source trained on, equal steps
scalenet > on_time | ? better than its source trained on, equal time
scalenet > {_BEST} | Table I: better than the best of four ways to add an own layer | {_TABLE_1}
scalenet > tied | Table II: adapters add to sharing | table2/deit_t/wspt_adapter_r16 table2/deit_t/wspt
scalenet > adapter | Table II: sharing adds to adapters | table2/deit_t/wspt_adapter_r16 table2/deit_t/adapter_r32
scalenet > stacked | Table V: interpolated is better than stacked | table5/deit_b/interpolate table5/deit_b/stack
scalenet > times3 | Table IV: twice is better than three times | table4/deit_b/x2 table4/deit_b/x3
scalenet > scratch3 | Table VII: better than the deep net from scratch, 3 x the steps | {_TABLE_7}
"""
_OWN_RATES = """
scalenet > interpolate | Table I: better than Interpolate | table1/deit_t/scalenet table1/deit_t/interpolate
scalenet > adapter | Table II: sharing adds to adapters | table2/deit_t/wspt_adapter_r16 table2/deit_t/adapter_r32
scalenet > on_time | ? better than its source trained on, equal time
scalenet > stacked | Table V: interpolated is better than stacked | table5/deit_b/interpolate table5/deit_b/stack
scalenet > times3 | Table IV: twice is better than three times | table4/deit_b/x2 table4/deit_b/x3
"""
_INCREMENTS = f"""
scalenet_increments > on | ? increments alone are better than the source trained on, equal steps
scalenet_increments > on_time | ? increments alone are better than the source trained on, equal time
scalenet_increments > {_BEST} | ? increments alone are better than an own layer
scalenet_increments > scalenet | ? increments alone are better than training everything
"""
_SWIN = """
scalenet > on | ? better than its source trained on, equal steps
scalenet > on_time | ? better than its source trained on, equal time
scalenet > stack | Table I: better than one own layer | table1/swin_t/scalenet table1/swin_t/stack
scalenet > tied | Table II: adapters add to sharing | table2/swin_t/wspt_adapter_r16 table2/swin_t/wspt
scalenet > interpolated | Table V: stacked is better than interpolated | table5/swin_b/stack table5/swin_b/interpolate
scalenet > scratch3 | Table VII: better than the deep net from scratch at three times the steps
scalenet_increments > on | ? increments alone are better than the source trained on, equal steps
scalenet_increments > scalenet | ? increments alone are better than training everything
"""
_SECONDARY = """
untied > on_time | ? depth pays: an untied copy is better than the source trained on, equal time
scalenet > zero | ? better than zero-initialised blocks
scalenet > peft | ? better than tied layers with LoRA alone trained
tied > on | Table II: sharing without adjustment is better than the source trained on
scalenet > tied_lora | Tables II, VI: adapters are better than LoRA on tied layers
adapter > lora | Table II: adapters are better than LoRA at the old depth
scalenet > layer1 or layer2 or layer3 | Table III: all layers are better than the best single one
scalenet > drop_path_0.05 or drop_path_0.1 or drop_path_0.2 | ? Fig. 6: scenes without end need no drop path
scalenet > times4 | ? Table IV, continued: twice is better than four times
scalenet > scratch | Table VII: better than the deep net from scratch, equal steps
function > scalenet | ? the function-preserving start is better than the paper's
distill_logits > scalenet | ? distillation of logits helps
distill_layers > scalenet | ? distillation of layers helps
"""
_WHY = """
increments_r8 > scalenet_increments | ? increments of twice the rank are better
increments_r16 > scalenet_increments | ? increments of four times the rank are better
increments_r32 > scalenet_increments | ? increments of eight times the rank are better
increments_head > scalenet_increments | ? training the head besides is better
increments_embed > scalenet_increments | ? training the embedding besides is better
increments_function > scalenet_increments | ? the function-preserving start is better for increments
scalenet_increments > adjustments | ? training the norms besides adapters is better
"""

FAMILIES = (
    Family('Primary: DeiT, scenes without end', 10, _claims(_PRIMARY)),
    Family(
        'Rivals at learning rates of their own (asked after the first counted runs)',
        10,
        _at_own_rates(_OWN_RATES),
        'rivals at their own rates',
    ),
    Family('Increments alone trained', 5, _claims(_INCREMENTS), study='table1'),
    Family('Swin, its last stage scaled', 5, _claims(_SWIN, 'swin'), 'Swin'),
    *(
        Family(
            f'A fixed set of {scenes:,} scenes',
            seeds,
            _claims(_PRIMARY + more, f'deit{scenes}'),
            f'{scenes:,} fixed scenes',
        )
        for scenes, seeds, more in ((2_000, 3, ''), (5_000, 5, _INCREMENTS.lstrip()), (20_000, 2, ''))
    ),
    Family('Secondary', 5, _claims(_SECONDARY), study='table1'),
    Family('What holds increments back', 5, _claims(_WHY), study='increments'),
)
PRIMARY = FAMILIES[0]


@dataclass(frozen=True)
class Verdict:
    """What paired seeds say of a claim.

    Attributes:
        worse: the row that it was compared with.
        top1: of the paired differences, in points.
        p: Holm-corrected over the family.
        family: what it is judged in.
        failed: seeds left out because a run on them diverged.
    """

    claim: Claim
    worse: str
    top1: Interval
    loss: Interval
    p: float
    family: Family
    failed: int = 0

    @property
    def word(self) -> str:
        """By the rule of docs/evidence_plan.md: different if the 95 % interval leaves out 0 and the corrected p is at
        most 5 %; else no difference if the interval lies within a margin; else undecided.
        """
        if not self.family.has(self.top1.n + self.failed):
            return EARLY
        if self.p <= 1 - CONFIDENCE and not self.top1.low <= 0 <= self.top1.high:
            return REPRODUCED if self.top1.mean > 0 else NOT_REPRODUCED
        if self.top1.low > -EQUIVALENT and self.top1.high < EQUIVALENT:
            return NO_DIFFERENCE
        return UNDECIDED

    @property
    def decidable(self) -> float:
        """The smallest difference, in points, that the family's seeds find with a chance of 80 % at this spread."""
        return self.family.detectable(self.top1.spread)

    @property
    def needed(self) -> int:
        """Seeds of this spread that would decide a difference as large as the one seen, or that there is none."""
        return seeds_needed(self.top1.spread, self.top1.mean, EQUIVALENT, len(self.family.claims))


def verdicts(records: Records, family: Family = PRIMARY) -> list[Verdict]:
    """Judges the claims whose rows have at least two common seeds, on the seeds of the family."""
    records = family.of(records)
    tested, failed = [], []
    for claim in family.claims:
        whole = set.intersection(*(set(values(records, row, 'top1')) for row in claim.rows))  # all of its rows are done
        if len(whole) > 1:
            mine = {key: r for key, r in records.items() if key[1] in whole}
            row = max(claim.worse, key=lambda row: sum(values(mine, row, 'top1').values()))
            top1, loss = (interval(paired(mine, claim.better, row, what)) for what in ('top1', 'loss'))
            tested.append((claim, row, top1, loss))
            failed.append(len({s for (row, s), r in records.items() if row in claim.rows and r['status'] == DIVERGED}))
    # The family was fixed beforehand, so claims without all their seeds count, as showing nothing: an early look at one
    # decides no other.
    unseen = len(family.claims) - len(tested)
    ps = [t[2].p if family.has(t[2].n + n) else 1.0 for t, n in zip(tested, failed)]
    corrected = holm(ps + [1.0] * unseen)
    return [Verdict(*t, p, family, n) for t, p, n in zip(tested, corrected, failed)]
