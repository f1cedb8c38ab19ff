"""Rounds in turn, ratios and tables."""

from __future__ import annotations

import pytest

from edge_distill_bench.measure import endless, in_turn, median_ratio, print_table, text_of
from edge_distill_runtime import Model


def test_every_other_round_goes_backwards() -> None:
    order: list[str] = []

    def run(name: str) -> str:
        order.append(name)
        return f"{name}{len(order)}"

    results = in_turn([lambda: run("a"), lambda: run("b"), lambda: run("c")], 3)
    assert "".join(order) == "abccbaabc"
    assert results == [["a1", "a6", "a7"], ["b2", "b5", "b8"], ["c3", "c4", "c9"]]


def test_ratio_is_taken_round_by_round() -> None:
    # the machine was three times slower in the last round; the medians alone would say 4 / 2.5
    assert median_ratio([6.0, 4.0, 1.0], [3.0, 2.5, 0.5]) == 2.0


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Speed", ["round", "ours", "theirs"], [[1, 123.456, 7.0], ["median", 0.5, 10.0]])
    assert capsys.readouterr().out.splitlines() == [
        "Speed",
        "round    ours  theirs",
        "1       123.5   7.000",
        "median  0.500    10.0",
    ]


def test_text_of_so_many_tokens(model: Model) -> None:
    for count in (5, 60):
        text = text_of(model, "Three rolls are left. ", count)
        assert abs(len(model.encode(text, raw=True)) - count) <= 2


def test_endless_model_goes_on(model: Model) -> None:
    first = model.generate("go", raw=True, max_tokens=1, temperature=0.0).tokens[0]
    stopping = Model(
        type(model.manifest)(**{**vars(model.manifest), "stop_ids": (first,)}),
        model.backend,
        model.tokenizer,
        model.detokenizer,
    )
    assert stopping.generate("go", raw=True, max_tokens=3, temperature=0.0).tokens == ()
    assert len(endless(stopping).generate("go", raw=True, max_tokens=3, temperature=0.0).tokens) == 3
