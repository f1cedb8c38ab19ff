"""Timers around one loaded model; each takes its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from edge_distill_bench.prompts import TRACE
from edge_distill_runtime import BackendError, Model

__all__ = ["Clock", "decode_times", "prefill_speed", "seconds_of", "time_to_first_token"]

Clock = Callable[[], float]
"""Seconds, as `time.perf_counter`."""

_FIRST = 2  # tokens that the engine may give at once: the prompt's, and one step behind it


def seconds_of(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """How long one call takes."""
    start = clock()
    work()
    return clock() - start


def time_to_first_token(model: Model, text: str, clock: Clock = time.perf_counter) -> float:
    """Seconds from a raw text to the first new token and its text."""
    return seconds_of(partial(model.generate, text, raw=True, max_tokens=1, temperature=0.0), clock)


def prefill_speed(model: Model, tokens: int, clock: Clock = time.perf_counter) -> float:
    """Tokens per second of a prompt of so many tokens, by the engine alone."""
    ids = model.encode(TRACE, raw=True)
    prompt = (ids * -(-tokens // len(ids)))[:tokens]
    start = clock()
    sequence = model.backend.prefill(prompt)
    seconds = clock() - start
    model.backend.release(sequence)
    return tokens / seconds


def decode_times(
    model: Model,
    text: str,
    tokens: int,
    clock: Clock = time.perf_counter,
    on_start: Callable[[], object] = lambda: None,
) -> list[float]:
    """Readings of the clock: one when a raw text and its first tokens are there, and one behind each of `tokens` more.

    Greedy, with every token's text read, as somebody does who streams. `on_start` is called before the first reading.
    `BackendError` when the model stops before: give one that does not, see `measure.endless`.
    """
    most = tokens + _FIRST
    prompt, decodings = model.prepare(text, 1, {"raw": True, "max_tokens": most, "temperature": 0.0})
    (decoding,) = decodings
    job = model.engine.submit(prompt, decodings, wants_news=True)

    def wait_for(count: int) -> None:
        model.engine.run_until(job, lambda: len(decoding.tokens) >= count)
        decoding.take_events()

    try:
        wait_for(1)
        first = len(decoding.tokens)
        on_start()
        times = [clock()]
        for count in range(first + 1, first + tokens + 1):
            wait_for(count)
            times.append(clock())
    finally:
        model.engine.close_job(job)
    if len(decoding.tokens) < first + tokens:
        raise BackendError(
            "measure-failed", f"the model stopped after {len(decoding.tokens)} of {first + tokens} tokens"
        )
    return times
