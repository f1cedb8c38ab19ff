"""libllama's tokenizer next to the Hugging Face one, on the same strings."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_runtime.engines.llama import library
from edge_distill_runtime.errors import BackendError
from edge_distill_runtime.text.hostile_strings import HOSTILE_STRINGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MARKUP = re.compile(r"[<\[]")


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
    special tokens in it are parsed. Some things that llama.cpp cannot express are left out:

    - NFC normalization: texts are normalized first;
    - a space before the first word of a text only (Metaspace's scheme "first"): texts are compared behind a
      special token;
    - plain tokens that llama.cpp takes for special by their text, as Qwen2's "</s>": they are cut out;
    - special tokens that swallow white space beyond ASCII: texts are compared behind one that swallows none.

    The file must be one that we wrote, or one that has passed the runtime's check.
    """
    document = tokenizer_json(tokenizer)
    added = {token["content"] for token in document["added_tokens"]}
    mismatches = []
    with _open(path) as vocabulary:
        plain = [
            token for token in document["model"]["vocab"] if token not in added and _MARKUP.search(token)
        ]
        mistaken = [token for token in plain if vocabulary.is_control(tokenizer.convert_tokens_to_ids(token))]
        for text, add_special in _texts(tokenizer, document):
            for token in mistaken:
                text = text.replace(token, "")
            expected = tokenizer.encode(text, add_special_tokens=add_special)
            found = vocabulary.tokenize(text, add_special)
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
    swallows = {token["content"] for token in document["added_tokens"] if token["rstrip"]}
    behind = next((token for token in [tokenizer.eos_token, *special] if token and token not in swallows), "")
    for text in (*HOSTILE_STRINGS, *around):
        if nfc:
            text = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        if not first_word_only:
            yield text, False
            yield text, True
        if behind:
            yield behind + text, False


@dataclass(frozen=True)
class _Vocabulary:
    """The vocabulary of a GGUF file, opened by libllama."""

    llama: Any
    handle: Any

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self.llama.llama_tokenize(self.handle, data, len(data), ids, room, add_special, True)
        if count < 0:
            raise BackendError("tokenize-failed", f"libllama needs {-count} tokens for {len(data)} bytes")
        return list(ids[:count])

    def is_control(self, token: int) -> bool:
        if token >= self.llama.llama_vocab_n_tokens(self.handle):  # libllama dies of it
            return False
        return bool(self.llama.llama_vocab_get_attr(self.handle, token) & self.llama.LLAMA_TOKEN_ATTR_CONTROL)


@contextmanager
def _open(path: Path) -> Iterator[_Vocabulary]:
    llama = library()
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise BackendError("load-failed", f"libllama cannot load the vocabulary of {path.name}")
    try:
        yield _Vocabulary(llama, llama.llama_model_get_vocab(model))
    finally:
        llama.llama_model_free(model)
