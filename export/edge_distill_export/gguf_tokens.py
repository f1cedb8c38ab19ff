"""libllama's tokenizer next to the Hugging Face one, on the same strings."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_export.hostile_strings import HOSTILE_STRINGS
from edge_distill_runtime.errors import BackendError
from edge_distill_runtime.llama import library

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Mismatch:
    """A text that the two tokenizers split differently."""

    text: str
    expected: list[int]
    """The Hugging Face tokenizer's ids."""
    found: list[int]
    """libllama's ids."""


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer's tokenizer.json."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def compare_tokenizers(tokenizer: PreTrainedTokenizerFast, path: Path) -> list[Mismatch]:
    """Tokenize hostile strings with `tokenizer` and with the GGUF file at `path`; the texts that differ.

    Every text is compared alone, with what is added around it, and behind a special token as in a chat;
    special tokens in it are parsed. Two things that llama.cpp cannot express are left out: NFC normalization
    (texts are normalized first), and a space that is put before the first word of a text only (Metaspace's
    scheme "first"; then texts are compared behind a special token). The file must be one that we wrote.
    """
    document = tokenizer_json(tokenizer)
    mismatches = []
    with _vocabulary(path) as tokenize:
        for text, add_special in _texts(tokenizer, document):
            expected = tokenizer.encode(text, add_special_tokens=add_special)
            found = tokenize(text, add_special)
            if expected != found:
                mismatches.append(Mismatch(text, expected, found))
    return mismatches


def _texts(tokenizer: PreTrainedTokenizerFast, document: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    added = [token["content"] for token in document["added_tokens"]]
    special = [token["content"] for token in document["added_tokens"] if token["special"]]
    # Every added token between words, alone and next to itself; a few of Gemma's thousands of unused ones.
    around = [
        f"a {token} b{token}c{token}{token} d" for token in dict.fromkeys([*added[:128], *special[-32:]])
    ]
    normalizer = document["normalizer"]
    nfc = normalizer is not None and normalizer["type"] == "NFC"
    first_word_only = '"prepend_scheme": "first"' in json.dumps(document["pre_tokenizer"])
    behind = next((token for token in special if token == tokenizer.eos_token), "".join(special[-1:]))
    for text in (*HOSTILE_STRINGS, *around):
        if nfc:
            text = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        if not first_word_only:
            yield text, False
            yield text, True
        if behind:
            yield behind + text, False


@contextmanager
def _vocabulary(path: Path) -> Iterator[Any]:
    """A function (text, add_special) -> ids of the vocabulary in a GGUF file."""
    llama = library()
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise BackendError("load-failed", f"libllama cannot load the vocabulary of {path.name}")
    vocabulary = llama.llama_model_get_vocab(model)

    def tokenize(text: str, add_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = llama.llama_tokenize(vocabulary, data, len(data), ids, room, add_special, True)
        if count < 0:
            raise BackendError("tokenize-failed", f"libllama needs {-count} tokens for {len(data)} bytes")
        return list(ids[:count])

    try:
        yield tokenize
    finally:
        llama.llama_model_free(model)
