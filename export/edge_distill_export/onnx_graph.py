"""`write_onnx`: a checkpoint as an ONNX graph that plain ONNX Runtime and onnxruntime-genai both open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from edge_distill_export.families import family_of, head_dim, sliding_layers
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from edge_distill_export.checkpoint import Checkpoint
    from edge_distill_export.grid import QuantizedTensor

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


# What the builder turns into operators that compute the same as transformers.
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")


def write_onnx(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    quantized: Mapping[str, QuantizedTensor] | None = None,
    context_length: int,
    accuracy_level: int = 4,
) -> None:
    """Write model.onnx, model.onnx.data and genai_config.json into the existing `directory`.

    `quantized` maps Hugging Face parameter names to tensors on the shared grid: linear layers become
    MatMulNBits, the embedding GatherBlockQuantized; a weight that is absent stays float32. Rotary tables, and
    so the longest sequence, end at `context_length` tokens. `accuracy_level` is MatMulNBits': 4 multiplies
    with activations rounded to int8 in blocks of 32, 0 with float32 activations.

    Raises `InputError` for a configuration whose graph would not compute what transformers computes.
    """
    import onnx_ir

    from edge_distill_export.onnx_builder import build, quiet

    config = builder_config(checkpoint, context_length)
    builder = build(checkpoint.model, quantized or {}, accuracy_level, config)
    onnx_ir.save(builder.model, directory / GRAPH_FILE, external_data=DATA_FILE)
    with quiet():
        builder.model_name_or_path = str(directory)  # has no generation_config.json: `config` counts
        builder.make_genai_config(config, {}, str(directory))


def builder_config(checkpoint: Checkpoint, context_length: int) -> SimpleNamespace:
    """What the model builder reads of a configuration, under the names it expects."""
    config = checkpoint.model.config
    _check_supported(config, context_length)
    layers = config.num_hidden_layers
    kinds = ["sliding_attention" if sliding else "full_attention" for sliding in sliding_layers(config)]
    return SimpleNamespace(
        architectures=[type(checkpoint.model).__name__],
        _name_or_path="",
        num_hidden_layers=layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=head_dim(config),
        vocab_size=config.vocab_size,
        hidden_act=_activation(config),
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=context_length,
        layer_types=kinds,
        sliding_window=getattr(config, "sliding_window", None) or -1,
        final_logit_softcapping=getattr(config, "final_logit_softcapping", None),
        rotary_layers=[bool(use) for use in getattr(config, "no_rope_layers", None) or [True] * layers],
        rotary_kinds=config.layer_types if config.model_type == "gemma3_text" else [None] * layers,
        query_pre_attn_scalar=getattr(config, "query_pre_attn_scalar", None),
        rope_local_base_freq=None,  # gemma3's builder wants the attribute; the tables come from transformers
        embedding_multiplier=getattr(config, "embedding_multiplier", None),
        attention_multiplier=getattr(config, "attention_multiplier", None),
        logits_scaling=getattr(config, "logits_scaling", None),
        residual_multiplier=getattr(config, "residual_multiplier", None),
        **_generation_settings(checkpoint),
    )


def _activation(config: Any) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _check_supported(config: Any, context_length: int) -> None:
    """Refuse what transformers computes and the graph would not."""
    family_of(config)
    rope = getattr(config, "rope_parameters", None) or {}
    scalings = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    original = min(
        (
            scaling["original_max_position_embeddings"]
            for scaling in scalings
            if scaling.get("rope_type") == "longrope" and "original_max_position_embeddings" in scaling
        ),
        default=config.max_position_embeddings,
    )
    if context_length > original:
        raise InputError(
            "context-too-long",
            f"a context of {context_length} tokens is beyond the {original} tokens with one rotary table",
            f"pass --context {original} or less",
        )
    if _activation(config) not in _ACTIVATIONS:
        raise InputError(
            "unsupported-activation",
            f"the ONNX graph has no operator for the activation {_activation(config)!r}",
            f"known: {', '.join(_ACTIVATIONS)}; export to GGUF instead",
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise InputError(
            "unsupported-attention",
            "the checkpoint attends in both directions (use_bidirectional_attention)",
            "export a causal language model",
        )


def _generation_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Special tokens and sampling defaults for genai_config.json."""
    generation, tokenizer = checkpoint.model.generation_config, checkpoint.tokenizer
    stop = _as_list(generation.eos_token_id) or _as_list(checkpoint.model.config.eos_token_id)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in stop:
        stop = [tokenizer.eos_token_id, *stop]  # ends each turn of a chat
    if not stop:
        raise InputError(
            "no-stop-token",
            "neither the checkpoint nor its tokenizer names an end-of-sequence token",
            "set eos_token_id in generation_config.json",
        )
    first = (tokenizer.bos_token_id, generation.bos_token_id, checkpoint.model.config.bos_token_id, stop[0])
    padding = (generation.pad_token_id, tokenizer.pad_token_id, stop[0])
    settings = {
        "bos_token_id": next(token for token in first if token is not None),
        "eos_token_id": stop if len(stop) > 1 else stop[0],
        "pad_token_id": next(token for token in padding if token is not None),
    }
    for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        if getattr(generation, name, None) is not None:
            settings[name] = getattr(generation, name)
    return settings


def _as_list(token: int | list[int] | None) -> list[int]:
    return [] if token is None else list(token) if isinstance(token, (list, tuple)) else [token]
