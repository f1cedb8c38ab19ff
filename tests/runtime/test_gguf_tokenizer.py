"""The tokenizer in a GGUF file: the ids and bytes of the checkpoint's own, in bounded time."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from edge_distill_export.gguf_vocab import choose_vocabulary, write_vocabulary
from edge_distill_runtime.bundles.gguf_header import read_gguf_header
from edge_distill_runtime.errors import BackendError, InputError
from edge_distill_runtime.text.detokenizer import Detokenizer, encode
from edge_distill_runtime.text.gguf_tokenizer import (
    adds_bos,
    build_tokenizer,
    gguf_detokenizer,
    prove_tokenizer,
)
from edge_distill_runtime.text.hostile_strings import HOSTILE_STRINGS
from tests.random_tokenizers import BYTE_LEVEL_TOKENIZERS, SPM_TOKENIZERS, random_tokenizer

KINDS = [*BYTE_LEVEL_TOKENIZERS, *SPM_TOKENIZERS]
ROWS = 512
_folder = TemporaryDirectory(prefix="vocabularies-")


@cache
def vocabulary_file(kind: str) -> Path:
    path = Path(_folder.name) / f"{kind}.gguf"
    write_vocabulary(choose_vocabulary(random_tokenizer(kind), ROWS, "student", "llama"), path, "llama")
    return path


def metadata_of(kind: str, **changes: Any) -> dict[str, Any]:
    metadata = read_gguf_header(vocabulary_file(kind)).metadata
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_bytes_are_those_of_the_checkpoints_tokenizer(kind: str) -> None:
    expected = random_tokenizer(kind)
    metadata = metadata_of(kind)
    tokenizer = build_tokenizer(metadata)
    for text in HOSTILE_STRINGS:  # not normalized beforehand: Qwen's tokenizer does that itself
        assert encode(tokenizer, text) == expected.encode(text, add_special_tokens=False), text
    assert adds_bos(metadata) == (expected.encode("a")[0] == expected.bos_token_id)
    backend = expected.backend_tokenizer
    theirs = Detokenizer(backend, json.loads(backend.to_str()), ["<think>"])
    ours = gguf_detokenizer(tokenizer, metadata, ("<think>",))
    assert [ours.bytes_of(token) for token in range(ROWS)] == [theirs.bytes_of(t) for t in range(ROWS)]
    for text in HOSTILE_STRINGS:
        assert ours.decode(encode(tokenizer, text)) == theirs.decode(encode(backend, text))


@pytest.mark.parametrize("kind", KINDS)
def test_long_runs_take_no_long_time(kind: str) -> None:
    """libllama takes 20 to 110 s for some of these, and for others overflows its stack."""
    tokenizer = build_tokenizer(metadata_of(kind))
    before = time.perf_counter()
    for piece in ("a", " ", "1", "!", "🙂", "你", "<|im_end|>", "hello "):
        text = piece * (200_000 // len(piece))
        assert len(encode(tokenizer, text)) > 10_000
    assert time.perf_counter() - before < 10


@pytest.mark.parametrize("kind", ["smollm", "gemma"])
@pytest.mark.parametrize("isolate", [False, True])
def test_proof(kind: str, isolate: bool) -> None:
    tokenizer = build_tokenizer(metadata_of(kind))
    prove_tokenizer(tokenizer, metadata_of(kind), vocabulary_file(kind), isolate=isolate)
    other = build_tokenizer(metadata_of("gpt2"))  # which does not split digits
    with pytest.raises(InputError, match=r"splits '.*' into \[.*\], libllama into \[") as caught:
        prove_tokenizer(other, metadata_of(kind), vocabulary_file(kind), isolate=isolate)
    assert caught.value.code == "tokenizer-mismatch"


@pytest.mark.parametrize("isolate", [False, True])
def test_vocabulary_that_libllama_refuses(isolate: bool, tmp_path: Path) -> None:
    path = tmp_path / "unknown.gguf"
    path.write_bytes(vocabulary_file("gpt2").read_bytes().replace(b"gpt-2", b"gpt-9"))
    with pytest.raises(BackendError, match="cannot load the vocabulary"):
        prove_tokenizer(build_tokenizer(metadata_of("gpt2")), metadata_of("gpt2"), path, isolate=isolate)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt2", {"pre": "tekken"}, "pre-tokenizer 'tekken', which is not known; known are gpt-2"),
        ("gpt2", {"pre": 3}, "pre-tokenizer '3'"),
        ("gpt2", {"merges": None}, "no list of merges"),
        ("gpt2", {"merges": ["ab"]}, "no list of merges"),
        ("gpt2", {"merges": [1, 2]}, "no list of merges"),
        ("llama2", {"scores": None}, "lack the tokens' scores"),
    ],
)
def test_metadata_that_cannot_be_used(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_tokenizer(metadata_of(kind, **changes))


def test_a_missing_byte_token_never_reaches_libllama() -> None:
    metadata = metadata_of("llama2")
    tokens = ["<0xZZ>" if text == "<0x41>" else text for text in metadata["tokenizer.ggml.tokens"]]
    with pytest.raises(InputError, match="no token <0x41>"):
        build_tokenizer(metadata | {"tokenizer.ggml.tokens": tokens})


def test_thousands_of_special_tokens() -> None:
    """Gemma has 6,000."""
    metadata = metadata_of("gpt2")
    many = [f"<|{index}|>" for index in range(70_000)]
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    before = time.perf_counter()
    tokenizer = build_tokenizer(
        metadata_of("gpt2", tokens=tokens + many[:8000], token_type=types + [3] * 8000)
    )
    assert encode(tokenizer, "a<|7999|>b")[1] == ROWS + 7999
    assert time.perf_counter() - before < 3
    with pytest.raises(InputError, match=r"7000\d tokens are special, the limit is 65536"):
        build_tokenizer(metadata_of("gpt2", tokens=tokens + many, token_type=types + [3] * 70_000))


def test_merges_of_unknown_tokens_are_a_typed_error() -> None:
    from edge_distill_runtime.errors import BundleError

    with pytest.raises(BundleError, match="is no tokenizer"):
        build_tokenizer(metadata_of("gpt2", merges=["zzzz yyyy"]))
