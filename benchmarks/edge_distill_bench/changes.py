"""What changed between two measurements of one model: ratios of rounds, differences on the same items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_distill_bench.answering import read_rows
from edge_distill_bench.items import ITEMS_NAME, hash_tasks, read_tasks
from edge_distill_bench.outcomes import Answered
from edge_distill_bench.results import AccuracyCell, ArtifactResult, BenchResults, LatencyResult, rows_path
from edge_distill_bench.statistics import Estimate, Pairs, difference, mcnemar, median_ratio

__all__ = ["HIGHER_IS_BETTER", "Change", "Run", "changes_of"]

Unit = Literal["percent", "points"]

HIGHER_IS_BETTER = {
    "decode": True,
    "prefill": True,
    "ttft": False,
    "answer": False,
    "load": False,
    "inter_token": False,
    "accuracy": True,
    "kl": False,
    "top1": True,
    "rss": False,
    "pss": False,
    "size": False,
}
"""The metrics, and which way is good."""


@dataclass(frozen=True)
class Change:
    """One metric of one model; `change` is a share of the value before, or of the items where `unit` is points."""

    artifact: str
    metric: str
    """A key of `HIGHER_IS_BETTER`."""
    condition: str
    """Such as a depth; empty where there is only one."""
    before: float
    after: float
    change: float
    interval: tuple[float, float] | None
    """95 %; None for single values, where the value alone decides."""
    unit: Unit
    note: str
    """What it was taken from."""


@dataclass(frozen=True)
class Run:
    """Results, and the folder with their rows."""

    results: BenchResults
    folder: Path

    def ids(self) -> tuple[str, list[str]]:
        """Hash and ids of the problems; empty without problems.jsonl."""
        if not (self.folder / ITEMS_NAME).exists():
            return "", []
        tasks = read_tasks(self.folder)
        return hash_tasks(tasks), [problem.id for problems in tasks.values() for problem in problems]

    def answered(self, artifact: ArtifactResult) -> Answered | None:
        """Its rows, where they are beside the results."""
        path = rows_path(self.folder, artifact.name)
        return Answered(artifact.name, artifact.role, tuple(read_rows(path))) if path.exists() else None


def changes_of(before: Run, after: Run, name: str) -> list[Change]:
    """All that both runs measured of the model, in the order of `HIGHER_IS_BETTER`."""
    one, two = before.results.artifact(name), after.results.artifact(name)
    found = [*_timings(one, two), *_accuracy(before, after, one, two), *_values(one, two)]
    order = list(HIGHER_IS_BETTER)
    return sorted(found, key=lambda change: order.index(change.metric))


# -- timings -------------------------------------------------------------------------------------------------


def _timings(one: ArtifactResult, two: ArtifactResult) -> Iterator[Change]:
    if one.latency is None or two.latency is None:
        return
    for (metric, condition), values in _rounds(one.latency).items():
        others = _rounds(two.latency).get((metric, condition), ())
        count = min(len(values), len(others))
        if count:
            ratio = median_ratio(others[:count], values[:count])
            yield Change(
                artifact=one.name,
                metric=metric,
                condition=condition,
                before=_median(values),
                after=_median(others),
                change=ratio.value - 1,
                # one round has no spread, so its interval would promise what nobody knows
                interval=(ratio.low - 1, ratio.high - 1) if count > 1 else None,
                unit="percent",
                note=f"{count} pairs of rounds" if count > 1 else "one round",
            )
    gaps = one.latency.inter_token.p95, two.latency.inter_token.p95
    yield _single(one.name, "inter_token", "p95", *gaps, "percent")


def _rounds(latency: LatencyResult) -> Mapping[tuple[str, str], Sequence[float]]:
    return {
        **{("decode", f"at {depth}"): values for depth, values in latency.decode.items()},
        **{("prefill", f"{length} tokens"): values for length, values in latency.prefill.items()},
        ("ttft", f"{latency.ttft_tokens} tokens"): latency.ttft,
        ("answer", ""): latency.time_to_answer,
        ("load", ""): latency.load_s,
    }


def _median(values: Sequence[float]) -> float:
    return median_ratio(values, [1.0] * len(values), resamples=1).value


# -- accuracy ------------------------------------------------------------------------------------------------


def _accuracy(before: Run, after: Run, one: ArtifactResult, two: ArtifactResult) -> Iterator[Change]:
    """All tasks, largest budget, fewest samples; paired where both have rows of the same items."""
    first, second = _headline(one), _headline(two)
    if first is None or second is None:
        return
    condition = f"budget {first.budget}, samples {first.samples}"
    if (first.budget, first.samples) != (second.budget, second.samples):
        return
    pairs = _pairs(before, after, one, two, first)
    if pairs is None:
        low, high = second.accuracy.low - first.accuracy.high, second.accuracy.high - first.accuracy.low
        found = Estimate(second.accuracy.value - first.accuracy.value, low, high)
        note = "not paired: the rows of the same items are not there"
    else:
        found = difference(pairs)
        note = (
            f"{pairs.items} pairs: {pairs.only_second} turned wrong, {pairs.only_first} right, "
            f"McNemar p {mcnemar(pairs):.3f}"
        )
    yield Change(
        artifact=one.name,
        metric="accuracy",
        condition=condition,
        before=first.accuracy.value,
        after=second.accuracy.value,
        change=found.value,
        interval=(found.low, found.high),
        unit="points",
        note=note,
    )


def _headline(artifact: ArtifactResult) -> AccuracyCell | None:
    cells = artifact.accuracy.cells if artifact.accuracy else ()
    whole = (cell for cell in cells if cell.task == "all")
    return min(whole, key=lambda cell: (-cell.budget, cell.samples), default=None)


def _pairs(
    before: Run, after: Run, one: ArtifactResult, two: ArtifactResult, cell: AccuracyCell
) -> Pairs | None:
    """Who was right, now first and before second."""
    (digest, ids), (other, _) = before.ids(), after.ids()
    rows, others = before.answered(one), after.answered(two)
    if digest != other or not ids or rows is None or others is None:
        return None
    was, now = (answered.outcomes(ids, cell.budget, cell.samples) for answered in (rows, others))
    if was is None or now is None:
        return None
    return Pairs.of([outcome.is_right for outcome in now], [outcome.is_right for outcome in was])


# -- single values -------------------------------------------------------------------------------------------


def _values(one: ArtifactResult, two: ArtifactResult) -> Iterator[Change]:
    parts = [artifact.fidelity.parts.get("all") if artifact.fidelity else None for artifact in (one, two)]
    if parts[0] and parts[1]:
        yield _single(one.name, "kl", "", parts[0].mean_kl, parts[1].mean_kl, "percent")
        yield _single(one.name, "top1", "", parts[0].top1, parts[1].top1, "points")
    peaks: dict[str, Callable[[ArtifactResult], dict[int, int]]] = {
        "rss": lambda artifact: {figures.context: max(figures.peak_rss) for figures in artifact.memory},
        "pss": lambda artifact: {
            figures.context: max(figures.peak_pss) for figures in artifact.memory if figures.peak_pss
        },
    }
    for metric, of in peaks.items():
        was, now = of(one), of(two)
        for context in sorted(was.keys() & now.keys()):
            yield _single(one.name, metric, f"context {context}", was[context], now[context], "percent")
    yield _single(one.name, "size", "", one.size_bytes, two.size_bytes, "percent")


def _single(name: str, metric: str, condition: str, before: float, after: float, unit: Unit) -> Change:
    if unit == "points" or before == after:
        change = after - before
    else:
        change = after / before - 1 if before else math.inf
    return Change(name, metric, condition, before, after, change, None, unit, "single values")
