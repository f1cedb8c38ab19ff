"""K-quants by libllama's quantizer: the importance matrix reaches it, and its types are predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.families import linear_names
from edge_distill_export.gguf_writer import tensor_shapes, write_gguf
from edge_distill_export.kquants import KQuant, predict_fallbacks, predict_types, quantize_gguf
from edge_distill_runtime.errors import BackendError, InputError
from tests.export.gguf_files import checkpoint_of, header, libllama_logits, tensor_bytes, tokens_of
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import WIDE, Variant, variant_named

FILE_TYPES: tuple[KQuant, ...] = ("q4_k_m", "q5_k_m", "q6_k")

# SmolLM2-135M's width: 256 divides the rows of down_proj (1536), not the others (576).
SMOLLM2 = replace(
    variant_named("llama-tied-gqa"),
    label="smollm2-width",
    config={
        "tie_word_embeddings": True,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
)


def layers(variant: Variant, count: int) -> Variant:
    return replace(variant, config={**variant.config, "num_hidden_layers": count})


def untied(variant: Variant) -> Variant:
    return replace(variant, config={**variant.config, "tie_word_embeddings": False})


def float_file(checkpoint: Checkpoint, directory: Path) -> Path:
    path = directory / "float.gguf"
    write_gguf(checkpoint, path, float_type="f16")
    return path


@pytest.mark.parametrize(
    "variant",
    # Nine layers have a first and a last eighth, and every third layer between them.
    [
        layers(WIDE, 9),
        untied(WIDE),
        SMOLLM2,
        variant_named("phi3-untied-mha"),
        variant_named("qwen3-tied-gqa"),
    ],
    ids=["wide-9-layers", "wide-untied", "smollm2-width", "phi3", "qwen3"],
)
def test_predicted_types_are_what_libllama_writes(variant: Variant, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant)
    source = float_file(checkpoint, tmp_path)
    shapes = tensor_shapes(checkpoint.model)
    for file_type in FILE_TYPES:
        quantize_gguf(source, tmp_path / "quantized.gguf", file_type, threads=1)
        written = {tensor.name: tensor.type for tensor in header(tmp_path / "quantized.gguf").tensors}
        assert predict_types(shapes, file_type) == written, file_type


def test_fallbacks_say_which_and_why() -> None:
    shapes = {
        "token_embd.weight": (512, 576),
        "blk.0.attn_q.weight": (576, 576),
        "blk.0.ffn_norm.weight": (576,),
    }
    # The mixture itself keeps a head that is no multiple of 256 wide at 8 bits.
    assert predict_types(shapes, "q4_k_m")["token_embd.weight"] == "Q8_0"
    (fallback,) = predict_fallbacks(shapes, "q4_k_m")
    assert str(fallback) == "blk.0.attn_q.weight: Q5_0 instead of Q4_K, 256 does not divide rows of 576"
    assert predict_fallbacks({"blk.0.attn_q.weight": (512, 512)}, "q4_k_m") == []


def test_smollm2_falls_back_almost_everywhere() -> None:
    per_layer = {
        "attn_q": (576, 576),
        "attn_k": (192, 576),
        "attn_v": (192, 576),
        "attn_output": (576, 576),
        "ffn_gate": (1536, 576),
        "ffn_up": (1536, 576),
        "ffn_down": (576, 1536),
    }
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(30) for name, shape in per_layer.items()}
    # As many as in the file that llama-quantize makes of the real model.
    assert len(predict_fallbacks(shapes, "q4_k_m")) == 180


def random_importance(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """A few columns that matter ten thousand times as much as the others."""
    parameters = dict(checkpoint.model.named_parameters())
    generator = np.random.default_rng(0)
    return {
        name: np.where(generator.random(parameters[name].shape[1]) < 0.05, 1e4, 1.0).astype(np.float32)
        for name in linear_names(checkpoint.config)
    }


def test_importance_moves_the_error_to_the_other_columns(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    checkpoint = checkpoint_of(WIDE)
    source = float_file(checkpoint, tmp_path)
    importance = random_importance(checkpoint)
    name, tensor_name = "model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight"
    weight = dict(checkpoint.model.named_parameters())[name].detach().numpy()
    errors = []
    for matrix in (None, importance):
        quantize_gguf(source, tmp_path / "quantized.gguf", "q4_k_m", importance=matrix, threads=1)
        packed = tensor_bytes(tmp_path / "quantized.gguf", tensor_name).reshape(len(weight), -1)
        values = dequantize(packed, GGMLQuantizationType.Q4_K)
        errors.append(float(((values - weight) ** 2)[:, importance[name] > 1].mean()))
    plain, weighted = errors
    print(f"squared error of the important columns: {plain:.2e} without, {weighted:.2e} with importance")
    assert weighted < 0.7 * plain


def test_more_bits_are_closer(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(WIDE)
    source = float_file(checkpoint, tmp_path)
    tokens = tokens_of(checkpoint)
    reference = reference_logits(checkpoint.model, tokens)
    means = []
    for file_type in FILE_TYPES:
        quantize_gguf(source, tmp_path / "quantized.gguf", file_type, threads=1)
        logits = libllama_logits(tmp_path / "quantized.gguf", tokens)
        means.append(float(kl_divergence(reference, logits).mean()))
    print("mean KL", dict(zip(FILE_TYPES, means, strict=True)))
    # 0.35, 0.13 and 0.055 were measured; weights in the wrong place would give whole nats.
    assert 0.5 > means[0] > means[1] > means[2]
    assert means[2] < 0.1


def test_failures_carry_libllamas_reason(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"cannot quantize absent\.gguf to q4_k_m: .*absent") as caught:
        quantize_gguf(tmp_path / "absent.gguf", tmp_path / "quantized.gguf", "q4_k_m", threads=1)
    assert caught.value.code == "quantize-failed"


def test_importance_of_the_wrong_width_fails(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(WIDE)
    source = float_file(checkpoint, tmp_path)
    wrong = {"model.layers.0.mlp.gate_proj.weight": np.ones(128, dtype=np.float32)}
    with pytest.raises(BackendError, match=r"imatrix size 128 is different .*ffn_gate"):
        quantize_gguf(source, tmp_path / "quantized.gguf", "q4_k_m", importance=wrong, threads=1)
    assert not (tmp_path / "quantized.gguf").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_importance_that_is_no_importance_is_refused(bad: float, tmp_path: Path) -> None:
    values = np.ones(256, dtype=np.float32)
    values[3] = bad
    importance = {"model.layers.0.mlp.gate_proj.weight": values}
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.gate_proj\.weight must be finite"):
        quantize_gguf(tmp_path / "a", tmp_path / "b", "q4_k_m", importance=importance, threads=1)
