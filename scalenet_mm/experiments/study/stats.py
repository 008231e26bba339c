"""Values of records by seed, means and paired differences with their intervals, Holm's correction."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
Records = Mapping[tuple[str, int], Mapping[Any, Any]]  # by row and seed


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its 95 % t-interval.

    Attributes:
        n: number of seeds.
        p: of the two-sided t-test that the mean is 0; nan with fewer than two seeds.
        spread: standard deviation over seeds.
    """

    mean: float
    half: float
    n: int
    p: float
    spread: float = float('nan')

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return f'{self.mean:.2f} ± {self.half:.2f}' if self.n > 1 else f'{self.mean:.2f}'

    @property
    def signed(self) -> str:
        return f'{self.mean:+.2f} ± {self.half:.2f}' if self.n > 1 else f'{self.mean:+.2f}'


def interval(values: Iterable[float]) -> Interval:
    """Mean of independent values with its t-interval.

    Raises:
        ValueError: if one is not finite.

    >>> str(interval([1.0, 2.0, 3.0]))
    '2.00 ± 2.48'
    """
    x = np.asarray(list(values), float)
    if not np.isfinite(x).all():
        raise ValueError(
            f'a value is not a number: {x.tolist()}; a run that diverged has no place among finished ones.'
        )
    if len(x) < 2:
        return Interval(float(x.mean()), float('nan'), len(x), float('nan'))
    spread = float(x.std(ddof=1))
    error = spread / np.sqrt(len(x))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * error)
    p = float(stats.ttest_1samp(x, 0).pvalue) if error > 0 else float(x.mean() == 0)
    return Interval(float(x.mean()), half, len(x), p, spread)


def values(records: Records, row: str, metric: Hashable) -> dict[int, float]:
    """A metric of a row's finished runs, by seed."""
    return {seed: r[metric] for (k, seed), r in sorted(records.items()) if k == row and r['status'] == 'done'}


def minus(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """Differences over the seeds that both have."""
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def paired(records: Records, a: str, b: str, metric: Hashable) -> list[float]:
    """Differences ``a - b`` of a metric over the seeds that both rows have done."""
    return minus(values(records, a, metric), values(records, b, metric))


def holm(p: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted so that the chance of any false rejection is kept (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = [1.0 if np.isnan(x) else x for x in p]  # of a single seed
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, (len(p) - rank) * p[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def pooled_spread(groups: Iterable[Sequence[float]]) -> float:
    """The standard deviation within groups that is common to them; nan where none has two values.

    >>> pooled_spread([[1.0, 3.0], [0.0, 2.0], [5.0]])
    1.4142135623730951
    """
    groups = [np.asarray(g, float) for g in groups if len(g) > 1]
    degrees = sum(len(g) - 1 for g in groups)
    return float(np.sqrt(sum(((g - g.mean()) ** 2).sum() for g in groups) / degrees)) if degrees else float('nan')


POWER, MOST_SEEDS = 0.8, 1000


def _critical(seeds: int, tests: int) -> float:
    """Of a two-sided t-test at the first step of Holm's correction, the strictest."""
    return float(stats.t.ppf(1 - (1 - CONFIDENCE) / tests / 2, seeds - 1))


def detectable(spread: float, seeds: int, tests: int) -> float:
    """The smallest mean of paired differences that a two-sided t-test finds with a chance of ``POWER``.

    Args:
        spread: standard deviation of the differences.
        seeds: how many.
        tests: of the family; the test is the first step of Holm's, the strictest.

    >>> round(detectable(0.2, 10, 8), 3)
    0.286
    """
    if seeds < 2:
        return float('inf')
    most = _critical(seeds, tests)

    def missed(shift: float) -> float:  # in standard errors
        return POWER - stats.nct.sf(most, seeds - 1, shift)

    return float(optimize.brentq(missed, 0, 10 * most) * spread / np.sqrt(seeds))


def seeds_needed(spread: float, mean: float, margin: float, tests: int) -> int:
    """The fewest seeds that decide with a chance of ``POWER`` if this is the mean of paired differences: they find it,
    or an interval that lies within the margin. By 4,000 trials of each number, the same in every call.
    """
    rng = np.random.default_rng(0)
    normal, uniform = rng.standard_normal(4000), rng.uniform(size=4000)
    for seeds in range(2, MOST_SEEDS):
        error = spread / np.sqrt(seeds)
        means = mean + error * normal
        errors = error * np.sqrt(stats.chi2.ppf(uniform, seeds - 1) / (seeds - 1))
        half = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * errors
        decided = (abs(means) >= _critical(seeds, tests) * errors) | (abs(means) + half < margin)
        if decided.mean() >= POWER:
            return seeds
    return MOST_SEEDS
