"""Which problems a student is asked: those it was trained for, from the test split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from edge_distill_bench.problem import Problem
from edge_distill_bench.tasks import load_problems
from edge_distill_runtime.errors import InputError

__all__ = ["load_tasks", "tasks_of_recipe"]

_RECIPE = "recipe.yaml"
_READ = 20_000  # traces of a file


def load_tasks(specs: Iterable[str], items: int, seed: int) -> dict[str, list[Problem]]:
    """`items` test problems of every task; a problem that two tasks share belongs to the first."""
    seen: set[str] = set()
    tasks = {}
    for spec in specs:
        problems = load_problems(spec, split="test", count=items, seed=seed)
        tasks[spec] = [problem for problem in problems if problem.id not in seen]
        seen |= {problem.id for problem in problems}
    return tasks


def tasks_of_recipe(references: Sequence[str]) -> tuple[str, ...]:
    """The families of the traces in the recipe beside the first student that has one.

    Raises `InputError` when there is none, or when its traces are gone or name no family of reasoning-gym.
    """
    for reference in references:
        path = Path(reference) / _RECIPE
        if path.is_file():
            return _families(path)
    raise InputError(
        "no-tasks", f"no {_RECIPE} beside {references[0]} says what it was trained for", "give --tasks"
    )


def _families(path: Path) -> tuple[str, ...]:
    from reasoning_gym.factory import DATASETS

    from edge_distill.distil.recipe import load_recipe
    from edge_distill.traces.trace import read_traces

    names: Counter[str] = Counter()
    for file in load_recipe(path).traces:
        if not file.is_file():
            raise InputError(
                "no-tasks", f"{file}, the traces that {path} names, is not there", "give --tasks"
            )
        names.update(trace.task for trace in islice(read_traces(file), _READ))
    families = [name for name, _ in names.most_common() if name in DATASETS]
    if not families:
        raise InputError(
            "no-tasks", f"the traces of {path} are of no family of reasoning-gym", "give --tasks"
        )
    return tuple(f"task:{name}" for name in families)
