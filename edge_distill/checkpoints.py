"""One way to run a model: whatever was named becomes something that the runtime loads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from edge_distill_runtime.bundles.manifest import MANIFEST_NAME
from edge_distill_runtime.errors import InputError

__all__ = ["as_bundle"]

_TARGET = "onnx:fp32"


def as_bundle(reference: str, folder: Path) -> Path:
    """The bundle, GGUF file or onnxruntime-genai folder itself; a checkpoint exported to `onnx:fp32` in `folder`.

    A checkpoint is a Hugging Face directory, a PEFT adapter or a hub id. Its bundle stands in
    `folder/HASH/NAME-fp32`, where HASH is that of the files it is made from, and is made once: it is as close to the
    checkpoint as every export has to be (mean KL divergence of at most 0.001 on held-out text).
    Raises what `export` raises.
    """
    path = Path(reference).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if any((path / name).exists() for name in (MANIFEST_NAME, "genai_config.json")):
        return path
    from edge_distill_export.checkpoint import source_files
    from edge_distill_export.export import ExportResult, export

    place = folder / _hash(source_files(reference))
    if made := sorted(place.glob(f"*-fp32/{MANIFEST_NAME}")):
        return made[0].parent
    result = export(reference, to=[_TARGET], out=place)
    if not isinstance(result, ExportResult):  # only a dry run gives a plan
        raise InputError("no-bundle", f"{reference} was not exported", "export it by hand")
    return Path(result.bundles[0].path)


def _hash(files: Iterable[Path]) -> str:
    """16 hexadecimal digits of the SHA-256 of names and contents, and of what exports them."""
    digests = [f"edge-distill {version('edge-distill')}"]
    for path in files:
        with path.open("rb") as file:
            digests.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()} {path.name}")
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
