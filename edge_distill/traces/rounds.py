"""Conversations of several turns about many problems, advanced together: the teacher gets the turns of all as a batch.

A conversation is a generator: it yields what it asks, is sent what was written, and returns its result. What it asks
may depend on its own answers only, so that no result depends on which others ran beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill_runtime.errors import BackendError

__all__ = ["Ask", "Talk", "advance", "derived_seed", "plain_text"]

_TOGETHER = 64  # conversations: what a kill can cost, and enough for a batch
_MAX_TEXT = 50_000  # characters of an answer that are read; more is no answer to a step

# What `str.splitlines` takes for the end of a line becomes one, other control characters go.
_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_CONTROLS = str.maketrans(
    {chr(code): None for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
    | dict.fromkeys(_LINE_ENDS, "\n")
)


@dataclass(frozen=True)
class Ask:
    """One request and how it is to be sampled."""

    request: Request
    sampling: Sampling


Result = TypeVar("Result")
Talk = Generator[list[Ask], list[Written], Result]
"""A conversation: yields requests, is sent an answer to each in their order, returns its result."""


def advance(
    talks: Iterable[Talk[Result]], teacher: Teacher, *, together: int = _TOGETHER
) -> Iterator[tuple[int, Result]]:
    """Hold all conversations, so many at a time; each one's index with its result, when it has ended.

    Answers reach a conversation without control characters and lone surrogates; of more than 50,000 characters
    the beginning, marked as cut off.
    """
    waiting = enumerate(talks)
    running: dict[int, Talk[Result]] = {}
    answers: dict[int, list[Written]] = {}
    while True:
        running.update(islice(waiting, together - len(running)))
        if not running:
            return
        asks: dict[int, list[Ask]] = {}
        for index, talk in list(running.items()):
            try:
                asks[index] = talk.send(answers[index]) if index in answers else next(talk)
            except StopIteration as end:
                del running[index]
                yield index, end.value
        answers = _asked(asks, teacher)


def derived_seed(seed: int, *parts: Any) -> int:
    """A seed of 31 bits that depends on all of these, which are JSON's types."""
    text = json.dumps([seed, *parts])
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:4], "big") >> 1


def _asked(asks: dict[int, list[Ask]], teacher: Teacher) -> dict[int, list[Written]]:
    """The answers to all, in one batch for each way of sampling."""
    places: dict[Sampling, list[tuple[int, int]]] = {}
    for index, members in asks.items():
        for at, ask in enumerate(members):
            places.setdefault(ask.sampling, []).append((index, at))
    found: dict[tuple[int, int], Written] = {}
    for sampling, wanted in places.items():
        requests = [asks[index][at].request for index, at in wanted]
        for number, written in teacher.write(requests, sampling):
            found[wanted[number]] = _readable(written)
        if missing := sum(place not in found for place in wanted):
            raise BackendError(
                "not-answered", f"{teacher.name} left {missing} of {len(wanted)} requests without an answer"
            )
    return {index: [found[index, at] for at in range(len(members))] for index, members in asks.items()}


def _readable(written: Written) -> Written:
    reasoning, text = plain_text(written.reasoning), plain_text(written.text)
    if max(len(written.reasoning), len(written.text)) > _MAX_TEXT:
        return replace(written, reasoning=reasoning, text=text, finish_reason="length")
    return replace(written, reasoning=reasoning, text=text)


def plain_text(text: str) -> str:
    """The first 50,000 characters without control characters and lone surrogates; every end of a line is a new line."""
    return text[:_MAX_TEXT].replace("\r\n", "\n").translate(_CONTROLS).encode("utf-8", "replace").decode()
