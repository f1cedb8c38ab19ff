"""Rounds over tiny bundles, and what is made of rounds with known numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from edge_distill_bench.energy import Meter
from edge_distill_bench.latency import (
    Answer,
    Plan,
    Round,
    Speeds,
    energy_of,
    latency_of,
    measure_rounds,
    speed_ratios,
)
from edge_distill_bench.latency_rows import LatencyRows
from edge_distill_runtime import InputError

NO_METER = Meter({}, "not measured: no RAPL")
SPEEDS = Speeds((0.25, 0.5), {"128": 1000.0}, {"0": 200.0, "1000": 100.0}, (0.01, 0.02), 0.5)
FIRST = Round(1.0, SPEEDS, (3.0,), {"1": 110.0}, 0.1)
SECOND = Round(
    2.0, replace(SPEEDS, decode={"0": 100.0, "1000": 50.0}, intervals=(0.03, 0.04)), (), {"1": 60.0}, 0.1
)
PLAN = Plan(2, prefill=(128,), sweep=(1,))


def test_rounds_of_two_bundles(bundles: dict[str, Path]) -> None:
    asked: list[str] = []

    def answer(number: int) -> Answer:
        return lambda model: asked.append(f"{model.manifest.format} {number}")

    plan = Plan(
        1, (16,), (0, 32), new_tokens=8, ttft_tokens=12, ttft_repeats=2, sweep=(2,), answer_context=64
    )
    counted: list[int] = []
    gguf, onnx = measure_rounds(
        list(bundles.values()),
        plan,
        rounds=2,
        meter=NO_METER,
        answers=[answer(number) for number in range(3)],
        advance=lambda: counted.append(1),
    )
    # in turn, every other round backwards, each problem once
    assert asked == ["gguf 0", "gguf 2", "onnx 0", "onnx 2", "onnx 1", "gguf 1"]
    assert len(counted) == 4
    for rounds in (gguf, onnx):
        assert len(rounds) == 2
        result = latency_of(rounds, plan)
        values = [
            *result.load_s,
            *result.ttft,
            *result.prefill["16"],
            *result.decode["0"],
            *result.decode["32"],
        ]
        assert len(values) == 2 + 4 + 2 + 2 + 2
        assert all(0 < value < math.inf for value in values)
        assert list(result.thread_sweep) == ["1", "2"]
        assert result.thread_sweep["1"] == result.decode["0"]
        assert result.inter_token.count == 16
        assert len(result.time_to_answer) == 3
    with pytest.raises(InputError, match="rounds is 0"):
        measure_rounds(list(bundles.values()), plan, rounds=0, meter=NO_METER)


def test_a_small_context_measures_what_fits(bundles: dict[str, Path]) -> None:
    ((one,),) = measure_rounds(  # made for 256 tokens
        [bundles["gguf"]], Plan(1, ttft_repeats=1), rounds=1, meter=NO_METER
    )
    assert list(one.speeds.prefill) == ["128"]
    assert list(one.speeds.decode) == ["0"]


def test_rounds_become_a_result() -> None:
    result = latency_of([FIRST, SECOND], PLAN, ["a note"])
    assert result.load_s == (1.0, 2.0)
    assert result.ttft == (0.25, 0.5, 0.25, 0.5)
    assert result.decode == {"0": (200.0, 100.0), "1000": (100.0, 50.0)}
    assert result.thread_sweep == {"1": (110.0, 60.0), "2": (200.0, 100.0)}
    assert result.time_to_answer == (3.0,)
    # between the ordered values 10, 20, 30, 40 ms, as numpy and R's type 7 do: 0.95 x 3 = 2.85 steps up
    found = result.inter_token
    assert (found.p50, found.p95, found.p99) == pytest.approx((0.025, 0.0385, 0.0397))
    assert found.count == 4
    assert result.notes == ("a note",)


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="128 tokens cannot be decoded in a context of 100"):
        Plan(1).fitting(100)


def test_energy_or_the_reason() -> None:
    meter = Meter({Path("package"): 1}, "RAPL: package-0")
    assert energy_of([FIRST, SECOND], meter).joules_per_token == (0.5, 0.5)
    without = replace(FIRST, speeds=replace(SPEEDS, joules_per_token=None))
    assert energy_of([without], NO_METER).joules_per_token is None
    assert energy_of([without], NO_METER).reason == "not measured: no RAPL"


def test_ratios_are_taken_round_by_round() -> None:
    slow = [replace(one, load_s=2 * one.load_s, speeds=halved(one.speeds)) for one in (FIRST, SECOND)]
    ratios = speed_ratios({"fast": [FIRST, SECOND], "slow": slow})
    assert {ratio.metric for ratio in ratios} == {"load", "ttft", "prefill/128", "decode/0", "decode/1000"}
    for ratio in ratios:
        assert (ratio.first, ratio.second) == ("fast", "slow")
        # the machine was half as fast in the second round: pairs do not see it
        assert ratio.ratio.low == ratio.ratio.value == ratio.ratio.high == 2.0


def halved(speeds: Speeds) -> Speeds:
    return replace(
        speeds,
        ttft=tuple(2 * seconds for seconds in speeds.ttft),
        prefill={name: speed / 2 for name, speed in speeds.prefill.items()},
        decode={name: speed / 2 for name, speed in speeds.decode.items()},
    )


def test_kept_rounds_are_not_measured_again(bundles: dict[str, Path], tmp_path: Path) -> None:
    plan = Plan(1, (16,), (0,), new_tokens=4, ttft_tokens=12, ttft_repeats=1)
    file = tmp_path / "latency.jsonl"
    rows = LatencyRows(file, {"a": "1", "b": "2"}, plan, [3])
    assert rows.complete() == [[], []]
    for name, one in (("a", FIRST), ("b", SECOND), ("b", FIRST)):  # killed before the second round of a
        rows.append(name, one)
    file.write_bytes(file.read_bytes() + b'{"key": "torn')
    assert rows.complete() == [[FIRST], [SECOND]]
    for other in (
        LatencyRows(file, {"a": "1", "b": "3"}, plan, [3]),  # another model
        LatencyRows(file, {"a": "1", "b": "2"}, replace(plan, new_tokens=8), [3]),
        LatencyRows(file, {"a": "1", "b": "2"}, plan, [4]),
    ):
        assert other.complete() == [[], []]

    kept: list[tuple[Path, Round]] = []
    gguf, onnx = measure_rounds(
        list(bundles.values()),
        plan,
        rounds=2,
        meter=NO_METER,
        known=rows.complete(),
        keep=lambda path, one: kept.append((path, one)),
    )
    assert (gguf[0], onnx[0]) == (FIRST, SECOND)
    assert kept == [(bundles["onnx"], onnx[1]), (bundles["gguf"], gguf[1])]
    file.write_text('{"key": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        rows.complete()
    rows.remove()
    assert not file.exists()
