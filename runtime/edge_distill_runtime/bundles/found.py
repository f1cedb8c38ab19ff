"""What the readers of bundles, GGUF files and folders tell about a model before an engine opens it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_distill_runtime.bundles.files import open_regular
from edge_distill_runtime.bundles.manifest import Manifest, SamplingDefaults
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.chat import ChatSegments
from edge_distill_runtime.text.chat_template import derive_segments
from edge_distill_runtime.text.detokenizer import Detokenizer

__all__ = ["Found", "Texts", "chat_of", "hash_files", "plain_name", "sampling_of"]

DEFAULT_CONTEXT = 4096
"""Of files that others made: their own maximum is often 131,072 tokens, gigabytes of cache."""


@dataclass(frozen=True)
class Texts:
    """The second, slower half: made after context and memory have been checked."""

    tokenizer: Any
    """A `tokenizers.Tokenizer`."""
    detokenizer: Detokenizer
    model_hash: str
    """Lower-case hexadecimal SHA-256 of the model's files."""


@dataclass(frozen=True)
class Found:
    """A model on disk, its settings read and checked, no weight loaded."""

    manifest: Manifest
    model_path: Path
    model_bytes: int
    tokenizer_bytes: int
    """Size of its tokenizer.json, or about as much."""
    default_context: int
    notes: tuple[str, ...]
    """What a person should know: settings that were missing or could not be used."""
    read_texts: Callable[[], Texts]
    """Checks what is left to check, hashes, and reads the tokenizer."""


def chat_of(
    template: Any, special_tokens: Mapping[str, Any], name: str
) -> tuple[ChatSegments | None, tuple[str, ...]]:
    """The chat form of a file's template and a note where it has none that can be stored.

    Raises `BundleError` for a template that takes more time or memory than any honest one.
    """
    if not isinstance(template, str) or not template.strip():
        return None, ("it has no chat template: prompts are taken as raw text",)
    try:
        return derive_segments(template, special_tokens, name), ()
    except InputError as error:
        return None, (f"{error.what}: prompts are taken as raw text",)


def sampling_of(values: Mapping[str, Any]) -> tuple[SamplingDefaults, tuple[str, ...]]:
    """`SamplingDefaults` from its fields' names; values out of range are left out with a note."""
    limits = {
        "temperature": (0.0, 100.0),
        "top_k": (0, 1 << 30),
        "top_p": (1e-9, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (0.01, 10.0),
    }
    kept: dict[str, Any] = {}
    notes = []
    for name, (low, high) in limits.items():
        value = values.get(name)
        if value is None:
            continue
        kinds = (int,) if name == "top_k" else (int, float)
        if type(value) in kinds and math.isfinite(value) and low <= value <= high:
            kept[name] = value if name == "top_k" else float(value)
        else:
            notes.append(f"its {name} of {str(value)[:20]} is out of range and not used")
    return SamplingDefaults(**kept), tuple(notes)


def plain_name(name: Any, fallback: str) -> str:
    """A name for messages: one line, at most 80 characters."""
    text = name if isinstance(name, str) and name.strip() else fallback
    return "".join(character if character.isprintable() else "?" for character in text.strip())[:80]


def hash_files(folder: Path, names: Iterable[str], *, allow_links: bool = False) -> str:
    """SHA-256 of one file; of several, that of the list of their names and hashes."""
    hashes = {}
    for name in sorted(names):
        with open_regular(folder / name, allow_links=allow_links) as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return combine_hashes(hashes)


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """The hash of a model from its files' names and SHA-256."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
