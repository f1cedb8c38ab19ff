"""What an ONNX model file holds, read from the graph alone: no weights are loaded, nothing is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edge_distill_runtime.errors import BundleError
from edge_distill_runtime.files import read_bounded

_MAX_GRAPH = 256 << 20


@dataclass(frozen=True)
class Initializer:
    """A stored tensor."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    """`int4` or `int8` for the packed integers of MatMulNBits and GatherBlockQuantized, else ONNX's name."""
    size: int
    """Bytes."""


def read_initializers(path: Path) -> list[Initializer]:
    """All initializers of a model.onnx in its order; raises `BundleError` for a file that is no ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(read_bounded(path, _MAX_GRAPH, allow_links=True))
    except DecodeError as exc:
        raise BundleError("bad-onnx", f"{path} is no ONNX model: {exc}", "export it again") from exc
    packed = _packed_bits(model.graph)
    found = []
    for tensor in model.graph.initializer:
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        shape = tuple(tensor.dims)
        bits = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
        size = (math.prod(shape) * bits + 7) // 8
        found.append(Initializer(tensor.name, shape, packed.get(tensor.name, dtype), size))
    return found


def _packed_bits(graph: object) -> dict[str, str]:
    """`int4` or `int8` by name of the initializer that a block-quantized operator reads, also through a Reshape."""
    reshaped = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}  # type: ignore[attr-defined]
    packed = {}
    for node in graph.node:  # type: ignore[attr-defined]
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
            name = node.input[1 if node.op_type == "MatMulNBits" else 0]
            packed[reshaped.get(name, name)] = f"int{bits}"
    return packed
