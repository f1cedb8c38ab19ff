"""Random tiny checkpoints of every supported family.

The dimensions are small but legal for llama.cpp, ONNX Runtime's GroupQueryAttention and MatMulNBits. The
weights are scaled so that the next-token distribution is far from uniform: a wrong graph shows as a large KL
divergence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.random_tokenizers import random_tokenizer

VOCAB_SIZE = 512
CONTEXT_LENGTH = 256


@dataclass(frozen=True)
class Variant:
    """One random checkpoint: a family, its configuration and the kind of its tokenizer."""

    family: str  # Hugging Face model_type
    label: str
    tokenizer: str  # a kind of tests.random_tokenizers
    config: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.family}-{self.label}"


_GQA = {"num_attention_heads": 4, "num_key_value_heads": 2}
_MHA = {"num_attention_heads": 4, "num_key_value_heads": 4}
_TIED = {"tie_word_embeddings": True}
_UNTIED = {"tie_word_embeddings": False}
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}

_GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.1,
    "logits_scaling": 2.0,
}
_GEMMA = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "query_pre_attn_scalar": 32,
    "head_dim": 32,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
# SmolLM3 leaves rotary embeddings out in every fourth layer.
_SMOLLM3 = {"num_hidden_layers": 4, "no_rope_layer_interval": 4}


def _longrope(rotary_dimensions: int, partial_rotary_factor: float) -> dict[str, Any]:
    """LongRoPE as Phi-4-mini has it: other frequencies beyond the first 256 of 1024 positions."""
    pairs = rotary_dimensions // 2
    return {
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": partial_rotary_factor,
            "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
            "long_factor": [1.0 + 0.5 * pair for pair in range(pairs)],
            "original_max_position_embeddings": 256,
        },
    }


VARIANTS = [
    Variant("llama", "tied-gqa", "smollm", {**_TIED, **_GQA}),
    Variant("llama", "untied-mha", "llama2", {**_UNTIED, **_MHA}),
    Variant("llama", "biases", "llama3", {**_UNTIED, **_GQA, "attention_bias": True, "mlp_bias": True}),
    Variant("llama", "head-dim", "gpt2", {**_TIED, **_GQA, "head_dim": 64}),
    Variant("llama", "rope-llama3", "llama3", {**_TIED, **_GQA, "rope_parameters": _LLAMA3_ROPE}),
    Variant("llama", "rope-linear", "llama2", {**_TIED, **_GQA, "rope_parameters": _LINEAR_ROPE}),
    Variant("mistral", "untied-gqa", "llama2", {**_UNTIED, **_GQA, "sliding_window": None}),
    Variant("mistral", "tied-mha", "llama2", {**_TIED, **_MHA, "sliding_window": None}),
    Variant("qwen2", "tied-gqa", "qwen2", {**_TIED, **_GQA}),
    Variant("qwen2", "untied-mha", "qwen2", {**_UNTIED, **_MHA}),
    Variant("qwen2", "rope-yarn", "qwen2", {**_TIED, **_GQA, "rope_parameters": _YARN_ROPE}),
    Variant("qwen3", "tied-gqa", "qwen2", {**_TIED, **_GQA, "head_dim": 32}),
    Variant("qwen3", "untied-mha", "qwen2", {**_UNTIED, **_MHA, "head_dim": 64}),
    Variant("gemma3_text", "tied-gqa", "gemma", {**_TIED, **_GQA, **_GEMMA}),
    Variant("gemma3_text", "untied-mha", "gemma", {**_UNTIED, **_MHA, **_GEMMA}),
    Variant("phi3", "untied-mha", "llama2", {**_UNTIED, **_MHA}),
    Variant("phi3", "tied-gqa", "gpt2", {**_TIED, **_GQA}),
    Variant("phi3", "partial-longrope", "gpt2", {**_TIED, **_GQA, **_longrope(24, 0.75)}),
    Variant("smollm3", "tied-gqa", "llama3", {**_TIED, **_GQA, **_SMOLLM3}),
    Variant("smollm3", "untied-mha", "llama3", {**_UNTIED, **_MHA, **_SMOLLM3}),
    Variant("granite", "tied-gqa", "smollm", {**_TIED, **_GQA, **_GRANITE}),
    Variant("granite", "untied-mha", "smollm", {**_UNTIED, **_MHA, **_GRANITE}),
    Variant(
        "granite", "biases", "smollm", {**_TIED, **_GQA, **_GRANITE, "attention_bias": True, "mlp_bias": True}
    ),
]

# Rows of 256 and 512 columns, which K-quants need.
WIDE = Variant("llama", "wide", "smollm", {**_TIED, **_WIDE})


def variant_named(name: str) -> Variant:
    """The variant whose readable id is `name`, for example "llama-tied-gqa"."""
    return next(variant for variant in [*VARIANTS, WIDE] if str(variant) == name)


def random_checkpoint(variant: Variant, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A float32 model in eval mode with random weights, and its tokenizer."""
    tokenizer = random_tokenizer(variant.tokenizer)
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        **variant.config,
    }
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(variant.family, **settings), dtype=torch.float32
    )
    model.config.architectures = [type(model).__name__]
    _randomize(model, seed)
    return model.eval(), tokenizer


def save_checkpoint(directory: str | Path, variant: Variant, seed: int = 0) -> Path:
    """Write the random checkpoint of `variant` as a Hugging Face directory (safetensors); return its path."""
    model, tokenizer = random_checkpoint(variant, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Path(directory)


@torch.no_grad()
def _randomize(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Gemma multiplies embeddings by sqrt(hidden size) and stores norm weights as offsets from one. With the
    # others' large embedding a tied model would only repeat its input; a larger final norm makes up for it.
    gemma = model.config.model_type == "gemma3_text"
    embedding_scale = 0.08 if gemma else 0.25
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif parameter.ndim == 1:
            centre = 1.0 if not gemma else 2.0 if name == "model.norm.weight" else 0.0
            parameter.copy_(centre + 0.2 * noise)
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.copy_(embedding_scale * noise)  # logits deviate by about 0.25 * sqrt(hidden size)
        else:
            parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)
