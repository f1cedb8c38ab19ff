"""A process that answers one question, or cannot."""

from __future__ import annotations

import sys
import time

import pytest

from edge_distill_runtime.errors import BackendError
from edge_distill_runtime.text.child import ChildFailed, ask_child

MODULE = "tests.runtime.children"


def test_the_answer_comes_back_whatever_libraries_print() -> None:
    request = {"kind": "print", "text": "é🙂\x00", "numbers": [1, -2.5, None]}
    assert ask_child(MODULE, request, seconds=30, memory_bytes=256 << 20) == request


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [("abort", "died", -6), ("raise", "died", 1), ("memory", "memory", None), ("sleep", "time", None)],
)
def test_no_answer(kind: str, reason: str, status: int | None) -> None:
    before = time.perf_counter()
    with pytest.raises(ChildFailed) as caught:
        ask_child(MODULE, {"kind": kind}, seconds=1.5 if kind == "sleep" else 30, memory_bytes=256 << 20)
    assert (caught.value.reason, caught.value.status) == (reason, status)
    assert time.perf_counter() - before < 20


def test_the_cpu_limit_holds_without_the_parent() -> None:
    with pytest.raises(ChildFailed) as caught:
        ask_child(MODULE, {"kind": "spin"}, seconds=1)
    assert caught.value.reason == "time"


def test_no_interpreter_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(BackendError, match="takes a Python interpreter"):
        ask_child(MODULE, {}, seconds=1)
