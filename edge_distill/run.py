"""`edge-distill run`: ask a bundle one question."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Answer", "run"]

# All control characters but tab and newline: a model must not be able to send codes to the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
        cut = {"length": "; cut at --max-tokens", "context": "; the context is full"}
        note = f"{self.tokens} tokens, {self.tokens_per_second:.1f} tokens/s{cut.get(self.finish_reason, '')}"
        print(note, file=sys.stderr)


def run(
    bundle: Annotated[Path, "The bundle directory that export made"],
    question: Annotated[str, "What to ask"],
    *,
    max_tokens: Annotated[int, "Stop after this many tokens"] = 512,
    temperature: Annotated[float | None, "0 is greedy; by default what the bundle says"] = None,
    context: Annotated[
        int | None, "Tokens of prompt and answer; by default what the bundle was made for"
    ] = None,
    threads: Annotated[int | None, "By default the CPUs that this process may use"] = None,
    seed: Annotated[int | None, "Makes sampling repeatable"] = None,
    console: Console | None = None,
) -> Answer:
    """Ask a bundle a question; the answer appears as it comes, reasoning dimmed, the speed at the end."""
    from edge_distill_runtime import load

    parts: dict[str, str] = {"reasoning": "", "answer": ""}
    text, kind = "", ""
    tokens, seconds, finish_reason = 0, 0.0, ""
    with load(bundle, context=context, threads=threads) as model:
        for event in model.stream(question, max_tokens=max_tokens, temperature=temperature, seed=seed):
            if console is not None and event.text:
                turned = kind not in ("", event.kind) and not (
                    text.endswith("\n") or event.text.startswith("\n")
                )
                _show(event.kind, "\n" + event.text if turned else event.text, console)
                kind = event.kind
            parts[event.kind] += event.text
            text += event.text
            tokens, seconds = event.tokens, event.seconds
            finish_reason = event.finish_reason or finish_reason
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
        console.out(_CONTROL.sub("", text), style="dim", highlight=False, end="")
    else:
        console.file.write(_CONTROL.sub("", text))
    console.file.flush()
