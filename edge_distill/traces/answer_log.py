"""What a teacher has been asked and has written, one line a request: an interrupted run asks nothing twice.

Every way of asking goes through it, so all of them go on where they were: they ask the same again and get it from here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from edge_distill.traces.store import KeyedLines
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill_runtime.errors import InputError

__all__ = ["AnswerLog", "LoggedTeacher", "request_key"]

_FIELDS = {"reasoning": str, "text": str, "finish_reason": str, "tokens": int}


class AnswerLog(KeyedLines):
    """Answers by the keys of their requests; only where they stand is kept in memory. For one thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lambda line: _parse(line)[0])
        self._places: dict[str, tuple[int, int]] = {}
        at = 0
        with path.open("rb") as file:  # every line has been read just now
            for line in file:
                if line.strip():
                    self._places.setdefault(_parse(line)[0], (at, len(line)))
                at += len(line)

    def add(self, key: str, written: Written) -> bool:
        """Append an answer; False when the request has one."""
        item = {"key": key, **{name: getattr(written, name) for name in _FIELDS}}
        line = json.dumps(item)
        if not self._add(key, line):
            return False
        length = len(line) + 1
        self._places[key] = (os.fstat(self._file).st_size - length, length)
        return True

    def find(self, key: str) -> Written | None:
        """The answer to a request, if it has been answered."""
        if key not in self._places:
            return None
        at, length = self._places[key]
        return _parse(os.pread(self._file, length, at))[1]


class LoggedTeacher:
    """A teacher that answers from its log what it has answered before, and writes down the rest as it comes.

    Answers that were cut off are kept too, for they have been paid; errors are not, so another run asks again.
    """

    def __init__(self, teacher: Teacher, log: AnswerLog) -> None:
        self._teacher, self._log = teacher, log
        self.asked = 0
        self.found = 0
        self.tokens = 0
        """Generated in this run."""

    @property
    def name(self) -> str:
        return self._teacher.name

    @property
    def can_continue(self) -> bool:
        return self._teacher.can_continue

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        keys = [request_key(self.name, request, sampling) for request in requests]
        missing = []
        for index, key in enumerate(keys):
            written = self._log.find(key)
            if written is None:
                missing.append(index)
            else:
                self.found += 1
                yield index, written
        if missing:
            yield from self._ask(requests, sampling, keys, missing)

    def _ask(
        self, requests: Sequence[Request], sampling: Sampling, keys: Sequence[str], missing: Sequence[int]
    ) -> Iterator[tuple[int, Written]]:
        for at, written in self._teacher.write([requests[index] for index in missing], sampling):
            index = missing[at]
            if written.finish_reason != "error":
                self._log.add(keys[index], written)
            self.asked += 1
            self.tokens += written.tokens
            yield index, written

    def close(self) -> None:
        """Of the teacher; the log stays open."""
        self._teacher.close()


def request_key(teacher: str, request: Request, sampling: Sampling) -> str:
    """32 hexadecimal digits of the SHA-256 of all that steers the answer."""
    problem = request.problem and [request.problem.task, request.problem.id]
    asked = [teacher, request.messages, request.reasoning, request.seed, problem, asdict(sampling)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("ascii")).hexdigest()[:32]


def _parse(line: bytes) -> tuple[str, Written]:
    try:
        item = json.loads(line)
        values = {name: item[name] for name in _FIELDS}
        if not all(type(values[name]) is kind for name, kind in _FIELDS.items()):
            raise TypeError("a field is of the wrong type")
        if not isinstance(item["key"], str):
            raise TypeError("the key is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError("bad-answer-log", f"is no answer of a teacher: {str(exc)[:200]}", "") from exc
    return item["key"], Written(**values)
