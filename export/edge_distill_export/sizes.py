"""How large an artifact will be, from a configuration and shapes alone: the model may lie on torch's meta device."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edge_distill_export.artifact import Source
from edge_distill_export.families import EMBEDDING, HEAD, embedding_names, linear_names
from edge_distill_export.gguf_metadata import check_gguf
from edge_distill_export.gguf_vocab import Vocabulary, read_vocabulary
from edge_distill_export.gguf_writer import gguf_names, tensor_shapes
from edge_distill_export.grid import BLOCK_SIZE
from edge_distill_export.kquants import Fallback, predict_fallbacks, predict_types
from edge_distill_export.onnx_graph import builder_config
from edge_distill_export.onnx_views import rotary_tables
from edge_distill_export.targets import Target
from edge_distill_runtime.bundles.gguf_header import GGML_TYPES
from edge_distill_runtime.errors import InputError

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
_ALIGNMENT = 32  # GGUF's default for tensor data
_GGUF_KEYS = 1200  # bytes of the keys and values but the vocabulary's
# model.onnx without its weights: 5.6 to 7.4 kB of nodes and names a layer with the families' graphs.
_GRAPH_LAYER, _GRAPH_REST = 7000, 4000


@dataclass(frozen=True)
class ModelSize:
    """The model file(s) of one target."""

    file_bytes: int
    data_bytes: int
    """Of tensors alone."""
    copied_bytes: int
    """Of tensors that the engine holds twice."""
    fallbacks: tuple[Fallback, ...] = ()


def model_size(source: Source, target: Target, high: Collection[str] = ()) -> ModelSize:
    """Predict the file; raises `InputError` where the export to this target would.

    With mixed precision the tensors in `high` have 8 bits, all other linear layers, embedding and head 4.
    """
    if target.bits or target.budget:
        _check_rows(source)
    bits = _bits(source, target, high)
    return _gguf_size(source, target, bits) if target.format == "gguf" else _onnx_size(source, target, bits)


def _bits(source: Source, target: Target, high: Collection[str]) -> dict[str, int]:
    """Bits of the tensors that lie on the grid, by parameter name."""
    if target.budget:
        return {name: 8 if name in high else 4 for name in quantizable(source)}
    if not target.bits:
        return {}
    return {name: 8 if name in (EMBEDDING, HEAD) else target.bits for name in quantizable(source)}


def quantizable(source: Source) -> list[str]:
    """The parameters that go onto the grid: linear layers, embedding and head."""
    checkpoint = source.checkpoint
    return [*linear_names(checkpoint.config), *embedding_names(checkpoint.model)]


def _check_rows(source: Source) -> None:
    parameters = dict(source.checkpoint.model.named_parameters())
    for name in quantizable(source):
        columns = parameters[name].shape[1]
        if columns % BLOCK_SIZE:
            raise InputError(
                "not-divisible",
                f"{name} has rows of {columns} weights, which is not a multiple of {BLOCK_SIZE}",
                "export to gguf:f16 or onnx:fp32",
            )


def _gguf_size(source: Source, target: Target, bits: Mapping[str, int]) -> ModelSize:
    checkpoint = source.checkpoint
    check_gguf(checkpoint.config, source.context_length)
    shapes = tensor_shapes(checkpoint.model)
    rows = checkpoint.model.get_input_embeddings().weight.shape[0]
    vocabulary = read_vocabulary(checkpoint.tokenizer, rows, checkpoint.name)
    fallbacks: tuple[Fallback, ...] = ()
    if target.k_quant:
        types = predict_types(shapes, target.precision)  # type: ignore[arg-type]
        fallbacks = tuple(predict_fallbacks(shapes, target.precision))  # type: ignore[arg-type]
    else:
        types = _grid_types(source, bits, shapes)
    sizes = {name: tensor_bytes(types[name], shape) for name, shape in shapes.items()}
    padded = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values())
    file_bytes = padded + _gguf_header_bytes(vocabulary, shapes)
    return ModelSize(file_bytes, sum(sizes.values()), 0, fallbacks)


def _grid_types(
    source: Source, bits: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """GGUF types by GGUF name, as `write_gguf` chooses them."""
    types = {name: "F16" if len(shape) > 1 else "F32" for name, shape in shapes.items()}
    name_of = gguf_names(source.checkpoint.config)
    for name, count in bits.items():
        types[str(name_of(name))] = "Q4_0" if count == 4 else "Q8_0"
    return types


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a GGUF tensor."""
    kind = _TYPES[type_name]
    return math.prod(shape) // kind.block_size * kind.block_bytes


def _gguf_header_bytes(vocabulary: Vocabulary, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: strings behind 8 bytes, numbers of 4."""
    texts = [*vocabulary.tokens, *vocabulary.merges, vocabulary.chat_template or ""]
    strings = sum(8 + len(text.encode("utf-8", "replace")) for text in texts)
    numbers = 4 * (len(vocabulary.types) + len(vocabulary.scores))
    table = sum(8 + len(name) + 4 + 8 * len(shape) + 4 + 8 for name, shape in shapes.items())
    return _GGUF_KEYS + strings + numbers + table


def _onnx_size(source: Source, target: Target, bits: Mapping[str, int]) -> ModelSize:
    """MatMulNBits: packed integers and a float32 scale for 32 of them; all else is float32."""
    checkpoint, config = source.checkpoint, source.checkpoint.config
    settings = builder_config(checkpoint, source.context_length)
    kinds = {kind for kind, used in zip(settings.rotary_kinds, settings.rotary_layers, strict=True) if used}
    tables = [
        table for kind in kinds for table in rotary_tables(checkpoint.model, source.context_length, kind)
    ]
    data = 4 * sum(table.numel() for table in tables)
    sizes = {}
    for name, parameter in checkpoint.model.named_parameters():
        count = parameter.numel()
        on_grid = name in bits
        sizes[name] = count * bits[name] // 8 + count // BLOCK_SIZE * 4 if on_grid else 4 * count
    data += sum(sizes.values())
    # A tied embedding is looked up as it is, and multiplied with in the order of the kernels.
    copied = sizes[EMBEDDING] if HEAD not in sizes else 0
    graph = _GRAPH_LAYER * config.num_hidden_layers + _GRAPH_REST
    return ModelSize(data + graph, data, copied)


__all__ = ["ModelSize", "model_size", "quantizable", "tensor_bytes"]
