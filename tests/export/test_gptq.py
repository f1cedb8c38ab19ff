"""GPTQ: against brute force, against rounding, and on Hessians that have no inverse."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from edge_distill import demo
from edge_distill_export.activations import Seen, importance_matrix, replaced_weights, visit_linears
from edge_distill_export.calibration import Text
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.families import linear_names
from edge_distill_export.gptq import (
    Hessian,
    _refine_scales,
    compensated,
    input_drift,
    quantize_gptq,
    quantize_layer,
    search_scales,
    shrinkage,
)
from edge_distill_export.grid import QuantizedTensor, block_scales, nearest_integers, quantize_rtn, to_blocks
from edge_distill_runtime.errors import InputError
from tests.random_models import VOCAB_SIZE, random_checkpoint, variant_named


def inputs(tokens: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Correlated activations with a few large channels, as transformers have them."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, columns // 4, generator=generator) @ torch.randn(
        columns // 4, columns, generator=generator
    )
    return (mixed + torch.randn(tokens, columns, generator=generator)) * torch.logspace(-1, 1, columns)


def loss(weight: torch.Tensor, tensor: QuantizedTensor, x: torch.Tensor) -> float:
    return float(((weight - torch.from_numpy(tensor.dequantize())) @ x.T).square().mean())


def test_output_error_is_far_below_rounding() -> None:
    weight, x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)), inputs(2000, 256)
    tensor = quantize_layer(weight, Hessian(x.T @ x / len(x), "layer"))
    assert loss(weight, tensor, x) < 0.5 * loss(weight, quantize_rtn(weight, 4), x)


def test_uncorrelated_inputs_are_no_worse_than_rounding() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    tensor = quantize_layer(weight, Hessian(torch.eye(64), "layer"))
    x = torch.eye(64)
    assert loss(weight, tensor, x) <= loss(weight, quantize_rtn(weight, 4), x) * 1.0001


def test_integers_against_brute_force() -> None:
    # two live columns: all 256 pairs of integers can be tried, with the scale that was chosen
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([1.0, 0.37])
    matrix = torch.eye(32) * 1e-3
    matrix[:2, :2] = torch.tensor([[2.0, 1.5], [1.5, 1.3]])
    hessian = Hessian(matrix, "layer")
    tensor = quantize_layer(weight, hessian)
    scale = float(tensor.scales[0, 0])

    def error(pair: tuple[int, ...]) -> float:
        difference = weight[0].clone()
        difference[:2] -= torch.tensor(pair) * scale
        return float(difference @ hessian.matrix @ difference)

    found = error((int(tensor.integers[0, 0]), int(tensor.integers[0, 1])))
    best = min(error(pair) for pair in itertools.product(range(-8, 8), repeat=2))
    assert found <= best * 1.05 + 1e-9


def test_refined_scales_solve_the_normal_equations() -> None:
    # reference: least squares over all scales of a row at once
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(3, 64, generator=generator), inputs(500, 64)
    scales = block_scales(to_blocks(weight), 4)
    integers = nearest_integers(to_blocks(weight), scales, 4).reshape(weight.shape)
    found = _refine_scales(weight, integers, scales, x.T @ x)
    for row in range(3):
        design = torch.stack(
            [x[:, b * 32 : b * 32 + 32] @ integers[row, b * 32 : b * 32 + 32] for b in (0, 1)], 1
        )
        expected = torch.linalg.lstsq(design.double(), (x @ weight[row]).double()[:, None]).solution[:, 0]
        # float16 keeps eleven bits
        assert torch.allclose(found[row].double(), expected, rtol=2e-3)


def test_scale_search_never_loses_to_ggmls_scale() -> None:
    weight, importance = torch.randn(16, 128), torch.rand(128) + 0.01
    blocks, weights = to_blocks(weight), importance.reshape(1, -1, 32)

    def error(scales: torch.Tensor) -> torch.Tensor:
        return ((nearest_integers(blocks, scales, 4) * scales[..., None] - blocks).square() * weights).sum(-1)

    assert (error(search_scales(weight, importance)) <= error(block_scales(blocks, 4)) + 1e-9).all()


@pytest.mark.parametrize(
    "matrix", [torch.zeros(64, 64), torch.ones(64, 64), torch.diag(torch.arange(64.0) > 40).float()]
)
def test_singular_hessians_recover(matrix: torch.Tensor) -> None:
    tensor = quantize_layer(torch.randn(8, 64), Hessian(matrix, "layer"))
    assert abs(tensor.dequantize()).max() < 100


def test_a_hessian_of_nan_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.layers\.0"):
        Hessian(torch.full((32, 32), float("nan")), "model.layers.0")


def random_texts(count: int, length: int, seed: int = 0) -> list[Text]:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, VOCAB_SIZE, (count, length), generator=generator)
    return [Text(tokens, 0, length) for tokens in draws.tolist()]


def inputs_of(model: PreTrainedModel, texts: list[Text], name: str) -> torch.Tensor:
    found: list[torch.Tensor] = []
    visit_linears(model, texts, [name], lambda _, x: found.append(torch.cat(x)))
    return found[0]


def residual_of(model: PreTrainedModel, texts: list[Text]) -> torch.Tensor:
    """What the last MLP's outputs are added to [tokens, hidden]."""
    norm, found = model.get_decoder().layers[-1].post_attention_layernorm, []
    handle = norm.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0][0]))
    with torch.inference_mode():
        for text in texts:
            model.get_decoder()(torch.tensor([text.tokens]))
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("family", ["llama-tied-gqa", "granite-tied-gqa", "gemma3_text-tied-gqa"])
def test_layers_see_the_quantized_layers_before_them_and_the_model_is_left_alone(
    family: str, compensate: bool
) -> None:
    model, _ = random_checkpoint(variant_named(family))
    names = linear_names(model.config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    # two of the same length, and a row with padding behind: 557 tokens, more than a layer has columns
    texts = [*random_texts(2, 250), Text(list(range(100, 157)), 0, 57)]
    embedding = {"model.embed_tokens.weight": quantize_rtn(model.get_input_embeddings().weight.data, 8)}
    found = quantize_gptq(model, texts, names, embedding, lambda: None, compensate=compensate)
    quantized = found.tensors
    assert list(quantized) == list(found.importance) == names
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name

    # what reaches the last layer, computed by the model with the weights that it should have seen
    weights = {name: tensor.dequantize() for name, tensor in {**embedding, **quantized}.items()}
    weights.pop(names[-1])
    exact, residual = inputs_of(model, texts, names[-1]), residual_of(model, texts)
    with replaced_weights(model, weights):
        drifted = inputs_of(model, texts, names[-1])
        residual = residual - residual_of(model, texts)
    assert drifted.shape == (557, model.config.intermediate_size)  # padding is left out
    if family.startswith("granite"):
        residual /= model.config.residual_multiplier
    parts = None if family.startswith("gemma") else [residual]  # gemma normalizes before it adds
    hessian = Hessian(drifted.T @ drifted / len(drifted), "again")
    np.testing.assert_allclose(found.importance[names[-1]], drifted.square().mean(0), rtol=1e-4, atol=1e-8)
    seen = Seen([drifted], [exact], parts)
    wanted = before[names[-1]]
    if compensate:
        wanted = compensated(wanted, seen, input_drift(seen), hessian)
    again = quantize_layer(wanted, hessian, "again")
    assert (again.integers == quantized[names[-1]].integers).mean() > 0.999


def test_weights_make_up_for_what_was_lost() -> None:
    # reference: least squares by another routine
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 64, generator=generator)
    exact = torch.randn(900, 64, generator=generator)
    drifted = exact @ (torch.eye(64) + 0.1 * torch.randn(64, 64, generator=generator))
    lacking = drifted @ torch.randn(64, 5, generator=generator)
    hessian = Hessian(drifted.T @ drifted / 900, "layer")
    hessian.inverse = (drifted.T @ drifted / 900).inverse()  # without damping
    seen = Seen(list(drifted.split(300)), list(exact.split(300)), list(lacking.split(300)))
    found = compensated(weight, seen, input_drift(seen), hessian)
    wanted = (exact @ weight.T + lacking).double()
    expected = torch.linalg.lstsq(drifted.double(), wanted).solution.T
    assert torch.allclose(found.double(), expected, atol=1e-4), (found - expected).abs().max()
    nothing = Seen([exact], [exact], [torch.zeros(900, 5)])
    assert torch.equal(compensated(weight, nothing, input_drift(nothing), hessian), weight)


