"""Bundles as an export leaves them, by rounding, without the comparison that an export ends with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_distill_export.artifact import Source, float_source, make_manifest, prepare, write_model
from edge_distill_export.bundle import seal
from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.families import linear_names
from edge_distill_export.grid import quantize_rtn
from edge_distill_export.targets import TARGETS
from edge_distill_runtime.bundles.manifest import Manifest, read_manifest


def write_bundle(
    source: Source, target: str, directory: Path, verification: dict[str, Any] | None = None
) -> Manifest:
    """Write `target` into the new `directory`: embedding and head at 8 bits where there are bits at all."""
    directory.mkdir(parents=True)
    parsed = TARGETS[target]
    parameters = dict(source.checkpoint.model.named_parameters())
    tables = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in parameters]
    quantized = {}
    if parsed.bits:
        bits = dict.fromkeys(linear_names(source.checkpoint.config), parsed.bits)
        bits |= dict.fromkeys(tables, 8)
        quantized = {name: quantize_rtn(parameters[name].data, count, name) for name, count in bits.items()}
    with ExitStack() as stack:
        needs_floats = parsed.k_quant
        floats = stack.enter_context(float_source(source, {}, directory.parent)) if needs_floats else None
        write_model(source, parsed, directory, quantized, floats)
    method = "k-quant" if parsed.k_quant else "rtn" if parsed.bits else "none"
    lineage = {"checkpoint": source.checkpoint.lineage, "calibration": None}
    manifest = make_manifest(source, parsed, directory, method, lineage)
    return seal(directory, replace(manifest, verification=verification or {}))


def reseal(directory: Path, **changes: Any) -> Manifest:
    """Hash the files as they are now: damage that no hash tells."""
    return seal(directory, replace(read_manifest(directory), **changes))


def source_of(checkpoint: Checkpoint, context: int | None = None) -> Source:
    return prepare(checkpoint, context)
