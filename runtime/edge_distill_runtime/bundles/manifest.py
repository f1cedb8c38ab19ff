"""The manifest of a bundle, `edge_distill.json`: what is inside, and the hash of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_distill_runtime.bundles.files import (
    check_relative_path,
    list_files,
    open_regular,
    read_bounded,
    sha256_of,
    strict_json,
)
from edge_distill_runtime.bundles.typed_json import typed
from edge_distill_runtime.errors import BundleError
from edge_distill_runtime.text.chat import ChatSegments, ReasoningMarkers

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "FileEntry",
    "KVLayout",
    "Manifest",
    "Precision",
    "ReasoningLengths",
    "SamplingDefaults",
    "manifest_to_json",
    "parse_manifest",
    "read_manifest",
    "verify_files",
]

MANIFEST_NAME = "edge_distill.json"
SCHEMA_VERSION = 1
_MAX_BYTES = 1 << 20
_MAX_CONTEXT = 1 << 24


@dataclass(frozen=True)
class Precision:
    """What the weights were rounded to."""

    target: str
    """The name of the target, e.g. `q4_0`, `q4_k_m`, `int4`, `f16`."""
    method: Literal["none", "rtn", "gptq", "k-quant", "unknown"]
    bits_per_weight: float
    """True average over all tensors: 8 x bytes of tensor data / weights."""
    tensor_types: dict[str, int]
    """How many tensors have which type, e.g. `{"Q4_0": 210, "F32": 61}`."""


@dataclass(frozen=True)
class KVLayout:
    """Shape of the key-value cache: 2 x layers x kv_heads x head_dim x bytes_per_value bytes a token."""

    layers: int
    kv_heads: int
    head_dim: int
    bytes_per_value: int

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value


@dataclass(frozen=True)
class SamplingDefaults:
    """Recommended sampling; temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and penalty 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class ReasoningLengths:
    """Quantiles of the tokens of reasoning in the traces that the model learned from."""

    p50: int
    p90: int
    p99: int


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: POSIX path below it, size in bytes, lower-case hexadecimal SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a runtime has to know before it opens the model file."""

    name: str
    format: Literal["gguf", "onnx"]
    precision: Precision
    architecture: str
    """Hugging Face `model_type`, e.g. `llama`."""
    parameter_count: int
    vocab_size: int
    """Columns of the logits."""
    context_length: int
    """Most tokens that the bundle was made for."""
    kv: KVLayout
    stop_ids: tuple[int, ...]
    """Generation ends before any of these token ids."""
    bos_id: int | None
    """Put in front of raw text; None when the model was trained without."""
    chat: ChatSegments | None
    reasoning: ReasoningMarkers | None
    files: tuple[FileEntry, ...]
    """Every file of the bundle but the manifest."""
    reasoning_lengths: ReasoningLengths | None = None
    """The default thinking budget is the last of them; None: no budget."""
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    lineage: dict[str, Any] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, str] = field(default_factory=dict)
    """Required versions, e.g. `{"edge-distill-runtime": ">=0.1"}`."""
    kv_cache: Literal["f16", "q8_0", "q4_0"] | None = None
    """The precision that a GGUF model's cache is opened with by default; None: f16. An ONNX graph has its own."""
    schema_version: int = SCHEMA_VERSION

    @property
    def model_file(self) -> str:
        """Name of the model file inside the bundle."""
        return f"model.{self.format}"


def read_manifest(directory: Path | str) -> Manifest:
    """Read and check the manifest of a bundle; `BundleError` names the first thing that is wrong."""
    path = Path(directory) / MANIFEST_NAME
    return parse_manifest(read_bounded(path, _MAX_BYTES), str(path))


def parse_manifest(data: bytes, where: str = MANIFEST_NAME) -> Manifest:
    """The manifest in `data`, UTF-8 JSON of exactly the known keys."""
    try:
        value = strict_json(data)
        if isinstance(value, dict) and value.get("schema_version") != SCHEMA_VERSION:
            found = str(value.get("schema_version"))[:20]
            raise ValueError(f"schema_version is {found}, this runtime reads {SCHEMA_VERSION}")
        seal = value.pop("seal", None) if isinstance(value, dict) else None
        manifest = typed(Manifest, value, "manifest")
        _check(manifest)
        if seal is not None and seal != _seal(value):  # one written by hand has none
            raise ValueError("it was changed after it was written; if on purpose, remove its seal")
    except (ValueError, RecursionError) as exc:  # includes JSON and UTF-8 errors
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise BundleError(
            "bad-manifest", f"{where}: {reason}", "export the bundle again or update the runtime"
        ) from exc
    return manifest


