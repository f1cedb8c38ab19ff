"""Tiny bundles of a random llama, written by the project's own packers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.gguf_writer import write_gguf
from edge_distill_export.onnx_graph import write_onnx
from edge_distill_runtime.bundles.manifest import (
    MANIFEST_NAME,
    FileEntry,
    KVLayout,
    Manifest,
    Precision,
    manifest_to_json,
)
from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers
from tests.random_models import CONTEXT_LENGTH, VOCAB_SIZE

CHAT = ChatSegments(
    prefix="",
    default_system="",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
    generation_prompt="<|im_start|>assistant\n",
    strips_content=False,
)


def file_entry(directory: Path, name: str) -> FileEntry:
    data = (directory / name).read_bytes()
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def write_model(directory: Path, checkpoint: Checkpoint, kind: Literal["gguf", "onnx"]) -> None:
    """The model file and tokenizer.json, without a manifest; float32 weights."""
    directory.mkdir(parents=True, exist_ok=True)
    if kind == "gguf":
        write_gguf(checkpoint, directory / "model.gguf", float_type="f32", context_length=CONTEXT_LENGTH)
    else:
        write_onnx(checkpoint, directory, context_length=CONTEXT_LENGTH)
    checkpoint.tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))


def make_manifest(directory: Path, kind: Literal["gguf", "onnx"], **changes: Any) -> Manifest:
    """A manifest that fits what lies in `directory`."""
    names = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST_NAME)
    fields: dict[str, Any] = {
        "name": "tiny",
        "format": kind,
        "precision": Precision("f32", "none", 32.0, {"F32": 21}),
        "architecture": "llama",
        "parameter_count": 360_000,
        "vocab_size": VOCAB_SIZE,
        "context_length": CONTEXT_LENGTH,
        "kv": KVLayout(layers=2, kv_heads=2, head_dim=32, bytes_per_value=2 if kind == "gguf" else 4),
        "stop_ids": (),
        "bos_id": None,
        "chat": CHAT,
        "reasoning": ReasoningMarkers("<think>", "</think>"),
        "files": tuple(file_entry(directory, name) for name in names),
    }
    return Manifest(**(fields | changes))


def write_manifest(directory: Path, kind: Literal["gguf", "onnx"], **changes: Any) -> Manifest:
    manifest = make_manifest(directory, kind, **changes)
    (directory / MANIFEST_NAME).write_bytes(manifest_to_json(manifest))
    return manifest
