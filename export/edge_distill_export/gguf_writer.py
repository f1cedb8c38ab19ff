"""A checkpoint as a GGUF file: weights as floats or as blocks of integers from the shared grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_distill_export.blocks import pack_q4_0, pack_q8_0
from edge_distill_export.families import Family, family_of
from edge_distill_export.gguf_metadata import add_hyperparameters, check_gguf, rope_tensors
from edge_distill_export.grid import QuantizedTensor
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from edge_distill_export.checkpoint import Checkpoint

FloatType = Literal["f32", "f16"]


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    type_name: str
    """A name of gguf.GGMLQuantizationType: F32, F16, Q4_0 or Q8_0."""
    data: Callable[[], np.ndarray]
    """Makes the bytes; called once, when the tensor is written."""


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    *,
    float_type: FloatType,
    quantized: Mapping[str, QuantizedTensor] | None = None,
    context_length: int | None = None,
) -> None:
    """Write `checkpoint` to `path`, one tensor in memory at a time.

    Weights in `quantized` (by Hugging Face parameter name) become Q4_0 or Q8_0 blocks, the others
    `float_type`; norms and biases are always float32. A tied embedding is stored once. Raises `InputError`
    for a setting or a tokenizer that llama.cpp does not compute as transformers does.
    """
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter

    config = checkpoint.config
    family = family_of(config)
    context_length = context_length or config.max_position_embeddings
    check_gguf(config, context_length)
    tensors = list(_tensors(checkpoint.model, family, float_type, quantized or {}))
    vocabulary = checkpoint.gguf_vocabulary

    writer = GGUFWriter(path, family.gguf_architecture)
    if license_name := checkpoint.lineage.get("license"):
        writer.add_license(license_name)
    writer.add_file_type(_file_type(float_type, quantized or {}))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_hyperparameters(writer, config, context_length)
    vocabulary.add_to(writer)
    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.type_name]
        size = _byte_size(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data())
    finally:
        writer.close()


def tensor_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The tensors that `write_gguf` writes, by GGUF name; the model may be on torch's meta device."""
    return {tensor.name: tensor.shape for tensor in _tensors(model, family_of(model.config), "f16", {})}


def gguf_names(config: PreTrainedConfig) -> Callable[[str], str | None]:
    """A function from a Hugging Face parameter name to llama.cpp's tensor name, or None."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = family_of(config).gguf_architecture
    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    return lambda name: names.get_name(name, try_suffixes=(".weight", ".bias"))


def _file_type(float_type: FloatType, quantized: Mapping[str, QuantizedTensor]) -> int:
    from gguf import LlamaFileType

    bits = {tensor.bits for tensor in quantized.values()}
    if 4 in bits:
        return LlamaFileType.MOSTLY_Q4_0
    if 8 in bits:
        return LlamaFileType.MOSTLY_Q8_0
    return LlamaFileType.MOSTLY_F16 if float_type == "f16" else LlamaFileType.ALL_F32


def _byte_size(shape: tuple[int, ...], kind: Any) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * size


def _tensors(
    model: PreTrainedModel, family: Family, float_type: FloatType, quantized: Mapping[str, QuantizedTensor]
) -> Iterator[_Tensor]:
    config = model.config
    name_of = gguf_names(config)
    unused = set(quantized)
    for name, values in rope_tensors(config).items():
        yield _Tensor(name, values.shape, "F32", values.copy)
    for name, parameter in model.named_parameters():  # a tied head is the embedding and comes once
        tensor_name = name_of(name)
        if tensor_name is None or not _reads(family, name):
            raise InputError(
                "unsupported-tensor",
                f"llama.cpp has no place for {name} in the architecture {family.gguf_architecture}",
                "export to an onnx target instead",
            )
        rows = _row_order(config, family, name, parameter.shape[0])
        if name in quantized:
            unused.discard(name)
            yield _quantized(tensor_name, quantized[name], rows)
        else:
            offset = family.norm_offset if name.endswith("norm.weight") else 0.0
            kind = "F16" if float_type == "f16" and parameter.ndim > 1 else "F32"
            yield _float(tensor_name, name, parameter, kind, offset, rows)
    if unused:
        raise ValueError(f"quantized tensors that are no parameters of the model: {sorted(unused)}")


def _reads(family: Family, name: str) -> bool:
    """Whether llama.cpp's graph uses this bias; it uses every weight that has a name."""
    if not name.endswith(".bias"):
        return True
    if ".mlp." in name:
        return family.mlp_bias
    if name.endswith("o_proj.bias"):
        return family.output_bias
    return ".self_attn." in name


def _row_order(config: PreTrainedConfig, family: Family, name: str, rows: int) -> np.ndarray | None:
    """The order of rows in the file, where it differs: rotated pairs (i, i + half) become neighbours."""
    if not family.interleaved_rope or ".self_attn." not in name:
        return None
    if ".q_proj." in name:
        heads = config.num_attention_heads
    elif ".k_proj." in name:
        heads = config.num_key_value_heads
    else:
        return None
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _quantized(tensor_name: str, tensor: QuantizedTensor, rows: np.ndarray | None) -> _Tensor:
    pack, kind = (pack_q4_0, "Q4_0") if tensor.bits == 4 else (pack_q8_0, "Q8_0")

    def data() -> np.ndarray:
        ordered = tensor if rows is None else tensor.rows(rows)
        return pack(ordered.integers, ordered.scales)

    return _Tensor(tensor_name, tensor.integers.shape, kind, data)


def _float(
    tensor_name: str, name: str, parameter: torch.Tensor, kind: str, offset: float, rows: np.ndarray | None
) -> _Tensor:
    def data() -> np.ndarray:
        values = parameter.detach().float().numpy()
        if rows is not None:
            values = values[rows]
        if offset:
            values = values + np.float32(offset)
        if kind == "F32":
            return np.ascontiguousarray(values)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise InputError(
                "float16-overflow",
                f"{name} has a weight of {np.abs(values).max():.3g}, beyond float16's 65504",
                "rescale the layer",
            )
        return halves

    return _Tensor(tensor_name, tuple(parameter.shape), kind, data)
