"""10,000 random token sequences: streamed text is the whole text, and the decode of all bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edge_distill_runtime.generation.reader import TextReader
from edge_distill_runtime.text.chat import ReasoningMarkers
from edge_distill_runtime.text.detokenizer import Detokenizer, load_tokenizer
from tests.random_models import VOCAB_SIZE
from tests.random_tokenizers import BYTE_LEVEL_TOKENIZERS, SPM_TOKENIZERS, random_tokenizer

SEED = 20263
SEQUENCES = 2_000  # for each of the six tokenizers
MARKERS = ReasoningMarkers("<think>", "</think>")


def whole_text(detokenizer: Detokenizer, tokens: list[int], strips: bool) -> str:
    """All bytes first, then Python's decoder over all of them."""
    data = b"".join(map(detokenizer.bytes_of, tokens))
    return (data.removeprefix(b" ") if strips else data).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", [*BYTE_LEVEL_TOKENIZERS, *SPM_TOKENIZERS])
def test_streamed_text_is_the_whole_text(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    random_tokenizer(kind).backend_tokenizer.save(str(path))
    tokenizer, detokenizer = load_tokenizer(path, (MARKERS.open, MARKERS.close))
    generator = random.Random(f"{SEED}/{kind}")
    print(f"seed {SEED}/{kind}")
    byte_tokens = [token for token in range(VOCAB_SIZE) if len(detokenizer.bytes_of(token)) == 1]
    marks = [i for i in map(tokenizer.token_to_id, (MARKERS.open, MARKERS.close)) if i is not None]
    incomplete = 0
    for _ in range(SEQUENCES):
        # single bytes make characters that tokens share, and damaged ones; ids beyond the vocabulary have no text
        pool = generator.choice((range(VOCAB_SIZE), byte_tokens, [*byte_tokens, *(marks * 20)]))
        tokens = [generator.choice(pool) for _ in range(generator.randrange(1, 40))]
        stream = detokenizer.stream()
        streamed = [*(stream.feed(token) for token in tokens), stream.finish()]
        expected = whole_text(detokenizer, tokens, kind == "llama2")
        assert "".join(streamed) == detokenizer.decode(tokens) == expected, tokens
        incomplete += "\ufffd" in expected
        reader = TextReader(detokenizer, None)
        pieces = [piece for token in tokens for piece in reader.feed(token)] + reader.finish()
        assert "".join(piece.text for piece in pieces) == expected, tokens
        check_markers(detokenizer, tokens, expected)
    assert incomplete > SEQUENCES // 10


def check_markers(detokenizer: Detokenizer, tokens: list[int], expected: str) -> None:
    """Read token by token, and all at once: the same reasoning and the same answer, and nothing is lost."""
    reader, at_once = TextReader(detokenizer, MARKERS), TextReader(detokenizer, MARKERS)
    pieces = [piece for token in tokens for piece in reader.feed(token)] + reader.finish()
    at_once.restart(tokens)
    at_once.finish()
    for kind in ("reasoning", "answer"):
        text = "".join(piece.text for piece in pieces if piece.kind == kind)
        assert text == reader.given(kind) == at_once.given(kind), tokens
    assert reader.text == at_once.text
    left = sum(len(piece.text) for piece in pieces)
    markers = expected.count(MARKERS.open) * len(MARKERS.open) + expected.count(MARKERS.close) * len(
        MARKERS.close
    )
    assert len(expected) - markers <= left <= len(expected)
