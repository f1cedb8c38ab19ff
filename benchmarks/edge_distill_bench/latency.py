"""Latency of several models, measured in turn, round by round: one at a time is loaded, warmed up and measured.

Shared machines drift, and where the weights' pages lie changes with every load: so every round loads anew, and models
are compared by the ratios of their rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median

import numpy as np

from edge_distill_bench.energy import Meter
from edge_distill_bench.measure import check_counts, endless, in_turn, text_of
from edge_distill_bench.noise import fixed_computation
from edge_distill_bench.processes import run_module, watch
from edge_distill_bench.prompts import TRACE
from edge_distill_bench.results import EnergyResult, LatencyResult, Quantiles, SpeedRatio
from edge_distill_bench.statistics import median_ratio
from edge_distill_bench.timers import Clock, decode_times, prefill_speed, seconds_of, time_to_first_token
from edge_distill_runtime import InputError, Model, load
from edge_distill_runtime.bundles.opening import find

__all__ = [
    "INCLUDED",
    "Answer",
    "Plan",
    "Round",
    "Speeds",
    "energy_of",
    "latency_of",
    "measure_model",
    "measure_rounds",
    "speed_ratios",
]

INCLUDED = (
    "load: a fresh process, files in the page cache, from load() to the model: the engine's import, hashes, weights. "
    "ttft: tokenization, prompt, the first token and its text. "
    "prefill: the engine alone, token ids in, logits out. "
    "decode and inter-token: the engine, greedy sampling and the text of every token. "
    "time to answer: a problem in the chat form, one at a time, greedy, until the model stops or the limit of tokens."
)
_WARM_UP = 16  # tokens
_SLACK = 16  # tokens: a text that is cut to a length may take some more

Answer = Callable[[Model], object]
"""Solves one problem."""


@dataclass(frozen=True)
class Plan:
    """What is measured in every round; numbers of tokens."""

    threads: int
    prefill: tuple[int, ...] = (128, 512)
    depths: tuple[int, ...] = (0, 1000)
    new_tokens: int = 128
    ttft_tokens: int = 128
    ttft_repeats: int = 4
    sweep: tuple[int, ...] = ()
    """Other numbers of threads to decode with."""
    answer_context: int = 0
    """What the problems take."""

    @property
    def context(self) -> int:
        """What the longest measurement takes."""
        decoding = [depth + self.new_tokens + _SLACK for depth in self.depths]
        return max([self.ttft_tokens + _WARM_UP + _SLACK, self.answer_context, *self.prefill, *decoding])

    def fitting(self, context: int) -> tuple[Plan, tuple[str, ...]]:
        """Without what does not fit a context, and what that was; `InputError` when no decoding fits."""
        prefill = tuple(length for length in self.prefill if length <= context)
        depths = tuple(depth for depth in self.depths if depth + self.new_tokens + _SLACK <= context)
        if not depths:
            raise InputError(
                "short-context",
                f"{self.new_tokens} tokens cannot be decoded in a context of {context}",
                "export with a larger --context, or measure without latency",
            )
        left = [f"prefill of {length}" for length in self.prefill if length not in prefill]
        left += [f"decoding behind {depth}" for depth in self.depths if depth not in depths]
        fitting = replace(
            self,
            prefill=prefill,
            depths=depths,
            ttft_tokens=max(1, min(self.ttft_tokens, context - _WARM_UP - _SLACK)),
            answer_context=min(self.answer_context, context),
        )
        return fitting, tuple(f"{what} tokens does not fit the context of {context}" for what in left)


@dataclass(frozen=True)
class Speeds:
    """One loaded model; seconds, and tokens per second by length or depth."""

    ttft: tuple[float, ...]
    prefill: dict[str, float]
    decode: dict[str, float]
    intervals: tuple[float, ...]
    """Between tokens, at the greatest depth."""
    joules_per_token: float | None
    """At the greatest depth."""


@dataclass(frozen=True)
class Round:
    """One model in one round."""

    load_s: float
    speeds: Speeds
    answers: tuple[float, ...]
    """Seconds of each problem."""
    sweep: dict[str, float]
    """Tokens per second by the number of threads."""
    noise: float
    """Seconds of the fixed computation before it."""


def measure_rounds(
    paths: Sequence[Path],
    plan: Plan,
    *,
    rounds: int,
    meter: Meter,
    answers: Sequence[Answer] = (),
    known: Sequence[Sequence[Round]] = (),
    keep: Callable[[Path, Round], object] = lambda path, measured: None,
    advance: Callable[[], object] = lambda: None,
) -> list[list[Round]]:
    """The rounds of each model; `answers` are spread over the rounds, `advance` is called after each model.

    `known` are the first rounds of all models where an earlier call measured them; each new one is given to `keep`.
    """
    check_counts(rounds=rounds, threads=plan.threads)
    found = {path: list(column) for path, column in zip(paths, known or [()] * len(paths), strict=True)}
    done = dict.fromkeys(paths, 0)

    def one(path: Path) -> Round:
        number = done[path]
        done[path] += 1
        if number == len(found[path]):
            found[path].append(_measure(path, plan, answers[number::rounds], meter))
            keep(path, found[path][number])
        advance()
        return found[path][number]

    return in_turn([partial(one, path) for path in paths], rounds)


def _measure(path: Path, plan: Plan, answers: Sequence[Answer], meter: Meter) -> Round:
    noise = seconds_of(partial(fixed_computation, plan.threads))
    longest = find(path).manifest.context_length
    fitting, _ = plan.fitting(longest)
    context = min(fitting.context, longest)
    loading = run_module("edge_distill_bench.memory_process", "load", path, context, plan.threads)
    seconds = json.loads(watch(loading, samples=False).output.splitlines()[-1])["load_seconds"]
    with load(path, context=context, threads=plan.threads) as model:
        speeds = measure_model(model, fitting, meter)
        alone = Model(model.manifest, model.backend, model.tokenizer, model.detokenizer)  # no prompt cache
        answered = tuple(seconds_of(partial(answer, alone)) for answer in answers)
    first = replace(fitting, prefill=(), depths=fitting.depths[:1], ttft_repeats=0)
    sweep: dict[str, float] = {}
    for threads in plan.sweep:
        with load(path, context=min(first.context, longest), threads=threads) as model:
            sweep |= {str(threads): speed for speed in measure_model(model, first, meter).decode.values()}
    return Round(float(seconds), speeds, answered, sweep, noise)


def measure_model(model: Model, plan: Plan, meter: Meter, clock: Clock = time.perf_counter) -> Speeds:
    """Warm up, then everything of the plan once; the plan must fit the model's context."""
    forever = endless(model)
    text = text_of(model, TRACE, plan.ttft_tokens)
    decode_times(forever, text, _WARM_UP)
    ttft = tuple(time_to_first_token(forever, text, clock) for _ in range(plan.ttft_repeats))
    prefill = {str(length): prefill_speed(model, length, clock) for length in plan.prefill}
    decoded = {str(depth): _decode(forever, depth, plan, meter, clock) for depth in plan.depths}
    deepest = decoded[str(plan.depths[-1])]
    return Speeds(
        ttft=ttft,
        prefill=prefill,
        decode={depth: one.speed for depth, one in decoded.items()},
        intervals=deepest.intervals,
        joules_per_token=deepest.joules_per_token,
    )


