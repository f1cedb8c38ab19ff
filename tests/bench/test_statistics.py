"""Intervals and tests against scipy, numbers worked by hand, and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from edge_distill_bench.statistics import (
    Estimate,
    Pairs,
    clustered_mean,
    difference,
    equivalence,
    mcnemar,
    median_ratio,
    quantile_interval,
    retention,
    wilson,
)
from edge_distill_runtime import InputError


def random_tables(count: int) -> list[Pairs]:
    rng = np.random.default_rng(5)
    cells = rng.integers(0, 60, (count, 4)) * (rng.random((count, 4)) < 0.8)
    return [Pairs(*map(int, row)) for row in cells if row.sum()]


def test_pairs_are_counted_by_item() -> None:
    pairs = Pairs.of([True, True, False, False, True], [True, False, True, False, True])
    assert pairs == Pairs(both=2, only_first=1, only_second=1, neither=1)
    assert (pairs.items, pairs.first_right, pairs.second_right) == (5, 3, 3)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(confidence: float) -> None:
    for items in (1, 2, 7, 50, 1000):
        for right in {0, 1, items // 3, items - 1, items}:
            ours = wilson(right, items, confidence=confidence)
            theirs = stats.binomtest(right, items).proportion_ci(confidence, method="wilson")
            assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
            assert ours.value == right / items


def test_wilson_by_hand() -> None:
    # z = 1.96, 8 of 10: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.0096040)) / 1.38416
    result = wilson(8, 10)
    assert (result.low, result.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_mcnemar_equals_the_binomial_test() -> None:
    for pairs in random_tables(300):
        trials = pairs.only_first + pairs.only_second
        expected = stats.binomtest(pairs.only_first, trials).pvalue if trials else 1.0
        assert mcnemar(pairs) == pytest.approx(expected, rel=1e-9)
    # by hand: 1 against 5 is 2 (1 + 6) / 2^6
    assert mcnemar(Pairs(90, 1, 5, 4)) == pytest.approx(14 / 64)
    # where 2^n is no float
    assert mcnemar(Pairs(0, 2400, 2600, 0)) == pytest.approx(stats.binomtest(2400, 5000).pvalue, rel=1e-9)


def likeliest_share(pairs: Pairs, delta: float) -> float:
    """The share of `only_second` under a given difference, by maximizing the likelihood itself."""

    def loss(share: float) -> float:
        cells = ((pairs.only_first, share + delta), (pairs.only_second, share))
        rest = (pairs.both + pairs.neither, 1 - 2 * share - delta)
        return -sum(count * math.log(max(part, 1e-300)) for count, part in (*cells, rest) if count)

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    return float(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x)


def tango(pairs: Pairs, delta: float) -> float:
    """Tango's (1998) score with the share found numerically."""
    share = likeliest_share(pairs, delta)
    n = pairs.items
    return float(
        (pairs.only_first - pairs.only_second - n * delta) / math.sqrt(n * (2 * share + delta - delta**2))
    )


@pytest.mark.parametrize("margin", [0.02, 0.1])
def test_equivalence_against_a_numerical_score(margin: float) -> None:
    for pairs in random_tables(60):
        expected = max(stats.norm.sf(tango(pairs, -margin)), stats.norm.cdf(tango(pairs, margin)))
        assert equivalence(pairs, margin).p_value == pytest.approx(expected, abs=2e-5)


def test_difference_inverts_the_score() -> None:
    for pairs in random_tables(60):
        interval = difference(pairs)
        assert interval.value == pytest.approx((pairs.first_right - pairs.second_right) / pairs.items)
        assert -1 <= interval.low <= interval.value <= interval.high <= 1
        for end, sign in ((interval.low, 1), (interval.high, -1)):
            if abs(end) < 0.999:
                assert tango(pairs, end) == pytest.approx(sign * 1.959964, abs=2e-3)
        mirrored = difference(Pairs(pairs.both, pairs.only_second, pairs.only_first, pairs.neither))
        assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=1e-9)


def test_equivalence_is_shown_by_many_items_only() -> None:
    assert not equivalence(Pairs(20, 0, 0, 5), 0.02).is_shown  # full agreement on 25 items proves little
    assert equivalence(Pairs(400, 0, 0, 100), 0.02).is_shown
    assert not equivalence(Pairs(400, 0, 20, 80), 0.02).is_shown


