"""Votes by hand, the posterior against scipy."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from edge_distill_runtime import InputError
from edge_distill_runtime.reasoning.answers import UNPARSED, normalize_answer
from edge_distill_runtime.reasoning.voting import (
    Vote,
    confidence_weight,
    leader_posterior,
    regularized_incomplete_beta,
    samples_to_decide,
    tally,
)


def votes(*pairs: tuple[str, float]) -> list[Vote]:
    return [Vote(normalize_answer(raw), weight) for raw, weight in pairs]


def test_tally_by_hand() -> None:
    counted = tally(
        votes(("7", 1), ("20", 0.5), ("", 1.5), (r"\boxed{20}", 0.5), ("20 rolls", 0.5), ("B", 1))
    )
    assert counted.leader is not None
    assert counted.leader.key == ("number", 20)
    assert (counted.leading, counted.second, counted.unparsed, counted.total) == (1.5, 1.0, 1.5, 5.0)
    assert counted.shares == {"20": 0.3, "7": 0.2, "B": 0.2}
    assert list(counted.shares) == ["20", "7", "B"]
    assert counted.confidence == 0.3
    assert counted.unparsed_share == 0.3


def test_unparsed_votes_never_win() -> None:
    counted = tally([Vote(UNPARSED)] * 9 + votes(("20", 1)))
    assert counted.leader == normalize_answer("20")
    assert counted.confidence == 0.1
    nobody = tally([Vote(UNPARSED)] * 3)
    assert (nobody.leader, nobody.confidence, nobody.unparsed_share, nobody.shares) == (None, 0.0, 1.0, {})


@pytest.mark.parametrize("empty", [[], votes(("20", 0)), [Vote(UNPARSED, 0)]])
def test_no_weight_no_leader(empty: list[Vote]) -> None:
    counted = tally(empty)
    assert (counted.leader, counted.leading, counted.confidence, counted.total) == (None, 0.0, 0.0, 0.0)


def test_the_first_of_equals_leads() -> None:
    assert tally(votes(("7", 1), ("20", 1))).leader == normalize_answer("7")
    assert tally(votes(("20", 1), ("7", 1))).leader == normalize_answer("20")


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(InputError, match="weight must be finite"):
        tally(votes(("20", weight)))


@given(
    st.lists(st.tuples(st.sampled_from(["20", "20.0", "7", "B", ""]), st.floats(1e-300, 1.0)), min_size=1),
    st.randoms(),
)
def test_shares_sum_to_one_in_any_order(pairs: list[tuple[str, float]], order: random.Random) -> None:
    counted = tally(votes(*pairs))
    assert math.fsum([*counted.shares.values(), counted.unparsed_share]) == pytest.approx(1, rel=1e-12)
    assert 0 <= counted.confidence <= 1
    order.shuffle(pairs)
    again = tally(votes(*pairs))
    assert (again.total, again.leading, again.second) == (counted.total, counted.leading, counted.second)


# relative; scipy (Boost) is within 1e-15 to 3e-13 of mpmath here, and so are we
TOLERANCE = 1e-12
COUNTS = [0.5, 1, 1.5, 2, 3.7, 9, 17, 33.3, 100, 640.25, 1e3, 1e4, 1e5, 1e6]


@pytest.mark.parametrize("a", COUNTS)
def test_incomplete_beta_is_scipys(a: float) -> None:
    for b, x in itertools.product(
        COUNTS, [0.0, 1e-6, 0.01, 0.3, 0.49, 0.5, 0.51, 0.7, 0.99, 1 - 1e-6, 1.0, None]
    ):
        point = a / (a + b) if x is None else x
        expected = float(special.betainc(a, b, point))
        if 0 < expected < 1e-250 or (expected == 0 and point > 0):
            continue  # Boost flushes some of these to zero; see the literal below
        found = regularized_incomplete_beta(a, b, point)
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=0), (a, b, point)


def test_incomplete_beta_far_in_the_tail() -> None:
    # mpmath.betainc(640.25, 33.3, 0, 0.3, regularized=True) with 40 digits; scipy 1.17 says 0
    assert regularized_incomplete_beta(640.25, 33.3, 0.3) == pytest.approx(
        2.304060525829674e-285, rel=TOLERANCE, abs=0
    )
    assert regularized_incomplete_beta(1e6, 1, 0.5) == 0.0


@pytest.mark.parametrize("leading", [0, 0.3, 1, 4, 12.5, 100, 1e4])
@pytest.mark.parametrize("second", [0, 0.7, 1, 3, 12.5, 90])
def test_leader_posterior(leading: float, second: float) -> None:
    found = leader_posterior(leading, second)
    assert found == pytest.approx(float(special.betainc(second + 1, leading + 1, 0.5)), rel=TOLERANCE, abs=0)
    assert found + leader_posterior(second, leading) == pytest.approx(1, rel=TOLERANCE)


def test_leader_posterior_is_the_papers_integral() -> None:
    def density(p: float) -> float:
        return p**5.5 * (1 - p) ** 2.25

    expected = integrate.quad(density, 0.5, 1)[0] / integrate.quad(density, 0, 1)[0]
    assert leader_posterior(5.5, 2.25) == pytest.approx(expected, rel=1e-9)  # quad's own tolerance is 1.5e-8


def test_leader_posterior_by_hand() -> None:
    assert leader_posterior(0, 0) == pytest.approx(1 / 2, rel=1e-15)
    assert leader_posterior(1, 0) == pytest.approx(3 / 4, rel=1e-15)  # integral of 2p from 1/2 to 1
    assert leader_posterior(1, 1) == pytest.approx(1 / 2, rel=1e-15)
    assert leader_posterior(2, 1) == pytest.approx(11 / 16, rel=1e-15)  # integral of 12 p^2 (1 - p)
    assert leader_posterior(4, 0) == pytest.approx(31 / 32, rel=1e-15)
    assert leader_posterior(1e9, 1e9) == pytest.approx(1 / 2, rel=1e-9)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, 1e10])
def test_impossible_counts_are_refused(bad: float) -> None:
    for pair in ((bad, 1.0), (1.0, bad)):
        with pytest.raises(InputError, match=r"in \[0, 1e\+09\]"):
            leader_posterior(*pair)


@pytest.mark.parametrize(
    ("stop_when", "samples"),
    [(0.1, 1), (0.7, 1), (0.8, 2), (0.9, 3), (0.95, 4), (0.97, 5), (0.99, 6), (0.999, 9)],
)
def test_samples_to_decide(stop_when: float, samples: int) -> None:
    # 1 - 2^-(n + 1) after n unanimous votes
    assert samples_to_decide(stop_when) == samples
    assert leader_posterior(samples, 0) >= stop_when
    assert samples == 1 or leader_posterior(samples - 1, 0) < stop_when


def test_samples_to_decide_at_the_edges() -> None:
    assert samples_to_decide(math.nextafter(0, 1)) == 1
    assert 50 <= samples_to_decide(math.nextafter(1, 0)) <= 53
    for stop_when in (0.0, 1.0, -1.0, 2.0, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            samples_to_decide(stop_when)


def test_confidence_weight() -> None:
    assert confidence_weight(0.0) == 1.0
    assert confidence_weight(-math.log(2)) == pytest.approx(0.5)
    assert confidence_weight(1e-9) == confidence_weight(math.inf) == 1.0
    for broken in (math.nan, -math.inf, -1e308):
        assert 0 < confidence_weight(broken) < 1e-300


@given(st.floats())
def test_confidence_weights_are_votes(mean_logprob: float) -> None:
    weight = confidence_weight(mean_logprob)
    assert 0 < weight <= 1
    assert tally(votes(("20", weight))).confidence == 1.0
