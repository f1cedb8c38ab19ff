"""A GGUF file without a bundle: the settings from its metadata, the same answers as from the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.gguf_writer import write_gguf
from edge_distill_runtime import Model
from edge_distill_runtime.bundles import bare_gguf
from edge_distill_runtime.bundles.bare_gguf import find_gguf
from edge_distill_runtime.bundles.gguf_check import validate_gguf
from edge_distill_runtime.bundles.manifest import KVLayout, SamplingDefaults
from edge_distill_runtime.bundles.opening import Opened, open_model
from edge_distill_runtime.errors import BundleError, InputError
from edge_distill_runtime.text.chat import ReasoningMarkers
from edge_distill_runtime.text.detokenizer import encode
from tests.random_models import CONTEXT_LENGTH, VOCAB_SIZE, random_checkpoint, variant_named
from tests.runtime.bundles import CHAT

QUESTION = "Anna has 7 apples. How many are left?"


@pytest.fixture(scope="module")
def path(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's model file, alone in a folder."""
    return Path(shutil.copy(bundles["gguf"] / "model.gguf", tmp_path_factory.mktemp("bare") / "tiny.gguf"))


@pytest.fixture(scope="module")
def bundled(bundles: dict[str, Path]) -> Iterator[Opened]:
    opened = open_model(bundles["gguf"], threads=1)
    yield opened
    opened.backend.close()


def as_model(opened: Opened) -> Model:
    return Model(opened.manifest, opened.backend, opened.tokenizer, opened.detokenizer)


def changed(path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> Path:
    """The same file, read with other metadata."""
    header = validate_gguf(path)
    metadata = {key: value for key, value in (header.metadata | changes).items() if value is not None}
    monkeypatch.setattr(bare_gguf, "validate_gguf", lambda *_, **__: replace(header, metadata=metadata))
    return path


@pytest.mark.parametrize("isolate", [False, True])
def test_answers_are_those_of_the_bundle(path: Path, bundled: Opened, isolate: bool) -> None:
    opened = open_model(path, threads=1, isolate=isolate, backend_options={"cache_tokens": 300})
    try:
        assert opened.model_hash == bundled.model_hash
        assert opened.notes == ()
        # the bundle's manifest names no end tokens, which this random model does make
        whole = as_model(replace(bundled, manifest=replace(bundled.manifest, stop_ids=(2, 0))))
        bare = as_model(opened)
        assert bare.encode(QUESTION) == whole.encode(QUESTION)
        result, expected = bare.generate(QUESTION, max_tokens=24), whole.generate(QUESTION, max_tokens=24)
        assert (result.tokens, result.text) == (expected.tokens, expected.text)
        raw = bare.generate(QUESTION, max_tokens=8, raw=True)
        assert raw.tokens == whole.generate(QUESTION, max_tokens=8, raw=True).tokens
        with pytest.raises(InputError, match="lone surrogates"):
            bare.generate("\ud800")
        with pytest.raises(InputError, match="do not fit the context"):
            bare.generate("🙂" * 250_000)
    finally:
        opened.backend.close()


def test_settings(path: Path, checkpoint: Checkpoint) -> None:
    found = find_gguf(path, isolate=False)
    manifest = found.manifest
    assert manifest.name == "tiny"
    assert (manifest.architecture, manifest.format) == ("llama", "gguf")
    assert manifest.parameter_count == sum(weight.numel() for weight in checkpoint.model.parameters())
    assert (manifest.vocab_size, manifest.context_length) == (VOCAB_SIZE, CONTEXT_LENGTH)
    assert manifest.kv == KVLayout(layers=2, kv_heads=2, head_dim=32, bytes_per_value=2)
    assert manifest.chat == CHAT
    assert manifest.reasoning == ReasoningMarkers("<think>", "</think>")
    assert manifest.stop_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    assert manifest.bos_id is None
    assert manifest.sampling == SamplingDefaults()
    assert manifest.precision.tensor_types == {"F32": 20}
    assert (manifest.precision.target, manifest.precision.bits_per_weight) == ("f32", 32.0)
    assert found.model_bytes == path.stat().st_size
    assert found.default_context == CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 9}, "stop_ids", (2, 7, 9, 0)),
        ({"tokenizer.ggml.eos_token_id": None}, "stop_ids", (2, 0)),
        ({"tokenizer.ggml.add_bos_token": True}, "bos_id", 0),
        ({"general.name": "a\n\x1b[31m" + "b" * 200}, "name", "a??[31m" + "b" * 73),
        ({"general.name": 3}, "name", "tiny"),
        (
            {"general.sampling.temp": 0.7, "general.sampling.top_k": 40, "general.sampling.min_p": 0.05},
            "sampling",
            SamplingDefaults(temperature=0.7, top_k=40, min_p=0.05),
        ),
    ],
)
def test_metadata(
    path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], field: str, value: Any
) -> None:
    found = find_gguf(changed(path, monkeypatch, changes), isolate=False)
    assert getattr(found.manifest, field) == value
    assert found.notes == ()


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"tokenizer.chat_template": None}, "it has no chat template"),
        ({"tokenizer.chat_template": 5}, "it has no chat template"),
        ({"tokenizer.chat_template": "{{ messages[-1].content }}"}, "cannot be stored as segments"),
        ({"tokenizer.chat_template": "{% if %}"}, "is no Jinja template"),
        ({"general.sampling.temp": float("nan")}, "its temperature of nan is out of range and not used"),
        ({"general.sampling.top_k": -1}, "its top_k of -1 is out of range"),
        ({"general.sampling.top_p": "x"}, "its top_p of x is out of range"),
    ],
)
def test_what_cannot_be_used_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], note: str
) -> None:
    found = find_gguf(changed(path, monkeypatch, changes), isolate=False)
    assert note in found.notes[0]
    assert (found.manifest.chat is None) == ("general" not in str(changes))
    assert found.manifest.sampling == SamplingDefaults()


