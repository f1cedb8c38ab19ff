"""`edge-distill evaluate`: was reasoning transferred, or only its look?

One report on a student, as a checkpoint, a bundle or a GGUF file, and on several of them side by side: accuracy in
distribution, under changed prompt styles and on sibling tasks, with the reasoning cut off, the validity of its steps,
whether its answers follow from them, and what it makes of its own answers. The parts say what each figure means:
`accuracy.py`, `faithfulness.py`, `self_check.py`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from edge_distill.evaluate import accuracy as accuracies
from edge_distill.evaluate.faithfulness import Reasoned
from edge_distill.evaluate.measures import Measure
from edge_distill.evaluate.report import Evaluation, evaluated
from edge_distill.evaluate.self_check import self_check
from edge_distill.evaluate.siblings import siblings_of
from edge_distill.evaluate.student import Student
from edge_distill.evaluate.tasks import load_tasks, tasks_of_recipe
from edge_distill_runtime.errors import InputError, ResourceError

if TYPE_CHECKING:
    from edge_distill.evaluate.accuracy import Tasks

__all__ = ["PARTS", "evaluate"]

PARTS = ("accuracy", "styles", "siblings", "cut", "steps", "faithfulness", "self-check")
_OWN_TEXT = ("cut", "faithfulness")  # they put the student's reasoning into its mouth
_CONTEXT = 1024  # tokens of the cache for each problem that is answered at the same time


def evaluate(
    students: Annotated[
        list[str], "Checkpoints, bundles or .gguf files; the others are compared with the first"
    ],
    *,
    tasks: Annotated[
        list[str] | None,
        "task:FAMILY or FILE.jsonl, may be repeated; by default those of the student's recipe",
    ] = None,
    siblings: Annotated[
        list[str] | None, "Tasks never trained on, may be repeated; by default relatives of the tasks"
    ] = None,
    items: Annotated[int, "Problems of each task"] = 100,
    only: Annotated[str, f"Parts to measure, of {','.join(PARTS)}"] = ",".join(PARTS),
    out: Annotated[Path, "The folder for all answers; an interrupted run goes on there"] = Path("evaluation"),
    max_tokens: Annotated[int, "Most tokens of one answer, reasoning included"] = 512,
    at_once: Annotated[int, "Problems answered side by side"] = 8,
    threads: Annotated[int | None, "By default all CPUs"] = None,
    seed: Annotated[int, "Which problems are drawn"] = 0,
) -> Evaluation:
    """Measure whether reasoning was transferred: accuracy, changed prompts, siblings, cut-off, steps, faithfulness."""
    started = time.monotonic()
    parts = _parts(only)
    specs = tuple(tasks or tasks_of_recipe(students))
    relatives = tuple(siblings_of(specs) if siblings is None else siblings)
    problems = load_tasks(specs, items, seed)
    others = load_tasks(relatives, items, seed) if "siblings" in parts else {}
    found: list[list[Measure]] = []
    reports = []
    for name, reference in _named(students).items():
        path = _bundle(reference, out)
        measures, skipped = _measure(
            name, path, out, _Asked(problems, others, parts), max_tokens, at_once, threads
        )
        found.append(measures)
        reports.append(evaluated(name, str(path), measures, skipped, found[0] if len(found) > 1 else ()))
    result = Evaluation(
        students=tuple(reports),
        tasks=specs,
        siblings=relatives,
        items=items,
        seed=seed,
        max_tokens=max_tokens,
        rows=str(out / "rows"),
        seconds=time.monotonic() - started,
    )
    _write(out / "evaluation.json", result)
    return result


@dataclass(frozen=True)
class _Asked:
    tasks: Tasks
    siblings: Tasks
    parts: Sequence[str]


def _parts(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise InputError("unknown-part", f"there is no part {unknown[0]!r}", f"parts: {', '.join(PARTS)}")
    if not names:
        raise InputError("no-parts", "no part was asked for", f"parts: {', '.join(PARTS)}")
    return [part for part in PARTS if part in names]


def _named(references: Sequence[str]) -> dict[str, str]:
    """A short name for each student; where several have the same, their folders' names stand before it."""
    paths = [Path(reference).resolve() for reference in references]
    short = [path.name.removesuffix(".gguf") for path in paths]
    named: dict[str, str] = {}
    for reference, path, name in zip(references, paths, short, strict=True):
        unique = f"{path.parent.name}-{name}" if short.count(name) > 1 else name
        if unique in named:
            raise InputError(
                "double-student",
                f"two students would be called {unique!r}",
                "name every one once, in folders of different names",
            )
        named[unique] = reference
    return named


def _bundle(reference: str, out: Path) -> Path:
    from edge_distill.checkpoints import as_bundle

    return as_bundle(reference, out / "bundles")


def _measure(
    name: str, path: Path, out: Path, asked: _Asked, max_tokens: int, at_once: int, threads: int | None
) -> tuple[list[Measure], dict[str, str]]:
    """All measures of one student, and the parts that could not be taken."""
    from edge_distill_runtime import load
    from edge_distill_runtime.bundles.opening import find

    folder = out / "rows" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ResourceError("not-writable", f"{folder}: {exc.strerror}", "choose another --out") from exc
    context = find(path).default_context
    cache = {"cache_tokens": max(context, at_once * min(context, max_tokens + _CONTEXT))}
    with load(path, threads=threads, backend_options=cache) as model:
        student = Student(name, model, folder, max_tokens, at_once)
        return _take(student, asked)


def _take(student: Student, asked: _Asked) -> tuple[list[Measure], dict[str, str]]:
    problems = [problem for task in asked.tasks.values() for problem in task]
    rows = student.ask("accuracy", problems) if set(asked.parts) - {"siblings"} else {}
    reasoned = Reasoned(student, problems, rows)
    takers: dict[str, Callable[[], list[Measure]]] = {
        "accuracy": lambda: accuracies.accuracy(asked.tasks, rows),
        "styles": lambda: accuracies.styles(student, asked.tasks, rows),
        "siblings": lambda: accuracies.siblings(student, asked.siblings),
        "cut": reasoned.cut,
        "steps": lambda: accuracies.steps(student, rows),
        "faithfulness": reasoned.faithfulness,
        "self-check": lambda: self_check(student, problems, rows),
    }
    measures: list[Measure] = []
    skipped: dict[str, str] = {}
    for part in asked.parts:
        if part in _OWN_TEXT and student.markers is None:
            skipped[part] = "it has no reasoning markers, so its reasoning cannot be given to it"
        elif part == "siblings" and not asked.siblings:
            skipped[part] = "no siblings of these tasks are known; name some with --siblings"
        else:
            measures += takers[part]()
    return measures, skipped


def _write(path: Path, result: Evaluation) -> None:
    """The whole result, complete or as it was before."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_text(json.dumps(result.to_dict(), indent=2), "utf-8")
        os.replace(staging, path)
    except OSError as exc:
        raise ResourceError("not-writable", f"{path}: {exc.strerror}", "choose another --out") from exc
