"""Accuracy in distribution, under changed prompt styles and on sibling tasks, and the validity of steps.

- accuracy: the share of test problems of the student's own tasks whose final answer is right. A generation that ends
  at the limit of tokens is not right, whatever it says.
- styles: the same for the same problems in other words (see `styles.py`), each style against the accuracy on the
  items that it applies to. "All styles" counts every problem as often as it was reworded, so that its interval is a
  little too narrow.
- siblings: the same on families that the student was never trained on (see `siblings.py`).
- steps: what the student's own reasoning is worth: the share of arithmetic statements that hold among those that the
  executable checker can read, the share of reasonings without one that does not hold, and the number of steps. The
  statements of one reasoning hang together, so the interval of the first is a little too narrow; the second's is not.
  Without reasoning markers the whole answer is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_distill.evaluate.measures import Measure
from edge_distill.evaluate.siblings import family_of_spec
from edge_distill.evaluate.student import Student
from edge_distill.evaluate.styles import STYLES, kind_of
from edge_distill.traces.checker import find_statements
from edge_distill.traces.steps import split_steps
from edge_distill_bench.answering import Row
from edge_distill_bench.problem import Problem

__all__ = ["Tasks", "accuracy", "by_task", "is_right", "siblings", "steps", "styles"]

Tasks = Mapping[str, Sequence[Problem]]
"""The problems of every task, by its spec."""


def accuracy(tasks: Tasks, rows: Mapping[str, Row]) -> list[Measure]:
    """Over all tasks, and of each when there are several."""
    return by_task("accuracy", tasks, is_right(rows))


def by_task(part: str, tasks: Tasks, right: Mapping[str, bool]) -> list[Measure]:
    """The share over all tasks, and of each when there are several."""
    whole = Measure(part, part, right)
    if len(tasks) < 2:
        return [whole]
    names = {spec: [problem.id for problem in problems] for spec, problems in tasks.items()}
    return [
        whole,
        *(
            Measure(part, f"{part}: {spec}", {name: right[name] for name in ids})
            for spec, ids in names.items()
        ),
    ]


def is_right(rows: Mapping[str, Row]) -> dict[str, bool]:
    return {name: row.verdict == "right" for name, row in rows.items()}


def styles(student: Student, tasks: Tasks, rows: Mapping[str, Row]) -> list[Measure]:
    """One measure a style, where items to which it does not apply are left out; the first is all of them together."""
    plain = Measure("accuracy", "accuracy", is_right(rows))
    found = []
    together: dict[str, bool] = {}
    for name, style in STYLES.items():
        texts: dict[str, str] = {}
        asked: list[Problem] = []
        for spec, problems in tasks.items():
            for problem in problems:
                text = style(problem.problem, kind_of(problem.task, generated=bool(family_of_spec(spec))))
                if text is not None:
                    texts[problem.id] = text
                    asked.append(problem)
        right = is_right(_ask_as(student, f"styles-{name}", asked, texts))
        together |= {f"{name} {item}": value for item, value in right.items()}
        left_out = len(rows) - len(asked)
        note = f"does not apply to {left_out} of {len(rows)} items" if left_out else ""
        found.append(Measure("styles", name, right, plain, note))
    return [Measure("styles", "all styles", together), *found]


def _ask_as(
    student: Student, condition: str, problems: Sequence[Problem], texts: Mapping[str, str]
) -> dict[str, Row]:
    return student.ask(condition, problems, lambda problem: texts[problem.id])


def siblings(student: Student, tasks: Tasks) -> list[Measure]:
    """Accuracy on tasks that were not trained on."""
    problems = [problem for task in tasks.values() for problem in task]
    return by_task("siblings", tasks, is_right(student.ask("siblings", problems)))


def steps(student: Student, rows: Mapping[str, Row]) -> list[Measure]:
    """What the checker says about the reasonings of these rows."""
    hold: dict[str, bool] = {}
    sound: dict[str, bool] = {}
    counts: dict[str, float] = {}
    for name, row in rows.items():
        reasoning, answer = student.split(row)
        parts = split_steps(reasoning if student.markers else answer)
        counts[name] = float(len(parts))
        verdicts = [found.verdict for step in parts for found in find_statements(step)]
        judged = [verdict == "verified" for verdict in verdicts if verdict != "unknown"]
        hold |= {f"{name} {number}": holds for number, holds in enumerate(judged)}
        if judged:
            sound[name] = all(judged)
    without = len(rows) - len(sound)
    note = f"{without} of {len(rows)} have no statement that can be checked" if without else ""
    return [
        Measure("steps", "statements that hold", hold),
        Measure("steps", "reasonings without a false statement", sound, note=note),
        Measure("steps", "steps in a reasoning", counts),
    ]
