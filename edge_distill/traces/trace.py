"""A trace: a problem with a teacher's reasoning and answer, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from edge_distill_runtime.errors import InputError
from edge_distill_runtime.reasoning.answers import extract_answer

__all__ = [
    "Role",
    "Step",
    "Trace",
    "Verdict",
    "answer_turn",
    "content_id",
    "make_trace",
    "parse_line",
    "read_traces",
    "scan_traces",
    "to_line",
]

Role = Literal["decomposition", "structure", "error", "language"]
Verdict = Literal["verified", "refuted", "unknown"]

MAX_LINE = 1 << 20  # bytes
_MAX_ITEMS = 10_000  # steps or messages of one trace
_MAX_SEED = 2**63

_TURNS = ("system", "user", "assistant", "tool")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HINT = 'a line looks like {"problem": ..., "reasoning": ..., "answer": ...} or {"messages": [...]}'


@dataclass(frozen=True)
class Step:
    """One step of a reasoning, as written, with its role and whether its statements hold."""

    text: str
    role: Role = "language"
    verdict: Verdict = "unknown"


@dataclass(frozen=True)
class Trace:
    """A problem and how a teacher solved it.

    `messages` are the whole conversation in TRL's form; the last one is the assistant's, with `reasoning` in its
    `reasoning_content`. `answer` is the value, the last message's `content` the text around it. `gold` is the right
    answer, `correct` whether `answer` is equal to it (None: not compared). `vote_share` is the part of the samples
    that gave this answer. `sampling` holds what the teacher was asked with (temperature, exemplars, ...), `verified`
    says how the trace was checked: ("answer:exact", "steps:checker"). `notes` are what came out beside it: the
    problem's id and difficulty, why the teacher stopped when that was a limit, tool calls, ...
    """

    task: str
    problem: str
    messages: tuple[dict[str, str], ...]
    reasoning: str
    answer: str
    steps: tuple[Step, ...] = ()
    gold: str | None = None
    correct: bool | None = None
    vote_share: float | None = None
    teacher: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    verified: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The content hash of the question that was asked of the teacher; see `content_id`."""
        return content_id(self.problem, self.teacher, self.sampling, self.seed)


