"""What a gate can limit, and where in the results it stands.

- retention: accuracy divided by the teacher's, else by the fp32 student's, on the same items; accuracy. Both of all
  tasks together, at the largest budget and the fewest samples.
- kl, kl_p99, top1: divergence from the student in nats, its 99th percentile, and how often the likeliest token is
  the same, over all tokens.
- ttft_p50, ttft_p95, answer_p50, answer_p95: time to first token, time to answer. load: median.
- inter_token_p50, inter_token_p95, inter_token_p99.
- decode: median tokens/s at depth 0. prefill: of the longest prompt.
- rss, pss: the highest of all processes, at the largest context. size: of the model files. bits: per weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from edge_distill_bench.results import ArtifactResult, LatencyResult, MemoryFigures
from edge_distill_bench.statistics import quantile_interval

__all__ = ["METRICS", "Found", "Metric", "shown"]


@dataclass(frozen=True)
class Found:
    """A measured value, its 95 % interval where there is one, and what it was taken from."""

    value: float
    interval: tuple[float | None, float | None] | None
    """An end is None where there are too few rounds for it."""
    note: str


@dataclass(frozen=True)
class Metric:
    """One name of a gate."""

    of: Callable[[ArtifactResult], Found | None]
    """None when it was not measured."""
    higher_is_better: bool
    unit: str
    """"bytes", "seconds", "share" or ""."""
    part: str = ""
    """Of a run, that measures it; "" when it is always known."""
    takes_reference: bool = False
    """Whether there must be a teacher or a student."""


def shown(value: float, unit: str) -> str:
    """A value for people, with its unit."""
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    if unit == "seconds":
        return f"{value:.3f} s"
    return f"{value:.4g}" if unit != "share" else f"{value:.3f}"


# -- accuracy and fidelity -------------------------------------------------------------------------------------


def _retention(artifact: ArtifactResult) -> Found | None:
    """Against the teacher, else the student; the largest budget, the fewest samples, all tasks."""
    if artifact.accuracy is None:
        return None
    comparisons = [c for c in artifact.accuracy.comparisons if c.role in ("teacher", "student")]
    if not comparisons:
        return None
    chosen = min(comparisons, key=lambda c: (c.role != "teacher", -c.budget, c.samples))
    if chosen.retention is None:
        return None
    kept = chosen.retention
    note = f"against {chosen.against} on {chosen.items} items with {_setting(chosen.budget, chosen.samples)}"
    return Found(kept.value, (kept.low, kept.high), note)


def _accuracy(artifact: ArtifactResult) -> Found | None:
    cells = [cell for cell in artifact.accuracy.cells if cell.task == "all"] if artifact.accuracy else []
    if not cells:
        return None
    cell = min(cells, key=lambda cell: (-cell.budget, cell.samples))
    found = cell.accuracy
    note = f"on {cell.items} items with {_setting(cell.budget, cell.samples)}"
    return Found(found.value, (found.low, found.high), note)


def _setting(budget: int, samples: int) -> str:
    return f"budget {budget} and {samples} sample{'s' if samples > 1 else ''}"


def _fidelity(kind: str) -> Callable[[ArtifactResult], Found | None]:
    def of(artifact: ArtifactResult) -> Found | None:
        if artifact.fidelity is None or "all" not in artifact.fidelity.parts:
            return None
        part = artifact.fidelity.parts["all"]
        note = f"against {artifact.fidelity.against} on {part.tokens} tokens"
        if kind == "kl":
            return Found(part.mean_kl, part.mean_kl_interval, note)
        return Found(part.p99_kl if kind == "kl_p99" else part.top1, None, note)

    return of


# -- speed -----------------------------------------------------------------------------------------------------


def _quantile(values: Sequence[float], share: float) -> Found | None:
    """A quantile of rounds by nearest rank, with its interval from order statistics."""
    if not values:
        return None
    value = median(values) if share == 0.5 else sorted(values)[math.ceil(share * len(values)) - 1]
    low, high = quantile_interval(values, share)
    bounded = None if low is None and high is None else (low, high)
    return Found(value, bounded, f"{len(values)} rounds")


def _latency(
    values: Callable[[LatencyResult], Sequence[float]], share: float
) -> Callable[[ArtifactResult], Found | None]:
    return lambda artifact: _quantile(values(artifact.latency), share) if artifact.latency else None


def _inter_token(name: str) -> Callable[[ArtifactResult], Found | None]:
    def of(artifact: ArtifactResult) -> Found | None:
        if artifact.latency is None:
            return None
        gaps = artifact.latency.inter_token
        return Found(getattr(gaps, name), None, f"{gaps.count} tokens")

    return of


def _longest(rates: dict[str, tuple[float, ...]]) -> Sequence[float]:
    return rates[max(rates, key=int)] if rates else ()


# -- memory and size -------------------------------------------------------------------------------------------


def _memory(
    values: Callable[[MemoryFigures], Sequence[int] | None],
) -> Callable[[ArtifactResult], Found | None]:
    """The worst round at the largest context."""

    def of(artifact: ArtifactResult) -> Found | None:
        if not artifact.memory:
            return None
        figures = max(artifact.memory, key=lambda memory: memory.context)
        rounds = values(figures)
        if not rounds:
            return None
        note = f"the highest of {len(rounds)} processes with a context of {figures.context}"
        return Found(float(max(rounds)), None, note)

    return of


METRICS: dict[str, Metric] = {
    "retention": Metric(_retention, True, "share", "accuracy", True),
    "accuracy": Metric(_accuracy, True, "share", "accuracy"),
    "kl": Metric(_fidelity("kl"), False, "", "fidelity", True),
    "kl_p99": Metric(_fidelity("kl_p99"), False, "", "fidelity", True),
    "top1": Metric(_fidelity("top1"), True, "share", "fidelity", True),
    "ttft_p50": Metric(_latency(lambda found: found.ttft, 0.5), False, "seconds", "latency"),
    "ttft_p95": Metric(_latency(lambda found: found.ttft, 0.95), False, "seconds", "latency"),
    "answer_p50": Metric(_latency(lambda found: found.time_to_answer, 0.5), False, "seconds", "latency"),
    "answer_p95": Metric(_latency(lambda found: found.time_to_answer, 0.95), False, "seconds", "latency"),
    "load": Metric(_latency(lambda found: found.load_s, 0.5), False, "seconds", "latency"),
    "inter_token_p50": Metric(_inter_token("p50"), False, "seconds", "latency"),
    "inter_token_p95": Metric(_inter_token("p95"), False, "seconds", "latency"),
    "inter_token_p99": Metric(_inter_token("p99"), False, "seconds", "latency"),
    "decode": Metric(_latency(lambda found: found.decode.get("0", ()), 0.5), True, "", "latency"),
    "prefill": Metric(_latency(lambda found: _longest(found.prefill), 0.5), True, "", "latency"),
    "rss": Metric(_memory(lambda found: found.peak_rss), False, "bytes", "memory"),
    "pss": Metric(_memory(lambda found: found.peak_pss), False, "bytes", "memory"),
    "size": Metric(lambda found: Found(float(found.size_bytes), None, "on disk"), False, "bytes"),
    "bits": Metric(lambda found: Found(found.bits_per_weight, None, "true average"), False, ""),
}
