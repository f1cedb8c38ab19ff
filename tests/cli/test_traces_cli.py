"""`edge-distill traces` and `edge-distill traces stats` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_distill import cli


def test_a_verb_of_two_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text('{"problem": "1 + 1?", "reasoning": "1 + 1 = 2", "answer": "2"}\n', encoding="utf-8")
    assert cli.main(["traces", "stats", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["traces"] == 1
    assert cli.main(["traces", "stats", "--help"]) == 0
    assert "edge-distill traces stats" in capsys.readouterr().out
    assert cli.main(["traces", "stats"]) == 2
    assert "edge-distill traces stats --help" in capsys.readouterr().err


def test_traces_and_their_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "traces.jsonl"
    command = ["traces", "task:gcd", "task:chain_sum?min_terms=3", "--teacher", "solver:", "--count", "5"]
    assert cli.main([*command, "--out", str(out), "--granularity", "critical", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema_version"], document["kept"], document["dropped"]) == (1, 10, 0)
    assert {group["task"] for group in document["groups"]} == {"gcd", "chain_sum"}
    assert cli.main(["traces", "stats", str(out)]) == 0
    assert "10 of 10 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--granularity", "huge"], "huge"),
        (["--teacher", "nobody:"], "nobody"),
        (["--elicit", "tree"], "a solver cannot do --elicit tree"),
        (["--split", "all"], "a generated task has no end"),
        (["--tries", "0"], "0 rounds"),
    ],
)
def test_bad_options(
    options: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "traces",
        "task:gcd",
        "--teacher",
        "solver:",
        "--count",
        "2",
        "--out",
        str(tmp_path / "t.jsonl"),
    ]
    assert cli.main([*command, *options]) == 2
    assert part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
