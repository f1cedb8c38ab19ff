"""`edge-distill bench`: the table, the JSON document, and the exit code of the gate."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from edge_distill import checkpoints
from edge_distill.cli import main
from edge_distill_bench.results import BenchResults, read_results
from edge_distill_runtime.errors import GateError, InputError


@pytest.fixture
def arguments(bundles: dict[str, Path], tmp_path: Path) -> list[str]:
    less = ["--parts", "memory", "--contexts", "32", "--threads", "1"]
    return ["bench", str(bundles["gguf"]), str(bundles["onnx"]), *less, "--out", str(tmp_path / "out")]


def test_table_and_json(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/edge-distill", *arguments, "--gate", "rss<=2GB"])
    assert main() == 0
    said = capsys.readouterr()
    assert "bits per weight" in said.out
    assert "The machine's noise: " in said.out
    assert "ok   gguf: rss is" in said.out
    assert "Memory of fresh processes: " in said.err
    assert read_results(tmp_path / "out").command == shlex.join(
        ["edge-distill", *arguments, "--gate", "rss<=2GB"]
    )

    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("folder") == str(tmp_path / "out")
    assert BenchResults.from_dict(document) == read_results(tmp_path / "out")


def test_a_gate_that_fails_is_shown_and_has_an_exit_code(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--gate", "rss<=1MB,size<=1GB"]) == GateError.exit_code
    said = capsys.readouterr()
    assert "FAIL onnx: rss is" in said.out
    assert "ok   onnx: size is" in said.out
    assert said.err.splitlines()[-1].startswith("error: gguf: rss is")
    assert [line.passed for line in read_results(tmp_path / "out").gate] == [False, True, False, True]


def test_checkpoints_become_bundles_beside_the_results(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def as_bundle(reference: str, folder: Path) -> Path:
        asked.append((reference, folder))
        return bundles["onnx" if reference == "a/checkpoint" else "gguf"]

    monkeypatch.setattr(checkpoints, "as_bundle", as_bundle)
    less = ["--parts", "memory", "--contexts", "32", "--threads", "1", "--out", str(tmp_path)]
    assert main(["bench", "a-bundle", "--student", "a/checkpoint", *less]) == 0
    assert asked == [("a-bundle", tmp_path / "checkpoints"), ("a/checkpoint", tmp_path / "checkpoints")]
    assert [(one.name, one.role) for one in read_results(tmp_path).artifacts] == [
        ("onnx", "student"),
        ("gguf", "artifact"),
    ]


def test_a_bad_gate_is_refused_before_a_checkpoint_is_exported(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--gate", "speed>=1", "--student", "no/such/checkpoint"]) == InputError.exit_code
    assert "the gate knows no 'speed'" in capsys.readouterr().err
