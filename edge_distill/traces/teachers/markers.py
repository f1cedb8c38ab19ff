"""A teacher's text taken apart: reasoning and answer at its markers, both cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from edge_distill_runtime.text.chat import ReasoningMarkers, ReasoningParser

__all__ = ["cut_at_stop", "split_reasoning", "tidy"]


def split_reasoning(text: str, markers: ReasoningMarkers | None, *, inside: bool = False) -> tuple[str, str]:
    """Reasoning and answer; with `inside` the text begins in the reasoning. Without markers all is answer."""
    parser = ReasoningParser(markers, inside=inside)
    pieces = parser.feed(text) + parser.finish()
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    return reasoning, "".join(piece.text for piece in pieces if piece.kind == "answer")


def cut_at_stop(reasoning: str, text: str, stop: Sequence[str]) -> tuple[str, str] | None:
    """Both up to the first stop string; None when there is none.

    White space at the beginning of either does not stop: models put a new line behind a marker and before a step.
    """
    if (at := _find(reasoning, stop)) is not None:
        return reasoning[:at], ""
    if (at := _find(text, stop)) is not None:
        return reasoning, text[:at]
    return None


def tidy(reasoning: str, text: str, *, continued: bool) -> tuple[str, str]:
    """Both without the new lines that stand beside markers; a reasoning that was continued keeps its own."""
    return reasoning if continued else reasoning.strip("\n"), text.lstrip("\n")


def _find(text: str, stop: Sequence[str]) -> int | None:
    start = len(text) - len(text.lstrip())
    return min((at for string in stop if (at := text.find(string, start)) >= 0), default=None)
