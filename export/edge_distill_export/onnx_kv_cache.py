"""An ONNX bundle with keys and values in int8: a quarter of the memory of its float32 cache.

GroupQueryAttention on the CPU (ONNX Runtime 1.32) takes scales that stand in the graph. One scale for each layer's
keys and one for its values: with one for each channel the divergence was four times as large.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_distill_export.bundle import check_destination, publish, seal, staged
from edge_distill_runtime import load
from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.errors import InputError

__all__ = ["quantize_onnx_cache"]

_MODEL = "model.onnx"


def quantize_onnx_cache(
    bundle: Path, out: Path, texts: Sequence[Sequence[int]], *, force: bool = False
) -> Manifest:
    """Copy an ONNX bundle to `out` with an int8 cache, its scales from the largest values over `texts` (token ids).

    What was verified of the bundle is not known of the copy: its manifest holds no verification. Raises `InputError`
    for a bundle without a float32 cache or without texts.
    """
    import onnx

    check_destination(out, force)
    with load(bundle, threads=1) as model:
        manifest = model.manifest
        if manifest.format != "onnx" or manifest.kv.bytes_per_value != 4 or not texts:
            raise InputError(
                "no-float-cache",
                f"{bundle} is {manifest.format} with values of {manifest.kv.bytes_per_value} bytes; "
                f"{len(texts)} texts were given",
                "give an ONNX bundle with a float32 cache, and texts",
            )
        layers, heads, head_dim = manifest.kv.layers, manifest.kv.kv_heads, manifest.kv.head_dim
        largest = np.zeros(2 * layers, np.float32)
        for tokens in texts:
            sequence = model.backend.prefill(tokens)
            count = 2 * layers * heads * head_dim * len(tokens)
            values = np.frombuffer(model.backend.save(sequence)[-4 * count :], np.float32)
            largest = np.maximum(largest, np.abs(values).reshape(2 * layers, -1).max(1))
            model.backend.release(sequence)
    with staged(out) as directory:
        for entry in manifest.files:
            if entry.path != _MODEL:
                target = directory / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle / entry.path, target)
        graph = onnx.load(str(bundle / _MODEL), load_external_data=False)
        _rewrite(graph.graph, largest)
        (directory / _MODEL).write_bytes(graph.SerializeToString())
        made = seal(directory, replace(manifest, kv=replace(manifest.kv, bytes_per_value=1), verification={}))
        publish(directory, out)
    return made


def _rewrite(graph: object, largest: np.ndarray) -> None:
    """int8 past and present, and scales as the last inputs of every GroupQueryAttention."""
    from onnx import GraphProto, TensorProto, helper, numpy_helper

    assert isinstance(graph, GraphProto)
    # the order of the runtime's saved states
    names = sorted(value.name for value in graph.input if value.name.startswith("past_key_values."))
    scales = {
        name: np.array([max(float(value), 1e-6) / 127], np.float32)
        for name, value in zip(names, largest, strict=True)
    }
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        node.input.extend([""] * (12 - len(node.input)))
        for past in (node.input[3], node.input[4]):
            graph.initializer.append(numpy_helper.from_array(scales[past], f"{past}.scale"))
            node.input.append(f"{past}.scale")
        for name in ("k_quant_type", "v_quant_type"):
            node.attribute.append(helper.make_attribute(name, "PER_TENSOR"))
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", 8))
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.elem_type = TensorProto.INT8
