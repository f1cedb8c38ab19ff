"""The command line: parsing, results, errors, and what it costs to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge_distill import cli

SAMPLE = ["sample", "model", "--to", "gguf:q4_0", "--to", "onnx:int4"]
START = "import sys; from edge_distill import cli; from edge_distill.cli import Verb\n"
RUN_WAIT = START + "cli.VERBS['wait'] = Verb('tests.cli.sample:wait', '', ''); sys.exit(cli.main(['wait']))"


@pytest.fixture(autouse=True)
def _sample_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "sample", cli.Verb("tests.cli.sample:sample", "Sample", "export"))
    monkeypatch.setitem(cli.VERBS, "fail", cli.Verb("tests.cli.sample:fail", "Fail", "export"))
    monkeypatch.delenv("EDGE_DISTILL_DEBUG", raising=False)


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options)


def test_help_is_quick() -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        done = python("-m", "edge_distill", "--help")
        times.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert done.stderr == ""
        assert all(f"  {name}" in done.stdout for name in cli.VERBS if name not in ("sample", "fail"))
    assert min(times) < 0.3, f"edge-distill --help took {min(times):.2f} s at best of {len(times)}"


def test_help_imports_nothing_heavy() -> None:
    done = python("-X", "importtime", "-m", "edge_distill", "--help")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "edge_distill" in imported
    assert not imported & {
        "gguf", "llama_cpp", "numpy", "onnx", "onnxruntime", "rich", "tokenizers", "torch",
        "transformers", "typer",
    }  # fmt: skip


def test_no_verb_prints_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Verbs:" in captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "edge-distill 0.1.0\n"


@pytest.mark.parametrize(
    ("verb", "hint"), [("exprt", "did you mean export?"), ("zzz", "known verbs: export, plan, inspect")]
)
def test_unknown_verb(verb: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: there is no verb '{verb}' ({hint}")
    assert captured.err.count("\n") == 1


def test_signature_is_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main([*SAMPLE, "--method", "gptq", "--limit-kl", "0.5", "--dry-run", "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert json.loads(captured.out) == {
        "schema_version": 1,
        "checkpoint": "model",
        "to": ["gguf:q4_0", "onnx:int4"],
        "method": "gptq",
        "limit_kl": 0.5,
        "dry_run": True,
        "on_layer": None,
        "infinite": [None, None, 0.5],
    }
    assert captured.err == "a library prints\n"


def test_result_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli.main(SAMPLE) == 0
    names = "['checkpoint', 'dry_run', 'infinite', 'limit_kl', 'method', 'on_layer', 'to']"
    # brackets are text, not markup
    assert capsys.readouterr().out == f"streamed\nvalues [bold]{names}[/bold]\n"


def test_help_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: edge-distill sample [OPTIONS] {checkpoint}")
    for part in (
        "Show every kind of parameter",
        "--limit-kl",
        "Fail above this mean KL",
        "rtn|gptq",
        "--json",
    ):
        assert part in text
    assert "--no-dry-run" not in text
    assert "on_layer" not in text
    assert "console" not in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["sample"], "Missing argument"),
        (["sample", "model"], "Missing option '--to'"),
        ([*SAMPLE, "--methd", "rtn"], "--method"),
        ([*SAMPLE, "--method", "awq"], "awq"),
        ([*SAMPLE, "--limit-kl", "low"], "Invalid value for '--limit-kl'"),
    ],
)
def test_usage_error(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert part in captured.err
    assert "see edge-distill sample --help" in captured.err
    assert json.loads(captured.out)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("EdgeDistillError", 1),
        ("InputError", 2),
        ("BundleError", 3),
        ("ParityError", 4),
        ("ResourceError", 5),
        ("MissingExtra", 6),
        ("BackendError", 7),
        ("GateError", 8),
    ],
)
def test_typed_error_is_one_line(kind: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail", kind]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: 4096 tokens and [2J more (at most 2048)\n"


def test_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail", "ParityError", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    error = {"code": "some-code", "what": "4096 tokens\nand \x1b[2J more", "hint": "at most 2048"}
    assert document == {"schema_version": 1, "error": error}


def test_the_numbers_of_an_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail", "numbers", "--json"]) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {
        "code": "too-far",
        "what": "0.3 is too much",
        "hint": "",
        "data": {"mean_kl": 0.3, "p99": None},
    }


@pytest.mark.parametrize(
    ("kind", "code", "part"),
    [
        (
            "module",
            6,
            'fail needs package_that_nobody_installs, which is not installed (pip install "edge-distill[e',
        ),
        ("disk", 1, "No space left on device: model.gguf"),
        ("bug", 1, "ZeroDivisionError: division by zero (this is a bug"),
    ],
)
def test_foreign_error(kind: str, code: int, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail", kind]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {part}")
    assert "Traceback" not in captured.err


def test_traceback_only_for_debugging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_DISTILL_DEBUG", "1")
    assert cli.main(["fail", "bug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fail", "interrupt"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_interrupt_by_signal() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN_WAIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # shells start background jobs with the signal ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == "interrupted\n"


def test_reader_that_goes_away() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "edge_distill", "env", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


def test_terminal_without_utf8(tmp_path: Path) -> None:
    done = python("-m", "edge_distill", "zürich🎲", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert "z\\xfcrich" in done.stderr
