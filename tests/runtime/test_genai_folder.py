"""An onnxruntime-genai folder that others made: its settings, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import Model
from edge_distill_runtime.bundles.genai_folder import CONFIG_NAME, find_genai_folder
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, KVLayout, SamplingDefaults
from edge_distill_runtime.bundles.opening import Opened, open_model
from edge_distill_runtime.errors import BundleError
from edge_distill_runtime.text.chat import ReasoningMarkers
from tests.random_models import CONTEXT_LENGTH, VOCAB_SIZE
from tests.runtime.bundles import CHAT

QUESTION = "Anna has 7 apples. How many are left?"


@pytest.fixture
def folder(bundles: dict[str, Path], checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """As onnxruntime-genai's model builder leaves it: our bundles hold the same graph and configuration."""
    folder = Path(shutil.copytree(bundles["onnx"], tmp_path / "tiny"))
    (folder / MANIFEST_NAME).unlink()
    checkpoint.tokenizer.save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    change(config)
    (folder / CONFIG_NAME).write_text(json.dumps(config))


def as_model(opened: Opened) -> Model:
    return Model(opened.manifest, opened.backend, opened.tokenizer, opened.detokenizer)


@pytest.mark.parametrize("isolate", [False, True])
def test_answers_are_those_of_the_bundle(folder: Path, bundles: dict[str, Path], isolate: bool) -> None:
    opened, bundled = open_model(folder, threads=1, isolate=isolate), open_model(bundles["onnx"], threads=1)
    with as_model(opened) as model, as_model(bundled) as whole:
        assert opened.notes == ()
        assert model.encode(QUESTION) == whole.encode(QUESTION)
        assert model.generate(QUESTION, max_tokens=24).text == whole.generate(QUESTION, max_tokens=24).text


def test_settings(folder: Path) -> None:
    found = find_genai_folder(folder)
    manifest = found.manifest
    assert (manifest.name, manifest.format, manifest.architecture) == ("tiny", "onnx", "llama")
    assert (manifest.vocab_size, manifest.context_length) == (VOCAB_SIZE, CONTEXT_LENGTH)
    assert manifest.kv == KVLayout(layers=2, kv_heads=2, head_dim=32, bytes_per_value=4)
    assert manifest.chat == CHAT
    assert manifest.reasoning == ReasoningMarkers("<think>", "</think>")
    assert (manifest.stop_ids, manifest.bos_id) == ((2,), None)
    assert manifest.sampling == SamplingDefaults()  # do_sample is false
    parts = [folder / name for name in ("model.onnx", "model.onnx.data")]
    assert found.model_bytes == sum(part.stat().st_size for part in parts)
    before = found.read_texts().model_hash
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"x")
    assert find_genai_folder(folder).read_texts().model_hash != before


def test_the_configuration_names_the_ends_of_reasoning(folder: Path, checkpoint: Checkpoint) -> None:
    ids = {text: checkpoint.tokenizer.convert_tokens_to_ids(text) for text in ("<|im_start|>", "<|im_end|>")}
    edit(folder, lambda config: config["model"].update(bor_token_id=ids["<|im_start|>"]))
    assert find_genai_folder(folder).manifest.reasoning == ReasoningMarkers("<think>", "</think>")
    edit(folder, lambda config: config["model"].update(eor_token_id=ids["<|im_end|>"]))
    assert find_genai_folder(folder).manifest.reasoning == ReasoningMarkers("<|im_start|>", "<|im_end|>")


def test_sampling_and_templates(folder: Path) -> None:
    edit(folder, lambda config: config["search"].update(do_sample=True, temperature=0.6, top_k=20, top_p=2.0))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    found = find_genai_folder(folder)
    assert found.manifest.sampling == SamplingDefaults(temperature=0.6, top_k=20)
    assert found.notes == (
        "it has no chat template: prompts are taken as raw text",
        "its top_p of 2.0 is out of range and not used",
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for stored in (template, [{"name": "default", "template": template}, {"name": "rag", "template": "x"}]):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": stored}))
        assert find_genai_folder(folder).manifest.chat == CHAT
    (folder / "chat_template.jinja").write_text("{{ 'a' * 10**10 }}")
    with pytest.raises(BundleError, match="needs more than 256 MiB"):
        find_genai_folder(folder)


DECODER = ("model", "decoder")


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ((*DECODER, "session_options"), "custom_ops_library", "evil.so", "options.custom_ops_library, which"),
        ((*DECODER, "session_options"), "config_entries", {}, "options.config_entries, which"),
        ((*DECODER, "session_options"), "provider_options", [{"cuda": {}}], "the provider 'cuda'"),
        ((*DECODER, "session_options"), "provider_options", {"cuda": {}}, "a list of objects"),
        (DECODER, "pipeline", [], "the key model.decoder.pipeline"),
        (DECODER, "sliding_window", {"window_size": 8}, "the key model.decoder.sliding_window"),
        (DECODER, "filename", "../model.onnx", "is not a plain relative path"),
        (DECODER, "filename", "/etc/passwd", "is not a plain relative path"),
        (DECODER, "filename", "other.onnx", "lacks other.onnx"),
        (DECODER, "filename", 3, "filename is 3, it must be a string"),
        (DECODER, "head_size", 0, r"head_size is 0, it must be an integer in \[1, 65536\]"),
        (DECODER, "head_size", 48, "48"),
        (DECODER, "num_hidden_layers", True, "num_hidden_layers is True"),
        (DECODER, "inputs", {"input_ids": "ids"}, "inputs.input_ids is 'ids', expected 'input_ids'"),
        (DECODER, "inputs", 7, "inputs is no object"),
        (("model",), "vision", {}, "the key model.vision"),
        (("model",), "vocab_size", 511, "computes 512 logits, the manifest says 511"),
        (("model",), "vocab_size", 1 << 30, "vocab_size is 1073741824"),
        (("model",), "context_length", "long", "context_length is long"),
        (("model",), "eos_token_id", [2, 512], "eos_token_id holds 512, the vocabulary has 512 tokens"),
        (("model",), "decoder", None, "decoder is no object"),
        ((), "engine", {}, "the key engine"),
    ],
)
def test_configurations_that_are_refused(
    folder: Path, where: tuple[str, ...], key: str, value: Any, message: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        for name in where:
            config = config[name]
        config[key] = value

    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        open_model(folder, threads=1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"model": {}, "model": {}}',
        b'{"model": NaN}',
        b"[" * 100_000,
        b"{}",
        b" " * (2 << 20),
    ],
)
def test_damaged_configurations(folder: Path, content: bytes) -> None:
    (folder / CONFIG_NAME).write_bytes(content)
    with pytest.raises(BundleError):
        open_model(folder, threads=1)


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    data = folder / "model.onnx.data"
    os.rename(data, tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a symbolic link"):
        open_model(folder)
    data.unlink()
    os.link(tmp_path / "elsewhere", data)
    with pytest.raises(BundleError, match="has 2 hard links"):
        open_model(folder)


@pytest.mark.parametrize("location", ["../elsewhere", "/absolute"])
def test_data_outside_the_folder_is_refused(folder: Path, tmp_path: Path, location: str) -> None:
    os.rename(folder / "model.onnx.data", tmp_path / "elsewhere")
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location.replace("/absolute", str(tmp_path / "elsewhere"))
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load"):
        open_model(folder, threads=1)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"added_tokens": 3}', b'{"model": 1, "added_tokens": []}'])
def test_damaged_tokenizers(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError):
        open_model(folder, threads=1)
