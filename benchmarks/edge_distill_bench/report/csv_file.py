"""results.csv: every number in a line of its own, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from edge_distill_bench.report.entries import Entry
from edge_distill_bench.report.escape import printable
from edge_distill_bench.results import mean_and_deviation
from edge_distill_bench.statistics import Estimate

__all__ = ["HEADER", "render_csv"]

HEADER = ("model", "role", "metric", "condition", "value", "low", "high", "unit")

_Line = tuple[str, str, float | int, float | None, float | None, str]


def render_csv(entries: Sequence[Entry]) -> str:
    """Low and high are the interval, or mean minus and plus the standard deviation of the rounds."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    for entry in entries:
        for metric, condition, value, low, high, unit in _lines(entry):
            bounds = ["" if bound is None else bound for bound in (low, high)]
            names = [_text(entry.name), entry.artifact.role, metric, _text(condition)]
            writer.writerow([*names, value, *bounds, unit])
    return buffer.getvalue()


def _text(value: str) -> str:
    """A spreadsheet would run what begins like a formula."""
    line = " ".join(printable(value).split())
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def _lines(entry: Entry) -> Iterator[_Line]:
    artifact = entry.artifact
    yield "size", "", artifact.size_bytes, None, None, "bytes"
    yield "bits per weight", "", artifact.bits_per_weight, None, None, "bits"
    yield from _accuracy(entry)
    if artifact.fidelity:
        for name, part in artifact.fidelity.parts.items():
            low, high = part.mean_kl_interval or (None, None)
            yield "mean KL", name, part.mean_kl, low, high, "nats"
            yield "p99 KL", name, part.p99_kl, None, None, "nats"
            yield "top-1", name, part.top1, None, None, "share"
            if part.first_divergence is not None:
                yield "first divergence", name, part.first_divergence, None, None, "tokens"
    yield from _speed(entry)
    for figures in artifact.memory:
        condition = f"context {figures.context}"
        yield (
            "peak RSS",
            condition,
            max(figures.peak_rss),
            min(figures.peak_rss),
            max(figures.peak_rss),
            "bytes",
        )
        if figures.peak_pss:
            yield (
                "peak PSS",
                condition,
                max(figures.peak_pss),
                min(figures.peak_pss),
                max(figures.peak_pss),
                "bytes",
            )
        yield "predicted", condition, figures.predicted, None, None, "bytes"
        yield "KV cache", condition, figures.kv_bytes, None, None, "bytes"


def _accuracy(entry: Entry) -> Iterator[_Line]:
    accuracy = entry.artifact.accuracy
    if accuracy is None:
        return
    for cell in accuracy.cells:
        condition = f"{cell.task}; budget {cell.budget}; samples {cell.samples}"
        yield _estimate("accuracy", condition, cell.accuracy, "share")
        for name in ("right", "wrong", "unparsed", "cut_off", "items"):
            yield name.replace("_", " "), condition, getattr(cell, name), None, None, "items"
        yield "seconds for an item", condition, cell.seconds, None, None, "s"
        yield "tokens of an item", condition, cell.tokens, None, None, "tokens"
    for one in accuracy.comparisons:
        condition = f"against {one.against}; budget {one.budget}; samples {one.samples}"
        if one.retention:
            yield _estimate("retention", condition, one.retention, "share")
        yield _estimate("difference", condition, one.difference, "share")
        yield "McNemar p", condition, one.mcnemar_p, None, None, ""
        yield (
            "equivalence p",
            f"{condition}; margin {one.equivalence.margin}",
            one.equivalence.p_value,
            None,
            None,
            "",
        )
        for name in ("right_to_wrong", "wrong_to_right", "wrong_to_other", "same"):
            yield name.replace("_", " "), condition, getattr(one.flips, name), None, None, "items"


def _estimate(metric: str, condition: str, estimate: Estimate, unit: str) -> _Line:
    return metric, condition, estimate.value, estimate.low, estimate.high, unit


def _speed(entry: Entry) -> Iterator[_Line]:
    latency = entry.artifact.latency
    if latency:
        measured = [
            ("load", "", latency.load_s, "s"),
            ("first token", f"{latency.ttft_tokens} tokens", latency.ttft, "s"),
            ("time to answer", "", latency.time_to_answer, "s"),
            *(("prefill", f"{key} tokens", values, "tokens/s") for key, values in latency.prefill.items()),
            *(("decode", f"at {key}", values, "tokens/s") for key, values in latency.decode.items()),
            *(
                ("decode", f"{key} threads", values, "tokens/s")
                for key, values in latency.thread_sweep.items()
            ),
        ]
        for metric, condition, values, unit in measured:
            if values:
                mean, deviation = mean_and_deviation(values)
                yield metric, condition, mean, mean - deviation, mean + deviation, unit
        for name in ("p50", "p95", "p99"):
            yield "between tokens", name, getattr(latency.inter_token, name), None, None, "s"
    energy = entry.artifact.energy
    if energy and energy.joules_per_token:
        mean, deviation = mean_and_deviation(energy.joules_per_token)
        yield "energy", "", mean, mean - deviation, mean + deviation, "J/token"
