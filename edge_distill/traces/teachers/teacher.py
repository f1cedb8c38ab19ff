"""What every teacher does: take requests, and give back what was written as it gets finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from edge_distill_bench.problem import Problem

__all__ = ["Request", "Sampling", "Teacher", "Written", "check_requests"]

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Request:
    """One thing to ask."""

    messages: tuple[dict[str, str], ...]
    """The conversation; its last turn is a user's, or a tool's observation."""
    seed: int
    reasoning: str = ""
    """A beginning of the reasoning that the teacher shall continue; see `Teacher.can_continue`."""
    problem: Problem | None = None
    """What is asked about; a solver reads this and not the messages."""

    @property
    def turns(self) -> list[dict[str, str]]:
        """The messages as every chat form knows them: an observation is a user's turn, reasoning is left out."""
        return [
            {"role": "user" if turn["role"] == "tool" else turn["role"], "content": turn["content"]}
            for turn in self.messages
        ]


@dataclass(frozen=True)
class Sampling:
    """How a teacher draws."""

    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.95
    max_tokens: int = 512
    """Most tokens of one request, reasoning included."""
    stop: tuple[str, ...] = ()
    """What is written ends before any of these strings, be it reasoning or answer."""

    def __post_init__(self) -> None:
        for name, valid, limits in (
            ("temperature", 0 <= self.temperature <= 100, "0 to 100"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("stop", all(self.stop), "strings that are not empty"),
        ):
            if not valid:
                value = getattr(self, name)
                raise InputError(
                    f"bad-{name.replace('_', '-')}", f"{name} is {value}", f"it must be {limits}"
                )


@dataclass(frozen=True)
class Written:
    """What a teacher wrote to one request."""

    reasoning: str
    """Without its markers; of a request that began it, the continuation alone."""
    text: str
    """The answer's text behind the reasoning; empty when a stop string ended the reasoning."""
    finish_reason: str
    """`stop` is the only one to be used. `length`: cut off; `error`: nothing came, and `error` says why."""
    tokens: int
    """How many were generated; 0 when the teacher does not tell."""
    error: str = ""

    @property
    def is_usable(self) -> bool:
        return self.finish_reason == "stop"


class Teacher(Protocol):
    """Writes; `opening.open_teacher` opens one."""

    @property
    def name(self) -> str:
        """Its identity in `Trace.teacher`: the kind, the model's name, and a short hash where there are files."""

    @property
    def can_continue(self) -> bool:
        """Whether it takes requests that begin the reasoning."""

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        """Every request's index with what was written to it, each once, in the order in which they are finished.

        What goes wrong with one request is its `Written.error` and no trouble of the others. An error that no
        request can escape is raised. Leaving the iterator early ends the work.
        """

    def close(self) -> None:
        """Free what it holds; may be called twice."""


def check_requests(teacher: Teacher, requests: Sequence[Request]) -> None:
    """What no teacher can do anything with: `InputError`, before anything is asked."""
    for request in requests:
        if not request.messages or request.messages[-1].get("role") not in ("user", "tool"):
            raise InputError("bad-request", "a request does not end in a user's turn", "add the question")
        for turn in request.messages:
            if turn.get("role") not in _ROLES or not isinstance(turn.get("content"), str):
                known = ", ".join(_ROLES)
                raise InputError(
                    "bad-request",
                    f"a request has a turn without role or text: {turn!r:.80}",
                    f"roles: {known}",
                )
        if request.reasoning and not teacher.can_continue:
            raise InputError(
                "cannot-continue",
                f"{teacher.name} cannot continue a reasoning",
                "take another teacher: hf:, bundle: and gguf: can",
            )
