"""Every family as GGUF: libllama's logits against transformers' in float32, on random models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_distill_export.families import FAMILIES, family_of, linear_names
from edge_distill_export.gguf_vocab import compare_tokenizers
from edge_distill_export.gguf_writer import FloatType, tensor_shapes, write_gguf
from edge_distill_runtime.bundles.gguf_check import validate_gguf
from edge_distill_runtime.errors import InputError
from tests.export.gguf_files import (
    assert_close,
    checkpoint_of,
    header,
    libllama_logits,
    quantize_all,
    tokens_of,
)
from tests.numerics import reference_logits
from tests.random_models import VARIANTS, WIDE, Variant, variant_named

# libllama keeps keys and values as float16 and multiplies float16 weights with float16 activations:
# relative errors of 5e-4 that give 2e-5 here. A missing permutation, bias or scale gives 1e-1 and more.
FLOAT_LIMIT = 1e-4
# ggml rounds the inputs of quantized layers to int8 in blocks of 32, an error of 4e-3: 2e-3 was the most.
INTEGER_LIMIT = 5e-3


@pytest.mark.parametrize("variant", [*VARIANTS, WIDE], ids=str)
def test_logits_equal_transformers(variant: Variant, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant)
    tokens = tokens_of(checkpoint)
    reference = reference_logits(checkpoint.model, tokens)
    float_types: tuple[FloatType, ...] = ("f32", "f16")
    for float_type in float_types:
        path = tmp_path / f"{float_type}.gguf"
        write_gguf(checkpoint, path, float_type=float_type, context_length=256)
        validate_gguf(path)
        assert_close(reference, libllama_logits(path, tokens), FLOAT_LIMIT, f"{variant} {float_type}")
    assert compare_tokenizers(checkpoint.tokenizer, path) == []
    assert {tensor.name: tensor.shape for tensor in header(path).tensors} == tensor_shapes(checkpoint.model)
    tied = checkpoint.config.tie_word_embeddings
    assert ("output.weight" in tensor_shapes(checkpoint.model)) == (not tied)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "name", ["llama-tied-gqa", "phi3-untied-mha", "gemma3_text-tied-gqa", "granite-biases"]
)
def test_integers_equal_transformers_on_the_dequantized_weights(name: str, bits: int, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named(name))
    quantized = quantize_all(checkpoint, bits)
    tokens = tokens_of(checkpoint)
    write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16", quantized=quantized)
    validate_gguf(tmp_path / "model.gguf")
    reference = reference_logits(checkpoint.model, tokens)
    measured = libllama_logits(tmp_path / "model.gguf", tokens)
    assert_close(reference, measured, INTEGER_LIMIT, f"{name} {bits} bits")


def test_every_family_has_variants_tied_and_untied() -> None:
    for model_type in FAMILIES:
        ties = {v.config["tie_word_embeddings"] for v in VARIANTS if v.family == model_type}
        assert ties == {True, False}, model_type


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_linear_names_are_the_decoders_linear_layers(variant: Variant) -> None:
    model = checkpoint_of(variant).model
    modules = model.model.layers.named_modules()
    expected = {f"model.layers.{name}.weight" for name, m in modules if isinstance(m, torch.nn.Linear)}
    assert set(linear_names(model.config)) == expected


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    from transformers import GPT2Config

    with pytest.raises(InputError, match=r"GPT2LMHeadModel is not supported.*llama.*granite") as caught:
        family_of(GPT2Config(architectures=["GPT2LMHeadModel"]))
    assert caught.value.code == "unknown-architecture"
