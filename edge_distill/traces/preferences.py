"""Preference pairs from the samples of a problem, as TRL's DPO takes them: prompt, chosen and rejected as messages.

https://huggingface.co/docs/trl/dataset_formats#preference; as in our traces, the reasoning stands in
`reasoning_content`. `kind` says what a pair prefers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edge_distill.traces.self_consistency import coherence
from edge_distill.traces.trace import Trace
from edge_distill_runtime.reasoning.answers import normalize_answer

__all__ = ["preference_pairs"]

_LONGER = 1.5  # times as many characters: less says nothing about length


def preference_pairs(samples: Iterable[Trace]) -> Iterator[dict[str, Any]]:
    """The pairs of all problems; each of

    - correct-wrong: the most coherent right sample, against one sample of every wrong answer;
    - short-long: the shortest right sample that reasons without a refuted step, against the longest right one, when
      that has at least half as many characters more.
    """
    for traces in _by_problem(samples):
        right = sorted((trace for trace in traces if trace.correct), key=coherence)
        if not right:
            continue
        for wrong in _one_of_each_answer(traces):
            yield _pair("correct-wrong", right[0], wrong)
        sound = [trace for trace in right if trace.reasoning and coherence(trace)[0] == 0]
        short = min(sound, key=_length, default=None)
        long = max(right, key=_length)
        if short and _length(long) >= _LONGER * _length(short):
            yield _pair("short-long", short, long)


def _by_problem(samples: Iterable[Trace]) -> list[list[Trace]]:
    """Samples of the same problem, task, teacher and prompt, in the order of their seeds."""
    groups: dict[tuple[str, ...], list[Trace]] = {}
    for trace in samples:
        prompt = trace.messages[: _answer_at(trace)]
        key = (trace.task, trace.problem, trace.teacher, *(turn["content"] for turn in prompt))
        groups.setdefault(key, []).append(trace)
    return [sorted(traces, key=lambda trace: (trace.seed or 0, trace.id)) for traces in groups.values()]


def _one_of_each_answer(traces: Sequence[Trace]) -> list[Trace]:
    wrong: dict[object, Trace] = {}
    for trace in traces:
        if trace.correct is False:
            wrong.setdefault(normalize_answer(trace.answer).key, trace)
    return list(wrong.values())


def _pair(kind: str, chosen: Trace, rejected: Trace) -> dict[str, Any]:
    return {
        "prompt": _turns(chosen)[: _answer_at(chosen)],
        "chosen": _turns(chosen)[_answer_at(chosen) :],
        "rejected": _turns(rejected)[_answer_at(rejected) :],
        "task": chosen.task,
        "kind": kind,
    }


def _turns(trace: Trace) -> list[dict[str, str]]:
    return [dict(turn) for turn in trace.messages]


def _answer_at(trace: Trace) -> int:
    """Where the turns after the problem's begin."""
    return 1 + next(i for i, turn in enumerate(trace.messages) if turn["role"] == "user")


def _length(trace: Trace) -> int:
    return sum(
        len(turn["content"]) + len(turn.get("reasoning_content", ""))
        for turn in trace.messages[_answer_at(trace) :]
    )
