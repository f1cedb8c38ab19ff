"""The report's tables as text, once for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_distill_bench.report import numbers
from edge_distill_bench.report.entries import Entry
from edge_distill_bench.report.numbers import NONE
from edge_distill_bench.results import BenchResults, FidelityPart, LatencyResult

__all__ = [
    "Table",
    "accuracy_table",
    "comparison_table",
    "fidelity_table",
    "gate_table",
    "kinds_table",
    "latency_table",
    "memory_table",
    "overview_table",
    "ratio_table",
]

_PARTS = ("all", "reasoning", "answer", "numbers", "operators")


@dataclass(frozen=True)
class Table:
    """The first column is a name; a column without any value is left out."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: frozenset[str] = frozenset()
    """Those that are words: to the left, and wrapped."""

    @classmethod
    def of(
        cls, header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[str] = ()
    ) -> Table:
        used = [index for index in range(len(header)) if not index or any(row[index] != NONE for row in rows)]
        return cls(
            tuple(header[index] for index in used),
            tuple(tuple(row[index] for index in used) for row in rows),
            frozenset(text_columns),
        )


def overview_table(entries: Sequence[Entry]) -> Table:
    """One line a model: the numbers that a choice is made by."""
    columns: dict[str, Callable[[Entry], str]] = {
        "model": lambda entry: entry.name,
        "size, MB": lambda entry: numbers.megabytes(entry.artifact.size_bytes),
        "bits per weight": lambda entry: f"{entry.artifact.bits_per_weight:.2f}",
        "right": lambda entry: numbers.interval(entry.cell.accuracy) if entry.cell else NONE,
        "kept": _kept,
        "turned wrong / right": _turned,
        "mean KL": lambda entry: _of_fidelity(entry, lambda part: numbers.kl(part.mean_kl)),
        "top-1": lambda entry: _of_fidelity(entry, lambda part: numbers.percent(part.top1)),
        "decode tokens/s": lambda entry: _of_latency(entry, _first_decode),
        "to first token": lambda entry: _of_latency(entry, lambda one: _middle(one.ttft)),
        "to the answer": lambda entry: _of_latency(entry, lambda one: _middle(one.time_to_answer)),
        "peak memory, MB": lambda entry: numbers.megabytes(entry.peak_rss) if entry.peak_rss else NONE,
    }
    return Table.of(tuple(columns), [[cell(entry) for cell in columns.values()] for entry in entries])


def _kept(entry: Entry) -> str:
    comparison = entry.comparison
    return numbers.interval(comparison.retention) if comparison and comparison.retention else NONE


def _turned(entry: Entry) -> str:
    flips = entry.comparison.flips if entry.comparison else None
    return f"{flips.right_to_wrong} / {flips.wrong_to_right}" if flips else NONE


def _of_fidelity(entry: Entry, said: Callable[..., str]) -> str:
    part = entry.artifact.fidelity.parts.get("all") if entry.artifact.fidelity else None
    return said(part) if part else NONE


def _of_latency(entry: Entry, said: Callable[[LatencyResult], str]) -> str:
    return said(entry.artifact.latency) if entry.artifact.latency else NONE


def _first_decode(latency: LatencyResult) -> str:
    return numbers.spread(latency.decode[min(latency.decode, key=int)]) if latency.decode else NONE


def _middle(values: Sequence[float]) -> str:
    return numbers.seconds(numbers.median(values).value) if values else NONE


def accuracy_table(entries: Sequence[Entry]) -> Table:
    """Every task, budget and number of samples, with what went wrong in which way."""
    header = (
        "model",
        "task",
        "budget",
        "samples",
        "right",
        "wrong",
        "unparsed",
        "cut off",
        "tokens",
        "seconds",
    )
    rows = [
        (
            entry.name,
            cell.task,
            f"{cell.budget:,}",
            str(cell.samples),
            f"{cell.right} of {cell.items}: {numbers.interval(cell.accuracy)}",
            str(cell.wrong),
            str(cell.unparsed),
            str(cell.cut_off),
            f"{cell.tokens:.0f}",
            numbers.seconds(cell.seconds),
        )
        for entry in entries
        for cell in (entry.artifact.accuracy.cells if entry.artifact.accuracy else ())
    ]
    return Table.of(header, rows, ("task",))


def comparison_table(entries: Sequence[Entry]) -> Table:
    """Every paired comparison, with the two tests and the flips."""
    header = (
        "model", "against", "budget", "samples", "kept", "difference", "McNemar p", "equivalence", "right to wrong",
        "wrong to right", "wrong to other", "same",
    )  # fmt: skip
    rows = [
        (
            entry.name,
            one.against,
            f"{one.budget:,}",
            str(one.samples),
            numbers.interval(one.retention) if one.retention else NONE,
            f"{numbers.points(one.difference.value)} "
            f"[{100 * one.difference.low:+.1f}, {100 * one.difference.high:+.1f}]",
            numbers.p_value(one.mcnemar_p),
            f"{'shown' if one.equivalence.is_shown else 'not shown'} within "
            f"{100 * one.equivalence.margin:g} points, p {numbers.p_value(one.equivalence.p_value)}",
            *(str(count) for count in (
                one.flips.right_to_wrong, one.flips.wrong_to_right, one.flips.wrong_to_other, one.flips.same,
            )),
        )
        for entry in entries
        for one in (entry.artifact.accuracy.comparisons if entry.artifact.accuracy else ())
    ]  # fmt: skip
    return Table.of(header, rows)


