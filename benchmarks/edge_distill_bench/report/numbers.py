"""Numbers as people read them: three digits that matter, units of the field, intervals in brackets."""

from __future__ import annotations

from collections.abc import Sequence

from edge_distill_bench.results import mean_and_deviation
from edge_distill_bench.statistics import Estimate, median_ratio

__all__ = [
    "NONE", "interval", "kl", "megabytes", "median", "p_value", "percent", "points", "quantile", "seconds", "speed",
    "spread",
]  # fmt: skip

NONE = "–"
"""Not measured."""


def percent(share: float) -> str:
    """98 %, 98.4 %: a decimal only where there is one."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def points(share: float) -> str:
    """A difference of two shares."""
    return f"{100 * share:+.1f} points"


def interval(estimate: Estimate) -> str:
    """98 % [95, 100]."""
    low, high = (f"{100 * value:.0f}" for value in (estimate.low, estimate.high))
    return f"{percent(estimate.value)} [{low}, {high}]"


def megabytes(size: float) -> str:
    """Of 1,000,000 bytes."""
    return f"{size / 1e6:,.0f}" if size >= 1e9 else f"{size / 1e6:.1f}"


def seconds(value: float) -> str:
    if value < 0.9995:
        return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def kl(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 or value == 0 else f"{value:.1e}"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over rounds: 104 ± 2."""
    mean, deviation = mean_and_deviation(values)
    return f"{speed(mean)} ± {speed(deviation)}" if len(values) > 1 else speed(mean)


def median(values: Sequence[float]) -> Estimate:
    """The median with a percentile bootstrap interval."""
    return median_ratio(values, [1.0] * len(values))


def quantile(values: Sequence[float], share: float) -> float:
    """An observed value: the smallest that at least this share does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1000 * len(ordered)) // 1000) - 1)]
