"""What becomes a bundle, and when it is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge_distill.checkpoints import as_bundle
from edge_distill_export.checkpoint import source_files
from edge_distill_runtime import load
from edge_distill_runtime.errors import InputError
from tests.random_models import Variant, save_checkpoint, variant_named

# The held-out traces are long in a vocabulary of 512.
STUDENT = Variant(
    "llama", "student", "smollm", {**variant_named("llama-tied-gqa").config, "max_position_embeddings": 1024}
)


def test_a_checkpoint_is_exported_once_until_it_changes(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "student", STUDENT)
    first = as_bundle(str(checkpoint), tmp_path / "bundles")
    assert first.name == "student-fp32"
    with load(first, threads=1) as model:
        assert (model.manifest.format, model.manifest.precision.target) == ("onnx", "fp32")
    written = (first / "edge_distill.json").stat().st_mtime_ns
    (checkpoint / "metrics.jsonl").write_text("{}\n")  # says nothing about the model
    assert as_bundle(str(checkpoint), tmp_path / "bundles") == first
    assert (first / "edge_distill.json").stat().st_mtime_ns == written
    save_checkpoint(checkpoint, STUDENT, seed=1)
    second = as_bundle(str(checkpoint), tmp_path / "bundles")
    assert second.parent != first.parent
    assert {path.name for path in (tmp_path / "bundles").iterdir()} == {first.parent.name, second.parent.name}


def test_bundles_and_gguf_files_stay(bundles: dict[str, Path], tmp_path: Path) -> None:
    for bundle in bundles.values():
        assert as_bundle(str(bundle), tmp_path) == bundle
    gguf = bundles["gguf"] / "model.gguf"
    assert as_bundle(str(gguf), tmp_path) == gguf
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        as_bundle(str(tmp_path / "nothing"), tmp_path)
    assert caught.value.code == "missing-checkpoint"


def test_an_adapters_base_belongs_to_it(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", STUDENT)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    # the smallest safetensors file: a header of two bytes, no data
    (adapter / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    files = source_files(adapter)
    assert adapter / "adapter_model.safetensors" in files
    assert base / "model.safetensors" in files
    assert base / "config.json" in files
    shutil.rmtree(base)
    with pytest.raises(InputError):
        source_files(adapter)
