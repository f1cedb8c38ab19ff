"""What a written GGUF file says and holds, and what is refused instead of being written wrongly."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_distill_export.blocks import unpack_q4_0, unpack_q8_0
from edge_distill_export.gguf_vocab import choose_vocabulary
from edge_distill_export.gguf_writer import write_gguf
from edge_distill_runtime.errors import InputError
from tests.export.gguf_files import checkpoint_of, metadata, quantize_all, tensor_bytes, wrap
from tests.random_models import VARIANTS, random_checkpoint, variant_named

LLAMA = variant_named("llama-tied-gqa")


def test_general_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(checkpoint_of(LLAMA), path, float_type="f16", context_length=128)
    found = metadata(path)
    expected = {
        "general.architecture": "llama",
        "general.name": "llama-tied-gqa",
        "general.license": "apache-2.0",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.context_length": 128,
        "llama.vocab_size": 512,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 32,
    }
    assert {key: found[key] for key in expected} == expected


def test_the_context_length_defaults_to_the_models(tmp_path: Path) -> None:
    write_gguf(checkpoint_of(LLAMA), tmp_path / "model.gguf", float_type="f32")
    assert metadata(tmp_path / "model.gguf")["llama.context_length"] == 256
    assert metadata(tmp_path / "model.gguf")["general.file_type"] == 0


def test_the_vocabulary_is_chosen_once_for_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def choose(*arguments: Any) -> Any:
        calls.append(arguments)
        return choose_vocabulary(*arguments)

    monkeypatch.setattr("edge_distill_export.gguf_vocab.choose_vocabulary", choose)
    checkpoint = checkpoint_of(LLAMA)
    write_gguf(checkpoint, tmp_path / "half.gguf", float_type="f16")
    write_gguf(checkpoint, tmp_path / "full.gguf", float_type="f32")
    assert len(calls) == 1
    first, second = metadata(tmp_path / "half.gguf"), metadata(tmp_path / "full.gguf")
    names = [name for name in first if name.startswith("tokenizer.")]
    assert len(names) > 8
    assert {name: first[name] for name in names} == {name: second[name] for name in names}


@pytest.mark.parametrize(("bits", "file_type"), [(4, 2), (8, 7)])
def test_integers_and_scales_are_in_the_file_as_they_are(bits: int, file_type: int, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(LLAMA)
    quantized = quantize_all(checkpoint, bits)
    path = tmp_path / "model.gguf"
    write_gguf(checkpoint, path, float_type="f16", quantized=quantized)
    assert metadata(path)["general.file_type"] == file_type

    down = quantized["model.layers.1.mlp.down_proj.weight"]
    unpack = unpack_q4_0 if bits == 4 else unpack_q8_0
    integers, scales = unpack(tensor_bytes(path, "blk.1.ffn_down.weight").reshape(128, -1))
    np.testing.assert_array_equal(integers, down.integers)
    np.testing.assert_array_equal(scales, down.scales)

    # Llama's rotated pairs (i, i + 16) of a head of 32 rows become neighbours.
    key = quantized["model.layers.0.self_attn.k_proj.weight"]
    integers, scales = unpack(tensor_bytes(path, "blk.0.attn_k.weight").reshape(64, -1))
    order = [head * 32 + half * 16 + pair for head in range(2) for pair in range(16) for half in range(2)]
    np.testing.assert_array_equal(integers, key.integers[order])
    np.testing.assert_array_equal(scales, key.scales[order])

    embedding = quantized["model.embed_tokens.weight"]
    integers, _ = unpack_q8_0(tensor_bytes(path, "token_embd.weight").reshape(512, -1))
    np.testing.assert_array_equal(integers, embedding.integers)


def test_gemmas_norms_are_written_with_their_offset(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("gemma3_text-tied-gqa"))
    write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16")
    written = tensor_bytes(tmp_path / "model.gguf", "blk.0.attn_q_norm.weight").view(np.float32)
    expected = checkpoint.model.model.layers[0].self_attn.q_norm.weight.detach().numpy() + 1
    np.testing.assert_array_equal(written, expected)


def test_a_quantized_tensor_without_a_parameter_is_an_error(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(LLAMA)
    quantized = quantize_all(checkpoint, 8)
    quantized["model.layers.9.mlp.up_proj.weight"] = quantized["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"model\.layers\.9"):
        write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16", quantized=quantized)


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(LLAMA)
    checkpoint.model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e6
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight has a weight of 1e\+06") as caught:
        write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16")
    assert caught.value.code == "float16-overflow"


def test_memory_is_one_tensor_at_a_time(tmp_path: Path) -> None:
    settings = {**LLAMA.config, "hidden_size": 256, "intermediate_size": 8192, "num_hidden_layers": 6}
    checkpoint = checkpoint_of(replace(LLAMA, config=settings))
    size = 2 * sum(parameter.numel() for parameter in checkpoint.model.parameters())
    largest = 4 * max(parameter.numel() for parameter in checkpoint.model.parameters())
    tracemalloc.start()
    write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * largest + 8e6 < size, f"peak {peak / 1e6:.1f} MB of {size / 1e6:.1f} MB"


def refused(model_type: str, context_length: int | None = None, **settings: Any) -> InputError:
    variant = next(variant for variant in VARIANTS if variant.family == model_type)
    model, tokenizer = random_checkpoint(replace(variant, config={**variant.config, **settings}))
    with pytest.raises(InputError) as caught:
        write_gguf(wrap(model, tokenizer), Path("/unused"), float_type="f16", context_length=context_length)
    assert caught.value.hint
    return caught.value


_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("model_type", "settings", "named"),
    [
        ("llama", {"rope_parameters": _DYNAMIC}, "rope_type is dynamic"),
        ("qwen2", {"rope_parameters": _LLAMA3}, "rope_type is llama3"),
        ("llama", {"rope_parameters": _PARTIAL}, "partial_rotary_factor is 0.5"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("phi3", {"head_dim": 64}, "head_dim is 64"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "no_rope_layers is"),
        ("gemma3_text", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("granite", {"residual_multiplier": 0.0}, "residual_multiplier is 0"),
        ("qwen3", {"attention_bias": True}, r"no place for model.layers.0.self_attn.o_proj.bias"),
        ("smollm3", {"mlp_bias": True}, r"no place for model.layers.0.mlp.gate_proj.bias"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_named(
    model_type: str, settings: dict[str, Any], named: str
) -> None:
    assert named in str(refused(model_type, **settings))


def test_a_sliding_window_is_refused_only_where_it_matters(tmp_path: Path) -> None:
    error = refused("mistral", sliding_window=100)
    assert error.code == "sliding-window"
    assert "window of 100" in str(error)
    assert "--context 100 or less" in error.hint
    variant = variant_named("mistral-untied-gqa")
    checkpoint = checkpoint_of(replace(variant, config={**variant.config, "sliding_window": 100}))
    write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16", context_length=100)


def test_a_context_beyond_the_models_is_refused() -> None:
    error = refused("llama", context_length=257)
    assert error.code == "context-too-long"
    assert "257" in str(error)
    assert "256" in str(error)


def test_longrope_beyond_its_first_range_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("phi3-partial-longrope"))
    with pytest.raises(InputError, match="context length, which is 1024") as caught:
        write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16")
    assert "--context 256" in caught.value.hint


def test_gemma_with_the_usual_pattern_needs_no_key(tmp_path: Path) -> None:
    variant = variant_named("gemma3_text-tied-gqa")
    usual = ["sliding_attention"] * 5 + ["full_attention"]
    settings = {**variant.config, "num_hidden_layers": 6, "layer_types": usual}
    write_gguf(checkpoint_of(replace(variant, config=settings)), tmp_path / "six.gguf", float_type="f16")
    write_gguf(checkpoint_of(variant), tmp_path / "two.gguf", float_type="f16")
    key = "gemma3.attention.sliding_window_pattern"
    assert key not in metadata(tmp_path / "six.gguf")
    assert metadata(tmp_path / "two.gguf")[key] == [True, False]


def test_the_weights_of_the_checkpoint_stay_untouched(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(LLAMA)
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    write_gguf(checkpoint, tmp_path / "model.gguf", float_type="f16")
    assert all(torch.equal(before[name], tensor) for name, tensor in checkpoint.model.state_dict().items())
