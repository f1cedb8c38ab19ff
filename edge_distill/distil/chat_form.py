"""The chat form of a student that thinks: ChatML, with the reasoning between markers before the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["set_thinking_form"]

_TURN = ("<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['reasoning_content'] -%}"
    "{{- '<think>\n' + message['reasoning_content'] + '\n</think>\n\n' -}}"
    "{%- endif -%}"
    "{{- message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def set_thinking_form(tokenizer: PreTrainedTokenizerFast) -> None:
    """Replace the chat template; the markers are plain text, so that the vocabulary stays as it is.

    Raises `InputError` when the tokenizer has no tokens for the ends of a turn.
    """
    missing = [token for token in _TURN if token not in tokenizer.get_vocab()]
    if missing:
        raise InputError(
            "no-turn-tokens",
            f"the tokenizer has no {' and '.join(missing)}",
            "leave --think out, and give the teacher a chat template with markers of its own",
        )
    tokenizer.chat_template = _TEMPLATE