def test_hostile_template_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(path, monkeypatch, {"tokenizer.chat_template": "{{ 'a' * 10**10 }}"})
    with pytest.raises(BundleError, match="chat template of tiny needs more than 256 MiB"):
        open_model(path)


def test_context_is_4096_unless_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(path, monkeypatch, {"llama.context_length": 131072})
    opened = open_model(path, threads=1)
    assert (opened.backend.context_length, opened.manifest.context_length) == (4096, 131072)
    opened.backend.close()
    opened = open_model(path, threads=1, context=8192)
    assert opened.backend.context_length == 8192
    opened.backend.close()


@pytest.mark.parametrize(
    "name", ["llama-untied-mha", "gemma3_text-tied-gqa", "qwen2-tied-gqa", "llama-biases"]
)
def test_other_families(name: str, tmp_path: Path) -> None:
    """Token ids with the beginning token, and text, as transformers makes them."""
    model, tokenizer = random_checkpoint(variant_named(name))
    path = tmp_path / "model.gguf"
    write_gguf(
        Checkpoint(model, tokenizer, "tiny", {}), path, float_type="f32", context_length=CONTEXT_LENGTH
    )
    opened = open_model(path, threads=1)
    try:
        bare = as_model(opened)
        text = "Größe: 12 apples 🙂\n\x00 end"
        assert bare.encode(text, raw=True) == tokenizer.encode(text)
        messages = [{"role": "user", "content": text}]
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert bare.encode(messages) == expected
        assert opened.detokenizer.decode(encode(opened.tokenizer, text)) == text
        assert opened.manifest.architecture == model.config.model_type
    finally:
        opened.backend.close()


def test_links_to_a_file_are_followed(path: Path, tmp_path: Path) -> None:
    """The hub's cache is made of them."""
    (tmp_path / "linked.gguf").symlink_to(path)
    opened = open_model(tmp_path / "linked.gguf", threads=1)
    opened.backend.close()
    assert len(opened.model_hash) == 64


@pytest.mark.parametrize("content", [b"", b"GGUF", b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.GGUF").write_bytes(content)
    with pytest.raises(BundleError, match="is no sound GGUF file"):
        open_model(tmp_path / "model.GGUF")


@pytest.mark.real_model
def test_real_model(real_gguf: Path) -> None:
    opened = open_model(real_gguf, context=512)
    with as_model(opened) as model:
        assert opened.manifest.chat is not None
        assert "You are a helpful AI assistant named SmolLM" in opened.manifest.chat.default_system
        assert opened.manifest.stop_ids == (2, 0)
        result = model.generate("What is 2+2?", max_tokens=24)
        assert result.text == "The answer to this classic math problem is 4."
        assert result.finish_reason == "stop"
