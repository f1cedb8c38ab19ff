"""Keys and values of 8 or 4 bits: what a bundle's cache holds when it is opened as its manifest says.

libllama converts to q8_0 or q4_0 while it writes, so a manifest's word is enough. GroupQueryAttention on the CPU (ONNX
Runtime 1.32) takes int8 with scales that stand in the graph: one for each layer's keys and one for its values; with one
for each channel the divergence was four times as large.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from edge_distill_export.artifact import Source, kv_layout
from edge_distill_export.bundle import seal
from edge_distill_export.targets import Target
from edge_distill_runtime import load
from edge_distill_runtime.bundles.manifest import KVLayout, Manifest
from edge_distill_runtime.engines.kv_cache import choose_precision
from edge_distill_runtime.errors import InputError

__all__ = ["cache_layout", "check_kv_bits", "gguf_precision", "has_int8_graph", "quantize_onnx_cache"]

_GGUF: dict[int, Literal["q8_0", "q4_0"]] = {8: "q8_0", 4: "q4_0"}


def check_kv_bits(bits: int | None, source: Source, targets: Iterable[Target]) -> None:
    """Raise `InputError` where one of `targets` cannot have such a cache; None asks for the format's own floats."""
    if bits is None:
        return
    if bits not in _GGUF:
        raise InputError("bad-kv-bits", f"--kv-bits is {bits}", "give 8 or 4, or leave it out for floats")
    for target in targets:
        if target.format == "onnx" and bits != 8:
            raise InputError(
                "bad-kv-bits",
                f"{target} cannot have keys and values of {bits} bits",
                "give --kv-bits 8, or GGUF",
            )
        if target.format == "gguf":
            choose_precision("gguf", kv_layout(source, target), gguf_precision(target, bits))


def gguf_precision(target: Target, bits: int | None) -> Literal["q8_0", "q4_0"] | None:
    """libllama's name, for the manifest; None for floats, and for ONNX, where the graph decides."""
    return _GGUF[bits] if bits and target.format == "gguf" else None


def has_int8_graph(target: Target, bits: int | None) -> bool:
    """Whether the graph itself gets other keys and values, which takes calibration text."""
    return bits is not None and target.format == "onnx"


def cache_layout(source: Source, target: Target, bits: int | None) -> KVLayout:
    """The layout in the finished bundle's manifest."""
    layout = kv_layout(source, target)
    return replace(layout, bytes_per_value=1) if has_int8_graph(target, bits) else layout


def quantize_onnx_cache(directory: Path, texts: Sequence[Sequence[int]]) -> Manifest:
    """Give the sealed, unpublished ONNX bundle in `directory` an int8 cache, and seal it again.

    The scales come from the largest values over `texts` (token ids). Raises `InputError` for a bundle without a float32
    cache or without texts.
    """
    import onnx

    with load(directory, threads=1) as model:
        manifest = model.manifest
        if manifest.format != "onnx" or manifest.kv.bytes_per_value != 4 or not texts:
            raise InputError(
                "no-float-cache",
                f"{manifest.name} is {manifest.format} with values of {manifest.kv.bytes_per_value} bytes; "
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
    path = directory / manifest.model_file
    graph = onnx.load(str(path), load_external_data=False)
    _rewrite(graph.graph, largest)
    path.write_bytes(graph.SerializeToString())
    return seal(directory, replace(manifest, kv=replace(manifest.kv, bytes_per_value=1)))


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
