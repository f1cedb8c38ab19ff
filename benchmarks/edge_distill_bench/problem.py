"""A problem with one right answer, and what tells it from others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Problem", "problem_id", "text_hash"]


@dataclass(frozen=True)
class Problem:
    """A problem and its right answer."""

    id: str
    """Unique in its source; for generated problems a hash of the text, the same in every run."""
    task: str
    """The family, the file's name without its ending, or the name of the data set."""
    problem: str
    answer: str
    difficulty: dict[str, Any] = field(default_factory=dict)
    """What makes it hard, in JSON's types: `{"num_terms": 3}`."""
    solution: str | None = None
    """The way to the answer in steps, where the source knows one."""


def text_hash(text: str) -> str:
    """Hexadecimal SHA-256 of a problem's text; white space does not count."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def problem_id(task: str, text: str) -> str:
    return f"{task}-{text_hash(text)[:16]}"
