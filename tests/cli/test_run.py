"""`edge-distill run`: what appears while the model speaks. Models themselves are tested with the runtime."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

import edge_distill_runtime
from edge_distill import cli
from edge_distill.run import run
from edge_distill_runtime import Event

EVENTS = [
    Event("reasoning", "4 trays of ", 3, 0.1),
    Event("reasoning", "28\tare 112.\x1b[2J", 7, 0.2),
    Event("answer", "", 7, 0.2),
    Event("answer", "20 [left] 🎲\n", 10, 0.4),
    Event("answer", "", 10, 0.5, "length"),
]


class Speaker:
    """A model that always says the same; records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def load(self, path: Any, **options: Any) -> Speaker:
        self.asked.append((str(path), options))
        return self

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, *error: object) -> None:
        self.asked.append("closed")

    def stream(self, prompt: str, **options: Any) -> Iterator[Event]:
        self.asked.append((prompt, options))
        yield from EVENTS


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Speaker:
    speaker = Speaker()
    monkeypatch.setattr(edge_distill_runtime, "load", speaker.load, raising=False)
    return speaker


def test_options_reach_the_runtime(speaker: Speaker, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--max-tokens",
        "10",
        "--temperature",
        "0.7",
        "--seed",
        "1",
        "--context",
        "256",
        "--threads",
        "1",
    ]
    assert cli.main(["run", "bundle", "How many?", *options]) == 0
    loaded = ("bundle", {"context": 256, "threads": 1})
    asked = ("How many?", {"max_tokens": 10, "temperature": 0.7, "seed": 1})
    assert speaker.asked == [loaded, asked, "closed"]


def test_piped_text_is_what_the_model_said(speaker: Speaker, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "bundle", "How many?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "4 trays of 28\tare 112.\x1b[2J\n20 [left] 🎲\n\n"
    assert captured.err == "10 tokens, 20.0 tokens/s; cut at --max-tokens\n"


def test_json_document(speaker: Speaker, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "bundle", "How many?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "text": "4 trays of 28\tare 112.\x1b[2J20 [left] 🎲\n",
        "reasoning": "4 trays of 28\tare 112.\x1b[2J",
        "answer": "20 [left] 🎲\n",
        "tokens": 10,
        "seconds": 0.5,
        "tokens_per_second": 20.0,
        "finish_reason": "length",
    }


def test_terminal_dims_reasoning_and_gets_no_codes_from_the_model(speaker: Speaker) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system="standard", width=80)
    run("bundle", "How many?", console=console)  # type: ignore[arg-type]
    assert "\x1b[2m4 trays of \x1b[0m" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    assert screen.getvalue().endswith("\n20 [left] 🎲\n")
    assert "\x1b[2m20" not in screen.getvalue()
