"""The tensors of mixed-precision targets: one choice a budget, for both formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import numpy as np

from edge_distill_export.artifact import Source
from edge_distill_export.calibration import Text
from edge_distill_export.choose import Chooser, Chosen, Tensors, finish
from edge_distill_export.collect import Calibration
from edge_distill_export.families import embedding_names, linear_names
from edge_distill_export.gptq import quantize_gptq, quantize_table
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_export.mixed import Costs, extra_bytes
from edge_distill_export.parity import References
from edge_distill_export.progress import stage
from edge_distill_export.sensitivity import Sensitivity
from edge_distill_export.sensitivity_file import measure
from edge_distill_export.sizes import model_size
from edge_distill_export.targets import Budget, Target
from edge_distill_runtime.engines.allocator import give_back_freed_memory

_SLACK = {"gguf": 4096, "onnx": 65536}  # bytes that a file may be larger than predicted


def mixed_tensors(
    source: Source,
    targets: Sequence[Target],
    method: Literal["rtn", "gptq"],
    calibration: Calibration,
    deciding: Sequence[Text],
    layers: Mapping[str, QuantizedTensor],
    out: Path,
) -> dict[Budget, Chosen]:
    """Tensors for the budgets of `targets`; `layers` are all linear layers at 4 bits.

    A size is that of the GGUF file where there is one, else that of the ONNX files.
    """
    model = source.checkpoint.model
    low: Tensors = dict(layers)
    with stage("Quantizing embedding and head to 4 bits"):
        for name in embedding_names(model):
            low[name] = (
                quantize_table(model, calibration.texts, name)
                if method == "gptq"
                else quantize_rtn(model.get_parameter(name).data, 4, name)
            )
    path = out / f"{source.checkpoint.name}-sensitivity.json"
    identity = {
        "checkpoint": source.checkpoint.lineage,
        "calibration": calibration.to_dict(),
        "method": method,
    }
    found = measure(model, calibration.texts, low, identity, path)
    give_back_freed_memory()
    smallest = smallest_bytes(source, targets)

    def again(high: frozenset[str]) -> Tensors:
        names = linear_names(model.config)
        tables = {
            name: quantize_rtn(model.get_parameter(name).data, 8, name) if name in high else low[name]
            for name in embedding_names(model)
        }
        with stage("Quantizing the rest again", len(names)) as advance:
            fitted = quantize_gptq(model, calibration.texts, names, tables, advance, high).tensors
        return {**fitted, **tables}

    chosen: dict[Budget, Chosen] = {}
    with TemporaryFile(dir=out) as file:
        with stage("Computing the checkpoint's logits", len(deciding)) as advance:
            references = References(model, deciding, file, advance)
        chooser = Chooser(source, low, costs_of(found, source), references)
        for budget in dict.fromkeys(target.budget for target in targets if target.budget):
            choice, record = chooser.choose(budget, smallest)
            record["sensitivity"] = {
                "file": path.name,
                "draws": len(found.tokens),
                "tokens": int(found.tokens.sum()),
                "noise": found.noise(),
            }
            chosen[budget] = finish(chooser, choice, record, again if method == "gptq" else None)
    return chosen


def smallest_bytes(source: Source, targets: Sequence[Target]) -> int:
    """The size of the file that the budgets are about, with 4 bits everywhere: never less than it will be."""
    sized = next((target for target in targets if target.format == "gguf"), targets[0])
    return model_size(source, sized).file_bytes + _SLACK[sized.format]


def costs_of(found: Sensitivity, source: Source) -> Costs:
    """What the search weighs; the model may lie on torch's meta device."""
    parameters = dict(source.checkpoint.model.named_parameters())
    extra = np.array([extra_bytes(parameters[name].numel()) for name in found.names], np.int64)
    return Costs(found.names, extra, found.shrunk())
