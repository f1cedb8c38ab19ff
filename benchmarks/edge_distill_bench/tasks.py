"""Problems with one right answer: generated families, JSON lines, Hugging Face data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

from edge_distill_bench.problem import Problem, problem_id, text_hash
from edge_distill_runtime.bundles.files import open_regular
from edge_distill_runtime.errors import InputError, MissingExtra
from edge_distill_runtime.reasoning.answers import normalize_answer

__all__ = ["BadLine", "Split", "load_problems", "split_of"]

Split = Literal["train", "validation", "test", "all"]

_MAX_LINE = 1 << 20  # bytes
_MAX_LINES = 1_000_000
_MAX_PROBLEM = 100_000  # characters
_MAX_ANSWER = 10_000


@dataclass(frozen=True)
class BadLine:
    """A line that is no problem, and why."""

    line: int
    """The first one is 1."""
    reason: str


def load_problems(
    spec: str,
    *,
    split: Split,
    count: int | None = None,
    seed: int = 0,
    on_bad_line: Callable[[BadLine], None] | None = None,
) -> list[Problem]:
    """Problems from a source, all different in their text.

    - `task:FAMILY?option=value&...`: a family of reasoning-gym with options of its configuration. The splits draw
      from ranges of seeds that do not overlap, and a text belongs to one split only, so that even tiny families
      share no problem between them. A smaller `count` gives the beginning of a larger one's problems.
    - `FILE.jsonl`: lines with `problem` (or `question`) and `answer`, and if they like `id`, `task`, `difficulty`
      and `solution`. An answer in GSM8K's form, steps and then `#### 20`, becomes solution and answer. 80 % of
      the texts are for training, 10 % for validation, 10 % for the test: by their hash, so that it never changes.
    - `hf:NAME?config=main`: a data set with the same columns; its own splits are used.

    `split="all"` takes a whole file that is for one purpose already. `count` of a file's problems are chosen by
    `seed`; None takes all, in their order. Bad lines raise `InputError`, unless `on_bad_line` takes note of them.
    Raises `MissingExtra` without reasoning-gym or datasets.
    """
    if split not in get_args(Split):
        raise InputError(
            "bad-split", f"split is {split!r}", f"it must be one of {', '.join(get_args(Split))}"
        )
    if count is not None and count < 1:
        raise InputError("bad-count", f"{count} problems were asked for", "ask for at least 1")
    kind, _, rest = spec.partition(":")
    name, _, query = rest.partition("?")
    if kind == "task":
        from edge_distill_bench.families import generate

        return generate(name, _options(spec, query), split=split, count=count, seed=seed)
    rejects: list[BadLine] = []
    if kind == "hf":
        problems = list(_read_rows(_data_set_rows(name, _options(spec, query), split), name, rejects))
    else:
        path = Path(spec)
        problems = list(_read_rows(_file_rows(path), path.stem, rejects))
        problems = [problem for problem in problems if split in ("all", split_of(problem.problem))]
    _report(spec, rejects, on_bad_line)
    return _choose(problems, spec, split, count, seed)


def split_of(text: str) -> Split:
    """The split that a problem of a file belongs to, by a hash of its text; white space does not count."""
    bucket = int(text_hash(text)[:8], 16) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def _options(spec: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=50)
    except ValueError as exc:
        raise InputError(
            "bad-task", f"the options of {spec[:200]!r} cannot be read", "write ?a=1&b=2"
        ) from exc
    return dict(pairs)


def _choose(problems: list[Problem], spec: str, split: str, count: int | None, seed: int) -> list[Problem]:
    if not problems or (count is not None and len(problems) < count):
        raise InputError(
            "too-few-problems",
            f"{spec} has {len(problems)} problems in the split {split!r}, {count or 1} were asked for",
            "ask for fewer, or for the split 'all' of a file that was made for one purpose",
        )
    if count is None:
        return problems

    def rank(problem: Problem) -> str:
        return hashlib.sha256(f"{seed} {problem.id}".encode()).hexdigest()

    return sorted(problems, key=rank)[:count]


def _report(spec: str, rejects: list[BadLine], on_bad_line: Callable[[BadLine], None] | None) -> None:
    if rejects and on_bad_line is None:
        first = rejects[0]
        raise InputError(
            "bad-lines",
            f"{len(rejects)} lines of {spec} are no problems; line {first.line}: {first.reason}",
            "mend or remove them",
            {"lines": [reject.line for reject in rejects[:100]]},
        )
    for reject in rejects:
        assert on_bad_line is not None
        on_bad_line(reject)


# -- rows ----------------------------------------------------------------------------------------------------


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and what the lines hold: an object, or the reason why there is none as an exception."""
    with open_regular(path, allow_links=True) as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            if number > _MAX_LINES:
                raise InputError("file-too-large", f"{path} has over {_MAX_LINES} lines", "split the file")
            if len(line) > _MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MAX_LINE)
                yield number, ValueError(f"longer than {_MAX_LINE} bytes")
            elif line.strip():
                yield number, _decode(line)


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return ValueError("not UTF-8")
    except (ValueError, RecursionError):
        return ValueError("not JSON")


