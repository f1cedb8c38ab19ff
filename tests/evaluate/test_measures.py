"""Shares, means and comparisons, by numbers from elsewhere."""

from __future__ import annotations

import pytest

from edge_distill.evaluate.measures import Measure, compare, figure


def outcomes(yes: int, no: int) -> dict[str, bool]:
    return {f"i{number}": number < yes for number in range(yes + no)}


def test_a_share() -> None:
    found = figure(Measure("accuracy", "accuracy", outcomes(8, 2)))
    assert (found.kind, found.items) == ("share", 10)
    assert found.estimate is not None
    assert found.estimate.value == 0.8
    # scipy 1.17.1: binomtest(8, 10).proportion_ci(method="wilson")
    assert found.estimate.low == pytest.approx(0.4901624715, abs=1e-9)
    assert found.estimate.high == pytest.approx(0.9433178485, abs=1e-9)
    assert found.against is found.first_student is None


def test_a_mean() -> None:
    found = figure(Measure("steps", "steps", {"a": 1.0, "b": 2.0, "c": 6.0}))
    assert found.kind == "mean"
    assert found.estimate is not None
    # standard deviation sqrt(7), standard error sqrt(7/3) = 1.5275, times 1.95996
    assert found.estimate.value == 3
    assert found.estimate.high - 3 == pytest.approx(2.9939, abs=1e-3)


def test_nothing() -> None:
    assert figure(Measure("accuracy", "accuracy", {})).estimate is None


def test_only_common_items_are_compared() -> None:
    one = {"a": True, "b": True, "c": True, "d": True, "x": False}
    other = {"a": True, "b": False, "c": False, "d": False, "y": True}
    found = compare(Measure("p", "one", one), Measure("p", "other", other), "other")
    assert found is not None
    assert (found.items, found.other, found.difference.value) == (4, 0.25, 0.75)
    assert found.p_value == pytest.approx(0.25)  # three of three one way: 2 / 2^3
    assert compare(Measure("p", "one", {"a": True}), Measure("p", "other", {"b": True}), "other") is None
    assert compare(Measure("p", "one", {"a": 1.0}), Measure("p", "other", {"a": True}), "other") is None


def test_figures_tell_both_comparisons() -> None:
    plain = Measure("accuracy", "accuracy", outcomes(10, 0))
    terse = Measure("styles", "terse", outcomes(4, 6), plain)
    first = Measure("styles", "terse", outcomes(9, 1))
    found = figure(terse, first)
    assert found.against is not None
    assert found.first_student is not None
    assert (found.against.name, found.against.difference.value) == ("accuracy", -0.6)
    assert found.first_student.difference.value == -0.5
    assert found.first_student.p_value == pytest.approx(2 / 2**5)
    kept = found.first_student.retention
    assert kept is not None
    assert kept.value == pytest.approx(4 / 9)
    assert 0.1 < kept.low < kept.value < kept.high < 0.9
    never = figure(terse, Measure("styles", "terse", outcomes(0, 10))).first_student
    assert never is not None
    assert never.retention is None
