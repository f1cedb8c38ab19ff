"""A model that says what a test wants, to test the loops around it: prompts are recorded, texts played back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edge_distill_runtime.generation.result import Generation
from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers, ReasoningParser, render
from edge_distill_runtime.text.detokenizer import encode
from tests.random_tokenizers import random_tokenizer
from tests.runtime.bundles import CHAT


@dataclass
class ScriptedManifest:
    chat: ChatSegments | None = CHAT
    reasoning: ReasoningMarkers | None = None


class ScriptedModel:
    """Says one text after the other; a text may be a function that is called for it. Stop strings are honoured."""

    def __init__(
        self, texts: Sequence[str | Callable[[], str]], tokenizer: Any = None, *, finish_reason: Any = "stop"
    ) -> None:
        self._texts = list(texts)
        self._finish_reason = finish_reason
        self.manifest = ScriptedManifest(reasoning=ReasoningMarkers("<think>", "</think>"))
        self.tokenizer = tokenizer or random_tokenizer("smollm").backend_tokenizer
        self.prompts: list[Any] = []
        self.options: list[dict[str, Any]] = []

    def generate(self, prompt: Any, **options: Any) -> Generation:
        self.prompts.append(prompt)
        self.options.append(options)
        text = self._texts.pop(0)
        if not isinstance(text, str):
            text = text()
        parser = ReasoningParser(self.manifest.reasoning)
        pieces = [*parser.feed(text), *parser.finish()]
        answer = "".join(piece.text for piece in pieces if piece.kind == "answer")
        for stop in options.get("stop", ()):
            answer = answer.partition(stop)[0]
        return Generation(
            text=text,
            reasoning="".join(piece.text for piece in pieces if piece.kind == "reasoning"),
            answer=answer,
            tokens=tuple(encode(self.tokenizer, text)),
            reasoning_tokens=0,
            finish_reason=self._finish_reason,
            prompt_tokens=1,
            cached_tokens=0,
            prompt_seconds=0.0,
            seconds=0.0,
        )

    def special_tokens(self, prompt: Any) -> list[int]:
        """The special tokens and markers that a prompt is tokenized into."""
        assert self.manifest.chat is not None
        ids = encode(self.tokenizer, render(self.manifest.chat, prompt))
        return [token for token in ids if token in self.tokenizer.get_added_tokens_decoder()]
