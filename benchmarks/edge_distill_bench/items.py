"""The problems of one run: from their sources, or from the file of another run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_distill_bench.lines import bad_line, read_lines
from edge_distill_bench.problem import Problem
from edge_distill_bench.tasks import Split, load_problems
from edge_distill_runtime.bundles.typed_json import typed
from edge_distill_runtime.errors import InputError, ResourceError

__all__ = ["ITEMS_NAME", "Tasks", "hash_tasks", "load_tasks", "read_tasks", "write_tasks"]

ITEMS_NAME = "problems.jsonl"

Tasks = Mapping[str, Sequence[Problem]]
"""The problems of every task, by its spec."""


@dataclass(frozen=True)
class _Item(Problem):
    spec: str = ""


def load_tasks(specs: Sequence[str], items: int, *, split: Split = "test", seed: int = 0) -> Tasks:
    """So many problems of all specs together, each an equal share; see `load_problems`."""
    if len(set(specs)) < len(specs) or not specs:
        raise InputError(
            "bad-tasks", f"these tasks were given: {', '.join(specs) or 'none'}", "give each once"
        )
    if items < len(specs):
        raise InputError("bad-items", f"{items} items of {len(specs)} tasks", "ask for at least one of each")
    share, rest = divmod(items, len(specs))
    return {
        spec: load_problems(spec, split=split, count=share + (index < rest), seed=seed)
        for index, spec in enumerate(specs)
    }


def hash_tasks(tasks: Tasks) -> str:
    """SHA-256 of all problems and their answers."""
    return hashlib.sha256("".join(_lines(tasks)).encode()).hexdigest()


def _lines(tasks: Tasks) -> list[str]:
    items = [_Item(**asdict(problem), spec=spec) for spec, problems in tasks.items() for problem in problems]
    return [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items]


def write_tasks(folder: Path, tasks: Tasks) -> None:
    """Write problems.jsonl, whole or not at all."""
    path = folder / ITEMS_NAME
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_lines(tasks))
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise ResourceError(
            "unwritable", f"{path} cannot be written: {exc.strerror}", "give another --out"
        ) from exc


def read_tasks(folder: Path) -> Tasks:
    """What `write_tasks` wrote; `InputError` names a line that is no problem."""
    path = folder / ITEMS_NAME
    tasks: dict[str, list[Problem]] = {}
    for number, values in read_lines(path):
        try:
            item = typed(_Item, values, "problem")
        except ValueError as exc:
            raise bad_line(path, number) from exc
        problem = asdict(item)
        tasks.setdefault(problem.pop("spec"), []).append(Problem(**problem))
    return tasks
