"""Timers against a clock that only the engine turns: one millisecond a token of a prompt, ten a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_distill_bench.energy import Meter
from edge_distill_bench.latency import Plan, measure_model
from edge_distill_bench.measure import endless
from edge_distill_bench.timers import decode_times, prefill_speed, seconds_of, time_to_first_token
from edge_distill_runtime import BackendError, Model, load


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TimedBackend:
    """A real engine that turns a clock."""

    def __init__(self, backend: Any, clock: Clock) -> None:
        self._backend, self._clock = backend, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def prefill(self, tokens: Any) -> Any:
        self._clock.now += 0.001 * len(tokens)
        return self._backend.prefill(tokens)

    def extend(self, sequence: Any, tokens: Any) -> None:
        self._clock.now += 0.001 * len(tokens)
        self._backend.extend(sequence, tokens)

    def step(self, sequences: Any, tokens: Any) -> Any:
        self._clock.now += 0.010
        return self._backend.step(sequences, tokens)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(model: Model, clock: Clock) -> Model:
    backend: Any = TimedBackend(model.backend, clock)
    return Model(model.manifest, backend, model.tokenizer, model.detokenizer)


class CountingMeter(Meter):
    """Two joules between any two readings."""

    def __init__(self) -> None:
        super().__init__({Path("package-0"): 1 << 40}, "RAPL: package-0")
        object.__setattr__(self, "readings", 0)

    def read(self) -> tuple[int, ...]:
        object.__setattr__(self, "readings", self.readings + 1)  # type: ignore[attr-defined]
        return (2_000_000 * self.readings,)  # type: ignore[attr-defined]


def test_seconds_of_is_the_work_alone(clock: Clock) -> None:
    def work() -> None:
        clock.now += 2.5

    assert seconds_of(work, clock) == 2.5


def test_prefill_counts_the_tokens_asked_for(timed: Model, clock: Clock) -> None:
    for tokens in (7, 200):
        assert prefill_speed(timed, tokens, clock) == pytest.approx(1000.0)


def test_first_token_is_the_prompt_s_time(timed: Model, clock: Clock) -> None:
    text = "seven rolls are left"
    tokens = len(timed.encode(text, raw=True))
    assert time_to_first_token(endless(timed), text, clock) == pytest.approx(0.001 * tokens)


def test_decode_times_are_those_of_steps_alone(timed: Model, clock: Clock) -> None:
    times = decode_times(endless(timed), "rolls", 5, clock)
    assert len(times) == 6
    start = times[0]
    assert times == pytest.approx([start + 0.01 * count for count in range(6)])


def test_a_model_that_stops_is_no_measurement(timed: Model, clock: Clock) -> None:
    first = timed.generate("go", raw=True, max_tokens=1, temperature=0.0).tokens[0]
    manifest = type(timed.manifest)(**{**vars(timed.manifest), "stop_ids": (first,)})
    stopping = Model(manifest, timed.backend, timed.tokenizer, timed.detokenizer)
    with pytest.raises(BackendError, match="stopped after 0 of 4"):
        decode_times(stopping, "go", 4, clock)


def test_everything_of_a_plan(timed: Model, clock: Clock) -> None:
    plan = Plan(1, prefill=(16, 40), depths=(0, 60), new_tokens=20, ttft_tokens=12, ttft_repeats=3)
    speeds = measure_model(timed, plan, CountingMeter(), clock)
    assert speeds.prefill == pytest.approx({"16": 1000.0, "40": 1000.0})
    assert speeds.decode == pytest.approx({"0": 100.0, "60": 100.0})
    assert speeds.intervals == pytest.approx((0.01,) * 20)
    assert len(speeds.ttft) == 3
    assert all(0.010 <= seconds <= 0.016 for seconds in speeds.ttft)  # about twelve tokens
    # two joules between the reading at the start and the one at the end, 20 tokens
    assert speeds.joules_per_token == 0.1


def test_a_plan_leaves_out_what_does_not_fit(bundles: dict[str, Path]) -> None:
    plan = Plan(1, answer_context=900)
    assert plan.context == 1000 + 128 + 16
    fitting, notes = plan.fitting(512)
    assert fitting.prefill == (128, 512)
    assert fitting.depths == (0,)
    assert fitting.context == 512
    assert notes == ("decoding behind 1000 tokens does not fit the context of 512",)
    assert plan.fitting(4096) == (plan, ())
    with load(bundles["gguf"], context=256, threads=1) as model:
        assert prefill_speed(model, 256) > 0
