# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers==5.23.0", "numpy==2.4.6"]
# [tool.edge-distill-peers]
# opens = ["checkpoint"]
# ///
"""transformers' generate on torch, weights in bfloat16."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from protocol import OnToken, Peer, run


class Transformers(Peer):
    engine = "transformers"
    packages = ("transformers", "torch")
    precision = "bf16"

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=torch.bfloat16, trust_remote_code=False
        ).eval()
        self.model.generation_config.eos_token_id = None

    def size(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        generate(self.model, tokens, count, on_token)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return logits(self.model, tokens)


def generate(model: Any, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
    """By `GenerationMixin.generate`, which asks its stopping criteria after every token."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Told(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
            return torch.tensor([on_token(int(ids[0, -1]))])

    ids = torch.tensor([list(tokens)])
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([Told()]),
        )


def logits(model: Any, tokens: Sequence[int]) -> np.ndarray:
    import torch

    ids = torch.tensor([list(tokens)])
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return found.float().numpy()


if __name__ == "__main__":
    run(Transformers)
