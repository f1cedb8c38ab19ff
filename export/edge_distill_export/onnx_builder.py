"""onnxruntime-genai's model builder, fed with a loaded checkpoint and integers from the shared grid.

The builder makes the graph: GroupQueryAttention with rotary embedding and key/value cache, fused norms.
What it would read itself is replaced: weights (it would load the checkpoint a second time), and the
configuration (of transformers 5 it misses sliding windows, rope scaling and layers without rotary embedding).
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from transformers import PreTrainedModel

from edge_distill_export.families import EMBEDDING, HEAD
from edge_distill_export.grid import BLOCK_SIZE, QuantizedTensor
from edge_distill_export.onnx_packing import block_bytes, pack_blocks, pack_scales
from edge_distill_export.onnx_views import Linear, layer_view, linear_view, rotary_tables
from edge_distill_runtime.engines.onnx import FIRST_LOGIT


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what the builder prints, and leave no trace of its import on sys.path."""
    path = list(sys.path)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = path


with quiet():  # the import puts a folder with top-level names such as "quantization" on sys.path
    from onnxruntime_genai.models import builders


class Adaptor(builders.Model):
    """Mixed in before a builder class: weights, rotary tables, embedding and MatMul from the checkpoint."""

    def __init__(
        self,
        model: PreTrainedModel,
        quantized: Mapping[str, QuantizedTensor],
        accuracy_level: int,
        config: SimpleNamespace,
    ) -> None:
        self.checkpoint = model
        self.quantized = quantized
        self.accuracy_level = accuracy_level
        self.settings = config
        self.used_rows: Counter[str] = Counter()
        self.tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        # windowed_kv_cache would bound the caches of sliding windows, so that they cannot be rewound.
        super().__init__(
            config, ir.DataType.FLOAT, ir.DataType.FLOAT, "cpu", "", {"windowed_kv_cache": False}
        )

    # Hooks of the builder's constructor

    def make_config_init(self, config: SimpleNamespace) -> None:
        """Nothing to rename: `onnx_graph.builder_config` has made `config`."""

    def make_rope_init(self, config: SimpleNamespace) -> None:
        """Nothing to compute: the tables come from transformers."""

    def make_rotary_embedding_multi_cache(self, **kwargs: Any) -> None:
        """Nothing to compute: each kind of layer gets its table when it is built."""

    # Graph

    def make_graph(self) -> None:
        """Build the whole graph; initializers are computed when they are saved."""
        model = self.checkpoint
        self.make_inputs_and_outputs()
        self.make_preprocessing_nodes()
        self.make_embedding(model.model.embed_tokens.weight.detach())
        for index in range(self.num_layers):
            self.make_layer(index, layer_view(model, index))
        self.make_layernorm(self.num_layers, model.model.norm, skip=True, simple=True, location="final_norm")
        self.make_lm_head(linear_view(EMBEDDING if self.tied else HEAD, model.lm_head))
        self.graph.sort()
        self._check_all_used()

    def _check_all_used(self) -> None:
        for name, tensor in self.quantized.items():
            rows, used = tensor.integers.shape[0], self.used_rows[name]
            if rows != used:
                raise RuntimeError(f"{name}: {used} of {rows} quantized rows went into the graph")

    def make_lm_head(self, lm_head: Linear) -> None:
        """The head reads the hidden states from position `first_logit` on, an input that may be left out: 0, all.

        Of a prompt only the last logits are wanted, and the head is a fifth of a small model.
        """
        value = self.make_value(FIRST_LOGIT, ir.DataType.INT64, [1])
        value.const_value = ir.tensor(np.zeros(1, np.int64), name=FIRST_LOGIT)
        self.graph.register_initializer(value)
        self.graph.inputs.append(value)
        name, to_end, axis = "/lm_head/Slice", np.iinfo(np.int64).max, 1
        constants = [f"/model/constants/INT64/[{number}]" for number in (to_end, axis)]
        inputs = [self.layernorm_attrs["output_0"], FIRST_LOGIT, *constants]
        self.make_slice(name, inputs, ir.DataType.FLOAT, ["batch_size", "num_logits", self.hidden_size])
        self.layernorm_attrs["output_0"] = f"{name}/output_0"
        super().make_lm_head(lm_head)

    def make_key_value_cache_shape(self, layer_id: int, shape: list[Any]) -> list[Any]:
        """The width of a head in place of the builder's symbol."""
        return [*shape[:-1], self.head_size]

    def make_attention(self, layer_id: int, *args: Any, **kwargs: Any) -> None:
        """One layer's attention, with or without rotary embedding."""
        # A packed projection leaves these as the layer before set them.
        self.attention_attrs["k_path"] = self.attention_attrs["v_path"] = ""
        self.attention_attrs["use_rope_in_attn"] = self.settings.rotary_layers[layer_id]
        super().make_attention(layer_id, *args, **kwargs)

    def make_attention_qk_rope(self, layer_id: int, **kwargs: Any) -> tuple[str, str]:
        """The names of the cos and sin tables [context, rotary dimensions / 2] of this layer's kind."""
        if not self.settings.rotary_layers[layer_id]:
            return "", ""
        kind = self.settings.rotary_kinds[layer_id]
        names = (f"cos_cache_{kind}", f"sin_cache_{kind}") if kind else ("cos_cache", "sin_cache")
        if names[0] not in self.graph.initializers:
            tables = rotary_tables(self.checkpoint, self.context_length, kind)
            for name, table in zip(names, tables, strict=True):
                self.make_initializer(table, name)
        return names

    def is_qkv_projection_packable(self, layer_id: int, attention: SimpleNamespace) -> bool:
        """Query, key and value share a MatMul where all three are on the same grid, or none is."""
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return len({self._bits(projection) for projection in projections}) == 1

    def make_packed_matmul(
        self, q_matmul: Linear, k_matmul: Linear, v_matmul: Linear, basename: str, root_input: str
    ) -> str:
        """Query, key and value as one MatMul; returns the node's name."""
        return self.make_matmul(Linear.concatenate((q_matmul, k_matmul, v_matmul)), basename, root_input)

    def make_matmul(self, matmul: Linear, basename: str, root_input: str, **kwargs: Any) -> str:
        """MatMulNBits where the weight is quantized, else MatMul; returns the node's name."""
        rows, columns = matmul.shape
        output = "logits" if kwargs.get("logits", False) else f"{basename}/output_0"
        if self._bits(matmul) is not None:
            self._make_matmul_nbits(matmul, basename, root_input, output)
        elif matmul.parts[0][0] == EMBEDDING:
            # The head of a tied model reads the embedding [vocab, hidden] as it is: stored and loaded once.
            inputs = [root_input, EMBEDDING]
            self.make_node("FusedMatMul", inputs, [output], name=basename, domain="com.microsoft", transB=1)
        else:
            weight = basename[1:].replace("/", ".") + ".weight"
            self._make_lazy(weight, (columns, rows), lambda: TorchTensor(matmul.transposed()))
            self.make_node("MatMul", [root_input, weight], [output], name=basename)
        self.make_value(output, ir.DataType.FLOAT, shape=self.make_hidden_state_shape(last_dim=rows))
        return basename

    def _bits(self, matmul: Linear) -> int | None:
        tensor = self.quantized.get(matmul.parts[0][0])
        return None if tensor is None else tensor.bits

    def _make_matmul_nbits(self, matmul: Linear, name: str, root_input: str, output: str) -> None:
        rows, columns = matmul.shape
        if matmul.parts[0][0] == EMBEDDING:
            weights = _quantized_names(EMBEDDING, self.quantized[EMBEDDING].bits)
        else:
            weights = self._make_quantized(name[1:].replace("/", ".") + ".weight", matmul.parts)
        self.make_node(
            "MatMulNBits",
            [root_input, *weights],
            [output],
            name=name,
            domain="com.microsoft",
            K=columns,
            N=rows,
            bits=self._bits(matmul),
            block_size=BLOCK_SIZE,
            accuracy_level=self.accuracy_level,
        )

    def make_embedding_lookup(self, embedding: torch.Tensor, basename: str, lm_head: Any) -> str:
        """Rows of the embedding, dequantized where it is on the grid; returns the output's name."""
        module, input_ids = self.checkpoint.model.embed_tokens, self.input_names["input_ids"]
        if hasattr(module, "embed_scale"):  # gemma3; the builder would round it to two digits
            self.embed_attrs["scale"] = float(module.embed_scale)
        tensor = self.quantized.get(EMBEDDING)
        if tensor is None:
            self._make_lazy(EMBEDDING, tuple(embedding.shape), lambda: TorchTensor(embedding))
            output = f"{basename}/Gather/output_0"
            self.make_node("Gather", [EMBEDDING, input_ids], [output], name=f"{basename}/Gather")
            return output
        weight, scales = self._make_quantized(EMBEDDING, ((EMBEDDING, slice(None)),))
        rows, columns = tensor.integers.shape
        flat = [rows, columns * tensor.bits // 8]  # MatMulNBits wants [rows, blocks, bytes]
        inputs = [weight, f"/model/constants/INT64/{flat}"]
        self.make_reshape(f"{basename}/Reshape", inputs, dtype=ir.DataType.UINT8, shape=flat)
        output = f"{basename}/GatherBlockQuantized/output_0"
        self.make_node(
            "GatherBlockQuantized",
            [f"{basename}/Reshape/output_0", input_ids, scales],
            [output],
            name=f"{basename}/GatherBlockQuantized",
            domain="com.microsoft",
            bits=tensor.bits,
            block_size=BLOCK_SIZE,
            gather_axis=0,
            quantize_axis=1,
        )
        return output

    # Initializers

    def _make_quantized(self, weight: str, parts: tuple[tuple[str, slice], ...]) -> tuple[str, str]:
        """Register packed integers and scales of the parts' rows; returns the two names."""
        pieces = [self.quantized[name].rows(rows) for name, rows in parts]
        for (name, _), piece in zip(parts, pieces, strict=True):
            self.used_rows[name] += piece.integers.shape[0]
        bits, blocks = pieces[0].bits, pieces[0].scales.shape[1]
        rows = sum(piece.integers.shape[0] for piece in pieces)
        names = _quantized_names(weight, bits)

        def lazily(pack: Callable[[QuantizedTensor], np.ndarray]) -> Callable[[], ir.Tensor]:
            return lambda: ir.Tensor(pack(QuantizedTensor.concatenate(pieces)))

        self._make_lazy(names[0], (rows, blocks, block_bytes(bits)), lazily(pack_blocks), ir.DataType.UINT8)
        self._make_lazy(names[1], (rows, blocks), lazily(pack_scales))
        return names

    def _make_lazy(
        self,
        name: str,
        shape: tuple[int, ...],
        make: Callable[[], ir.TensorProtocol],
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> None:
        """Register an initializer that is computed when it is written, and not kept."""
        value = self.make_value(name, dtype, shape)
        value.const_value = ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=name)
        self.graph.register_initializer(value)

    def resolve_special_token_ids(self, config: SimpleNamespace, extra_kwargs: Any) -> tuple[Any, Any, Any]:
        """For genai_config.json; the builder would look for a tokenizer by name."""
        return config.bos_token_id, config.eos_token_id, config.pad_token_id


def _quantized_names(weight: str, bits: int) -> tuple[str, str]:
    return f"{weight}_Q{bits}", f"{weight}_scales"


_BUILDERS = {
    "gemma3_text": builders.Gemma3Model,
    "granite": builders.GraniteModel,
    "qwen3": builders.Qwen3Model,
}


@torch.no_grad()
def build(
    model: PreTrainedModel,
    quantized: Mapping[str, QuantizedTensor],
    accuracy_level: int,
    config: SimpleNamespace,
) -> Adaptor:
    """The builder with its finished graph in `.model`, an `onnx_ir.Model`."""
    model_type = model.config.model_type
    base = _BUILDERS.get(model_type, builders.Model)
    bases = (Adaptor,) if base is builders.Model else (Adaptor, base)
    with quiet():
        builder: Adaptor = type(f"{base.__name__}Adaptor", bases, {})(
            model, quantized, accuracy_level, config
        )
        if model_type == "gemma3_text":
            builder.model_type = model_type  # onnxruntime-genai's name: "gemma3" has a vision tower there
        builder.make_graph()
    return builder
