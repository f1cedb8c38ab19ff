"""The Hugging Face tokenizer of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_export.gguf_tokens import compare_tokenizers
from edge_distill_runtime.bundles.gguf_header import read_gguf_header
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.gguf_tokenizer import adds_bos, build_tokenizer, token_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_from_gguf(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file that has passed `check_gguf`, proven against libllama's.

    It is built here: transformers does not know the pre-tokenizer, which the file only names. Raises
    `InputError` for an unknown name or kind, and when the result splits hostile strings differently.
    """
    metadata = read_gguf_header(path).metadata
    wrapped = _wrap(build_tokenizer(metadata), metadata)
    mismatches = compare_tokenizers(wrapped, path)
    if mismatches:
        first = mismatches[0]
        raise InputError(
            "tokenizer-mismatch",
            f"the tokenizer read from {path.name} splits {first.text!r} into {first.expected}, libllama into "
            f"{first.found}",
            "export the Hugging Face checkpoint that the file was made from",
        )
    return wrapped


def _wrap(tokenizer: Tokenizer, metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Add the special tokens' roles, what is added around a text, and the chat template."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokens = token_texts(metadata)
    ids = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ROLES}
    special = {_ROLES[role]: tokens[index][0] for role, index in ids.items() if index is not None}
    bos = f"{special['bos_token']} " if adds_bos(metadata) else ""
    eos = f" {special['eos_token']}" if metadata.get("tokenizer.ggml.add_eos_token", False) else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}$A{eos}",
        pair=f"{bos}$A{eos} {bos}$B{eos}",
        special_tokens=[
            (tokens[index][0], index) for role in ("bos", "eos") if (index := ids[role]) is not None
        ],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    wrapped.chat_template = metadata.get("tokenizer.chat_template")
    return wrapped
