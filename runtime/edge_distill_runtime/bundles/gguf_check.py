"""What a GGUF header must say before libllama may see the file.

libllama asserts, and so kills the process, on headers that contradict themselves. This check admits the known
architectures only, with known keys in their ranges and exactly the tensors that libllama will ask for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_distill_runtime.bundles.gguf_header import GGUFHeader, TensorInfo, read_gguf_header
from edge_distill_runtime.bundles.manifest import KVLayout
from edge_distill_runtime.errors import BundleError

__all__ = ["ARCHITECTURES", "check_gguf", "kv_layout", "validate_gguf"]

MAX_CONTEXT = 1 << 24
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_VOCABULARY = 1 << 21
_FLOATS = frozenset({"F32", "F16", "BF16"})
_WEIGHTS = _FLOATS | {
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
}
_VECTORS = frozenset({"F32"})  # norms and biases: libllama's CPU kernels want float32
_NORMAL, _BYTE = 1, 6  # token types
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Sizes:
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head: int  # width of one head
    rotary: int  # rotated part of a head
    vocabulary: int

    @property
    def query(self) -> int:
        return self.heads * self.head

    @property
    def key(self) -> int:
        return self.kv_heads * self.head


def validate_gguf(path: Path | str, *, allow_links: bool = False) -> GGUFHeader:
    """Read and check a GGUF file; `BundleError` says why libllama must not load it."""
    header = read_gguf_header(path, allow_links=allow_links)
    try:
        check_gguf(header)
    except ValueError as exc:
        raise BundleError("bad-gguf", f"{path}: {exc}", "export it again with a current version") from exc
    return header


def kv_layout(header: GGUFHeader) -> KVLayout:
    """Shape of the key-value cache that libllama will allocate (float16)."""
    sizes = _sizes(header)
    return KVLayout(sizes.layers, sizes.kv_heads, sizes.head, 2)


def check_gguf(header: GGUFHeader) -> None:
    """Raise ValueError unless architecture, hyperparameters, vocabulary and tensors fit together."""
    architecture = header.architecture
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is unknown, known are {', '.join(ARCHITECTURES)}")
    if header.metadata.get("general.type", "model") != "model":
        raise ValueError(f"it holds a {str(header.metadata['general.type'])[:20]!r}, not a model")
    prefix = architecture + "."
    for key, value in header.metadata.items():
        if key.startswith("split.") and (key != "split.count" or value not in (0, 1)):
            raise ValueError("it is one of several parts, merge them with llama-gguf-split --merge")
        if key.startswith(prefix):
            _check_key(key, key[len(prefix) :], value)
    if missing := [
        key for key in (*_REQUIRED, *_REQUIRED_BY[architecture]) if prefix + key not in header.metadata
    ]:
        raise ValueError(f"the metadata lack {prefix}{missing[0]}")
    _check_vocabulary(header.metadata)
    sizes = _sizes(header)
    _check_sizes(architecture, sizes)
    _check_swa(header.metadata, prefix, sizes.layers)
    _check_tensors(header, sizes)


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    # NaN fails both comparisons
    return lambda value: type(value) is float and low <= value <= high


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(known) and value == known for known in values)


_SCALE = _number(1e-9, 1e9)
_SIZE = _integer(1, 1 << 20)
_REQUIRED = (
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
_KEYS: dict[str, Callable[[Any], bool]] = {
    "context_length": _integer(1, MAX_CONTEXT),
    "embedding_length": _SIZE,
    "block_count": _integer(1, _MAX_LAYERS),
    "feed_forward_length": _integer(1, 1 << 22),
    "vocab_size": _integer(1, _MAX_VOCABULARY),
    "attention.head_count": _integer(1, 1024),
    "attention.head_count_kv": _integer(1, 1024),
    "attention.key_length": _integer(1, 1024),
    "attention.value_length": _integer(1, 1024),
    "attention.layer_norm_rms_epsilon": _number(1e-12, 1.0),
    "attention.causal": _one_of(True),
    "attention.sliding_window": _integer(0, MAX_CONTEXT),
    "attention.sliding_window_pattern": lambda value: (
        isinstance(value, list) or _integer(1, _MAX_LAYERS)(value)
    ),
    "attention.scale": _SCALE,
    "attn_logit_softcapping": _number(0.0, 1e6),
    "final_logit_softcapping": _number(0.0, 1e6),
    "embedding_scale": _SCALE,
    "residual_scale": _SCALE,
    "logit_scale": _SCALE,
    "expert_count": _one_of(0),
    "expert_used_count": _one_of(0),
    "pooling_type": _one_of(0),
    "rope.dimension_count": _integer(2, 1024),
    "rope.freq_base": _number(1.0, 1e12),
    "rope.freq_base_swa": _number(1.0, 1e12),
    "rope.scale_linear": _SCALE,
    "rope.scaling.type": _one_of("none", "linear", "yarn", "longrope"),
    "rope.scaling.factor": _SCALE,
    "rope.scaling.attn_factor": _SCALE,
    "rope.scaling.original_context_length": _integer(1, MAX_CONTEXT),
    "rope.scaling.finetuned": _one_of(True, False),
    "rope.scaling.yarn_ext_factor": _number(-1e6, 1e6),
    "rope.scaling.yarn_attn_factor": _SCALE,
    "rope.scaling.yarn_beta_fast": _number(0.0, 1e6),
    "rope.scaling.yarn_beta_slow": _number(0.0, 1e6),
    "rope.scaling.yarn_log_multiplier": _number(0.0, 1e6),
}


def _check_key(key: str, name: str, value: Any) -> None:
    accepts = _KEYS.get(name)
    if accepts is None:
        raise ValueError(f"the metadata key {key[:80]!r} is unknown")
    if not accepts(value):
        raise ValueError(f"{key} is {str(value)[:40]}, which is out of range")


def _sizes(header: GGUFHeader) -> _Sizes:
    prefix = header.architecture + "."

    def get(name: str, default: int | None = None) -> int:
        value = header.metadata.get(prefix + name, default)
        if type(value) is not int:
            raise ValueError(f"the metadata lack {prefix}{name}")
        return value

    heads, embedding = get("attention.head_count"), get("embedding_length")
    head = get("attention.key_length", embedding // max(1, heads))
    if get("attention.value_length", embedding // max(1, heads)) != head:
        raise ValueError("keys and values have different widths")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return _Sizes(
        layers=get("block_count"),
        embedding=embedding,
        feed_forward=get("feed_forward_length"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head=head,
        rotary=get("rope.dimension_count", head),
        vocabulary=len(tokens) if isinstance(tokens, list) else get("vocab_size"),
    )


def _check_sizes(architecture: str, sizes: _Sizes) -> None:
    if sizes.head < 1 or sizes.heads % sizes.kv_heads:
        raise ValueError(f"{sizes.heads} heads are no multiple of {sizes.kv_heads} key-value heads")
    if sizes.rotary % 2 or sizes.rotary > sizes.head:
        raise ValueError(f"rope rotates {sizes.rotary} of {sizes.head} values of a head")
    if architecture != "phi3" and sizes.rotary != sizes.head:  # the others assert it
        raise ValueError(f"rope.dimension_count is {sizes.rotary}, expected {sizes.head}")
    if architecture in ("qwen2", "phi3") and sizes.query != sizes.embedding:
        raise ValueError(f"{sizes.heads} heads of {sizes.head} do not make an embedding of {sizes.embedding}")


def _check_swa(metadata: dict[str, Any], prefix: str, layers: int) -> None:
    pattern = metadata.get(prefix + "attention.sliding_window_pattern")
    if isinstance(pattern, list) and (
        len(pattern) != layers or not all(type(item) is bool for item in pattern)
    ):
        raise ValueError(f"sliding_window_pattern must hold {layers} booleans")
    if pattern == 1 or (isinstance(pattern, list) and not any(pattern)):  # which libllama asserts
        raise ValueError("sliding_window_pattern leaves no layer with a sliding window")


def _check_vocabulary(metadata: dict[str, Any]) -> None:
    """Token texts distinct, lists as long as the vocabulary, byte tokens only where they can be read."""
    prefix = "tokenizer.ggml."
    model = metadata.get(prefix + "model")
    if model not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer model {str(model)[:20]!r} is unknown, known are gpt2 and llama")
    tokens = metadata.get(prefix + "tokens")
    if not isinstance(tokens, list) or not tokens or type(tokens[0]) is not str:
        raise ValueError("the metadata lack the list of tokens")
    count = len(tokens)
    if count > _MAX_VOCABULARY:
        raise ValueError(f"{count} tokens exceed the limit of {_MAX_VOCABULARY}")
    # libllama cuts a token at a zero byte, names an empty one after its number, and asserts that all differ
    names = {text.partition("\0")[0] or f"[EMPTY_{index}]" for index, text in enumerate(tokens)}
    if len(names) != count:
        raise ValueError("a token stands twice in the vocabulary")
    if max(map(len, tokens)) > 4096:
        raise ValueError("a token is longer than 4096 characters")
    scores, types = metadata.get(prefix + "scores"), metadata.get(prefix + "token_type")
    for name, values in (("scores", scores), ("token_type", types)):
        if values is not None and (not isinstance(values, list) or len(values) != count):
            raise ValueError(f"{name} is no list of {count} entries")
    if types is not None:
        _check_token_types(model, tokens, types)
    for key, value in metadata.items():
        if key.startswith(prefix) and key.endswith("_token_id") and not _integer(0, count - 1)(value):
            raise ValueError(f"{key} is {str(value)[:20]}, the vocabulary has {count} tokens")
    size = metadata.get(f"{metadata['general.architecture']}.vocab_size", count)
    if size != count:
        raise ValueError(f"vocab_size is {size}, the vocabulary has {count} tokens")


def _check_token_types(model: str, tokens: list[str], types: list[Any]) -> None:
    for text, kind in zip(tokens, types, strict=True):
        if kind == _NORMAL:
            continue
        if type(kind) is not int or not 0 <= kind <= _BYTE:
            raise ValueError(f"token {text[:20]!r} has the type {kind}")
        if kind == _BYTE and (model != "llama" or not _BYTE_TOKEN.fullmatch(text)):
            raise ValueError(f"token {text[:20]!r} is no byte token")


def _check_tensors(header: GGUFHeader, sizes: _Sizes) -> None:
    required, optional = _expected_tensors(header.architecture, sizes)
    present = {tensor.name: tensor for tensor in header.tensors}
    for layer in range(sizes.layers):  # one matrix for query, key and value, or three
        if f"blk.{layer}.attn_qkv.weight" in present:
            for part in "qkv":
                required.pop(f"blk.{layer}.attn_{part}.weight")
        else:
            optional.pop(f"blk.{layer}.attn_qkv.weight")
    if missing := [name for name in required if name not in present]:
        raise ValueError(f"tensor {missing[0]} is missing")
    known = required | optional
    for tensor in header.tensors:
        if tensor.name not in known:
            raise ValueError(f"tensor {tensor.name[:64]!r} does not belong to {header.architecture}")
        _check_tensor(tensor, known[tensor.name])


def _check_tensor(tensor: TensorInfo, shape: Shape) -> None:
    trimmed = tensor.shape
    while len(trimmed) > len(shape) and trimmed[0] == 1:
        trimmed = trimmed[1:]
    if trimmed != shape:
        raise ValueError(f"tensor {tensor.name} has the shape {tensor.shape}, the metadata ask for {shape}")
    if tensor.type not in (_WEIGHTS if len(shape) == 2 else _VECTORS):
        raise ValueError(f"tensor {tensor.name} has the type {tensor.type}, which cannot be computed with")


def _expected_tensors(architecture: str, sizes: _Sizes) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Required and optional tensors with row-major shapes, as in libllama's load_arch_tensors."""
    embedding, vocabulary = sizes.embedding, sizes.vocabulary
    required: dict[str, Shape] = {
        "token_embd.weight": (vocabulary, embedding),
        "output_norm.weight": (embedding,),
    }
    optional: dict[str, Shape] = {"output.weight": (vocabulary, embedding)}
    if architecture == "qwen2":
        optional["output.bias"] = (vocabulary,)
    if architecture in ("llama", "granite", "phi3"):
        names = (
            "rope_factors_long",
            "rope_factors_short",
            *(() if architecture == "phi3" else ("rope_freqs",)),
        )
        optional |= {f"{name}.weight": (sizes.rotary // 2,) for name in names}
    layer_required, layer_optional = _layer_tensors(architecture, sizes)
    for layer in range(sizes.layers):
        required |= {f"blk.{layer}.{name}": shape for name, shape in layer_required.items()}
        optional |= {f"blk.{layer}.{name}": shape for name, shape in layer_optional.items()}
    return required, optional


def _layer_tensors(architecture: str, sizes: _Sizes) -> tuple[dict[str, Shape], dict[str, Shape]]:
    embedding, inner, query, key = sizes.embedding, sizes.feed_forward, sizes.query, sizes.key
    required: dict[str, Shape] = {
        "attn_norm.weight": (embedding,),
        "attn_q.weight": (query, embedding),
        "attn_k.weight": (key, embedding),
        "attn_v.weight": (key, embedding),
        "attn_output.weight": (embedding, query),
        "ffn_norm.weight": (embedding,),
        "ffn_up.weight": (2 * inner if architecture == "phi3" else inner, embedding),
        "ffn_down.weight": (embedding, inner),
    }
    optional: dict[str, Shape] = {
        "attn_qkv.weight": (query + 2 * key, embedding),
        "attn_q.bias": (query,),
        "attn_k.bias": (key,),
        "attn_v.bias": (key,),
    }
    if architecture != "phi3":
        required["ffn_gate.weight"] = (inner, embedding)
    if architecture in ("qwen3", "gemma3"):
        required |= {"attn_q_norm.weight": (sizes.head,), "attn_k_norm.weight": (sizes.head,)}
    if architecture == "gemma3":
        required |= {"post_attention_norm.weight": (embedding,), "post_ffw_norm.weight": (embedding,)}
    if architecture in ("llama", "granite"):
        optional |= {
            "attn_output.bias": (embedding,),
            "ffn_gate.bias": (inner,),
            "ffn_up.bias": (inner,),
            "ffn_down.bias": (embedding,),
        }
    return required, optional


_REQUIRED_BY: dict[str, tuple[str, ...]] = {
    "llama": (),
    "qwen2": (),
    "qwen3": (),
    "gemma3": (),
    "phi3": (),
    "smollm3": (),
    "granite": ("logit_scale",),
}
ARCHITECTURES = tuple(_REQUIRED_BY)
