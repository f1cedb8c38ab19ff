"""The supported model families: what distinguishes them is data here, not code elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_SEPARATE = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Family:
    """One decoder architecture, as transformers and llama.cpp know it."""

    model_type: str
    """transformers' `config.model_type`."""
    architecture: str
    """transformers' class, as in `config.architectures`."""
    gguf_architecture: str
    """`general.architecture` in a GGUF file."""
    linears: tuple[str, ...] = _SEPARATE
    """The linear layers of one decoder layer, below `model.layers.N`, in the order of computation."""
    activation: str = "silu"
    """The gated feed-forward's activation, `config.hidden_act` or `config.hidden_activation`."""
    interleaved_rope: bool = False
    """llama.cpp rotates neighbouring rows of a head, so the rows of q and k are permuted on writing."""
    norm_offset: float = 0.0
    """Added to norm weights: Gemma stores them as offsets from one."""
    free_head_dim: bool = True
    """llama.cpp lets `head_dim` differ from hidden size / attention heads."""
    output_bias: bool = False
    """llama.cpp reads a bias of the attention's output projection."""
    mlp_bias: bool = False
    """llama.cpp reads biases in the feed-forward network."""
    partial_rotary: bool = False
    """llama.cpp lets a part of each head go without rotary embedding."""
    rope_factors: str | None = None
    """How llama.cpp takes a divisor for each rotary frequency: "fixed", "short-long" or not at all."""
    sliding_window: bool = False
    """llama.cpp computes the sliding-window layers of this family."""


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llama",
            "LlamaForCausalLM",
            "llama",
            interleaved_rope=True,
            output_bias=True,
            mlp_bias=True,
            rope_factors="fixed",
        ),
        Family("mistral", "MistralForCausalLM", "llama", interleaved_rope=True, rope_factors="fixed"),
        Family("qwen2", "Qwen2ForCausalLM", "qwen2", free_head_dim=False),
        Family("qwen3", "Qwen3ForCausalLM", "qwen3"),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            "gemma3",
            activation="gelu_pytorch_tanh",
            norm_offset=1.0,
            sliding_window=True,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            "phi3",
            linears=_FUSED,
            free_head_dim=False,
            partial_rotary=True,
            rope_factors="short-long",
        ),
        Family("smollm3", "SmolLM3ForCausalLM", "smollm3", interleaved_rope=True),
        Family(
            "granite",
            "GraniteForCausalLM",
            "granite",
            interleaved_rope=True,
            output_bias=True,
            mlp_bias=True,
            rope_factors="fixed",
        ),
    )
}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a checkpoint's configuration.

    Raises `InputError` "unknown-architecture", naming the known ones, for any other model.
    """
    family = FAMILIES.get(config.model_type)
    architectures = config.architectures or []
    if family is None or (architectures and family.architecture not in architectures):
        found = ", ".join(architectures) or config.model_type
        known = ", ".join(f"{family.model_type} ({family.architecture})" for family in FAMILIES.values())
        raise InputError(
            "unknown-architecture", f"the architecture {found} is not supported", f"supported: {known}"
        )
    return family


def linear_names(config: PreTrainedConfig) -> list[str]:
    """The Hugging Face parameter names of the quantizable linear layers, without embedding and head.

    In the order of computation, for example "model.layers.0.self_attn.q_proj.weight".
    """
    return [
        f"model.layers.{layer}.{linear}.weight"
        for layer in range(config.num_hidden_layers)
        for linear in family_of(config).linears
    ]


def embedding_names(model: PreTrainedModel) -> list[str]:
    """The parameter names of embedding and head; a tied pair is the embedding alone."""
    parameters = dict(model.named_parameters())
    return [name for name in (EMBEDDING, HEAD) if name in parameters]


def norm_names(model: PreTrainedModel) -> list[str]:
    """The parameter names of all norms' weights."""
    return [name for name, _ in model.named_parameters() if name.endswith("norm.weight")]


def head_dim(config: PreTrainedConfig) -> int:
    """The width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def sliding_layers(config: PreTrainedConfig) -> list[bool]:
    """For each layer, whether its attention sees only the last `config.sliding_window` positions."""
    if getattr(config, "sliding_window", None) is None or not getattr(config, "use_sliding_window", True):
        return [False] * config.num_hidden_layers
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:  # Mistral and Phi-3: every layer
        return [True] * config.num_hidden_layers
    return [layer_type == "sliding_attention" for layer_type in layer_types]
