"""What the ONNX model builder sees of a checkpoint: views of its weights, and its own rotary tables."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from edge_distill_export.families import head_dim
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# GroupQueryAttention's kernels take rotary tables whose width divides by this.
_ROTARY_PAIRS = 8


@dataclass(frozen=True)
class Linear:
    """One MatMul: the rows of one or more Hugging Face linear layers below each other."""

    parts: tuple[tuple[str, slice], ...]
    """Parameter name and the rows taken of it."""
    weights: tuple[torch.Tensor, ...]
    """Views [rows, columns] of the checkpoint's float32 weights, one for each part."""
    bias: torch.Tensor | None

    @property
    def weight(self) -> torch.Tensor:
        """The first part: the builder looks at its type only."""
        return self.weights[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (outputs) and columns (inputs)."""
        return sum(weight.shape[0] for weight in self.weights), self.weights[0].shape[1]

    def transposed(self) -> torch.Tensor:
        """float32 [columns, rows], as MatMul takes it; a copy."""
        import torch

        return torch.cat([weight.T for weight in self.weights], dim=1).contiguous()

    @staticmethod
    def concatenate(linears: tuple[Linear, ...]) -> Linear:
        """The layers below each other, without their biases, which the builder adds on its own."""
        parts = tuple(part for linear in linears for part in linear.parts)
        return Linear(parts, tuple(weight for linear in linears for weight in linear.weights), None)


def linear_view(name: str, module: torch.nn.Module, rows: slice = slice(None)) -> Linear:
    """`module`, or some of its rows; `name` is the parameter's Hugging Face name."""
    bias = None if module.bias is None else module.bias.detach()[rows]
    return Linear(((name, rows),), (module.weight.detach()[rows],), bias)


def layer_view(model: PreTrainedModel, index: int) -> SimpleNamespace:
    """Decoder layer `index` as the builder reads it: phi3's fused projections are views of their rows."""
    layer, prefix = model.model.layers[index], f"model.layers.{index}"
    attention, mlp, config = layer.self_attn, layer.mlp, model.config

    def split(block: str, module: torch.nn.Module, fused: str, sizes: dict[str, int]) -> dict[str, Linear]:
        if not hasattr(module, fused):
            return {
                role: linear_view(f"{prefix}.{block}.{role}.weight", getattr(module, role)) for role in sizes
            }
        views, start = {}, 0
        for role, size in sizes.items():
            rows = slice(start, start := start + size)
            views[role] = linear_view(f"{prefix}.{block}.{fused}.weight", getattr(module, fused), rows)
        return views

    query, key = (
        heads * head_dim(config) for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    projections = split("self_attn", attention, "qkv_proj", {"q_proj": query, "k_proj": key, "v_proj": key})
    half = config.intermediate_size
    gates = split("mlp", mlp, "gate_up_proj", {"gate_proj": half, "up_proj": half})
    head_norms = {name: getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)}
    return SimpleNamespace(
        self_attn=SimpleNamespace(
            **projections,
            **head_norms,
            o_proj=linear_view(f"{prefix}.self_attn.o_proj.weight", attention.o_proj),
        ),
        mlp=SimpleNamespace(**gates, down_proj=linear_view(f"{prefix}.mlp.down_proj.weight", mlp.down_proj)),
        **{name: module for name, module in layer.named_children() if name.endswith("layernorm")},
    )


def rotary_tables(model: PreTrainedModel, length: int, kind: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [length, rotary dimensions / 2], as the model's own rotary embedding gives them.

    `kind` is the layer type where each has a table of its own (gemma3). Raises `InputError` where
    GroupQueryAttention cannot rotate as many dimensions.
    """
    import torch

    rotary = copy.deepcopy(model.model.rotary_emb)  # scaling by length would change its buffers
    arguments = (torch.zeros(1), torch.arange(length)[None], *([kind] if kind else []))
    cos, sin = rotary(*arguments)
    pairs = cos.shape[-1] // 2  # transformers repeats the table for both halves of the rotated dimensions
    if pairs % _ROTARY_PAIRS:
        raise InputError(
            "unsupported-rotary",
            f"attention rotates {2 * pairs} dimensions of each head, "
            f"ONNX Runtime's GroupQueryAttention takes multiples of {2 * _ROTARY_PAIRS}",
            "export to a gguf target",
        )
    return cos[0, :, :pairs].contiguous(), sin[0, :, :pairs].contiguous()
