"""Means, paired differences and their intervals over seeds; Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its 95 % t-interval.

    Attributes:
        n: number of seeds.
        p: of the two-sided t-test that the mean is 0; nan with fewer than two seeds.
    """

    mean: float
    half: float
    n: int
    p: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return f'{self.mean:.2f} ± {self.half:.2f}' if self.n > 1 else f'{self.mean:.2f}'


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with its t-interval.

    >>> str(interval([1.0, 2.0, 3.0]))
    '2.00 ± 2.48'
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        return Interval(float(x.mean()), float('nan'), len(x), float('nan'))
    error = x.std(ddof=1) / np.sqrt(len(x))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * error)
    p = float(stats.ttest_1samp(x, 0).pvalue) if error > 0 else float(x.mean() == 0)
    return Interval(float(x.mean()), half, len(x), p)


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
