"""All parts of an evaluation, student after student."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_distill.checkpoints import as_bundle
from edge_distill.evaluate import accuracy as accuracies
from edge_distill.evaluate.faithfulness import Reasoned
from edge_distill.evaluate.measures import Measure
from edge_distill.evaluate.report import Evaluation, evaluated
from edge_distill.evaluate.self_check import self_check
from edge_distill.evaluate.student import Student
from edge_distill.evaluate.tasks import load_tasks
from edge_distill_runtime import load
from edge_distill_runtime.bundles.opening import find
from edge_distill_runtime.errors import ResourceError

__all__ = ["PARTS", "Plan", "measure_all", "write_result"]

PARTS = ("accuracy", "styles", "siblings", "cut", "steps", "faithfulness", "self-check")
_OWN_TEXT = ("cut", "faithfulness")  # they put the student's reasoning into its mouth
_PROMPT = 1024  # tokens of the cache for each prompt that is answered at the same time


@dataclass(frozen=True)
class Plan:
    """What is asked of every student."""

    tasks: tuple[str, ...]
    siblings: tuple[str, ...]
    parts: Sequence[str]
    items: int
    """Of each task."""
    seed: int
    max_tokens: int
    at_once: int
    threads: int | None
    out: Path


@dataclass(frozen=True)
class _Problems:
    tasks: accuracies.Tasks
    siblings: accuracies.Tasks


def measure_all(students: Mapping[str, str], plan: Plan) -> Evaluation:
    """The figures of every student, by name and reference; all but the first are compared with the first."""
    started = time.monotonic()
    siblings = plan.siblings if "siblings" in plan.parts else ()
    problems = _Problems(
        load_tasks(plan.tasks, plan.items, plan.seed), load_tasks(siblings, plan.items, plan.seed)
    )
    first: list[Measure] = []
    reports = []
    for name, reference in students.items():
        path = as_bundle(reference, plan.out / "bundles")
        measures, skipped = _measure(name, path, problems, plan)
        reports.append(evaluated(name, str(path), measures, skipped, first))
        first = first or measures
    return Evaluation(
        students=tuple(reports),
        tasks=plan.tasks,
        siblings=siblings,
        items=plan.items,
        seed=plan.seed,
        max_tokens=plan.max_tokens,
        rows=str(plan.out / "rows"),
        seconds=time.monotonic() - started,
    )


def _measure(name: str, path: Path, problems: _Problems, plan: Plan) -> tuple[list[Measure], dict[str, str]]:
    """All measures of one student, and the parts that could not be taken."""
    folder = plan.out / "rows" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ResourceError("not-writable", f"{folder}: {exc.strerror}", "choose another --out") from exc
    context = find(path).default_context
    cache = {"cache_tokens": max(context, plan.at_once * min(context, plan.max_tokens + _PROMPT))}
    with load(path, threads=plan.threads, backend_options=cache) as model:
        return _take(Student(name, model, folder, plan.max_tokens, plan.at_once), problems, plan.parts)


def _take(
    student: Student, problems: _Problems, parts: Sequence[str]
) -> tuple[list[Measure], dict[str, str]]:
    asked = [problem for task in problems.tasks.values() for problem in task]
    rows = student.ask("accuracy", asked) if set(parts) - {"siblings"} else {}
    reasoned = Reasoned(student, asked, rows)
    takers: dict[str, Callable[[], list[Measure]]] = {
        "accuracy": lambda: accuracies.accuracy(problems.tasks, rows),
        "styles": lambda: accuracies.styles(student, problems.tasks, rows),
        "siblings": lambda: accuracies.siblings(student, problems.siblings),
        "cut": reasoned.cut,
        "steps": lambda: accuracies.steps(student, rows),
        "faithfulness": reasoned.faithfulness,
        "self-check": lambda: self_check(student, asked, rows),
    }
    measures: list[Measure] = []
    skipped: dict[str, str] = {}
    for part in parts:
        if part in _OWN_TEXT and student.markers is None:
            skipped[part] = "it has no reasoning markers, so its reasoning cannot be given to it"
        elif part == "siblings" and not problems.siblings:
            skipped[part] = "no siblings of these tasks are known; name some with --siblings"
        else:
            measures += takers[part]()
    return measures, skipped


def write_result(path: Path, content: Mapping[str, object]) -> None:
    """A JSON file, complete or as it was before."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_text(json.dumps(content, indent=2), "utf-8")
        os.replace(staging, path)
    except OSError as exc:
        raise ResourceError("not-writable", f"{path}: {exc.strerror}", "choose another --out") from exc
