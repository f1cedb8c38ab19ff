"""Text from token ids: nothing lost, nothing split, the same as the tokenizers library decodes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_distill_runtime import BundleError
from edge_distill_runtime.text.detokenizer import Detokenizer, encode
from tests.random_tokenizers import BYTE_LEVEL_TOKENIZERS, SPM_TOKENIZERS, random_tokenizer

KINDS = [*BYTE_LEVEL_TOKENIZERS, *SPM_TOKENIZERS]
HOSTILE = [
    "",
    " ",
    "  two  spaces ",
    "\n\t\r\n",
    "e\u0301 n\u0303",
    "👩‍👩‍👧‍👦🙂",
    "1234567890",
    "שלום مرحبا",
    "\u2581",
    "\u0120\u010a",
    "<0x41>",
    "\ufffd",
    "\u0000\u001f",
]


@cache
def tokenizer_of(kind: str) -> tuple[object, Detokenizer]:
    tokenizer = random_tokenizer(kind).backend_tokenizer
    return tokenizer, Detokenizer(tokenizer, json.loads(tokenizer.to_str()))


def expected_bytes(kind: str, tokens: list[int]) -> bytes:
    """Worked out from the vocabulary alone, not by the code under test."""
    tokenizer, _ = tokenizer_of(kind)
    data = b""
    added = tokenizer.get_added_tokens_decoder()  # type: ignore[attr-defined]
    for token in tokens:
        text = tokenizer.id_to_token(token)  # type: ignore[attr-defined]
        if token in added:
            data += b"" if added[token].special else text.encode()
        elif kind in BYTE_LEVEL_TOKENIZERS:
            # GPT-2's alphabet: printable Latin-1 stands for itself, the others are moved to U+0100 and on
            hidden = [*range(33), *range(127, 161), 173]
            data += bytes(hidden[ord(c) - 256] if ord(c) >= 256 else ord(c) for c in text)
        elif text.startswith("<0x") and len(text) == 6:
            data += bytes.fromhex(text[3:5])
        else:
            data += text.replace("\u2581", " ").encode()
    return data


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_random_tokens(kind: str, data: st.DataObject) -> None:
    """Streamed, not streamed, all bytes decoded at once: one text for any ids, also for broken UTF-8."""
    _, detokenizer = tokenizer_of(kind)
    tokens = data.draw(st.lists(st.integers(0, 520), max_size=40))
    known = [token for token in tokens if tokenizer_of(kind)[0].id_to_token(token) is not None]  # type: ignore[attr-defined]
    expected = expected_bytes(kind, known)
    assert b"".join(detokenizer.bytes_of(token) for token in tokens) == expected
    if kind == "llama2":
        expected = expected.removeprefix(b" ")
    stream = detokenizer.stream()
    parts = [stream.feed(token) for token in tokens]
    text = "".join(parts) + stream.finish()
    assert text == detokenizer.decode(tokens) == expected.decode("utf-8", "replace")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_text_comes_back(kind: str, text: str) -> None:
    tokenizer, detokenizer = tokenizer_of(kind)
    tokens = encode(tokenizer, text)
    assert detokenizer.decode(tokens) == tokenizer.decode(tokens)  # type: ignore[attr-defined]
    if kind in ("smollm", "gpt2", "llama3"):  # the others normalize
        assert detokenizer.decode(tokens) == text


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_strings(kind: str) -> None:
    tokenizer, detokenizer = tokenizer_of(kind)
    for text in HOSTILE:
        tokens = encode(tokenizer, text)
        assert detokenizer.decode(tokens) == tokenizer.decode(tokens)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["smollm", "llama2"])
def test_no_character_is_split(kind: str) -> None:
    tokenizer, detokenizer = tokenizer_of(kind)
    text = "né 🙂 ∑ 漢字 👩‍👩‍👧"
    stream = detokenizer.stream()
    parts = [stream.feed(token) for token in encode(tokenizer, text)]
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)
    assert stream.finish() == ""


def test_valid_characters_next_to_invalid_bytes_survive() -> None:
    """llama-cpp-python's streaming drops them."""
    tokenizer, detokenizer = tokenizer_of("llama2")
    byte = {value: tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256)}  # type: ignore[attr-defined]
    letters = "Az"
    data = b"\xffA\xe2\x82z\xf0\x9f\x99\x82\xc3"
    assert detokenizer.decode([byte[value] for value in data]) == "\ufffdA\ufffdz🙂\ufffd"
    assert set(letters) <= set(detokenizer.decode([byte[value] for value in data]))


def test_unknown_decoder() -> None:
    tokenizer, _ = tokenizer_of("smollm")
    with pytest.raises(BundleError, match="decoder is WordPiece"):
        Detokenizer(tokenizer, {"decoder": {"type": "WordPiece"}})
    with pytest.raises(BundleError, match="decoder is none"):
        Detokenizer(tokenizer, {})


def test_tokenizer_file_with_truncation(tmp_path: Path) -> None:
    """A tokenizer.json may carry settings for training that would cut prompts."""
    from edge_distill_runtime.text.detokenizer import load_tokenizer

    tokenizer = random_tokenizer("smollm").backend_tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded, detokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    text = "Anna has 7 apples and gives 3 of them away."
    assert detokenizer.decode(encode(loaded, text)) == text


def test_runs_of_spaces_as_added_tokens() -> None:
    """Gemma's vocabulary adds them as plain tokens."""
    from tokenizers import AddedToken

    tokenizer = random_tokenizer(SPM_TOKENIZERS[0]).backend_tokenizer
    tokenizer.add_tokens([AddedToken("\u2581\u2581", normalized=False)])
    run = tokenizer.token_to_id("\u2581\u2581")
    detokenizer = Detokenizer(tokenizer, json.loads(tokenizer.to_str()))
    assert detokenizer.bytes_of(run) == b"  "
