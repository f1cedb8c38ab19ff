"""A known reasoning and answer behind a prompt, as the model itself would have written them."""

from __future__ import annotations

from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers

__all__ = ["solution_parts"]


def solution_parts(
    prompt: str,
    reasoning: str,
    answer: str,
    *,
    chat: ChatSegments | None,
    markers: ReasoningMarkers | None,
    end: str = "",
) -> tuple[str, str]:
    """The text of the reasoning with its markers, and that of the answer with what ends the turn.

    A prompt may open the reasoning itself. Without chat segments `end` ends the answer.
    """
    if markers and reasoning:
        inside = prompt.rstrip().endswith(markers.open)
        opening = f"{markers.open}\n" if not inside else "" if prompt.endswith("\n") else "\n"
        reasoning = f"{opening}{reasoning}\n{markers.close}\n\n"
    elif reasoning:
        reasoning = f"{reasoning}\n"
    end = chat.assistant[1] if chat else end
    return reasoning, answer + end.rstrip()
