"""The families of reasoning-gym as sources of problems."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from edge_distill_bench.problem import Problem, problem_id, text_hash
from edge_distill_runtime.errors import InputError, MissingExtra
from edge_distill_runtime.reasoning.answers import normalize_answer

__all__ = ["generate"]

_SPLITS = ("train", "validation", "test")
_BLOCK = 1000  # problems of one reasoning-gym data set; item i draws with its seed + i
_BLOCKS = 500  # for one seed of ours
_SEEDS = 1000
_SPLIT_SEEDS = _BLOCK * _BLOCKS * _SEEDS  # three of them fit 31 bits, which numpy's generators want
_PATIENCE = 5000  # problems in a row that bring nothing new

# Any of many answers is right: a comparison with one of them would be unjust.
_SEVERAL_ANSWERS = {
    *("boxnet", "countdown", "cryptarithm", "graph_color", "jugs", "knight_swap", "n_queens"),
    *("palindrome_generation", "propositional_logic", "puzzle24", "quantum_lock", "rubiks_cube", "rush_hour"),
    *("shortest_path", "sokoban", "tower_of_hanoi", "word_ladder"),
}
# They draw from Python's global generator or from the order of sets, which differ between processes (0.1.25).
_UNREPEATABLE = {"isomorphic_strings", "list_functions", "polynomial_multiplication", "ransom_note"}


def generate(
    family: str, options: Mapping[str, str], *, split: str, count: int | None, seed: int
) -> list[Problem]:
    """The first `count` different problems of a split; see `tasks.load_problems`."""
    if split not in _SPLITS or count is None:
        raise InputError(
            "bad-split", "a generated task has no end", "ask for a count of train, validation or test"
        )
    if not 0 <= seed < _SEEDS:
        raise InputError("bad-seed", f"seed is {seed}", f"it must be 0 to {_SEEDS - 1}")
    number = _SPLITS.index(split)
    start = number * _SPLIT_SEEDS + seed * _BLOCK * _BLOCKS
    found: dict[str, Problem] = {}
    missed = 0
    for item in _items(family, options, start):
        key = text_hash(item["question"])
        # equal shares: problems are plenty, and no split has to draw more than three for one
        if int(key[:8], 16) % len(_SPLITS) != number or key in found:
            missed += 1
            if missed >= _PATIENCE:
                break
            continue
        missed = 0
        found[key] = _problem(family, item)
        if len(found) == count:
            return list(found.values())
    raise InputError(
        "too-few-problems",
        f"task:{family} has about {len(found)} different problems in the split {split!r}, {count} were asked for",
        "ask for fewer, or widen its options",
    )


def _items(family: str, options: Mapping[str, str], start: int) -> Iterator[dict[str, Any]]:
    data_set, config = _family(family)
    values = _values(family, config, options)
    for block in range(_BLOCKS):
        try:
            problems = data_set(config(**values, seed=start + block * _BLOCK, size=_BLOCK))
        except (AssertionError, ValueError, TypeError) as exc:
            reason = str(exc) or "its check failed"
            raise InputError(
                "bad-option", f"task:{family} does not take these options: {reason}", _known(config)
            ) from exc
        for index in range(_BLOCK):
            yield problems[index]


def _family(name: str) -> tuple[Any, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as exc:
        raise MissingExtra(
            "missing-reasoning-gym", "task: takes reasoning-gym", 'pip install "edge-distill[bench]"'
        ) from exc
    if name not in DATASETS:
        close = get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {close[0]}?" if close else "reasoning-gym's gallery lists them"
        raise InputError("unknown-task", f"there is no task {name[:100]!r}", hint)
    for names, reason in (
        (_SEVERAL_ANSWERS, "has many right answers to a problem, which cannot be graded by comparison"),
        (_UNREPEATABLE, "gives other problems in every process, so its splits could overlap"),
    ):
        if name in names:
            raise InputError("unfit-task", f"task:{name} {reason}", "choose another family")
    data_set, config = DATASETS[name]
    return data_set, config


def _fields(config: Any) -> dict[str, Any]:
    """The options of a family and their defaults."""
    default = config()
    fields = (field.name for field in dataclasses.fields(config))
    return {name: getattr(default, name) for name in fields if name not in ("seed", "size")}


def _known(config: Any) -> str:
    return "its options: " + ", ".join(f"{name}={value}" for name, value in _fields(config).items())[:1000]


def _values(family: str, config: Any, options: Mapping[str, str]) -> dict[str, Any]:
    """The options with the types of their defaults; lists and tables are written as JSON."""
    fields = _fields(config)
    values = {}
    for name, text in options.items():
        if name not in fields:
            close = get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError("bad-option", f"task:{family} has no option {name!r}", hint + _known(config))
        try:
            values[name] = _value(text, fields[name])
        except ValueError as exc:
            raise InputError(
                "bad-option", f"task:{family}: {name}={text[:100]!r} is of the wrong type", _known(config)
            ) from exc
    return values


def _value(text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    value = json.loads(text.lower() if isinstance(default, bool) else text)
    kind = type(default)
    if default is None or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, list):
        return kind(value)
    raise ValueError


def _problem(family: str, item: Mapping[str, Any]) -> Problem:
    text, answer, metadata = item["question"], item["answer"], item["metadata"]
    answer = "" if answer is None else str(answer)
    if normalize_answer(answer).kind == "unparsed":
        raise InputError(
            "unfit-task", f"task:{family} has a problem without a single answer", "choose another family"
        )
    solution = metadata.get("answer_cot")
    return Problem(problem_id(family, text), family, text, answer, _difficulty(metadata), solution)


def _difficulty(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Of this problem where the family says so, else the range it was drawn from."""
    ranges = metadata.get("difficulty", {})
    if not isinstance(ranges, Mapping):
        ranges = {"difficulty": ranges}
    values = {name: metadata.get(name, value) for name, value in ranges.items()}
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return result
