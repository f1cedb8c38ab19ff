"""What an ablation found: forms of supervision, what each costs in tokens, and what each loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill.evaluate.measures import Figure
from edge_distill.evaluate.report import Evaluated, Evaluation

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Ablation", "Form", "answers", "lost"]

_KEPT = {
    "accuracy": ("accuracy", "accuracy"),
    "adaptability": ("styles", "all styles"),
    "transfer": ("siblings", "siblings"),
    "structure": ("steps", "reasonings without a false statement"),
}
"""The questions, by part and name of the figure that answers each."""


@dataclass(frozen=True)
class Form:
    """One form of supervision."""

    name: str
    """"as trained", or what was changed."""
    path: str
    tokens: int
    """That are taught, with a loss whose weight is not 0, once through the traces."""
    loses: tuple[str, ...]
    """The questions on which it is shown to be worse than the student."""


@dataclass(frozen=True)
class Ablation:
    """The student, the variants of its training, and their figures."""

    forms: tuple[Form, ...]
    smallest: str
    """The form with the fewest tokens of those that lose nothing."""
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("supervision")
        for title in ("tokens", *_KEPT):
            table.add_column(title, justify="right")
        table.add_column("loses")
        for form, student in zip(self.forms, self.evaluation.students, strict=True):
            cells = [_cell(found) for found in answers(student).values()]
            table.add_row(form.name, f"{form.tokens:,}", *cells, ", ".join(form.loses))
        console.print(table)
        console.print(
            "in per cent; in brackets the difference to the first row in points, with its 95 % interval"
        )
        console.print(f"smallest form that is not shown to lose anything: {self.smallest}")
        console.print(f"all figures are in {Path(self.evaluation.rows).parent / 'ablation.json'}")


def answers(student: Evaluated) -> dict[str, Figure | None]:
    """The figure that answers each question."""
    figures = {(found.part, found.name): found for found in student.figures}
    return {question: figures.get(key) for question, key in _KEPT.items()}


def lost(found: Mapping[str, Figure | None], first: Mapping[str, Figure | None]) -> tuple[str, ...]:
    """The questions that the first student answers, and this one worse, or no more."""
    worse = []
    for question, figure in found.items():
        before = first[question]
        if figure is None or before is None or figure is before or before.estimate is None:
            continue
        compared = figure.first_student
        if figure.estimate is None or (compared is not None and compared.difference.high < 0):
            worse.append(question)
    return tuple(worse)


def _cell(found: Figure | None) -> str:
    if found is None or found.estimate is None:
        return "-"
    value = f"{100 * found.estimate.value:.1f}"
    if found.first_student is None:
        return value
    change = found.first_student.difference
    return f"{value} ({100 * change.value:+.1f} [{100 * change.low:.0f}, {100 * change.high:.0f}])"