def draw(rng: Any, items: int, cells: tuple[float, ...], count: int) -> list[Pairs]:
    return [Pairs(*map(int, row)) for row in rng.multinomial(items, cells, size=count)]


def test_equivalence_keeps_its_level_at_the_margin() -> None:
    """4,000 tables whose true difference is the margin: 5 % false claims, up to 1.5 % noise and discreteness."""
    rng = np.random.default_rng(1)
    for cells in ((0.60, 0.02, 0.07, 0.31), (0.60, 0.09, 0.04, 0.27)):
        claimed = sum(equivalence(pairs, 0.05).is_shown for pairs in draw(rng, 300, cells, 4000))
        assert claimed / 4000 < 0.065


@pytest.mark.parametrize(
    ("items", "cells"),
    [
        (200, (0.60, 0.03, 0.05, 0.32)),
        (200, (0.85, 0.02, 0.02, 0.11)),
        (100, (0.30, 0.10, 0.20, 0.40)),
        (500, (0.50, 0.005, 0.01, 0.485)),
    ],
)
def test_coverage_by_simulation(items: int, cells: tuple[float, float, float, float]) -> None:
    """95 % intervals hold the truth 95 % of the time: 1.7 points are four standard errors of 2,500 (600: 3.6) draws."""
    rng = np.random.default_rng(2)
    both, first, second, _ = cells
    pairs = draw(rng, items, cells, 2500)
    truth = first - second
    hits = [(each := difference(pair)).low <= truth <= each.high for pair in pairs]
    assert 0.933 <= np.mean(hits) <= 0.975
    truth = (both + first) / (both + second)
    hits = [(each := retention(pair, resamples=1000)).low <= truth <= each.high for pair in pairs[:600]]
    assert 0.914 <= np.mean(hits) <= 0.99
    share = both + first
    hits = [(each := wilson(pair.first_right, items)).low <= share <= each.high for pair in pairs]
    assert 0.933 <= np.mean(hits) <= 0.967


def test_retention_is_the_bootstrap_over_items() -> None:
    """The same quantiles as resampling the items themselves, up to the noise of 10,000 draws and the half items."""
    pairs = Pairs(both=230, only_first=30, only_second=60, neither=80)
    ours = retention(pairs)
    assert ours.value == 260 / 290
    one = np.repeat([1, 1, 0, 0], [230, 30, 60, 80])
    two = np.repeat([1, 0, 1, 0], [230, 30, 60, 80])

    def ratio(a: Any, b: Any, axis: int = -1) -> Any:
        return a.sum(axis) / b.sum(axis)

    theirs = stats.bootstrap(
        (one, two), ratio, paired=True, method="percentile", n_resamples=10_000, rng=np.random.default_rng(9)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert retention(pairs) == ours != retention(pairs, seed=1)


def test_retention_of_equals_is_not_certain() -> None:
    few, many = retention(Pairs(15, 0, 0, 5)), retention(Pairs(750, 0, 0, 250))
    assert few.value == many.value == 1
    assert few.low < 0.97 < many.low < 1 < many.high < 1.03 < few.high


def test_median_ratio() -> None:
    rng = np.random.default_rng(3)
    drift = np.exp(np.cumsum(rng.normal(0, 0.2, 40)))  # a shared machine
    ours, theirs = 2 * drift * rng.lognormal(0, 0.02, 40), drift * rng.lognormal(0, 0.02, 40)
    result = median_ratio(ours, theirs)
    assert result.value == pytest.approx(np.median(ours / theirs))
    assert 1.95 < result.low < 2 < result.high < 2.05
    expected = stats.bootstrap(
        (ours / theirs,), np.median, method="percentile", n_resamples=10_000, rng=np.random.default_rng(4)
    ).confidence_interval
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert median_ratio([3.0], [2.0]) == Estimate(1.5, 1.5, 1.5)
    many = median_ratio(np.tile(ours, 30_000), np.tile(theirs, 30_000), resamples=3)  # a row at a time
    assert many.value == pytest.approx(result.value)


def test_median_ratio_covers_the_truth() -> None:
    rng = np.random.default_rng(6)
    hits = []
    for _ in range(400):
        result = median_ratio(rng.lognormal(0.1, 0.3, 25), np.ones(25), resamples=1000)
        hits.append(result.low <= math.exp(0.1) <= result.high)
    assert 0.90 <= np.mean(hits) <= 0.99  # 4 standard errors are 4.4 points


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99, 0.1])
def test_quantile_intervals_equal_scipy(share: float) -> None:
    rng = np.random.default_rng(7)
    for count in (1, 2, 5, 6, 10, 20, 71, 72, 100, 500):
        values = rng.lognormal(0, 1, count)
        theirs = stats.quantile_test(values, p=share).confidence_interval(0.95)
        expected = tuple(None if math.isnan(end) else end for end in (theirs.low, theirs.high))
        assert quantile_interval(list(values), share) == expected, count


