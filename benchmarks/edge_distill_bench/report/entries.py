"""What the report says about each model: its colour, its headline numbers, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_distill_bench.report import numbers
from edge_distill_bench.report.svg import COLOURS, Marker
from edge_distill_bench.results import AccuracyCell, ArtifactResult, BenchResults, Comparison, Role
from edge_distill_bench.statistics import Estimate

__all__ = ["Entry", "Status", "Verdict", "entries_of", "verdict_of"]

Status = Literal["equivalent", "worse", "unclear", "not measured", "reference"]

_MARKERS: dict[str, Marker] = {"gguf": "circle", "onnx": "square"}


@dataclass(frozen=True)
class Entry:
    """One model as all drawings and tables show it."""

    artifact: ArtifactResult
    colour: str
    marker: Marker
    cell: AccuracyCell | None
    """All tasks, greedy where that was asked, at the largest budget."""

    def comparison_with(self, role: Role) -> Comparison | None:
        """At the headline's budget and samples."""
        cell, accuracy = self.cell, self.artifact.accuracy
        if cell is None or accuracy is None:
            return None
        place = (role, cell.budget, cell.samples)
        return next(
            (one for one in accuracy.comparisons if (one.role, one.budget, one.samples) == place), None
        )

    @property
    def comparison(self) -> Comparison | None:
        """With the fp32 student, else with the teacher."""
        return self.comparison_with("student") or self.comparison_with("teacher")

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def time_to_answer(self) -> Estimate | None:
        """Seconds: the median alone on the machine; else the mean beside other problems, without an interval."""
        if self.artifact.latency and self.artifact.latency.time_to_answer:
            return numbers.median(self.artifact.latency.time_to_answer)
        if self.cell:
            return Estimate(self.cell.seconds, self.cell.seconds, self.cell.seconds)
        return None

    @property
    def peak_rss(self) -> int | None:
        """Bytes, the largest of all contexts and rounds."""
        peaks = [peak for figures in self.artifact.memory for peak in figures.peak_rss]
        return max(peaks, default=None)


@dataclass(frozen=True)
class Verdict:
    """A sentence on one model, and what kind of news it is."""

    status: Status
    text: str


def entries_of(results: BenchResults) -> list[Entry]:
    """Teacher and student first, in ink and grey; then the artifacts in their order, a colour each."""
    order = {"teacher": 0, "student": 1, "artifact": 2}
    found = []
    number = 0
    for artifact in sorted(results.artifacts, key=lambda artifact: order[artifact.role]):
        marker: Marker = {"teacher": "diamond", "student": "triangle"}.get(  # type: ignore[assignment]
            artifact.role, _MARKERS.get(artifact.format, "circle")
        )
        colour = {"teacher": "ink", "student": "muted"}.get(artifact.role)
        if colour is None:
            colour = f"c{number % COLOURS}"
            number += 1
        found.append(Entry(artifact, colour, marker, _headline(artifact)))
    return found


def _headline(artifact: ArtifactResult) -> AccuracyCell | None:
    cells = artifact.accuracy.cells if artifact.accuracy else ()
    whole = [cell for cell in cells if cell.task == "all"] or list(cells[:1])
    return max(whole, key=lambda cell: (-cell.samples, cell.budget), default=None)


def verdict_of(entry: Entry, entries: Sequence[Entry]) -> Verdict:
    """How much of the other's accuracy it keeps, and what it costs."""
    comparison, cell = entry.comparison, entry.cell
    parts = []
    status: Status = "not measured"
    if comparison is not None:
        flips = comparison.flips
        wrong = f"{flips.right_to_wrong} {'answer' if flips.right_to_wrong == 1 else 'answers'}"
        changed = f"{wrong} of {comparison.items} turned wrong, {flips.wrong_to_right} right"
        status, judged = _judged(comparison)
        parts += [f"{_kept(comparison)}: {changed}", judged]
    elif cell is not None:
        parts.append(f"Is right on {numbers.interval(cell.accuracy)} of {cell.items} items")
    parts.append(_cost(entry, entries))
    return Verdict(status if entry.artifact.role == "artifact" else "reference", ". ".join(parts) + ".")


def _kept(comparison: Comparison) -> str:
    other = "the fp32 student" if comparison.role == "student" else "the teacher"
    if comparison.retention is None:
        return f"Nothing to keep: {other} got nothing right"
    return f"Keeps {numbers.interval(comparison.retention)} of {other}'s accuracy"


def _judged(comparison: Comparison) -> tuple[Status, str]:
    test = comparison.equivalence
    margin = f"{100 * test.margin:g} points"
    if test.is_shown:
        return "equivalent", f"The difference is shown to be within {margin} (p {_p(test.p_value)})"
    if comparison.difference.high < 0:
        fallen = numbers.points(comparison.difference.value)
        return "worse", f"It is worse by {fallen.lstrip('-')} (McNemar p {_p(comparison.mcnemar_p)})"
    return "unclear", (
        f"{comparison.items} items do not show whether the difference is within {margin} (p {_p(test.p_value)})"
    )


def _p(value: float) -> str:
    said = numbers.p_value(value)
    return said if said.startswith("<") else f"= {said}"


def _cost(entry: Entry, entries: Sequence[Entry]) -> str:
    """Size and speed, against the fp32 student where there is one."""
    parts = [f"{numbers.megabytes(entry.artifact.size_bytes)} MB"]
    student = next((one for one in entries if one.artifact.role == "student"), None)
    if student is not None and entry.artifact.role == "artifact":
        share = entry.artifact.size_bytes / student.artifact.size_bytes
        parts[0] += f" ({100 * share:.0f} % of the student's)"
    latency = entry.artifact.latency
    if latency and latency.decode:
        depth = min(latency.decode, key=int)
        parts.append(f"{numbers.speed(numbers.median(latency.decode[depth]).value)} tokens/s")
    if entry.artifact.fidelity and (part := entry.artifact.fidelity.parts.get("all")):
        parts.append(f"mean KL {numbers.kl(part.mean_kl)}")
    return ", ".join(parts)
