"""Logits where a loss needs them and nowhere else: of a large vocabulary they are most of what a step computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["logits_at"]


def logits_at(model: Any, texts: Mapping[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocabulary] at the n true `places` [batch, length] of a padded batch, row by row.

    The model's head gets the hidden states of these places alone.
    """
    from accelerate.utils import extract_model_from_parallel

    def select(_: Any, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (hidden[0][places],)

    handle = extract_model_from_parallel(model).get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits: torch.Tensor = model(**texts, use_cache=False).logits
    finally:
        handle.remove()
    return logits
