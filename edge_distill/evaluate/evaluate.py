"""`edge-distill evaluate`: was reasoning transferred, or only its look?

One report on a student, as a checkpoint, a bundle or a GGUF file, and on several of them side by side: accuracy in
distribution, under changed prompt styles and on sibling tasks, with the reasoning cut off, the validity of its steps,
whether its answers follow from them, and what it makes of its own answers. The parts say what each figure means:
`accuracy.py`, `faithfulness.py`, `self_check.py`; with `--ablate`, `ablation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from edge_distill.evaluate.forms import Ablation
from edge_distill.evaluate.measuring import PARTS, Plan, measure_all, write_result
from edge_distill.evaluate.report import Evaluation
from edge_distill.evaluate.siblings import siblings_of
from edge_distill.evaluate.tasks import tasks_of_recipe
from edge_distill_runtime.errors import InputError

__all__ = ["evaluate"]


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
    only: Annotated[str, f"Parts to measure, of {','.join(PARTS)}; by default all"] = "",
    ablate: Annotated[
        str, "Train variants of the student's recipe instead and compare them, of granularity,roles,alpha"
    ] = "",
    out: Annotated[Path, "The folder for all answers; an interrupted run goes on there"] = Path("evaluation"),
    max_tokens: Annotated[int, "Most tokens of one answer, reasoning included"] = 512,
    at_once: Annotated[int, "Problems answered side by side"] = 8,
    threads: Annotated[int | None, "By default all CPUs"] = None,
    seed: Annotated[int, "Which problems are drawn"] = 0,
) -> Evaluation | Ablation:
    """Measure whether reasoning was transferred: accuracy, changed prompts, siblings, cut-off, steps, faithfulness."""
    specs = tuple(tasks or tasks_of_recipe(students))
    plan = Plan(
        tasks=specs,
        siblings=tuple(siblings_of(specs) if siblings is None else siblings),
        parts=_parts(only),
        items=items,
        seed=seed,
        max_tokens=max_tokens,
        at_once=at_once,
        threads=threads,
        out=out,
    )
    if ablate:
        from edge_distill.evaluate.ablation import ablate as train_and_compare

        return train_and_compare(students, ablate, plan, choose_parts=not only)
    result = measure_all(_named(students), plan)
    write_result(out / "evaluation.json", result.to_dict())
    return result


def _parts(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",")] if only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise InputError("unknown-part", f"there is no part {unknown[0]!r}", f"parts: {', '.join(PARTS)}")
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