def manifest_to_json(manifest: Manifest) -> bytes:
    """UTF-8 JSON of a manifest; reads it back, so that no bundle is written that could not be opened."""
    value = dataclasses.asdict(manifest)
    value["seal"] = _seal(value)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode("utf-8")
    if len(data) > _MAX_BYTES:
        raise BundleError(
            "manifest-too-large", f"the manifest has {len(data)} bytes, the limit is {_MAX_BYTES}", ""
        )
    parse_manifest(data)
    return data


def verify_files(
    directory: Path | str, manifest: Manifest, *, progress: Callable[[str], None] | None = None
) -> None:
    """Raise `BundleError` unless the bundle holds exactly the listed files with their sizes and SHA-256."""
    folder = Path(directory)
    listed = {entry.path for entry in manifest.files} | {MANIFEST_NAME}
    present = set(list_files(folder))
    if missing := sorted(listed - present):
        raise BundleError("missing-file", f"{folder} lacks {missing[0]}", "copy or export the bundle again")
    if extra := sorted(present - listed):
        raise BundleError(
            "extra-file", f"{folder} holds {extra[0]!r}, which its manifest does not list", "remove it"
        )
    for entry in manifest.files:  # sizes first: a truncated copy is told without hashing gigabytes
        with open_regular(folder / entry.path) as file:
            size = file.seek(0, 2)
        if size != entry.size:
            raise BundleError(
                "wrong-size",
                f"{entry.path} has {size} bytes, its manifest says {entry.size}",
                "copy or export the bundle again",
            )
    for entry in manifest.files:
        if progress:
            progress(entry.path)
        if sha256_of(folder / entry.path) != (entry.size, entry.sha256):
            raise BundleError(
                "wrong-hash", f"{entry.path} does not match its SHA-256", "copy or export the bundle again"
            )


def _seal(value: dict[str, Any]) -> str:
    """SHA-256 of everything else, however it is spaced and ordered; it finds damage, not forgery."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check(manifest: Manifest) -> None:
    """Checks across fields; raises ValueError."""
    for name, low, high in (
        ("parameter_count", 0, 1 << 48),
        ("vocab_size", 1, 1 << 24),
        ("context_length", 1, _MAX_CONTEXT),
    ):
        if not low <= getattr(manifest, name) <= high:
            raise ValueError(f"{name} is {getattr(manifest, name)}, it must lie in [{low}, {high}]")
    layout = dataclasses.astuple(manifest.kv)
    if not all(1 <= value <= 1 << 16 for value in layout):
        raise ValueError(f"kv has the sizes {layout}, each must lie in [1, 65536]")
    if manifest.kv_cache and manifest.format != "gguf":
        raise ValueError(f"kv_cache is {manifest.kv_cache}, an ONNX graph has its own")
    if manifest.kv_cache in ("q8_0", "q4_0") and manifest.kv.head_dim % 32:
        raise ValueError(
            f"kv_cache is {manifest.kv_cache} in blocks of 32, head_dim is {manifest.kv.head_dim}"
        )
    ids = [*manifest.stop_ids, *([] if manifest.bos_id is None else [manifest.bos_id])]
    if bad := [token for token in ids if not 0 <= token < manifest.vocab_size]:
        raise ValueError(f"token id {bad[0]} lies outside the vocabulary of {manifest.vocab_size}")
    if manifest.reasoning and not (manifest.reasoning.open and manifest.reasoning.close):
        raise ValueError("a reasoning marker is empty")
    lengths = manifest.reasoning_lengths
    if lengths and not 0 < lengths.p50 <= lengths.p90 <= lengths.p99 <= _MAX_CONTEXT:
        raise ValueError(f"reasoning_lengths are {dataclasses.astuple(lengths)}, they must rise from 1 on")
    _check_files(manifest)
    sampling = manifest.sampling
    if (
        sampling.temperature < 0
        or sampling.top_k < 0
        or not 0 < sampling.top_p <= 1
        or not 0 <= sampling.min_p <= 1
        or not 0 < sampling.repetition_penalty <= 10
    ):
        raise ValueError(f"sampling defaults out of range: {sampling}")


def _check_files(manifest: Manifest) -> None:
    paths = [entry.path for entry in manifest.files]
    for path, entry in zip(paths, manifest.files, strict=True):
        try:
            check_relative_path(path)
        except BundleError as exc:
            raise ValueError(str(exc)) from exc
        if entry.size < 0 or len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
            raise ValueError(f"size or sha256 of {path!r} is malformed")
    # File systems that fold case must not let one file stand for two.
    if len({path.casefold() for path in paths}) != len(paths) or MANIFEST_NAME in paths:
        raise ValueError("a file is listed twice, or the manifest lists itself")
    models = {"model.gguf", "model.onnx"} & set(paths)
    if models != {manifest.model_file}:
        raise ValueError(
            f"a bundle of format {manifest.format} holds {manifest.model_file} alone, not {sorted(models)}"
        )
    if "tokenizer.json" not in paths:
        raise ValueError("files lacks tokenizer.json")
