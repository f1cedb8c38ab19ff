"""A checkpoint's configuration as GGUF metadata: written exactly, or refused by name, never dropped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.families import Family, family_of, head_dim, sliding_layers
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

_ONNX_HINT = "export to an onnx target instead"


def check_gguf(config: PreTrainedConfig, context_length: int) -> None:
    """Raise `InputError`, naming the setting, where llama.cpp would compute otherwise than transformers."""
    family = family_of(config)
    longest = config.max_position_embeddings
    if not 1 <= context_length <= longest:
        raise InputError(
            "context-too-long",
            f"context length {context_length} is outside 1 to {longest}, the checkpoint's limit",
            f"ask for --context {longest} or less",
        )
    activation = getattr(config, "hidden_activation", None) or getattr(
        config, "hidden_act", family.activation
    )
    if activation != family.activation:
        _refuse("activation", activation, f"llama.cpp computes {family.activation} for {family.model_type}")
    if not family.free_head_dim and head_dim(config) * config.num_attention_heads != config.hidden_size:
        limit = config.hidden_size // config.num_attention_heads
        _refuse("head_dim", head_dim(config), f"llama.cpp needs {limit}, hidden size / heads")
    if any(sliding_layers(config)) and not family.sliding_window and context_length > config.sliding_window:
        raise InputError(
            "sliding-window",
            f"{family.model_type} attends to a window of {config.sliding_window} positions, which llama.cpp "
            f"does not compute; the context length {context_length} is longer",
            f"ask for --context {config.sliding_window} or less",
        )
    _check_family_settings(config, family)
    _check_rope(config, family, context_length)


def _check_family_settings(config: PreTrainedConfig, family: Family) -> None:
    if family.model_type == "smollm3":
        pattern = [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]
        if list(config.no_rope_layers) != pattern:
            _refuse(
                "no_rope_layers", config.no_rope_layers, "llama.cpp leaves rope out in every fourth layer"
            )
    if family.model_type == "gemma3_text":
        # llama.cpp scales 27B (62 layers) by hidden size / heads, every other model by the head's width.
        width = config.hidden_size // config.num_attention_heads
        limit = width if config.num_hidden_layers == 62 else head_dim(config)
        if config.query_pre_attn_scalar != limit:
            _refuse("query_pre_attn_scalar", config.query_pre_attn_scalar, f"llama.cpp uses {limit}")
        if config.attn_logit_softcapping is not None:
            _refuse("attn_logit_softcapping", config.attn_logit_softcapping, "llama.cpp has none for gemma3")
        if getattr(config, "use_bidirectional_attention", False):
            _refuse("use_bidirectional_attention", True, "llama.cpp attends causally")
    for name in _GRANITE_SCALES if family.model_type == "granite" else ():
        if getattr(config, name) == 0:
            _refuse(name, 0, "llama.cpp reads 0 as not set")


def _check_rope(config: PreTrainedConfig, family: Family, context_length: int) -> None:
    rope = rope_parameters(config)
    kind = rope["rope_type"]
    known = {"default", "linear", "yarn"}
    if family.rope_factors == "fixed":
        known.add("llama3")
    if family.rope_factors == "short-long":
        known.add("longrope")
    if any(sliding_layers(config)) and family.sliding_window:
        known.discard("yarn")  # llama.cpp would apply it to the sliding layers too
        local = rope_parameters(config, sliding=True)["rope_type"]
        if local != "default":
            _refuse("rope_type of the sliding layers", local, "llama.cpp knows only the default there")
    if kind not in known:
        _refuse("rope_type", kind, f"llama.cpp knows {', '.join(sorted(known))} for {family.model_type}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not family.partial_rotary:
        factor = rope["partial_rotary_factor"]
        _refuse("partial_rotary_factor", factor, f"llama.cpp rotates whole heads for {family.model_type}")
    if kind == "yarn" and not rope.get("truncate", True):
        _refuse("rope truncate", False, "llama.cpp always rounds yarn's correction range")
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        # libllama rounds a context up to a multiple of 256.
        if -(-context_length // 256) * 256 > original:
            raise InputError(
                "longrope-context",
                f"longrope changes its frequencies beyond {original} positions; llama.cpp chooses them once, "
                f"by the context length, which is {context_length}",
                f"ask for --context {original // 256 * 256} or less",
            )


def _refuse(setting: str, value: Any, limit: str) -> None:
    raise InputError("unsupported-setting", f"{setting} is {value}: {limit}", _ONNX_HINT)


def rope_parameters(config: PreTrainedConfig, sliding: bool = False) -> dict[str, Any]:
    """The rotary embedding's parameters, of the full-attention or the sliding layers."""
    rope = config.rope_parameters
    layer_type = "sliding_attention" if sliding else "full_attention"
    return rope.get(layer_type, rope)


def rotary_dimensions(config: PreTrainedConfig) -> int:
    """How many dimensions of a head are rotated."""
    return int(head_dim(config) * rope_parameters(config).get("partial_rotary_factor", 1.0))


_GRANITE_SCALES = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def add_hyperparameters(writer: GGUFWriter, config: PreTrainedConfig, context_length: int) -> None:
    """Write the architecture's keys; call `check_gguf` first."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config)
    if any(sliding_layers(config)) and family_of(config).sliding_window:
        _add_sliding_window(writer, config)
    if softcap := getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(softcap)
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _add_sliding_window(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(rope_parameters(config, sliding=True)["rope_theta"])
    pattern = sliding_layers(config)
    # Every sixth layer full is llama.cpp's default; older readers do not know the key.
    if pattern != [(layer + 1) % 6 != 0 for layer in range(config.num_hidden_layers)]:
        writer.add_sliding_window_pattern(pattern)


def _add_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    from gguf import RopeScalingType

    rope = rope_parameters(config)
    writer.add_rope_dimension_count(rotary_dimensions(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        factor = (
            rope.get("factor") or config.max_position_embeddings / rope["original_max_position_embeddings"]
        )
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
        # llama.cpp scales by 1 + 0.1 ln(factor) itself and by this on top.
        own = 1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0
        writer.add_rope_scaling_attn_factors(_rotary(config)[1] / own)
    elif rope["rope_type"] == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(_rotary(config)[1])


def rope_tensors(config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """The tensors that divide rotary frequencies, by GGUF name: float32 [rotary dimensions / 2] each."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "llama3":
        dimensions = rotary_dimensions(config)
        unscaled = rope["rope_theta"] ** -(np.arange(0, dimensions, 2) / dimensions)
        return {"rope_freqs.weight": (unscaled / _rotary(config)[0]).astype(np.float32)}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": np.asarray(rope[f"{length}_factor"], dtype=np.float32)
            for length in ("long", "short")
        }
    return {}


def _rotary(config: PreTrainedConfig) -> tuple[np.ndarray, float]:
    """transformers' own frequencies, float64 [rotary dimensions / 2], and its attention factor."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[rope_parameters(config)["rope_type"]](config, "cpu")
    return frequencies.double().numpy(), attention_factor
