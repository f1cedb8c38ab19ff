"""The chat template of a Hugging Face tokenizer; what takes it apart lives in the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers
from edge_distill_runtime.text.chat_template import PROBES, check_segments, derive_segments, find_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["PROBES", "chat_segments", "check_chat", "reasoning_markers"]


def chat_segments(tokenizer: PreTrainedTokenizerFast) -> ChatSegments | None:
    """The segments of a tokenizer's chat template, proven on `PROBES`; None when it has no template.

    Raises `InputError` when the template does more than put strings around contents, `BundleError` when it
    takes too much time or memory.
    """
    if not tokenizer.chat_template:
        return None
    return derive_segments(
        tokenizer.get_chat_template(), tokenizer.special_tokens_map, tokenizer.name_or_path
    )


def check_chat(tokenizer: PreTrainedTokenizerFast, segments: ChatSegments) -> int:
    """Compare the segments with the template on `PROBES`, byte for byte; the number of prompts compared."""
    template = tokenizer.get_chat_template()
    return check_segments(segments, template, tokenizer.special_tokens_map, tokenizer.name_or_path)


def reasoning_markers(tokenizer: PreTrainedTokenizerFast) -> ReasoningMarkers | None:
    """The markers around reasoning that the template or the vocabulary shows; None when there are none."""
    return find_markers(str(tokenizer.chat_template or ""), tokenizer.get_added_vocab())