def content_id(problem: str, teacher: str, sampling: Mapping[str, Any], seed: int | None) -> str:
    """32 hexadecimal digits of the SHA-256 of problem, teacher, sampling and seed: known before the teacher is."""
    text = json.dumps([problem, teacher, sampling, seed], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def answer_turn(text: str, reasoning: str) -> dict[str, str]:
    """The last message of a trace; without reasoning it has no key for it, as when it is read again."""
    turn = {"role": "assistant", "content": text}
    return turn | {"reasoning_content": reasoning} if reasoning else turn


def make_trace(problem: str, reasoning: str, answer: str, *, task: str = "", **fields: Any) -> Trace:
    r"""A trace of one question, its answer's text being `\boxed{answer}`; `fields` are further ones of `Trace`."""
    messages = ({"role": "user", "content": problem}, answer_turn(rf"\boxed{{{answer}}}", reasoning))
    return Trace(task, problem, messages, reasoning, answer, **fields)


def to_line(trace: Trace) -> str:
    """The trace as one line of JSON, without the line's end; raises `InputError` when it could not be read again."""
    try:
        line = json.dumps(_item(trace), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as exc:  # a float that is no number, an object in `sampling`
        raise InputError("bad-trace", f"cannot be written: {str(exc)[:200]}", "check its sampling") from exc
    parse_line(line)
    return line


def _item(trace: Trace) -> dict[str, Any]:
    return {
        "id": trace.id,
        "task": trace.task,
        "problem": trace.problem,
        "messages": trace.messages,
        "reasoning": trace.reasoning,
        "steps": [{"text": step.text, "role": step.role, "verdict": step.verdict} for step in trace.steps],
        "answer": trace.answer,
        "gold": trace.gold,
        "correct": trace.correct,
        "vote_share": trace.vote_share,
        "teacher": trace.teacher,
        "sampling": trace.sampling,
        "seed": trace.seed,
        "verified": trace.verified,
        **({"notes": trace.notes} if trace.notes else {}),
    }


def parse_line(line: str | bytes) -> Trace:
    """The trace of one line; `InputError("bad-trace")` says what is wrong with it.

    The reasoning may stand in the last message's `reasoning_content`, `reasoning` or `thinking`, or in a field
    `reasoning`; keys that are not ours are left out. An `id` must be the content's.
    """
    try:
        data = line.encode("utf-8") if isinstance(line, str) else line
        if len(data) > MAX_LINE:
            raise _Bad(f"has more than {MAX_LINE} bytes")
        text = data.decode("utf-8")
        item = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if not isinstance(item, dict):
            raise _Bad(f"holds {type(item).__name__}, not an object")
        if _SURROGATE.search(text):
            json.dumps(item, ensure_ascii=False).encode("utf-8")
        return _trace(item)
    except _Bad as exc:
        raise InputError("bad-trace", str(exc), _HINT) from exc
    except RecursionError as exc:
        raise InputError("bad-trace", "is nested too deeply", _HINT) from exc
    except ValueError as exc:  # JSON, UTF-8, lone surrogates, integers of thousands of digits, infinities
        raise InputError("bad-trace", f"is no JSON: {str(exc)[:200]}", _HINT) from exc


def read_traces(path: Path) -> Iterator[Trace]:
    """The traces of a JSON Lines file; raises `InputError` at the first bad line, with its number."""
    for number, found in scan_traces(path):
        if isinstance(found, InputError):
            raise InputError(
                found.code, f"{path}, line {number}: {found.what}", found.hint, {"line": number}
            ) from found
        yield found


def scan_traces(path: Path) -> Iterator[tuple[int, Trace | InputError]]:
    """Line numbers with a trace, or with what is wrong with that line; empty lines are left out."""
    for number, line in lines_of(path):
        try:
            if len(line) > MAX_LINE:
                raise InputError("line-too-long", f"more than {MAX_LINE} bytes", "write one trace a line")
            yield number, parse_line(line)
        except InputError as exc:
            yield number, exc


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the lines that are not empty; one that is too long is cut to `MAX_LINE + 1` bytes."""
    from edge_distill_runtime.bundles.files import open_regular

    with open_regular(path, allow_links=True) as file:
        number = 0
        while data := file.readline(MAX_LINE + 2):
            number += 1
            line = data.rstrip(b"\r\n")
            while len(data) == MAX_LINE + 2 and not data.endswith(b"\n"):  # the rest of a long line
                data = file.readline(MAX_LINE + 2)
            if line.strip():
                yield number, line[: MAX_LINE + 1]


class _Bad(Exception):
    """What is wrong with a trace, in words."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) != len(pairs):
        raise _Bad("has a key twice")
    return item


def _no_constant(name: str) -> None:
    raise _Bad(f"holds {name}, which is no JSON")


def _trace(item: dict[str, Any]) -> Trace:
    messages = _messages(item)
    users = [turn["content"] for turn in messages if turn["role"] == "user"]
    last = messages[-1]
    reasoning = last.get("reasoning_content", "")
    if _text(item, "reasoning", reasoning) != reasoning:
        raise _Bad("reasoning: is not what the last message holds")
    problem = _text(item, "problem", users[-1])
    answer = item.get("answer")
    if answer is None:
        found = extract_answer(last["content"])
        answer = found.raw if found else last["content"]
    trace = Trace(
        task=_text(item, "task", ""),
        problem=problem,
        messages=messages,
        reasoning=reasoning,
        answer=_string(answer, "answer"),
        steps=tuple(_step(step, i) for i, step in enumerate(_items(item, "steps"))),
        gold=None if item.get("gold") is None else _text(item, "gold"),
        correct=_correct(item.get("correct")),
        vote_share=_vote_share(item.get("vote_share")),
        teacher=_text(item, "teacher", ""),
        sampling=_object(item, "sampling"),
        seed=_seed(item.get("seed")),
        verified=tuple(_string(how, "verified") for how in _items(item, "verified")),
        notes=_object(item, "notes"),
    )
    if item.get("id") not in (None, trace.id):
        raise _Bad(f"id: {str(item['id'])[:40]!r} is not that of the content, {trace.id!r}")
    return trace


def _messages(item: dict[str, Any]) -> tuple[dict[str, str], ...]:
    if item.get("messages") is None:
        turn = {"role": "assistant", "content": _text(item, "answer"), "reasoning": _text(item, "reasoning")}
        return _message({"role": "user", "content": _text(item, "problem")}, 0), _message(turn, 1)
    messages = tuple(_message(turn, i) for i, turn in enumerate(_items(item, "messages")))
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise _Bad("messages: needs a user's before the assistant's, which is the last")
    if not any(turn["role"] == "user" for turn in messages):
        raise _Bad("messages: needs a user's")
    return messages


def _message(turn: Any, index: int) -> dict[str, str]:
    name = f"messages[{index}]"
    if not isinstance(turn, dict):
        raise _Bad(f"{name}: is {type(turn).__name__}, not an object")
    if turn.get("role") not in _TURNS:
        raise _Bad(f"{name}.role: is {str(turn.get('role'))[:40]!r}, not one of {', '.join(_TURNS)}")
    result = {"role": turn["role"], "content": _string(turn.get("content"), f"{name}.content")}
    reasonings = {_string(turn[key], f"{name}.{key}") for key in _REASONING_KEYS if turn.get(key)}
    if len(reasonings) > 1:
        raise _Bad(f"{name}: holds two different reasonings")
    if reasonings:
        if turn["role"] != "assistant":
            raise _Bad(f"{name}: only the assistant's message holds reasoning")
        result["reasoning_content"] = reasonings.pop()
    return result


def _step(item: Any, index: int) -> Step:
    name = f"steps[{index}]"
    if not isinstance(item, dict):
        raise _Bad(f"{name}: is {type(item).__name__}, not an object")
    role, verdict = item.get("role"), item.get("verdict")
    if not isinstance(role, str) or role not in get_args(Role):
        raise _Bad(f"{name}.role: is {str(role)[:40]!r}, not one of {', '.join(get_args(Role))}")
    if not isinstance(verdict, str) or verdict not in get_args(Verdict):
        raise _Bad(f"{name}.verdict: is {str(verdict)[:40]!r}, not one of {', '.join(get_args(Verdict))}")
    return Step(_string(item.get("text"), f"{name}.text"), role, verdict)  # type: ignore[arg-type]


def _items(item: dict[str, Any], key: str) -> list[Any]:
    values = item.get(key)
    if values is None:
        return []
    if not isinstance(values, list):
        raise _Bad(f"{key}: is {type(values).__name__}, not a list")
    if len(values) > _MAX_ITEMS:
        raise _Bad(f"{key}: has {len(values)} items, at most {_MAX_ITEMS} are allowed")
    return values


def _text(item: dict[str, Any], key: str, default: str | None = None) -> str:
    value = item.get(key)
    return default if value is None and default is not None else _string(value, key)


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Bad(f"{name}: is missing" if value is None else f"{name}: is {type(value).__name__}, not text")
    return value


def _correct(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _Bad(f"correct: is {str(value)[:40]}, not true, false or null")
    return value


def _vote_share(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise _Bad(f"vote_share: is {str(value)[:40]}, not a number from 0 to 1")
    return float(value)


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -_MAX_SEED <= value < _MAX_SEED:
        raise _Bad(f"seed: is {str(value)[:40]}, not an integer of 64 bits")
    return value


def _object(item: dict[str, Any], key: str) -> dict[str, Any]:
    value = item.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Bad(f"{key}: is {type(value).__name__}, not an object")
    return value
