"""One answer of a model, shown while it comes; no model can send codes to the terminal."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from edge_distill_runtime import Model
    from edge_distill_runtime.generation.options import GenerationOptions

__all__ = ["CONTROL", "Answer", "speak"]

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters but tab and newline."""
_CUT = {
    "length": "; cut at --max-tokens",
    "context": "; the context is full",
    "cancelled": "; interrupted",
}


@dataclass(frozen=True)
class Answer:
    """What the model said; `reasoning` is empty where its manifest knows no reasoning markers."""

    text: str
    """Reasoning and answer as they came, without the markers."""
    reasoning: str
    answer: str
    tokens: int
    seconds: float
    """Time to generate, the prompt not counted."""
    tokens_per_second: float
    finish_reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        """End the streamed text; what is worth knowing about it goes to stderr."""
        print(file=console.file, flush=True)
        cut = _CUT.get(self.finish_reason, "")
        print(f"{self.tokens} tokens, {self.tokens_per_second:.1f} tokens/s{cut}", file=sys.stderr)


def speak(
    model: Model,
    prompt: str | list[dict[str, str]],
    options: GenerationOptions,
    console: Console | None,
    *,
    hide_thinking: bool = False,
) -> Answer:
    """Generate one answer and show it while it comes; Ctrl-C ends it and keeps what there is."""
    parts: dict[str, str] = {"reasoning": "", "answer": ""}
    text, kind = "", ""
    tokens, seconds, finish_reason = 0, 0.0, ""
    try:
        for event in model.stream(prompt, **options):
            shown = console is not None and not (hide_thinking and event.kind == "reasoning")
            if shown and event.text:
                turned = kind not in ("", event.kind) and not (
                    text.endswith("\n") or event.text.startswith("\n")
                )
                assert console is not None
                _show(event.kind, "\n" + event.text if turned else event.text, console)
                kind = event.kind
            parts[event.kind] += event.text
            text += event.text
            tokens, seconds = event.tokens, event.seconds
            finish_reason = event.finish_reason or finish_reason
    except KeyboardInterrupt:
        if not text:
            raise
        finish_reason = "cancelled"
    return Answer(
        text=text,
        reasoning=parts["reasoning"],
        answer=parts["answer"],
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        finish_reason=finish_reason,
    )


def _show(kind: str, text: str, console: Console) -> None:
    if not console.is_terminal:
        console.file.write(text)
    elif kind == "reasoning":
        console.out(CONTROL.sub("", text), style="dim", highlight=False, end="")
    else:
        console.file.write(CONTROL.sub("", text))
    console.file.flush()
