"""Verdicts, and math-verify in a process that is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from edge_distill_bench import grading, math_process
from edge_distill_bench.grading import grade
from edge_distill_bench.math_process import NoVerdict, is_equal
from edge_distill_runtime import InputError, MissingExtra


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> object:
    yield
    math_process._close_all()


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        (r"It is \boxed{1,234}.", "1234", "right"),
        ("#### 20", "20.0", "right"),
        ("The answer is 3/4.", "0.75", "right"),
        ("The answer is 21.", "20", "wrong"),
        ("The answer is 0.3333333.", "1/3", "wrong"),  # plain numbers are exact
        ("(B) because", "b", "right"),
        ("The answer is C.", "B", "wrong"),
        ("Yes.", "True", "right"),
        ("The answer is grandmother.", "Grandmother", "right"),
        ("", "5", "unparsed"),
        ("...", "5", "unparsed"),
        (r"\boxed{}", "5", "unparsed"),
    ],
)
def test_plain_answers_need_no_process(
    monkeypatch: pytest.MonkeyPatch, text: str, gold: str, verdict: str
) -> None:
    monkeypatch.setattr(grading, "is_equal", None)
    assert grade(text, gold).verdict == verdict


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        (r"\frac{2\pi}{4}", r"\frac{\pi}{2}", "right"),
        ("x^2 + 2x + 1", "(x+1)^2", "right"),
        ("x^2 + 2x + 2", "(x+1)^2", "wrong"),
        (r"\sqrt{8}", r"2\sqrt{2}", "right"),
        (r"3\sqrt{2}+1", r"1+\sqrt{18}", "right"),
        ("2x + 3 = 7", "2x = 4", "right"),
        ("7 × 7 × 19", "7 × 19 × 7", "right"),
        ("(1, 2)", "(2, 1)", "wrong"),
        (r"\sqrt{}", r"\sqrt{2}", "wrong"),
    ],
)
def test_mathematics(answer: str, gold: str, verdict: str) -> None:
    result = grade(f"So it is \\boxed{{{answer}}}.", gold)
    assert (result.verdict, result.reason) == (verdict, "")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("silent", "listen"), ("no", "on"), ("1 2 3", "12 3"), ("1 2\n3 4", "12 34"), ("BA", "AB")],
)
def test_words_and_rows_are_no_products(monkeypatch: pytest.MonkeyPatch, answer: str, gold: str) -> None:
    monkeypatch.setattr(grading, "is_equal", None)  # it must not be asked
    assert grade(f"\\boxed{{{answer}}}", gold).verdict == "wrong"


def test_a_hang_is_unparsed_and_the_next_answer_is_graded() -> None:
    assert grade(r"\boxed{x + 1}", "1 + x").verdict == "right"  # the process has started
    start = time.monotonic()
    result = grade(r"\boxed{2^{10000000000}}", "x^2", seconds=1)
    assert (result.verdict, result.reason) == ("unparsed", "math-verify took over 1 s")
    assert time.monotonic() - start < 10
    assert grade(r"\boxed{x + 2}", "2 + x").verdict == "right"


def test_a_process_that_dies_over_its_question() -> None:
    math_process._close_all()
    is_equal("x + 1", "1 + x", seconds=30)
    (worker,) = math_process._idle
    process = worker._process
    os.kill(process.pid, signal.SIGSTOP)  # it cannot answer
    killer = threading.Timer(0.3, lambda: os.kill(process.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(NoVerdict, match="died"):
        is_equal("x + 1", "1 + x", seconds=30)
    killer.join()
    assert process.returncode == -signal.SIGKILL


def test_an_idle_process_that_died_is_replaced() -> None:
    is_equal("x + 1", "1 + x", seconds=30)
    process = math_process._idle[-1]._process
    process.kill()
    process.wait()
    assert is_equal("x + 1", "1 + x", seconds=30)


def test_threads_share_the_processes() -> None:
    results: list[bool] = []

    def ask(number: int) -> None:
        for step in range(5):
            results.append(is_equal(f"x + {number}", f"{number} + x", seconds=30))
            results.append(not is_equal(f"x + {number}", f"{number + step + 1} + x", seconds=30))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20


def test_an_empty_right_answer_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the right answer '' is empty"):
        grade("5", "")
    math_process._close_all()
    monkeypatch.setattr(math_process, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "edge-distill\[bench\]"'):
        grade(r"\boxed{x + 1}", "1 + x")


def test_a_worker_ends_with_its_parent() -> None:
    import subprocess

    code = (
        "import os\nfrom edge_distill_bench import math_process\n"
        "math_process.is_equal('x + 1', '1 + x', seconds=60)\n"
        "print(math_process._idle[0]._process.pid, flush=True)\nos._exit(0)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    for _ in range(100):
        try:
            os.kill(int(output), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the process outlived its parent")
