"""Weights of tokens against gradients of each text by itself."""

from __future__ import annotations

import pytest
import torch

from edge_distill_export.activations import pack
from edge_distill_export.calibration import Text
from edge_distill_export.families import linear_names
from edge_distill_export.saliency import token_weights
from edge_distill_export.sensitivity import fisher_noise
from tests.random_models import random_checkpoint, variant_named


def test_noise_has_the_covariance_of_the_fisher_information() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([fisher_noise(logits, generator) for _ in range(20_000)])
    found = torch.einsum("dtv,dtw->tvw", noise, noise) / len(noise)
    chances = logits.softmax(-1)
    expected = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    assert torch.allclose(found, expected, atol=0.01)
    assert torch.allclose(noise.mean(0), torch.zeros(2, 4), atol=0.03)


@pytest.mark.parametrize(
    "family", ["llama-tied-gqa", "phi3-untied-mha", "gemma3_text-tied-gqa", "granite-tied-gqa"]
)
def test_gradients_of_each_text_alone(family: str) -> None:
    model, _ = random_checkpoint(variant_named(family))
    names = linear_names(model.config)
    texts = [
        Text(list(range(5, 55)), 20, 50),
        Text(list(range(60, 85)), 6, 25),
        Text(list(range(90, 110)), 0, 20),
    ]
    rows = [[texts[0]], [texts[1], texts[2]]]  # 50 tokens hold the other two
    assert pack(texts).filled == [50, 45]
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    found = token_weights(model, texts, names, lambda: None, seed=3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in model.modules())

    generator = torch.Generator().manual_seed(3)
    for name in (names[0], names[2], names[-1]):
        outputs: list[torch.Tensor] = []
        module = model.get_submodule(name.removesuffix(".weight"))
        handle = module.register_forward_hook(lambda m, args, output, outputs=outputs: outputs.append(output))
        generator.manual_seed(3)
        squares = []
        for row in rows:
            outputs.clear()
            parts = []
            for text in row:
                logits = model(torch.tensor([text.tokens]), use_cache=False).logits[0]
                parts.append(logits[max(text.prompt, 1) - 1 : -1])
            together = torch.cat(parts)
            noise = fisher_noise(together.detach(), generator)
            gradients = torch.autograd.grad(together, outputs, noise)
            squares.append(torch.cat([gradient[0].square().sum(-1) for gradient in gradients]))
        handle.remove()
        roots = torch.cat(squares).sqrt()
        expected = 0.8 * roots / roots.mean() + 0.2
        assert torch.allclose(torch.cat(found[name]), expected, rtol=1e-3, atol=1e-4), name
