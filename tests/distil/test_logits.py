"""Logits of some places alone, against those of all places."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from edge_distill.distil.logits import logits_at
from tests.random_models import VOCAB_SIZE, random_checkpoint, variant_named

PLACES = torch.tensor([[0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
TEXTS = {"input_ids": torch.randint(VOCAB_SIZE, (3, 6), generator=torch.Generator().manual_seed(0))}


# granite divides its logits, gemma3 computes its embedding otherwise
@pytest.mark.parametrize(
    "name", ["llama-tied-gqa", "llama-untied-mha", "granite-tied-gqa", "gemma3_text-tied-gqa"]
)
def test_they_are_those_of_all_places(name: str) -> None:
    model, _ = random_checkpoint(variant_named(name))
    rows: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda _, given, out: rows.append(given[0].numel())
    )
    found = logits_at(model, TEXTS, PLACES)
    handle.remove()
    assert rows == [4 * model.config.hidden_size]
    torch.testing.assert_close(found, model(**TEXTS).logits[PLACES], rtol=1e-4, atol=1e-5)
    with pytest.raises(IndexError):
        logits_at(model, TEXTS, PLACES[:, :3])
    assert model(**TEXTS).logits.shape == (3, 6, model.config.vocab_size), "the model is as it was"


def test_gradients_reach_what_is_trained() -> None:
    model, _ = random_checkpoint(variant_named("llama-tied-gqa"))
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    found = logits_at(adapted, TEXTS, PLACES)
    torch.testing.assert_close(found, adapted(**TEXTS).logits[PLACES], rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert all(weight.grad is not None for weight in adapted.parameters() if weight.requires_grad)