def test_noise_is_not_made_up_for() -> None:
    generator = torch.Generator().manual_seed(6)
    weight, x = torch.randn(64, 96, generator=generator), torch.randn(300, 96, generator=generator)
    seen = Seen([x], [x], [torch.randn(300, 64, generator=generator)])
    hessian = Hessian(x.T @ x / 300, "layer")
    change = compensated(weight, seen, input_drift(seen), hessian) - weight
    fitted = torch.linalg.lstsq(x, torch.cat(seen.residual_drift or [])).solution.T
    assert change.norm() < 0.1 * fitted.norm()


def test_shrinkage_by_hand() -> None:
    assert shrinkage(0.5, 1100, 100) == pytest.approx(0.9)  # 1 - 0.5 * 1.1 = 0.45
    assert shrinkage(0.1, 1000, 100) == 0.0  # what noise alone would explain
    assert shrinkage(1.0, 200, 100) == 1.0
    assert shrinkage(0.9, 100, 100) == shrinkage(0.0, 200, 100) == 0.0


def test_a_trained_model_stays_closer_to_the_checkpoint_with_compensation() -> None:
    model = load_checkpoint(Path(demo.__file__).parent / "teacher").model
    names = linear_names(model.config)

    def divergence(sampled: torch.Tensor, compensate: bool) -> float:
        """Median KL in nats on the first of the texts, quantized for the others; a few tokens make the mean."""
        texts, unseen = [Text(row, 0, 60) for row in sampled[16:].tolist()], sampled[:16]
        found = quantize_gptq(model, texts, names, {}, lambda: None, compensate=compensate)
        weights = {name: tensor.dequantize() for name, tensor in found.tensors.items()}
        with torch.inference_mode():
            expected = model(unseen).logits.log_softmax(-1)
            with replaced_weights(model, weights):
                other = model(unseen).logits.log_softmax(-1)
        return float((expected.exp() * (expected - other)).sum(-1).median())

    sums = {True: 0.0, False: 0.0}  # one set of texts alone gives ratios from 0.46 to 0.94
    for seed in range(3):
        torch.manual_seed(seed)
        starts = torch.randint(0, model.config.vocab_size, (160, 4))
        attended = torch.ones_like(starts)
        sampled = model.generate(
            starts, attention_mask=attended, do_sample=True, min_new_tokens=56, max_new_tokens=56
        )
        for compensate in sums:
            sums[compensate] += divergence(sampled, compensate)
    assert sums[True] < 0.8 * sums[False]


@pytest.mark.parametrize("family", ["llama-tied-gqa", "gemma3_text-tied-gqa"])
def test_texts_in_one_row_do_not_see_each_other(family: str) -> None:
    model, _ = random_checkpoint(variant_named(family))
    name = linear_names(model.config)[-1]
    texts = [
        Text(list(range(first, first + count)), 0, count) for first, count in ((0, 50), (60, 30), (100, 18))
    ]

    together = inputs_of(model, texts, name)  # 30 and 18 tokens share a row
    alone = torch.cat([inputs_of(model, [text], name) for text in texts])
    assert torch.allclose(together, alone, atol=1e-4), (together - alone).abs().max()


def test_importance_is_the_mean_squared_input() -> None:
    model, _ = random_checkpoint(variant_named("llama-tied-gqa"))
    name = "model.layers.0.self_attn.q_proj.weight"
    text = Text(list(range(30)), 0, 30)
    found = importance_matrix(model, [text], [name], lambda: None)[name]
    with torch.inference_mode():
        hidden = model.get_input_embeddings()(torch.tensor([text.tokens]))
        expected = model.model.layers[0].input_layernorm(hidden)[0].square().mean(0)
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-5)
