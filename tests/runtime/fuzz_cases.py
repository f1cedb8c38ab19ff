"""Sound models of every family, and their mutants by number: the same seed and number give the same bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tests.runtime.fuzz_mutations import mutate_bytes, mutate_gguf, mutate_json, mutate_onnx

__all__ = ["GROUPS", "Cases", "write_sound_models"]

MANIFEST = "edge_distill.json"

# Variant of tests.random_models and the form of its weights.
GGUF = [
    *(
        ("llama-tied-gqa", "q4_0"),
        ("llama-untied-mha", "f16"),
        ("llama-biases", "q8_0"),
        ("llama-head-dim", "f16"),
    ),
    *(("llama-rope-llama3", "q4_0"), ("mistral-untied-gqa", "q8_0"), ("qwen2-tied-gqa", "q4_0")),
    *(("qwen2-rope-yarn", "f32"), ("qwen3-tied-gqa", "q8_0"), ("gemma3_text-tied-gqa", "f16")),
    *(("gemma3_text-untied-mha", "q4_0"), ("phi3-untied-mha", "q4_0"), ("phi3-partial-longrope", "f16")),
    *(("smollm3-tied-gqa", "q8_0"), ("granite-tied-gqa", "q4_0"), ("llama-wide", "q4_k_m")),
]
ONNX = [
    *(
        ("llama-tied-gqa", "int4"),
        ("llama-biases", "fp32"),
        ("qwen2-tied-gqa", "int8"),
        ("qwen3-tied-gqa", "int4"),
    ),
    *(("gemma3_text-tied-gqa", "int4"), ("phi3-untied-mha", "int4"), ("granite-tied-gqa", "fp32")),
]
GROUPS = ("gguf", "onnx", "tokenizer", "genai", "manifest")
Mutate = Callable[[bytes, random.Random], bytes]


class Case(NamedTuple):
    """One file of one sound model, and how it is opened."""

    group: str
    model: str
    file: str
    opened: str
    """What is opened of the model's folder: a file, or "" for the folder."""
    mutate: Mutate


class Cases:
    """The mutants of some groups of cases."""

    def __init__(self, sound: Path, seed: int, groups: Sequence[str] = GROUPS) -> None:
        self._sound, self._seed = sound, seed
        models = sorted(path.name for path in sound.iterdir() if path.is_dir())
        self._cases = [case for model in models for case in _cases_of(sound / model) if case.group in groups]

    def __getitem__(self, number: int) -> Case:
        return self._cases[number % len(self._cases)]

    def paths(self, scratch: Path) -> Iterator[Path]:
        """Fresh copies of one sound model of each format."""
        for kind in ("gguf", "onnx"):
            for case in (case for case in self._cases if case.model.startswith(kind)):
                folder = scratch / "sound" / case.model
                shutil.copytree(self._sound / case.model, folder, dirs_exist_ok=True)
                yield folder / case.opened
                break

    def write(self, number: int, scratch: Path) -> Path:
        """Write a mutant; where it lies."""
        case = self[number]
        folder = scratch / f"{case.model} {case.file} {case.opened}"
        if not folder.exists():
            shutil.copytree(self._sound / case.model, folder)
            if case.opened.startswith("genai"):
                (folder / MANIFEST).unlink()
        data = (self._sound / case.model / case.file).read_bytes()
        mutant = case.mutate(data, random.Random(f"{self._seed}/{number}"))
        (folder / case.file).write_bytes(mutant)
        if case.file != MANIFEST and (folder / MANIFEST).exists():
            _seal(folder / MANIFEST, case.file, mutant)
        return folder if case.opened == "genai" else folder / case.opened


