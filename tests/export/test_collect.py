"""What calibration text tells beside its tokens."""

from __future__ import annotations

from edge_distill_export.calibration import Text
from edge_distill_export.collect import Calibration
from edge_distill_runtime.bundles.manifest import ReasoningLengths


def texts(lengths: list[int]) -> tuple[Text, ...]:
    return tuple(Text([1] * (length + 9), 5, 5 + length) for length in lengths)


def test_quantiles_of_the_reasoning_by_hand() -> None:
    lengths = Calibration(texts(list(range(100, 0, -1))), "traces.jsonl").reasoning_lengths
    assert lengths == ReasoningLengths(50, 90, 99)
    lengths = Calibration(texts([10] * 19 + [200]), "traces.jsonl").reasoning_lengths
    assert lengths == ReasoningLengths(10, 10, 200)


def test_too_little_to_tell() -> None:
    assert Calibration(texts([10] * 19), "traces.jsonl").reasoning_lengths is None
    assert Calibration(texts([0] * 100), "traces.jsonl").reasoning_lengths is None  # no reasoning in them
    assert Calibration(texts([10] * 100), "own").reasoning_lengths is None  # not what it learned from