def test_quantile_intervals_by_hand() -> None:
    # six coins: all heads in 1 of 64, below 2.5 %; five: in 1 of 32, above
    assert quantile_interval([3, 1, 2, 6, 5, 4], 0.5) == (1, 6)
    assert quantile_interval([3, 1, 2, 5, 4], 0.5) == (None, None)
    assert quantile_interval([3, 1, 2, 5, 4], 0.95) == (4, None)  # 0.0226 that at most three lie below


def test_quantile_intervals_cover_the_truth() -> None:
    """Each end errs in at most 2.5 % of 4,000 draws, but for noise of four standard errors."""
    rng = np.random.default_rng(8)
    for share, count in ((0.5, 9), (0.95, 40)):
        truth = stats.lognorm.ppf(share, 0.5)
        ends = [quantile_interval(list(rng.lognormal(0, 0.5, count)), share) for _ in range(4000)]
        assert np.mean([low is not None and low > truth for low, _ in ends]) < 0.035
        assert np.mean([high is not None and high < truth for _, high in ends]) < 0.035


def test_clustered_means_equal_scipy() -> None:
    rng = np.random.default_rng(10)
    counts = rng.integers(20, 200, 32)
    sums = counts * rng.gamma(2, 0.05, 32)
    ours = clustered_mean(sums, counts, resamples=20_000)
    theirs = stats.bootstrap(
        (sums, counts),
        lambda a, b, axis=-1: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(11),
    ).confidence_interval
    assert ours.value == sums.sum() / counts.sum()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.01)
    # by hand: one text has no interval to speak of
    assert clustered_mean([6.0], [3]) == Estimate(2.0, 2.0, 2.0)


def test_clustered_means_cover_the_truth() -> None:
    """Some texts are hard: tokens alone would claim too much. Percentile bootstraps of 32 are a bit short."""
    rng = np.random.default_rng(12)
    hits = []
    for _ in range(1000):
        counts = rng.integers(50, 150, 32)
        sums = counts * rng.gamma(4, 0.025, 32)
        found = clustered_mean(sums, counts, resamples=500)
        hits.append(found.low <= 0.1 <= found.high)
    assert 0.90 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Pairs.of([True], [True, False]), "1 and 2 items"),
        (lambda: Pairs(0, 0, 0, 0), "no counts"),
        (lambda: Pairs(5, -1, 0, 0), "no counts"),
        (lambda: wilson(3, 2), "3 of 2"),
        (lambda: wilson(0, 0), "0 of 0"),
        (lambda: wilson(1, 2, confidence=1.0), "confidence is 1.0"),
        (lambda: retention(Pairs(0, 3, 0, 7)), "none of 10 items"),
        (lambda: equivalence(Pairs(1, 0, 0, 0), 0.0), "margin is 0.0"),
        (lambda: equivalence(Pairs(1, 0, 0, 0), 0.1, alpha=0), "alpha is 0"),
        (lambda: median_ratio([], []), "shapes"),
        (lambda: median_ratio([1.0], [1.0, 2.0]), "shapes"),
        (lambda: median_ratio([0.0], [1.0]), "not above 0"),
        (lambda: median_ratio([math.nan], [1.0]), "not above 0"),
        (lambda: quantile_interval([], 0.5), "0.5 of 0 values"),
        (lambda: quantile_interval([1.0], 1.0), "1.0 of 1 values"),
        (lambda: clustered_mean([], []), "give texts"),
        (lambda: clustered_mean([1.0], [0]), "give texts"),
        (lambda: clustered_mean([1.0], [1, 2]), "give texts"),
    ],
)
def test_bad_numbers(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
