"""The statistics of a file, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from edge_distill.traces.stats import histogram, spread, summarize
from edge_distill.traces.trace import Step, make_trace, to_line
from edge_distill_runtime import InputError


def test_counts(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    good, bad = Step("3 * 4 = 12", "structure", "verified"), Step("1 = 2", "error", "refuted")
    traces = [
        make_trace(
            "p", "a" * 10, "1", task="gcd", teacher="solver:", steps=(good, bad), correct=True, seed=1
        ),
        make_trace(
            "p", "a" * 20, "1", task="gcd", correct=False, vote_share=0.5, verified=("answer:exact",), seed=2
        ),
        make_trace("q", "a" * 100, "1", task="chain_sum", steps=(good,), vote_share=1.0, seed=3),
    ]
    path.write_text("".join(to_line(trace) + "\n" for trace in traces), encoding="utf-8")
    stats = summarize(path)
    assert (stats.traces, stats.problems) == (3, 2)
    assert (stats.correct, stats.wrong, stats.unjudged) == (1, 1, 1)
    assert stats.tasks == {"gcd": 2, "chain_sum": 1}
    assert stats.teachers == {"": 2, "solver:": 1}
    assert stats.roles == {"decomposition": 0, "structure": 2, "error": 1, "language": 0}
    assert stats.verdicts == {"verified": 2, "refuted": 1, "unknown": 0}
    assert stats.verified == {"answer:exact": 1}
    assert (stats.reasoning.median, stats.reasoning.maximum) == (20, 100)
    assert stats.steps.mean == 1
    assert stats.vote_share is not None
    assert stats.vote_share.mean == 0.75
    assert stats.histogram[0] == (10, 1)
    assert stats.histogram[1] == (20, 1)
    assert stats.histogram[9] == (100, 1)
    assert json.loads(json.dumps(stats.to_dict()))["histogram"][9] == [100, 1]

    console = Console(record=True, width=100)
    stats.render(console)
    text = console.export_text()
    assert "3 of 2 problems" in text
    assert "structure 2" in text
    assert "1 right, 1 wrong, 1 not compared" in text


def test_quantiles_are_values_that_occur() -> None:
    found = spread(list(range(1, 101)))
    assert (found.mean, found.minimum, found.median, found.p95, found.maximum) == (50.5, 1, 50, 95, 100)
    assert spread([7]).p95 == 7


def test_bins_hold_every_length() -> None:
    assert histogram([0]) == ((1, 1),)
    assert histogram([5, 1, 0]) == ((1, 2), (2, 0), (3, 0), (4, 0), (5, 1))
    assert sum(count for _, count in histogram(range(1234))) == 1234
    assert len(histogram(range(1234))) == 10


def test_a_bad_or_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no traces"):
        summarize(path)
    path.write_text("\n{}\n")
    with pytest.raises(InputError, match="line 2"):
        summarize(path)
    with pytest.raises(InputError, match="does not exist"):
        summarize(tmp_path / "nothing")