def _data_set_rows(name: str, options: dict[str, str], split: str) -> Iterator[tuple[int, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as exc:
        raise MissingExtra(
            "missing-datasets", "hf: takes the library datasets", "pip install datasets"
        ) from exc
    if unknown := sorted(options.keys() - {"config"}):
        raise InputError("bad-option", f"hf: has no option {unknown[0]!r}", "it has: config")
    try:
        rows = load_dataset(name, options.get("config"), split=split)
    except Exception as exc:  # every hub, file and network error has a class of its own
        raise InputError(
            "no-data-set",
            f"{name} ({split}) cannot be loaded: {str(exc)[:300]}",
            "check name, config and network",
        ) from exc
    yield from enumerate(rows.select(range(min(len(rows), _MAX_LINES))), 1)


def _read_rows(rows: Iterable[tuple[int, Any]], task: str, rejects: list[BadLine]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for number, row in rows:
        try:
            problem = _problem_of(row, task)
            for key in (text_hash(problem.problem), f"id {problem.id}"):
                if key in seen:
                    what = "id" if key.startswith("id ") else "problem"
                    raise ValueError(f"the same {what} as in line {seen[key]}")
                seen[key] = number
        except ValueError as exc:
            rejects.append(BadLine(number, str(exc)))
        else:
            yield problem


def _problem_of(row: Any, task: str) -> Problem:
    """Raises ValueError with the reason."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError("not an object")
    text = _string(row, "problem" if "problem" in row else "question", _MAX_PROBLEM)
    answer = _string(row, "answer", _MAX_PROBLEM)
    solution = None if row.get("solution") is None else _string(row, "solution", _MAX_PROBLEM)
    if "####" in answer:
        steps, _, answer = answer.rpartition("####")
        solution, answer = solution or steps.strip() or None, answer.strip()
    if len(answer) > _MAX_ANSWER or normalize_answer(answer).kind == "unparsed":
        raise ValueError(
            f"the answer {answer[:40]!r} is empty, punctuation, or over {_MAX_ANSWER} characters"
        )
    task = task if row.get("task") is None else _string(row, "task", 200)
    name = problem_id(task, text) if row.get("id") is None else _string(row, "id", 200)
    difficulty = row.get("difficulty")
    if not isinstance(difficulty, Mapping):
        difficulty = {} if difficulty is None else {"difficulty": difficulty}
    return Problem(name, task, text, answer, dict(difficulty), solution)


def _string(row: Mapping[str, Any], key: str, limit: int) -> str:
    value = row.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = repr(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is missing or empty" if value in (None, "") else f"{key!r} is no text")
    if len(value) > limit:
        raise ValueError(f"{key!r} has {len(value)} characters, the limit is {limit}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{key!r} holds lone surrogates")
    return value
