"""Every family as ONNX: plain ONNX Runtime's logits against transformers' in float32, on random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_distill_export.families import FAMILIES
from edge_distill_export.onnx_graph import GRAPH_FILE, write_onnx
from edge_distill_runtime.errors import InputError
from tests.export.onnx_files import checkpoint_of, onnx_logits, put_back, quantize_all, random_tokens
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import VARIANTS, Variant, variant_named

# Both compute in float32, in another order: 1e-11 here. A missing window, bias or scale gives 1e-2 and more.
FLOAT_LIMIT = 1e-8
# ONNX Runtime rounds the inputs of MatMulNBits to int8 in blocks of 32 at accuracy level 4, an error of 5e-3.
INTEGER_LIMIT = 5e-3

_SMALL: dict[str, Any] = {
    "tie_word_embeddings": True,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_WINDOW = {"sliding_window": 16}
# Half of each head's 32 dimensions is rotated, with another divisor for every pair.
_PARTIAL = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.0 + 0.05 * pair for pair in range(8)],
        "long_factor": [1.0 + 0.5 * pair for pair in range(8)],
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    },
}

ONNX_VARIANTS = [
    *(variant for variant in VARIANTS if variant.label != "partial-longrope"),
    Variant("mistral", "window", "llama2", {**_SMALL, **_WINDOW}),
    Variant("phi3", "window", "llama2", {**_SMALL, **_WINDOW}),
    Variant("phi3", "partial-16", "gpt2", {**_SMALL, **_PARTIAL}),
    Variant(
        "qwen2",
        "window-after-one",
        "qwen2",
        {**_SMALL, **_WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    ),
    Variant(
        "qwen3",
        "biases-window",
        "qwen2",
        {
            **_SMALL,
            **_WINDOW,
            "use_sliding_window": True,
            "max_window_layers": 1,
            "attention_bias": True,
            "head_dim": 32,
        },
    ),
    Variant(
        "smollm3",
        "biases-window",
        "llama3",
        {
            **_SMALL,
            **_WINDOW,
            "num_hidden_layers": 4,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    Variant("gemma3_text", "biases", "gemma", {**_SMALL, **_WINDOW, "attention_bias": True, "head_dim": 64}),
    # Rows of 96 and 160 columns: an odd number of blocks.
    Variant(
        "llama",
        "odd-blocks",
        "smollm",
        {**_SMALL, "hidden_size": 96, "intermediate_size": 160, "head_dim": 48, "num_key_value_heads": 1},
    ),
]


def test_every_family_has_a_variant() -> None:
    assert {variant.family for variant in ONNX_VARIANTS} == set(FAMILIES)


def assert_close(reference: np.ndarray, measured: np.ndarray, limit: float, what: str) -> None:
    kl = kl_divergence(reference, measured)
    report = f"{what}: KL mean {kl.mean():.2e}, max {kl.max():.2e}, limit {limit:.0e}"
    print(report)
    assert kl.mean() <= limit, report


@pytest.mark.parametrize("variant", ONNX_VARIANTS, ids=str)
def test_logits_equal_transformers(variant: Variant, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant)
    tokens = random_tokens(64)  # four sliding windows
    write_onnx(checkpoint, tmp_path, context_length=64)
    reference = reference_logits(checkpoint.model, tokens)
    prefilled = onnx_logits(tmp_path / GRAPH_FILE, tokens)
    assert_close(reference, prefilled, FLOAT_LIMIT, "prefill")
    stepped = onnx_logits(tmp_path / GRAPH_FILE, tokens, prefill=40)
    assert_close(reference, stepped, FLOAT_LIMIT, "prefill and steps")
    np.testing.assert_allclose(stepped, prefilled, atol=1e-3, err_msg="steps against prefill")


_EIGHT_BITS = ("llama-odd-blocks", "phi3-untied-mha", "gemma3_text-tied-gqa", "qwen3-biases-window")


@pytest.mark.parametrize(
    ("variant", "bits"),
    [
        (variant, bits)
        for variant in ONNX_VARIANTS
        for bits in (4, 8)
        if bits == 4 or str(variant) in _EIGHT_BITS
    ],
    ids=str,
)
def test_integers_equal_transformers_on_the_dequantized_weights(
    variant: Variant, bits: int, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(variant)
    quantized = quantize_all(checkpoint, bits)
    tokens = random_tokens(48)
    for level in (0, 4):
        directory = tmp_path / str(level)
        directory.mkdir()
        write_onnx(checkpoint, directory, quantized=quantized, context_length=64, accuracy_level=level)
    put_back(checkpoint, quantized)
    reference = reference_logits(checkpoint.model, tokens)
    for level, limit in ((0, FLOAT_LIMIT), (4, INTEGER_LIMIT)):
        measured = onnx_logits(tmp_path / str(level) / GRAPH_FILE, tokens, prefill=40)
        assert_close(reference, measured, limit, f"accuracy level {level}")


def test_windows_matter(tmp_path: Path) -> None:
    """The window variants would not pass with full attention."""
    checkpoint = checkpoint_of(next(variant for variant in ONNX_VARIANTS if variant.label == "window"))
    tokens = random_tokens(64)
    write_onnx(checkpoint, tmp_path, context_length=64)
    checkpoint.config.sliding_window = None
    kl = kl_divergence(reference_logits(checkpoint.model, tokens), onnx_logits(tmp_path / GRAPH_FILE, tokens))
    assert kl[:16].max() < FLOAT_LIMIT
    assert kl[16:].mean() > 1e-2


def test_a_context_beyond_the_first_table_of_longrope_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(next(variant for variant in ONNX_VARIANTS if variant.label == "partial-16"))
    with pytest.raises(InputError, match=r"65 tokens.*64 tokens.*--context 64"):
        write_onnx(checkpoint, tmp_path, context_length=65)


def test_rotary_widths_without_a_kernel_are_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("phi3-partial-longrope"))
    with pytest.raises(InputError, match=r"rotates 24 dimensions.*multiples of 16"):
        write_onnx(checkpoint, tmp_path, context_length=64)
