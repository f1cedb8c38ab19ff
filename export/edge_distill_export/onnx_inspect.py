"""What an ONNX model file holds, read from the graph alone: no weights are loaded, nothing is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edge_distill_runtime.bundles.files import read_bounded
from edge_distill_runtime.errors import BundleError

_MAX_GRAPH = 256 << 20
_SMALL_BITS = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2}  # several in a byte
_FLOATS = ("float", "float16", "bfloat16", "double")
# Inputs that hold no weights: scales and zero points, cos and sin.
_AUXILIARY = {
    "MatMulNBits": slice(2, 5),
    "GatherBlockQuantized": slice(2, 4),
    "GroupQueryAttention": slice(7, 9),
    "RotaryEmbedding": slice(2, 4),
}


@dataclass(frozen=True)
class Initializer:
    """A stored tensor."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    """`int4` or `int8` for the packed integers of MatMulNBits and GatherBlockQuantized, else ONNX's name."""
    size: int
    """Bytes."""
    weights: int
    """Weights of the model that it holds: none for scales, rotary tables and constants."""


def read_initializers(path: Path) -> list[Initializer]:
    """All initializers of a model.onnx in its order, but for the defaults of optional inputs.

    Raises `BundleError` for a file that is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(read_bounded(path, _MAX_GRAPH, allow_links=True))
    except DecodeError as exc:
        raise BundleError("bad-onnx", f"{path} is no ONNX model: {exc}", "export it again") from exc
    packed = _packed_bits(model.graph)
    auxiliary = {
        name for node in model.graph.node for name in node.input[_AUXILIARY.get(node.op_type, slice(0))]
    }
    found = []
    defaults = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name in defaults:
            continue
        dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        shape = tuple(tensor.dims)
        items = math.prod(shape)
        bits = _SMALL_BITS.get(dtype) or onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
        weights = 0
        if tensor.name in packed:
            weights = items * bits // packed[tensor.name]
        elif dtype in _FLOATS and shape and items > 1 and tensor.name not in auxiliary:
            weights = items
        name = f"int{packed[tensor.name]}" if tensor.name in packed else dtype
        found.append(Initializer(tensor.name, shape, name, (items * bits + 7) // 8, weights))
    return found


def _packed_bits(graph: object) -> dict[str, int]:
    """Bits by name of the initializer that a block-quantized operator reads, also through a Reshape."""
    reshaped = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}  # type: ignore[attr-defined]
    packed = {}
    for node in graph.node:  # type: ignore[attr-defined]
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
            name = node.input[1 if node.op_type == "MatMulNBits" else 0]
            if bits not in (2, 4, 8):
                raise ValueError(f"{node.op_type} with {bits} bits")
            packed[reshaped.get(name, name)] = bits
    return packed
