"""What `open_model` checks whatever lies at the path; test_model.py opens bundles through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_distill_runtime.bundles import opening
from edge_distill_runtime.bundles.found import combine_hashes
from edge_distill_runtime.bundles.opening import open_model
from edge_distill_runtime.errors import InputError, ResourceError
from tests.random_models import CONTEXT_LENGTH

MODELS = ["gguf", "onnx", "gguf/model.gguf"]


def place(bundles: dict[str, Path], what: str) -> Path:
    kind, _, rest = what.partition("/")
    return bundles[kind] / rest


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context 0 was asked for, tiny was made for 256 tokens"),
        ({"context": CONTEXT_LENGTH + 1}, "context 257 was asked for"),
        ({"threads": 0}, "0 threads"),
        ({"backend_options": {"cache": 1}}, r"option 'cache' is unknown \(known: cache_tokens, own_caches\)"),
        ({"backend_options": {"cache_tokens": 255}}, "cache_tokens is 255, the context is 256 tokens"),
        ({"backend_options": {"cache_tokens": 1 << 31}}, "cache_tokens is 2147483648"),
        ({"backend_options": {"cache_tokens": "many"}}, "cache_tokens is 'many'"),
        ({"backend_options": {"own_caches": 1}}, "own_caches is 1"),
    ],
)
def test_bad_options(bundles: dict[str, Path], what: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_model(place(bundles, what), **options)


@pytest.mark.parametrize("what", MODELS)
def test_memory_that_does_not_suffice(
    bundles: dict[str, Path], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "memory_limit", lambda: 30 << 20)
    with pytest.raises(ResourceError, match=r"needs [5-9]\d MiB, this process may have 30 MiB"):
        open_model(place(bundles, what))


@pytest.mark.parametrize("what", MODELS)
def test_cache_tokens_reach_the_engine(bundles: dict[str, Path], what: str) -> None:
    opened = open_model(place(bundles, what), threads=1, context=32, backend_options={"cache_tokens": 512})
    assert (opened.backend.context_length, opened.backend.cache_tokens) == (32, 512)
    opened.backend.close()


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    for path in (tmp_path / "model.bin", tmp_path / "missing"):
        with pytest.raises(InputError, match="onnxruntime-genai folder or"):
            open_model(path)
    with pytest.raises(InputError, match="does not exist"):
        open_model(tmp_path / "missing.gguf")
    with pytest.raises(InputError, match="does not exist"):
        open_model(tmp_path)  # no manifest


def test_hashes_by_hand() -> None:
    assert combine_hashes({"model.gguf": "ab" * 32}) == "ab" * 32
    # printf '00 a\n11 b\n' | sha256sum
    expected = "472f980c5f8069a03623a02d0f64e5967ab1f5f17f9479269c6ee3525ac55019"
    assert combine_hashes({"b": "11", "a": "00"}) == expected
