"""Measures: yes or no for every item, and what they say with intervals.

A share has Wilson's interval; two shares on the same items are compared item by item, by McNemar's exact test and
the difference's score interval (Tango 1998); their ratio has a bootstrap interval over items. A mean has its normal
interval. All are 95 % intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

from edge_distill_bench.statistics import Estimate, Pairs, difference, mcnemar, retention, wilson

__all__ = ["Comparison", "Figure", "Measure", "compare", "figure"]

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Measure:
    """One question about every item, and its answers."""

    part: str
    name: str
    outcomes: Mapping[str, bool | float]
    """By item: yes or no, or a number, of which the mean is told. Items the question does not apply to are left out."""
    against: Measure | None = None
    """What it is compared with, on the items that both have."""
    note: str = ""
    """What a reader must know about the items."""

    @property
    def is_share(self) -> bool:
        return not any(isinstance(value, float) for value in self.outcomes.values())


@dataclass(frozen=True)
class Comparison:
    """Two shares on the same items."""

    name: str
    """Of what it is compared with."""
    items: int
    other: float
    """The share that it is compared with, on these items."""
    difference: Estimate
    """This one minus the other."""
    p_value: float
    retention: Estimate | None
    """This one divided by the other; None when that is 0."""


@dataclass(frozen=True)
class Figure:
    """A measure in numbers; without items there is no estimate."""

    part: str
    name: str
    kind: Literal["share", "mean"]
    items: int
    estimate: Estimate | None
    against: Comparison | None
    """Another measure of the same student."""
    first_student: Comparison | None
    """The same measure of the first student; None for the first one itself."""
    note: str


def figure(measure: Measure, first: Measure | None = None) -> Figure:
    """The numbers of a measure; `first` is the same measure of the first student."""
    return Figure(
        part=measure.part,
        name=measure.name,
        kind="share" if measure.is_share else "mean",
        items=len(measure.outcomes),
        estimate=_estimate(measure),
        against=compare(measure, measure.against, measure.against.name) if measure.against else None,
        first_student=compare(measure, first, first.name) if first else None,
        note=measure.note,
    )


def compare(one: Measure, other: Measure, name: str) -> Comparison | None:
    """Both on the items that they share; None when they share none, or are no shares."""
    ids = [item for item in one.outcomes if item in other.outcomes]
    if not ids or not one.is_share or not other.is_share:
        return None
    pairs = Pairs.of([bool(one.outcomes[item]) for item in ids], [bool(other.outcomes[item]) for item in ids])
    kept = retention(pairs) if pairs.second_right else None
    return Comparison(name, len(ids), pairs.second_right / len(ids), difference(pairs), mcnemar(pairs), kept)


def _estimate(measure: Measure) -> Estimate | None:
    values = list(measure.outcomes.values())
    if not values:
        return None
    if measure.is_share:
        return wilson(sum(map(bool, values)), len(values))
    half = _Z * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(fmean(values), fmean(values) - half, fmean(values) + half)