def _cases_of(folder: Path) -> Iterator[Case]:
    if folder.name.startswith("gguf"):
        for opened in ("model.gguf", ""):  # by itself, and as a bundle
            yield Case("gguf", folder.name, "model.gguf", opened, mutate_gguf)
        yield Case("tokenizer", folder.name, "tokenizer.json", "", mutate_json)
    else:
        for opened in ("genai", ""):
            yield Case("onnx", folder.name, "model.onnx", opened, mutate_onnx)
            yield Case("tokenizer", folder.name, "tokenizer.json", opened, mutate_json)
        yield Case("onnx", folder.name, "model.onnx.data", "genai", mutate_bytes)
        yield Case("genai", folder.name, "genai_config.json", "genai", mutate_json)
        yield Case("genai", folder.name, "tokenizer_config.json", "genai", mutate_json)
    yield Case("manifest", folder.name, MANIFEST, "", mutate_json)


def _unseal(manifest: Path) -> None:
    """Without its seal, what is changed in a manifest reaches the checks of its parts."""
    value = json.loads(manifest.read_bytes())
    del value["seal"]
    manifest.write_text(json.dumps(value))


def _seal(manifest: Path, name: str, data: bytes) -> None:
    """Make the manifest fit the mutant, else nothing but the hash check would be tested."""
    value = json.loads(manifest.read_bytes())
    for entry in value["files"]:
        if entry["path"] == name:
            entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest.write_text(json.dumps(value))


def write_sound_models(folder: Path) -> None:
    """A bundle of every variant and form above, some ten to hundred kilobytes each."""
    from edge_distill_runtime.bundles.bare_gguf import find_gguf
    from edge_distill_runtime.bundles.genai_folder import find_genai_folder
    from tests.runtime.bundles import write_manifest

    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    for kind, forms in (("gguf", GGUF), ("onnx", ONNX)):
        for name, form in forms:
            bundle = folder / f"{kind}-{name}-{form}"
            bundle.mkdir(parents=True)
            checkpoint = _small_checkpoint(name)
            _write_model(checkpoint, bundle, form)
            checkpoint.tokenizer.backend_tokenizer.save(str(bundle / "tokenizer.json"))
            if kind == "onnx":
                (bundle / "tokenizer_config.json").write_text(
                    '{"bos_token": "a", "eos_token": {"content": "b"}}'
                )
                found = find_genai_folder(bundle).manifest
            else:
                found = find_gguf(bundle / "model.gguf", isolate=False).manifest
            fields: dict[str, Any] = {"kv": found.kv, "context_length": found.context_length}
            write_manifest(bundle, "gguf" if kind == "gguf" else "onnx", **fields)
            _unseal(bundle / MANIFEST)


def _small_checkpoint(name: str) -> Any:
    from edge_distill_export.checkpoint import Checkpoint
    from tests.random_models import random_checkpoint, variant_named

    variant = variant_named(name)
    if name not in ("llama-wide", "phi3-partial-longrope"):  # whose sizes are what they test
        variant = replace(variant, config={**variant.config, "hidden_size": 64, "intermediate_size": 96})
    model, tokenizer = random_checkpoint(variant)
    tokenizer.chat_template = (
        None  # rendering one takes a process and half a second; see test_chat_template.py
    )
    return Checkpoint(model, tokenizer, "tiny", {})


def _write_model(checkpoint: Any, bundle: Path, form: str) -> None:
    from edge_distill_export.gguf_writer import write_gguf
    from edge_distill_export.kquants import quantize_gguf
    from edge_distill_export.onnx_graph import write_onnx
    from tests.export.gguf_files import quantize_all

    bits = {"q4_0": 4, "q8_0": 8, "int4": 4, "int8": 8}.get(form)
    quantized = quantize_all(checkpoint, bits) if bits else {}
    path = bundle / "model.gguf"
    if form in ("int4", "int8", "fp32"):
        write_onnx(checkpoint, bundle, quantized=quantized, context_length=64)
    elif form == "q4_k_m":
        write_gguf(checkpoint, bundle / "floats", float_type="f16", context_length=256)
        quantize_gguf(bundle / "floats", path, "q4_k_m", importance={}, threads=1)
        (bundle / "floats").unlink()
    else:
        float_type = "f32" if form == "f32" else "f16"
        write_gguf(checkpoint, path, float_type=float_type, quantized=quantized, context_length=256)  # type: ignore[arg-type]
