"""Sampling filters by hand-worked numbers, draws by their frequencies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from edge_distill_runtime import InputError
from edge_distill_runtime.generation.sampling import (
    Sampler,
    SamplingOptions,
    log_probabilities,
    probabilities,
    top_ids,
)

# probabilities 0.1, 0.4, 0.05, 0.25, 0.2
WEIGHTS = np.array([0.1, 0.4, 0.05, 0.25, 0.2])
LOGITS = np.log(WEIGHTS).astype(np.float32) + 3


@pytest.mark.parametrize(
    ("options", "ids", "expected"),
    [
        ({}, [1, 3, 4, 0, 2], [0.4, 0.25, 0.2, 0.1, 0.05]),
        ({"top_k": 2}, [1, 3], [0.4 / 0.65, 0.25 / 0.65]),
        ({"top_k": 1}, [1], [1.0]),
        ({"top_k": 100}, [1, 3, 4, 0, 2], [0.4, 0.25, 0.2, 0.1, 0.05]),
        ({"top_p": 0.39}, [1], [1.0]),
        ({"top_p": 0.6}, [1, 3], [0.4 / 0.65, 0.25 / 0.65]),
        ({"top_p": 0.66}, [1, 3, 4], [0.4 / 0.85, 0.25 / 0.85, 0.2 / 0.85]),
        ({"min_p": 0.49}, [1, 3, 4], [0.4 / 0.85, 0.25 / 0.85, 0.2 / 0.85]),
        ({"min_p": 1.0}, [1], [1.0]),
        # at temperature 0.5 probabilities are squared: 0.16, 0.0625, 0.04, 0.01, 0.0025
        ({"temperature": 0.5, "top_k": 3}, [1, 3, 4], [0.16 / 0.2625, 0.0625 / 0.2625, 0.04 / 0.2625]),
    ],
)
def test_filters(options: dict[str, Any], ids: list[int], expected: list[float]) -> None:
    found, weights = probabilities(LOGITS, SamplingOptions(**({"temperature": 1.0} | options)))
    assert found.tolist() == ids
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler(SamplingOptions()).sample(np.array([0.0, 2.0, 2.0, 1.0], np.float32)) == 1


def test_seed_and_frequencies() -> None:
    samplers = [Sampler(SamplingOptions(temperature=1.0, seed=1)) for _ in range(2)]
    first, second = ([sampler.sample(LOGITS) for _ in range(4000)] for sampler in samplers)
    assert first == second
    counts = Counter(first)
    for token, probability in enumerate(WEIGHTS):
        # four standard deviations
        assert abs(counts[token] / 4000 - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5
    unseeded = Sampler(SamplingOptions(temperature=1.0))
    assert [unseeded.sample(LOGITS) for _ in range(30)] != first[:30]


def test_extreme_logits() -> None:
    logits = np.array([-1e30, 1e30, 0.0, -np.inf], np.float32)
    for temperature in (1e-9, 1.0, 100.0):
        sampler = Sampler(SamplingOptions(temperature=temperature, top_p=0.9, seed=0))
        assert {sampler.sample(logits) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -3},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(InputError, match=f"{name} is {value}"):
        SamplingOptions(**options)


@pytest.mark.parametrize(
    "options", [{"top_p": 0.9}, {"min_p": 0.05}, {"top_p": 0.95, "min_p": 0.02, "top_k": 50}]
)
def test_filters_keep_what_a_full_sort_would(options: dict[str, float]) -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        logits = (generator.standard_normal(5000) * 3).astype(np.float32)
        settings = SamplingOptions(temperature=0.8, **options)  # type: ignore[arg-type]
        found, weights = probabilities(logits, settings)
        order = np.argsort(-logits, kind="stable")[: settings.top_k or None]
        expected = np.exp(logits[order].astype(np.float64) / 0.8)
        expected /= expected.sum()
        keep = int((np.cumsum(expected) < settings.top_p).sum()) + 1
        keep = min(keep, int((expected >= settings.min_p * expected[0]).sum()))
        assert found.tolist() == order[:keep].tolist()
        np.testing.assert_allclose(weights, expected[:keep] / expected[:keep].sum(), rtol=1e-9)


def test_repetition_penalty_by_hand() -> None:
    logits = np.array([3.0, 2.9, -1.0, -1.1], np.float32)
    # 3.0 / 2 = 1.5 falls behind 2.9; then 2.9 / 2 = 1.45 falls behind 1.5
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0), prompt=[0])
    assert [sampler.sample(logits) for _ in range(3)] == [1, 0, 0]
    # negative logits are multiplied: -1 x 2 falls behind -1.1
    negative = np.array([-9.0, -9.0, -1.0, -1.1], np.float32)
    assert Sampler(SamplingOptions(repetition_penalty=2.0), prompt=[2]).sample(negative) == 3
    assert logits[0] == 3.0  # the engine's row is not changed


def test_log_probabilities_and_alternatives() -> None:
    assert top_ids(LOGITS, 3) == [1, 3, 4]
    assert top_ids(LOGITS, 0) == []
    assert top_ids(np.zeros(4, np.float32), 2) == [0, 1]
    np.testing.assert_allclose(log_probabilities(LOGITS, [0, 1]), np.log([0.1, 0.4]), rtol=1e-5)
    assert log_probabilities(np.array([-np.inf, 0.0], np.float32), [0, 1]) == [-np.inf, 0.0]


def test_top_k_beyond_the_near_logits() -> None:
    """The search for the largest logits widens until it has enough, however far apart they lie."""
    logits = np.array([-1000.0 * index for index in range(50)], np.float32)
    assert sorted(probabilities(logits, SamplingOptions(temperature=1e2, top_k=7))[0].tolist()) == list(
        range(7)
    )
    assert top_ids(logits[::-1].copy(), 4) == [49, 48, 47, 46]


def test_draws_from_a_large_vocabulary_have_their_frequencies() -> None:
    """More tokens than one stretch holds; the weight lies in a few tokens of several stretches."""
    logits = np.full(1000, -20.0, np.float32)
    likely = {3: 0.5, 255: 0.1, 256: 0.15, 511: 0.05, 999: 0.2}
    for token, probability in likely.items():
        logits[token] = np.log(probability)
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=3))
    counts = Counter(sampler.sample(logits) for _ in range(8000))
    for token, probability in likely.items():
        # four standard deviations
        assert abs(counts[token] / 8000 - probability) < 4 * (probability * (1 - probability) / 8000) ** 0.5
