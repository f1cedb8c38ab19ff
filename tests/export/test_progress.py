"""Progress of long stages, with and without a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from edge_distill_export.progress import stage
from edge_distill_runtime import progress


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("Loading") as advance:
        advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"Loading: started\nLoading: 0\.\d s\n", captured.err)


def test_estimate_from_the_units_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 9.0, 30.0, 31.0, 60.0, 61.5])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with stage("Quantizing layers", total=40) as advance:
        advance(5)  # 9 s: too early for a line
        advance(5)  # 30 s: 3 s for each, 30 are left
        advance(10)  # 31 s: the last line is only 1 s old
        advance(20)  # 60 s: complete, the stage's own last line follows
    assert capsys.readouterr().err.splitlines() == [
        "Quantizing layers: started",
        "Quantizing layers: 10/40, about 90 s left",
        "Quantizing layers: 61.5 s",
    ]


def test_what_an_earlier_run_did_takes_no_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.5, 20.5, 40.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with stage("Answers", total=200) as advance:
        advance(100)  # of an earlier run
        advance(41)  # 20.5 s: half a second for each, 59 are left
    assert capsys.readouterr().err.splitlines()[1] == "Answers: 141/200, about 30 s left"


def test_failure_is_said_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="singular"), stage("Quantizing layers", total=3):
        raise ValueError("singular")
    assert re.search(r"Quantizing layers: stopped after 0\.\d s\n$", capsys.readouterr().err)


def on_a_terminal(code: str, **environment: str) -> str:
    """What the code prints when stderr is a terminal of 100 columns."""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment}
    code = f"from edge_distill_export.progress import stage\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=side, env=environment, timeout=60
    )
    os.close(side)
    output = b""
    try:
        while block := os.read(main, 65536):
            output += block
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(main)
    assert done.stdout == b""
    return output.decode()


def test_bar_on_a_terminal() -> None:
    text = on_a_terminal("with stage('Packing [b]', total=3) as advance:\n for _ in range(3): advance()")
    assert "Packing [b]" in text  # brackets are text, not markup
    assert "3/3" in text
    assert "0:00:00" in text


def test_bar_of_a_failed_stage_does_not_look_complete() -> None:
    text = on_a_terminal("with stage('Packing', total=3) as advance:\n advance()\n raise SystemExit(1)")
    assert "1/3" in text
    assert "3/3" not in text


def test_bar_without_colour() -> None:
    code = "with stage('Packing', total=2) as advance:\n advance(2)"
    assert "\x1b[3" in on_a_terminal(code, NO_COLOR="")
    assert not re.search(r"\x1b\[[0-9;]*m", on_a_terminal(code, NO_COLOR="1"))
