"""Quantization-aware training: the integers of the forward pass are those of the export, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from edge_distill.distil.qat import bake, grid_tensors, quantize_aware
from edge_distill_export import export
from edge_distill_export.blocks import unpack_q4_0
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.export import ExportResult
from edge_distill_export.families import linear_names
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_runtime.errors import InputError
from tests.export.gguf_files import tensor_bytes
from tests.random_models import random_checkpoint, variant_named

TOKENS = torch.randint(0, 500, (2, 12), generator=torch.Generator().manual_seed(0))


def aware_model(variant: str = "llama-tied-gqa") -> tuple[PreTrainedModel, list[str]]:
    model, _ = random_checkpoint(variant_named(variant))
    names = linear_names(model.config)
    quantize_aware(model, names)
    return model, names


def train(model: PreTrainedModel, steps: int = 3, rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=TOKENS).logits
        return logits


def assert_same(first: QuantizedTensor, second: QuantizedTensor) -> None:
    np.testing.assert_array_equal(first.integers, second.integers)
    np.testing.assert_array_equal(
        first.scales.view(np.uint16) & 0x7FFF, second.scales.view(np.uint16) & 0x7FFF
    )
    np.testing.assert_array_equal(np.sign(first.scales), np.sign(second.scales))


@pytest.mark.parametrize("variant", ["llama-tied-gqa", "phi3-untied-mha", "gemma3_text-tied-gqa"])
def test_trained_integers_are_the_exported_ones(tmp_path: Path, variant: str) -> None:
    model, names = aware_model(variant)
    train(model)
    used = {name: model.get_submodule(name.removesuffix(".weight")).weight.detach().clone() for name in names}
    raw = {name: quantize_rtn(original(model, name), 4, name) for name in names}
    trained, before = grid_tensors(model), logits_of(model)
    baked = bake(model)
    assert sorted(baked) == sorted(names)
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    random_checkpoint(variant_named(variant))[1].save_pretrained(tmp_path)
    weights = dict(load_checkpoint(tmp_path).model.named_parameters())
    for name in names:
        np.testing.assert_array_equal(trained[name].dequantize(), used[name].numpy())
        again = quantize_rtn(weights[name].data, 4, name)  # what export --method rtn does
        for other in (trained[name], raw[name], again):
            assert_same(baked[name], other)
        assert baked[name].integers.min() == -8
    assert not any("parametrizations" in name for name in weights)


def test_the_file_of_an_rtn_export_holds_the_trained_integers(tmp_path: Path) -> None:
    qwen = variant_named("qwen2-tied-gqa")  # a family whose rows libllama does not permute
    model, tokenizer = random_checkpoint(
        replace(qwen, config={**qwen.config, "max_position_embeddings": 1024})
    )
    names = linear_names(model.config)
    quantize_aware(model, names)
    train(model)
    baked = bake(model)
    model.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    result = export(str(tmp_path / "student"), to=["gguf:q4_0"], out=tmp_path, method="rtn")
    assert isinstance(result, ExportResult)
    path = Path(result.bundles[0].path) / "model.gguf"
    pairs = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
    for name in names:
        _, _, layer, part = name.removesuffix(".weight").split(".", 3)
        if part in pairs:
            packed = tensor_bytes(path, f"blk.{layer}.{pairs[part]}.weight")
            integers, scales = unpack_q4_0(packed.reshape(len(baked[name].integers), -1))
            assert_same(QuantizedTensor(integers, scales, 4), baked[name])
    # what was trained is what runs: only embedding and head, at 8 bits, and the engine's arithmetic differ
    assert result.bundles[0].parity.overall.kl_mean < 0.02


def original(model: PreTrainedModel, name: str) -> torch.Tensor:
    weight: torch.Tensor = model.get_parameter(
        name.removesuffix("weight") + "parametrizations.weight.original"
    )
    return weight.detach()


def test_training_moves_integers() -> None:
    model, names = aware_model()
    before = grid_tensors(model)
    loss = model(input_ids=TOKENS, labels=TOKENS).loss.item()
    train(model, steps=5)
    after = grid_tensors(model)
    assert all((before[name].integers != after[name].integers).any() for name in names)
    assert model(input_ids=TOKENS, labels=TOKENS).loss.item() < loss


def test_the_gradient_is_that_of_the_rounded_weights() -> None:
    """Straight through: as if the rounded weights were parameters themselves."""
    model, names = aware_model()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    rounded, _ = random_checkpoint(variant_named("llama-tied-gqa"))
    for name, tensor in grid_tensors(model).items():
        rounded.get_parameter(name).data = torch.from_numpy(tensor.dequantize())
    rounded(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for name in names:
        behind = model.get_parameter(name.removesuffix("weight") + "parametrizations.weight.original")
        torch.testing.assert_close(behind.grad, rounded.get_parameter(name).grad, rtol=0, atol=0)


def test_a_training_checkpoint_goes_on_to_the_bit() -> None:
    straight, _ = aware_model()
    train(straight, steps=2)
    state = {name: weight.clone() for name, weight in straight.state_dict().items()}
    train(straight, steps=2)
    resumed, _ = aware_model()
    resumed.load_state_dict(state)
    train(resumed, steps=2)
    for first, second in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)


class Layers(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight.data = weight.clone()


def test_by_hand() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 0], weight[0, 1], weight[0, 2] = 4.0, -3.9, 0.3  # scale -1/2: 4 -> -8, -3.9 -> 7.8, 0.3 -> -0.6
    model = Layers(weight)
    quantize_aware(model, ["layer.weight"])
    assert model.layer.weight[0, :4].tolist() == [4.0, -3.5, 0.5, 0.0]
    tensor = bake(model)["layer.weight"]
    assert tensor.integers[0, :4].tolist() == [-8, 7, -1, 0]
    assert tensor.scales.tolist() == [[-0.5, 0.0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_any_size_bake_exactly(bits: int) -> None:
    """Ties, zeros, both signs, and blocks so small that float16 holds their scale badly or not at all."""
    generator = torch.Generator().manual_seed(1)
    exponents = torch.linspace(-40, 15, 1024).exp2()[:, None]
    ordinary = exponents * torch.randn(1024, 64, generator=generator)
    ties = exponents * torch.randint(-2, 3, (1024, 64), generator=generator)
    model = Layers(torch.cat([ordinary, ties]))
    quantize_aware(model, ["layer.weight"], bits=bits)
    used = model.layer.weight.detach().clone()
    raw = quantize_rtn(model.layer.parametrizations["weight"].original.detach(), bits)
    trained = grid_tensors(model)["layer.weight"]
    baked = bake(model)["layer.weight"]
    assert_same(trained, baked)
    np.testing.assert_array_equal(baked.dequantize(), used.numpy())
    ordinary_scales = np.abs(raw.scales) >= {4: 2.0**-20, 8: 2.0**-17}[bits]
    np.testing.assert_array_equal(baked.scales[ordinary_scales], raw.scales[ordinary_scales])
    assert 0.3 < ordinary_scales.mean() < 0.8
    assert not baked.scales[~ordinary_scales].any()


def test_autocast_uses_the_same_integers() -> None:
    model, names = aware_model()
    before = grid_tensors(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        weight = model.get_submodule(names[0].removesuffix(".weight")).weight
    loss.backward()
    assert weight.dtype == torch.float32
    np.testing.assert_array_equal(weight.detach().numpy(), before[names[0]].dequantize())


def test_errors() -> None:
    model, names = aware_model()
    with pytest.raises(InputError) as caught:
        quantize_aware(model, names)
    assert caught.value.code == "not-linear"
    with pytest.raises(InputError) as caught:
        quantize_aware(Layers(torch.zeros(2, 33)), ["layer.weight"])
    assert caught.value.code == "not-divisible"
    with pytest.raises(InputError) as caught:
        quantize_aware(Layers(torch.zeros(2, 32)).bfloat16(), ["layer.weight"])
    assert caught.value.code == "not-float32"
    with pytest.raises(InputError) as caught:
        quantize_aware(model, ["model.norm.weight"])
    assert caught.value.code == "not-linear"
