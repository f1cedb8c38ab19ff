"""What an export's targets are written from: integers on the grid, the K-quants' importance, choices of precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_distill_export.activations import importance_matrix
from edge_distill_export.artifact import Source
from edge_distill_export.automatic import mixed_tensors
from edge_distill_export.calibration import Text
from edge_distill_export.collect import Calibration
from edge_distill_export.families import embedding_names, linear_names
from edge_distill_export.gptq import quantize_gptq
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_export.kv_cache import has_int8_graph
from edge_distill_export.progress import stage
from edge_distill_export.repair import Repaired
from edge_distill_export.targets import Target

__all__ = ["Method", "Quantization", "calibrates", "method_of", "quantize"]

Method = Literal["rtn", "gptq"]


@dataclass(frozen=True)
class Quantization:
    """What the targets are written from."""

    tensors: dict[Target, Mapping[str, QuantizedTensor]]
    """On the grid; none for floats and K-quants."""
    importance: dict[str, np.ndarray]
    """The K-quants' matrix."""
    choices: dict[Target, dict[str, Any]]
    """Of mixed precision, for the manifest."""
    repairs: dict[Target, Repaired] = field(default_factory=dict)
    """What targets learned after that; `tensors` has it already."""


def method_of(target: Target, method: Method) -> Literal["none", "rtn", "gptq", "k-quant"]:
    """What chose the target's integers: 8 bits are rounded, which loses next to nothing."""
    if target.k_quant:
        return "k-quant"
    if target.budget:
        return method
    return {None: "none", 8: "rtn", 4: method}[target.bits]


def calibrates(target: Target, method: Method, kv_bits: int | None) -> bool:
    by_weights = target.k_quant or target.budget is not None or (target.bits == 4 and method == "gptq")
    return by_weights or has_int8_graph(target, kv_bits)


def quantize(
    source: Source,
    targets: Sequence[Target],
    method: Method,
    calibration: Calibration | None,
    deciding: Sequence[Text],
    out: Path,
) -> Quantization:
    """Everything on the grid: embedding and head at 8 bits, except where mixed precision chooses 4."""
    model = source.checkpoint.model
    names = linear_names(model.config)
    automatic = [target for target in targets if target.budget]
    layers: dict[int | None, dict[str, QuantizedTensor]] = {None: {}}
    importance: dict[str, np.ndarray] = {}
    embeddings = {}
    wanted = {target.bits for target in targets if target.bits}
    if wanted or automatic:
        embeddings = {
            name: quantize_rtn(model.get_parameter(name).data, 8, name) for name in embedding_names(model)
        }
    for bits in sorted(wanted):
        layers[bits], found = _quantize_layers(source, bits, method, calibration, embeddings)
        importance = importance or found
    if any(target.k_quant for target in targets) and calibration and not importance:
        with stage("Measuring the importance of inputs", len(names)) as advance:
            importance = importance_matrix(model, calibration.texts, names, advance)
    tensors: dict[Target, Mapping[str, QuantizedTensor]] = {
        target: {**layers[target.bits], **embeddings} if target.bits else {} for target in targets
    }
    choices: dict[Target, dict[str, Any]] = {}
    if automatic and calibration:
        # each tensor's own error, which must not hold what makes up for those of others: these may get 8 bits
        plain, _ = _quantize_layers(source, 4, method, calibration, embeddings, compensate=False)
        chosen = mixed_tensors(source, automatic, method, calibration, deciding, plain, out)
        for target in automatic:
            assert target.budget is not None
            tensors[target] = chosen[target.budget].tensors
            choices[target] = chosen[target.budget].record
    return Quantization(tensors, importance, choices)


def _quantize_layers(
    source: Source,
    bits: int,
    method: Method,
    calibration: Calibration | None,
    embeddings: Mapping[str, QuantizedTensor],
    *,
    compensate: bool = True,
) -> tuple[dict[str, QuantizedTensor], dict[str, np.ndarray]]:
    """The linear layers on the grid, and with GPTQ the importance of their inputs."""
    model = source.checkpoint.model
    names = linear_names(model.config)
    if bits == 4 and method == "gptq" and calibration:
        with stage("Quantizing layers with GPTQ", len(names)) as advance:
            found = quantize_gptq(model, calibration.texts, names, embeddings, advance, compensate=compensate)
        return found.tensors, found.importance
    with stage(f"Rounding layers to {bits} bits", len(names)) as advance:
        layers = {}
        for name in names:
            layers[name] = quantize_rtn(model.get_parameter(name).data, bits, name)
            advance()
    return layers, {}