def fidelity_table(entries: Sequence[Entry]) -> Table:
    """Teacher-forced, a line a model; the mean KL of all tokens and of each kind."""
    found = [(entry, entry.artifact.fidelity.parts) for entry in entries if entry.artifact.fidelity]
    kinds = [kind for kind in _PARTS[1:] if any(kind in parts for _, parts in found)]
    header = ("model", "tokens", "mean KL", *kinds, "p99 KL", "top-1 agreement", "first divergence")
    rows = []
    for entry, parts in found:
        whole = parts.get("all")
        if whole is None:
            continue
        rows.append(
            (
                entry.name,
                f"{whole.tokens:,}",
                _mean_kl(whole),
                *(numbers.kl(parts[kind].mean_kl) if kind in parts else NONE for kind in kinds),
                numbers.kl(whole.p99_kl),
                numbers.percent(whole.top1),
                _first_divergence(whole),
            )
        )
    return Table.of(header, rows)


def kinds_table(entries: Sequence[Entry]) -> Table:
    """The same for every kind of token."""
    rows = [
        (
            entry.name,
            name,
            f"{part.tokens:,}",
            _mean_kl(part),
            numbers.kl(part.p99_kl),
            numbers.percent(part.top1),
            _first_divergence(part),
        )
        for entry in entries
        if entry.artifact.fidelity
        for name, part in sorted(entry.artifact.fidelity.parts.items(), key=_part_order)
    ]
    header = ("model", "tokens of", "tokens", "mean KL", "p99 KL", "top-1 agreement", "first divergence")
    return Table.of(header, rows, ("tokens of",))


def _mean_kl(part: FidelityPart) -> str:
    bounds = part.mean_kl_interval
    shown = f" [{numbers.kl(bounds[0])}, {numbers.kl(bounds[1])}]" if bounds else ""
    return numbers.kl(part.mean_kl) + shown


def _first_divergence(part: FidelityPart) -> str:
    first = part.first_divergence
    return "never" if first is None else f"token {first:.0f}"


def _part_order(item: tuple[str, FidelityPart]) -> tuple[int, str]:
    name = item[0]
    return (_PARTS.index(name) if name in _PARTS else len(_PARTS), name)


def latency_table(entries: Sequence[Entry]) -> Table:
    """Mean and deviation over the rounds; medians for times."""
    measured = [(entry.name, entry.artifact.latency) for entry in entries if entry.artifact.latency]
    prefills = sorted({length for _, one in measured for length in one.prefill}, key=int)
    depths = sorted({depth for _, one in measured for depth in one.decode}, key=int)
    header = [
        "model", "load", "first token", *(f"prefill {length}" for length in prefills),
        *(f"decode at {int(depth):,}" for depth in depths), "between tokens p50 / p95 / p99",
        "time to answer p50 / p95", "joules per token",
    ]  # fmt: skip
    rows = []
    for entry in entries:
        one = entry.artifact.latency
        if one is None:
            continue
        between = " / ".join(
            f"{1000 * value:.1f}" for value in (one.inter_token.p50, one.inter_token.p95, one.inter_token.p99)
        )
        answer = NONE
        if one.time_to_answer:
            middle = numbers.median(one.time_to_answer).value
            answer = (
                f"{numbers.seconds(middle)} / {numbers.seconds(numbers.quantile(one.time_to_answer, 0.95))}"
            )
        energy = entry.artifact.energy
        rows.append(
            [
                entry.name,
                _middle(one.load_s),
                _middle(one.ttft),
                *(
                    numbers.spread(one.prefill[length]) if one.prefill.get(length) else NONE
                    for length in prefills
                ),
                *(numbers.spread(one.decode[depth]) if one.decode.get(depth) else NONE for depth in depths),
                f"{between} ms",
                answer,
                numbers.spread(energy.joules_per_token) if energy and energy.joules_per_token else NONE,
            ]
        )
    return Table.of(header, rows)


def memory_table(entries: Sequence[Entry]) -> Table:
    """Megabytes of fresh processes, and how far the prediction was off."""
    header = (
        "model",
        "context",
        "peak RSS",
        "peak PSS",
        "predicted",
        "peak / predicted",
        "file",
        "KV cache",
        "before loading",
    )
    rows = []
    for entry in entries:
        for one in entry.artifact.memory:
            peak = max(one.peak_rss)
            rows.append(
                (
                    entry.name,
                    f"{one.context:,}",
                    numbers.megabytes(peak),
                    numbers.megabytes(max(one.peak_pss)) if one.peak_pss else NONE,
                    numbers.megabytes(one.predicted),
                    f"{peak / one.predicted:.2f}" if one.predicted else NONE,
                    numbers.megabytes(one.file_bytes),
                    numbers.megabytes(one.kv_bytes),
                    numbers.megabytes(max(one.before)),
                )
            )
    return Table.of(header, rows)


def ratio_table(results: BenchResults) -> Table:
    """Speeds measured in turn."""
    rows = [
        (
            one.first,
            one.second,
            one.metric,
            f"{one.ratio.value:.2f} [{one.ratio.low:.2f}, {one.ratio.high:.2f}]",
        )
        for one in results.ratios
    ]
    return Table.of(("model", "against", "speed of", "times as fast"), rows, ("against", "speed of"))


def gate_table(results: BenchResults) -> Table:
    """Failures first."""
    rows = [
        (line.limit, line.artifact, "passed" if line.passed else "FAILED", line.text)
        for line in sorted(results.gate, key=lambda line: line.passed)
    ]
    return Table.of(("limit", "model", "gate", "found"), rows, ("model", "gate", "found"))
