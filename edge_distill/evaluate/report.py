"""What an evaluation found, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edge_distill.evaluate.measures import Comparison, Figure, Measure, figure
from edge_distill.wide_table import print_wide
from edge_distill_bench.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Evaluated", "Evaluation", "evaluated"]


@dataclass(frozen=True)
class Evaluated:
    """One student's figures."""

    name: str
    path: str
    """Of the bundle or file that was run."""
    figures: tuple[Figure, ...]
    skipped: dict[str, str]
    """Parts that could not be measured, and why."""


@dataclass(frozen=True)
class Evaluation:
    """All students, in the order in which they were given; the others are compared with the first."""

    students: tuple[Evaluated, ...]
    tasks: tuple[str, ...]
    siblings: tuple[str, ...]
    items: int
    """Of each task."""
    seed: int
    max_tokens: int
    rows: str
    """The folder of all answers."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        for number, student in enumerate(self.students):
            console.print(f"{student.name}: {student.path}")
            _print_figures(console, student, with_first=number > 0)
            for part, reason in student.skipped.items():
                console.print(f"{part}: not measured: {reason}")
            for line in _notes(student.figures):
                console.print(line)
            console.print()
        tasks = ", ".join(self.tasks)
        console.print(f"{self.items} problems of each task ({tasks}), test split, seed {self.seed}, greedy")
        console.print(
            f"[ ] are 95 % intervals, p is McNemar's; all answers are in {self.rows}; {self.seconds:.0f} s"
        )


def evaluated(
    name: str,
    path: str,
    measures: Sequence[Measure],
    skipped: Mapping[str, str],
    first: Sequence[Measure] = (),
) -> Evaluated:
    """The figures of a student's measures, compared with those of the first student."""
    others = {(measure.part, measure.name): measure for measure in first}
    figures = tuple(figure(measure, others.get((measure.part, measure.name))) for measure in measures)
    return Evaluated(name, path, figures, dict(skipped))


def _notes(figures: Sequence[Figure]) -> list[str]:
    """Every note once, with what it is about."""
    about: dict[tuple[str, str], list[str]] = {}
    for found in figures:
        if found.note:
            about.setdefault((found.part, found.note), []).append(found.name)
    return [f"{part} ({', '.join(names)}): {note}" for (part, note), names in about.items()]


def _print_figures(console: Console, student: Evaluated, *, with_first: bool) -> None:
    header = ["part", "measure", "items", "", "[95 %]", "against", "difference", "p"]
    if with_first:
        header += ["to the first", "p", "of the first"]
    rows, part = [], ""
    for found in student.figures:
        value, interval = _value(found)
        cells = [found.part if found.part != part else "", found.name, str(found.items), value, interval]
        cells += [found.against.name if found.against else "", *_compared(found.against)]
        if with_first:
            cells += [*_compared(found.first_student), _retained(found.first_student)]
        rows.append(cells)
        part = found.part
    print_wide(console, header, rows, names=2, to_the_left=("against",))


def _value(found: Figure) -> tuple[str, str]:
    if found.estimate is None:
        return "no items", ""
    estimate = found.estimate
    if found.kind == "mean":
        return f"{estimate.value:.1f}", f"[{estimate.low:.1f}, {estimate.high:.1f}]"
    return f"{estimate.value:.1%}".replace("%", " %"), _interval(estimate)


def _interval(estimate: Estimate) -> str:
    return f"[{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _compared(found: Comparison | None) -> tuple[str, str]:
    """In percentage points."""
    if found is None:
        return "", ""
    return f"{100 * found.difference.value:+.1f} {_interval(found.difference)}", f"{found.p_value:.3f}"


def _retained(found: Comparison | None) -> str:
    """As a share of the other."""
    if found is None or found.retention is None:
        return ""
    return f"{100 * found.retention.value:.0f} % {_interval(found.retention)}"
