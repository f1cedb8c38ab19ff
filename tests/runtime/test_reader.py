"""Tokens to reasoning, answer and stop strings, however the text is cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edge_distill_runtime.generation.reader import TextReader
from edge_distill_runtime.text.chat import ReasoningMarkers
from edge_distill_runtime.text.detokenizer import Detokenizer

MARKERS = ReasoningMarkers("<think>", "</think>")


class Bytes:
    """A vocabulary of single bytes: token n is byte n."""

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}

    def id_to_token(self, token: int) -> str:
        return f"<0x{token:02X}>"


DETOKENIZER = Detokenizer(Bytes(), json.loads('{"decoder": {"type": "ByteFallback"}}'))


def read(text: str, **options: Any) -> tuple[TextReader, str, str]:
    """Feed byte by byte; the reader and what it gave out of both kinds."""
    reader = TextReader(DETOKENIZER, options.pop("markers", MARKERS), **options)
    pieces = [piece for byte in text.encode() for piece in reader.feed(byte)] + reader.finish()
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    answer = "".join(piece.text for piece in pieces if piece.kind == "answer")
    assert (reader.given("reasoning"), reader.given("answer")) == (reasoning, answer)
    return reader, reasoning, answer


def test_reasoning_answer_and_counts() -> None:
    reader, reasoning, answer = read("<think>a é</think>b")
    assert (reasoning, answer) == ("a é", "b")
    assert reader.text == "<think>a é</think>b"
    assert reader.reasoning_tokens == len("a é</think>".encode())


@pytest.mark.parametrize(
    ("text", "stops", "answer", "whole", "stopped"),
    [
        ("one END two", ["END"], "one ", "one ", True),
        ("one EN two", ["END"], "one EN two", "one EN two", False),
        ("one EN", ["END"], "one EN", "one EN", False),
        ("a\n\nObservation: b", ["Observation:"], "a\n\n", "a\n\n", True),
        ("abab", ["bab", "ba"], "a", "a", True),  # the earliest
        ("<think>END</think>x END", ["END"], "x ", "<think>END</think>x ", True),  # not in the reasoning
        ("日本END", ["本E"], "日", "日", True),
        ("", ["x"], "", "", False),
    ],
)
def test_stop_strings(text: str, stops: list[str], answer: str, whole: str, stopped: bool) -> None:
    reader, _, found = read(text, stop=stops)
    assert (found, reader.text, reader.stopped) == (answer, whole, stopped)


def test_stop_strings_at_every_cut() -> None:
    """The same result whether the text comes in bytes or in longer tokens."""
    text, generator = "<think>ab</think>ccabcaSTOPcc", random.Random(1)
    for _ in range(200):
        reader = TextReader(DETOKENIZER, MARKERS, stop=["aST", "cST"])
        pieces, rest = [], text
        while rest:
            count = generator.randint(1, 6)
            pieces += reader._read(rest[:count])
            rest = rest[count:]
        pieces += reader.finish()
        assert "".join(piece.text for piece in pieces if piece.kind == "answer") == "ccabc"
        assert reader.text == "<think>ab</think>ccabc"


def test_answer_without_its_leading_space() -> None:
    assert read("a</think>\n\n B\n", inside=True, formatted=True)[1:] == ("a", "B\n")
    assert read("\n\n B", formatted=True, markers=None)[2] == "B"
    # a marker in the answer is part of it
    assert read("a</think>{<think>}", inside=True, formatted=True)[1:] == ("a", "{<think>}")
    assert read("{<think>}", formatted=True)[1:] == ("", "{<think>}")


def test_taking_tokens_back_gives_nothing_twice() -> None:
    reader = TextReader(DETOKENIZER, MARKERS, inside=True)
    tokens = list(b"So 4.</think>")
    given = "".join(piece.text for token in tokens for piece in reader.feed(token))
    assert given == "So 4."
    assert reader.kind == "answer"
    count, rest = reader.count_before(reader.text.rfind("</think>"))
    assert (count, rest) == (5, "")
    reader.restart(tokens[:count])
    assert (reader.kind, reader.text, reader.reasoning_tokens) == ("reasoning", "So 4.", 5)
    later = [piece for token in b"\nWait, 5.</think>5" for piece in reader.feed(token)]
    assert "".join(piece.text for piece in later) == "\nWait, 5.5"
    assert reader.given("reasoning") == "So 4.\nWait, 5."


def test_taking_back_in_the_middle_of_a_token() -> None:
    """A token that holds the end of a sentence and the beginning of the marker."""
    reader = TextReader(DETOKENIZER, MARKERS, inside=True)
    given = [piece.text for text in ("So 4", ".</", "think>") for piece in reader._read(text)]
    assert given == ["So 4", "."]
    assert reader.count_before(reader.text.rfind("</think>")) == (1, ".")
