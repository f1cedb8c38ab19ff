"""`edge-distill inspect`: what a bundle, a GGUF file or an ONNX file holds. Headers and graphs are read, no weights.

Files may come from anybody: GGUF headers go through the runtime's bounded reader, and nothing that stands in a
file reaches the terminal with its control characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_export.checkpoint_files import check_content
from edge_distill_export.mixed import high_text
from edge_distill_export.repair_record import repair_text
from edge_distill_runtime.bundles.files import open_regular
from edge_distill_runtime.bundles.gguf_check import kv_layout
from edge_distill_runtime.bundles.gguf_header import GGUFHeader, read_gguf_header
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, Manifest, read_manifest
from edge_distill_runtime.engines.kv_cache import default_token_bytes
from edge_distill_runtime.errors import BundleError, InputError

if TYPE_CHECKING:
    from rich.console import Console

_SNIFF = 64  # bytes that tell a GGUF file, an empty one and a git-lfs pointer
_PACKED_BITS = {"int2": 2, "int4": 4, "int8": 8}


@dataclass(frozen=True)
class Tensor:
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    """As stored: rows first; packed integers are [rows, blocks, bytes]."""
    type: str
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class TypeTotal:
    """All tensors of one type."""

    type: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What is inside; facts that the file does not state are None."""

    path: str
    format: str
    file_bytes: int
    """Of the model file(s); of a bare model.onnx, without its external data."""
    data_bytes: int
    """Of tensors."""
    types: tuple[TypeTotal, ...]
    architecture: str | None
    parameter_count: int | None
    bits_per_weight: float | None
    """8 x bytes of tensors / weights."""
    context_length: int | None
    kv_bytes_per_token: int | None
    manifest: dict[str, Any] | None
    """Of a bundle, as it stands there."""
    tensors: tuple[Tensor, ...] | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        facts = Table("name", "value", box=None, show_header=False, pad_edge=False)
        facts.columns[1].overflow = "fold"  # a hash cut short can be compared with nothing
        for name, value in _facts(self):
            facts.add_row(name, printable(value))
        console.print(facts)
        table = Table(box=None, pad_edge=False)
        for title in ("type", "tensors", "bytes"):
            table.add_column(title, justify="left" if title == "type" else "right")
        for total in self.types:
            table.add_row(printable(total.type), str(total.tensors), f"{total.bytes:,}")
        console.print(table)
        if self.tensors is not None:
            console.print(_tensor_table(self.tensors))


def inspect(
    path: Annotated[Path, "A bundle directory, a .gguf or .onnx file"],
    *,
    tensors: Annotated[bool, "List every tensor"] = False,
) -> Inspection:
    """Show what is inside a bundle or model file, made by whomever; `verify` says whether it is intact."""
    if path.is_dir():
        return _inspect_bundle(path, tensors)
    return _inspect_file(path, tensors)


def open_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle; raises `InputError` for a path that is none, `BundleError` for a damaged one."""
    if not directory.exists():
        raise InputError("missing-file", f"{directory} does not exist", "check the path")
    if not directory.is_dir() or not (directory / MANIFEST_NAME).exists():
        is_model = (directory / "config.json").exists()
        hint = (
            "for a checkpoint there is `edge-distill plan`" if is_model else "give a folder that export made"
        )
        raise InputError("not-a-bundle", f"{directory} holds no {MANIFEST_NAME}, it is no bundle", hint)
    return read_manifest(directory)


def printable(text: str) -> str:
    """`text` without control characters, which could move the cursor or hide what stands there."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def _inspect_bundle(directory: Path, list_tensors: bool) -> Inspection:
    manifest = open_manifest(directory)
    model = directory / manifest.model_file
    found = _gguf_tensors(read_gguf_header(model)) if manifest.format == "gguf" else _onnx_tensors(model)[0]
    return Inspection(
        path=str(directory),
        format=manifest.format,
        file_bytes=sum(entry.size for entry in manifest.files if entry.path.startswith(manifest.model_file)),
        data_bytes=sum(tensor.bytes for tensor in found),
        types=_totals(found),
        architecture=manifest.architecture,
        parameter_count=manifest.parameter_count,
        bits_per_weight=manifest.precision.bits_per_weight,
        context_length=manifest.context_length,
        kv_bytes_per_token=default_token_bytes(manifest),
        manifest=asdict(manifest),
        tensors=found if list_tensors else None,
    )


def _inspect_file(path: Path, list_tensors: bool) -> Inspection:
    with open_regular(path, allow_links=True) as file:
        start = file.read(_SNIFF)
        size = file.seek(0, 2)
    check_content(path, start)
    architecture = parameters = context = kv = None
    if start.startswith(b"GGUF") or path.suffix == ".gguf":
        header = read_gguf_header(path, allow_links=True)
        format, found = "gguf", _gguf_tensors(header)
        architecture, parameters = header.architecture or None, header.parameter_count
        length = header.metadata.get(f"{header.architecture}.context_length")
        context = length if type(length) is int else None
        kv = _kv_bytes(header)
    elif path.suffix == ".onnx":
        format = "onnx"
        found, parameters = _onnx_tensors(path)
    else:
        raise InputError(
            "unknown-file", f"{path} is neither GGUF nor ONNX", "give a .gguf or .onnx file or a bundle"
        )
    data = sum(tensor.bytes for tensor in found)
    return Inspection(
        path=str(path),
        format=format,
        file_bytes=size,
        data_bytes=data,
        types=_totals(found),
        architecture=architecture,
        parameter_count=parameters,
        bits_per_weight=8 * data / parameters if parameters else None,
        context_length=context,
        kv_bytes_per_token=kv,
        manifest=None,
        tensors=found if list_tensors else None,
    )


