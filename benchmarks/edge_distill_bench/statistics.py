"""Intervals and tests for accuracies, for pairs of models on the same items, and for latencies.

Pure numpy and standard library; every function is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edge_distill_runtime.errors import InputError

__all__ = [
    "Equivalence",
    "Estimate",
    "Pairs",
    "clustered_mean",
    "difference",
    "equivalence",
    "mcnemar",
    "median_ratio",
    "quantile_interval",
    "retention",
    "wilson",
]

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Pairs:
    """Two models on the same items, counted by who was right."""

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.only_first, self.only_second, self.neither) < 0 or self.items == 0:
            raise InputError("bad-pairs", f"these are no counts of items: {self}", "count at least one item")

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Pairs:
        """From whether each was right, item by item in the same order."""
        if len(first) != len(second):
            raise InputError(
                "bad-pairs", f"{len(first)} and {len(second)} items", "both must have answered the same items"
            )
        one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
        return cls(
            int((one & two).sum()), int((one & ~two).sum()), int((~one & two).sum()), int((~one & ~two).sum())
        )

    @property
    def items(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def first_right(self) -> int:
        return self.both + self.only_first

    @property
    def second_right(self) -> int:
        return self.both + self.only_second


@dataclass(frozen=True)
class Equivalence:
    """The result of an equivalence test."""

    margin: float
    p_value: float
    """Small: the difference lies within the margin."""
    alpha: float

    @property
    def is_shown(self) -> bool:
        return self.p_value <= self.alpha


def wilson(right: int, items: int, *, confidence: float = 0.95) -> Estimate:
    """An accuracy with Wilson's score interval (Wilson 1927, JASA 22; recommended by Brown, Cai and DasGupta 2001)."""
    if not 0 <= right <= items or items == 0:
        raise InputError("bad-counts", f"{right} of {items} are right", "count at least one item")
    z = _two_sided_z(confidence)
    share = right / items
    middle = (share + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    # at the ends the formula is exact, its rounding is not
    low = 0.0 if right == 0 else max(0.0, middle - half)
    high = 1.0 if right == items else min(1.0, middle + half)
    return Estimate(share, low, high, confidence)


def retention(pairs: Pairs, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Accuracy of the first (an artifact) divided by that of the second (its teacher), on the same items.

    Percentile bootstrap over items (Efron and Tibshirani 1993, chapter 13), drawn as counts of the four outcomes. Half
    an item is added to each way of disagreeing before resampling, as Jeffreys' prior would: else two models that
    agreed on 20 items would have retention 1 without any doubt. The value itself is the plain ratio.
    Raises `InputError` when the second got nothing right.
    """
    if pairs.second_right == 0:
        raise InputError(
            "no-retention", f"the teacher got none of {pairs.items} items right", "choose easier items"
        )
    counts = np.array([pairs.both, pairs.only_first + 0.5, pairs.only_second + 0.5, pairs.neither])
    generator = np.random.default_rng(seed)
    both, first, second, _ = generator.multinomial(pairs.items, counts / counts.sum(), size=resamples).T
    defined = both + second > 0
    ratios = (both + first)[defined] / (both + second)[defined]
    low, high = _percentiles(ratios, confidence)
    return Estimate(pairs.first_right / pairs.second_right, low, high, confidence)


def mcnemar(pairs: Pairs) -> float:
    """Exact two-sided p-value of McNemar's test: are both equally often right (McNemar 1947, Psychometrika 12).

    Twice the smaller tail of Binomial(disagreements, 1/2), at most 1.
    """
    trials = pairs.only_first + pairs.only_second
    fewer = min(pairs.only_first, pairs.only_second)
    return min(1.0, 2 * math.fsum(_binomial(k, trials, 0.5) for k in range(fewer + 1)))


def difference(pairs: Pairs, *, confidence: float = 0.95) -> Estimate:
    """Accuracy of the first minus that of the second, with the score interval of Tango (1998, Stat. Med. 17: 891-908).

    It holds for few items and for few disagreements; with none its width is that of Wilson's interval.
    """
    z = _two_sided_z(confidence)
    value = (pairs.only_first - pairs.only_second) / pairs.items
    # the score falls as the assumed difference rises
    low = _root(lambda delta: _score(pairs, delta) - z, -1.0, value)
    high = _root(lambda delta: _score(pairs, delta) + z, value, 1.0)
    return Estimate(value, low, high, confidence)


def equivalence(pairs: Pairs, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided tests that the accuracies differ by less than `margin` (0.02: two percentage points).

    Schuirmann's procedure (1987) with Tango's score statistic for paired proportions (1998); see also Liu et al.
    (2002, Stat. Med. 21: 231-245). The p-value is the larger of the two.
    """
    if not 0 < margin < 1:
        raise InputError("bad-margin", f"margin is {margin}", "it must lie between 0 and 1")
    if not 0 < alpha < 1:
        raise InputError("bad-alpha", f"alpha is {alpha}", "it must lie between 0 and 1")
    p_value = max(1 - _NORMAL.cdf(_score(pairs, -margin)), _NORMAL.cdf(_score(pairs, margin)))
    return Equivalence(margin, p_value, alpha)


def median_ratio(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Median of first / second over pairs measured in turn, with a percentile bootstrap interval over the pairs.

    Pairs, because a shared machine drifts (Kalibera and Jones 2013, ISMM). The times or speeds must be above 0.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != two.shape or not one.size:
        raise InputError("bad-pairs", f"shapes {one.shape} and {two.shape}", "measure both equally often")
    if not (np.isfinite([one, two]).all() and (one > 0).all() and (two > 0).all()):
        raise InputError("bad-pairs", "a measurement is not above 0", "leave failed measurements out of both")
    ratios = one / two
    generator = np.random.default_rng(seed)
    rows = max(1, 1_000_000 // ratios.size)  # at a time: 8 MB
    medians = np.concatenate(
        [
            np.median(
                ratios[generator.integers(0, ratios.size, (min(rows, resamples - start), ratios.size))],
                axis=1,
            )
            for start in range(0, resamples, rows)
        ]
    )
    low, high = _percentiles(medians, confidence)
    return Estimate(float(np.median(ratios)), low, high, confidence)


def quantile_interval(
    values: Sequence[float], share: float, *, confidence: float = 0.95
) -> tuple[float | None, float | None]:
    """A quantile's interval from order statistics, whatever the distribution (Conover 1999, section 3.2).

    Either end errs in at most half of 1 - `confidence` of all cases. None where there are too few values for an end:
    six give the median both, 72 give the 95th percentile an upper one.
    """
    if not values or not 0 < share < 1:
        raise InputError("bad-quantile", f"{share} of {len(values)} values", "give values, and 0 < share < 1")
    ordered, tail = sorted(values), _tail(confidence)
    # how many values lie below the quantile is binomial
    chances = [_binomial(k, len(ordered), share) for k in range(len(ordered) + 1)]
    below = [rank for rank in range(len(ordered)) if math.fsum(chances[: rank + 1]) <= tail]
    above = [rank for rank in range(len(ordered)) if math.fsum(chances[rank + 1 :]) <= tail]
    return ordered[below[-1]] if below else None, ordered[above[0]] if above else None


def clustered_mean(
    sums: ArrayLike, counts: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over all tokens, with a percentile bootstrap over the texts that they belong to: sum and number of each.

    Texts, because tokens of one text are alike (Field and Welsh 2007, JRSS B 69: the cluster bootstrap).
    """
    totals, sizes = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if totals.ndim != 1 or totals.shape != sizes.shape or not totals.size or not (sizes > 0).all():
        raise InputError("bad-clusters", f"shapes {totals.shape} and {sizes.shape}", "give texts with tokens")
    drawn = np.random.default_rng(seed).integers(0, totals.size, (resamples, totals.size))
    low, high = _percentiles(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), confidence)
    return Estimate(float(totals.sum() / sizes.sum()), low, high, confidence)


def _binomial(k: int, trials: int, share: float) -> float:
    """Chance of k successes in so many trials; 0 < share < 1."""
    ways = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
    return math.exp(ways + k * math.log(share) + (trials - k) * math.log1p(-share))


def _two_sided_z(confidence: float) -> float:
    return _NORMAL.inv_cdf(1 - _tail(confidence))


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError("bad-confidence", f"confidence is {confidence}", "it must lie between 0 and 1")
    return (1 - confidence) / 2


def _percentiles(values: Any, confidence: float) -> tuple[float, float]:
    tail = _tail(confidence)
    # observed values, not between two of them
    low = np.quantile(values, tail, method="inverted_cdf")
    high = np.quantile(values, 1 - tail, method="inverted_cdf")
    return float(low), float(high)


def _score(pairs: Pairs, delta: float) -> float:
    """Tango's statistic for the hypothesis that the difference is `delta`: standard normal when it is true."""
    n, b, c = pairs.items, pairs.only_first, pairs.only_second
    distance = b - c - n * delta
    # share of "only second" that is most likely under the hypothesis: the larger root of a quadratic
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    share = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * share + delta * (1 - delta))
    if variance <= 0 or abs(distance) < 1e-12 * n:
        return 0.0 if abs(distance) < 1e-12 * n else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0, by bisection to 2^-60 of the range."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