@dataclass(frozen=True)
class _Decoded:
    speed: float
    intervals: tuple[float, ...]
    joules_per_token: float | None


def _decode(model: Model, depth: int, plan: Plan, meter: Meter, clock: Clock) -> _Decoded:
    text = text_of(model, TRACE, max(1, depth))
    before: list[tuple[int, ...]] = []
    times = decode_times(model, text, plan.new_tokens, clock, on_start=lambda: before.append(meter.read()))
    joules = meter.joules(before[0], meter.read())
    return _Decoded(
        speed=plan.new_tokens / (times[-1] - times[0]),
        intervals=tuple(later - earlier for earlier, later in pairwise(times)),
        joules_per_token=None if joules is None else joules / plan.new_tokens,
    )


# -- results -------------------------------------------------------------------------------------------------


def latency_of(rounds: Sequence[Round], plan: Plan, notes: Sequence[str] = ()) -> LatencyResult:
    """The rounds of one model for results.json."""
    speeds = [one.speeds for one in rounds]
    sweep = [one.sweep | _main(one.speeds, plan.threads) for one in rounds]
    return LatencyResult(
        load_s=tuple(one.load_s for one in rounds),
        ttft=tuple(seconds for one in speeds for seconds in one.ttft),
        ttft_tokens=plan.ttft_tokens,
        prefill=_columns([one.prefill for one in speeds]),
        decode=_columns([one.decode for one in speeds]),
        inter_token=_quantiles([seconds for one in speeds for seconds in one.intervals]),
        time_to_answer=tuple(seconds for one in rounds for seconds in one.answers),
        thread_sweep=dict(sorted(_columns(sweep).items(), key=lambda item: int(item[0])))
        if plan.sweep
        else {},
        included=INCLUDED,
        notes=tuple(notes),
    )


def _main(speeds: Speeds, threads: int) -> dict[str, float]:
    """The sweep's entry of the number of threads that all else was measured with."""
    return {str(threads): speed for speed in list(speeds.decode.values())[:1]}


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def _quantiles(seconds: Sequence[float]) -> Quantiles:
    p50, p95, p99 = np.quantile(seconds, [0.5, 0.95, 0.99])
    return Quantiles(float(p50), float(p95), float(p99), len(seconds))


def energy_of(rounds: Sequence[Round], meter: Meter) -> EnergyResult:
    """Joules per token of the rounds, or why there are none."""
    joules = [one.speeds.joules_per_token for one in rounds if one.speeds.joules_per_token is not None]
    return EnergyResult(tuple(joules) or None, meter.reason)


def speed_ratios(rounds: Mapping[str, Sequence[Round]]) -> tuple[SpeedRatio, ...]:
    """Every pair of models by every speed that both have; above 1 the first is faster."""
    columns = {name: _metrics(those) for name, those in rounds.items()}
    return tuple(
        SpeedRatio(metric, first, second, median_ratio(columns[first][metric], columns[second][metric]))
        for first, second in combinations(columns, 2)
        for metric in columns[first]
        if metric in columns[second]
    )


def _metrics(rounds: Sequence[Round]) -> dict[str, tuple[float, ...]]:
    """One number a round, the larger the better."""
    speeds = [one.speeds for one in rounds]
    metrics = {"load": tuple(1 / one.load_s for one in rounds)}
    if all(one.ttft for one in speeds):
        metrics["ttft"] = tuple(1 / median(one.ttft) for one in speeds)
    metrics |= {
        f"prefill/{name}": column for name, column in _columns([one.prefill for one in speeds]).items()
    }
    metrics |= {f"decode/{name}": column for name, column in _columns([one.decode for one in speeds]).items()}
    return metrics