def _gguf_tensors(header: GGUFHeader) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(tensor.name, tensor.shape, tensor.type, tensor.size, 8 * tensor.size / tensor.elements)
        for tensor in header.tensors
    )


def _onnx_tensors(path: Path) -> tuple[tuple[Tensor, ...], int]:
    """The tensors, and how many weights of the model they hold."""
    from edge_distill_export.onnx_inspect import read_initializers

    try:
        initializers = read_initializers(path)
        if not initializers or any(extent < 0 for tensor in initializers for extent in tensor.shape):
            raise ValueError("no tensors, or some with negative extents")
        tensors = tuple(
            Tensor(
                tensor.name,
                tensor.shape,
                tensor.type_name,
                tensor.size,
                # packed integers are stored as bytes, several in one
                _PACKED_BITS.get(tensor.type_name) or 8 * tensor.size / max(1, math.prod(tensor.shape)),
            )
            for tensor in initializers
        )
        return tensors, sum(tensor.weights for tensor in initializers)
    except (ValueError, KeyError, IndexError, TypeError) as exc:  # fields that contradict each other
        raise BundleError("bad-onnx", f"{path} is no sound ONNX model: {exc}", "export it again") from exc


def _kv_bytes(header: GGUFHeader) -> int | None:
    """Bytes of cache a token, where the metadata tell."""
    try:
        return kv_layout(header).bytes_per_token
    except ValueError:
        return None


def _totals(tensors: Iterable[Tensor]) -> tuple[TypeTotal, ...]:
    """Per type, the largest first."""
    groups: dict[str, list[int]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.type, []).append(tensor.bytes)
    totals = [TypeTotal(name, len(sizes), sum(sizes)) for name, sizes in groups.items()]
    return tuple(sorted(totals, key=lambda total: -total.bytes))


def _facts(found: Inspection) -> list[tuple[str, str]]:
    """Names and values for people."""
    facts = [
        ("path", found.path),
        ("format", found.format),
        ("model file", f"{found.file_bytes:,} bytes, tensors {found.data_bytes:,} bytes"),
    ]
    if found.architecture is not None:
        facts.append(("architecture", found.architecture))
    if found.parameter_count is not None:
        facts.append(("parameters", f"{found.parameter_count:,}"))
    if found.bits_per_weight is not None:
        facts.append(("bits per weight", f"{found.bits_per_weight:.2f}"))
    if found.context_length is not None:
        facts.append(("context", f"{found.context_length:,} tokens"))
    if found.kv_bytes_per_token is not None:
        facts.append(("KV cache", f"{found.kv_bytes_per_token:,} bytes a token"))
    return [*facts, *_bundle_facts(found.manifest)] if found.manifest else facts


def _bundle_facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What only a manifest knows; `lineage` and `verification` are free-form, so nothing is taken for granted."""
    precision = manifest["precision"]
    facts = [("name", manifest["name"]), ("target", f"{precision['target']}, method {precision['method']}")]
    for kind in ("overall", "reasoning", "answer"):
        part = _at(manifest["verification"], "parity", kind)
        if isinstance(part, dict):
            shown = ("tokens", "kl_mean", "kl_p99", "top1")
            facts.append((f"parity, {kind}", ", ".join(f"{key} {_number(part.get(key))}" for key in shown)))
    if (limit := _at(manifest["verification"], "limit_kl")) is not None:
        facts.append(("limit of mean KL", _number(limit)))
    facts += _choice_facts(_at(manifest["lineage"], "precision_choice"))
    source = _at(manifest["lineage"], "checkpoint")
    if isinstance(source, dict):
        facts.append(("made from", f"{source.get('name')} ({source.get('kind')})"))
        weights = source.get("weights")
        for name, digest in weights.items() if isinstance(weights, dict) else ():
            facts.append(("", f"{name} sha256 {digest}"))
    origin = _at(manifest["lineage"], "calibration", "origin")
    if origin is not None:
        tokens = _at(manifest["lineage"], "calibration", "tokens")
        facts.append(("calibrated on", f"{origin}, {_number(tokens)} tokens"))
    if isinstance(_at(manifest["lineage"], "repair"), dict):
        facts.append(("repaired", repair_text(manifest["lineage"]["repair"])))
    for entry in manifest["files"]:
        facts.append(("file", f"{entry['path']}, {entry['size']:,} bytes, sha256 {entry['sha256']}"))
    return facts


def _choice_facts(choice: Any) -> list[tuple[str, str]]:
    """Which tensors mixed precision gave 8 bits, and what decided it."""
    if not isinstance(choice, dict):
        return []
    facts = [("8 bits for", high_text(choice))]
    measured = (
        f"mean KL {_number(choice.get('deciding_kl'))}, predicted {_number(choice.get('predicted_kl'))}"
    )
    facts.append(("chosen by", f"{choice.get('origin')}: {measured}"))
    others = choice.get("candidates")
    for other in others if isinstance(others, list) else ():
        facts.append(("", f"{_at(other, 'origin')}: mean KL {_number(_at(other, 'kl'))}"))
    return facts


def _at(value: Any, *keys: str) -> Any:
    """The value below nested keys, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _tensor_table(tensors: Iterable[Tensor]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("tensor", "shape", "type", "bytes", "bits/weight"):
        table.add_column(
            title, justify="right" if title in ("bytes", "bits/weight") else "left", overflow="fold"
        )
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        size, bits = f"{tensor.bytes:,}", f"{tensor.bits_per_weight:.2f}"
        table.add_row(printable(tensor.name), shape, printable(tensor.type), size, bits)
    return table


__all__ = ["Inspection", "Tensor", "TypeTotal", "inspect", "open_manifest", "printable"]
