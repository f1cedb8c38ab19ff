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
from edge_distill.chat import converse
from edge_distill.run import run
from edge_distill_runtime import Event, Generation, InputError, Reasoning

EVENTS = [
    Event("reasoning", "4 trays of ", 3, 0.1),
    Event("reasoning", "28\tare 112.\x1b[2J", 7, 0.2),
    Event("answer", "", 7, 0.2),
    Event("answer", "20 [left] 🎲\n", 10, 0.4),
    Event("answer", "", 10, 0.5, "length"),
]


class Speaker:
    """A model that always says the same; records what it was asked."""

    notes: tuple[str, ...] = ()

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
    loaded = ("bundle", {"context": 256, "threads": 1, "kv_cache": None})
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


class Answerer(Speaker):
    """Votes as well."""

    notes = ("a note\x1b[2J",)

    def reason(self, problem: str, **options: Any) -> Reasoning:
        self.asked.append((problem, options))
        sample = Generation("x", "", "It is 20.", (1, 2), 0, "stop", 3, 0, 0.1, 0.1)
        return Reasoning("20", 0.75, {"20": 0.75, "unparsed": 0.25}, "4 x 28", (sample,) * 4, 8, 12, True)


@pytest.fixture
def answerer(monkeypatch: pytest.MonkeyPatch) -> Answerer:
    answerer = Answerer()
    monkeypatch.setattr(edge_distill_runtime, "load", answerer.load, raising=False)
    return answerer


def test_samples_are_voted_on(answerer: Answerer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "bundle", "How many?", "--samples", "4", "--seed", "3"]) == 0
    assert answerer.asked[1] == (
        "How many?",
        {"samples": 4, "max_tokens": 512, "temperature": None, "seed": 3},
    )
    captured = capsys.readouterr()
    assert captured.out == "4 x 28\n20\n"
    assert "note: a note[2J\nvotes: 20 75%, unparsed 25%; 4 samples, 8 tokens, about 12 saved" in captured.err
    assert cli.main(["run", "bundle", "How many?", "--samples", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["answer"], document["votes"]) == ("20", {"20": 0.75, "unparsed": 0.25})


def test_thinking_options(answerer: Answerer, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--think", "--max-thinking-tokens", "9", "--hide-thinking"]
    assert cli.main(["run", "bundle", "How many?", *options]) == 0
    asked = answerer.asked[1][1]
    assert (asked["thinking"], asked["thinking_budget"]) == (True, 9)
    assert capsys.readouterr().out == "20 [left] 🎲\n\n"
    assert cli.main(["run", "bundle", "How many?", "--no-think"]) == 0
    assert answerer.asked[4][1]["thinking"] is False


def test_question_from_stdin(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("How\nmany?"))
    assert cli.main(["run", "bundle", "-"]) == 0
    assert answerer.asked[1][0] == "How\nmany?"
    assert cli.main(["run", "bundle"]) == 2
    assert "there is no question" in capsys.readouterr().err


class Forgetful(Answerer):
    """A model whose context holds three messages."""

    def stream(self, prompt: Any, **options: Any) -> Iterator[Event]:
        if len(prompt) > 3:
            raise InputError("context-full", "too long")
        self.asked.append([message["content"] for message in prompt])
        yield from EVENTS


def test_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, lines = Forgetful(), iter(["One?", "", "Two?", "Three?", "/new", "Four?"])

    def answer(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    console = Console(file=io.StringIO(), width=80)
    conversation = converse(model, {}, console)  # type: ignore[arg-type]
    said = "20 [left] 🎲"
    assert model.asked == [["One?"], ["One?", said, "Two?"], ["Two?", said, "Three?"], ["Four?"]]
    assert [message["content"] for message in conversation.messages] == ["Four?", said]
    assert conversation.tokens == 40
    assert "the first 1 turns no longer fit" in capsys.readouterr().err
