"""Reference logits and distances between next-token distributions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel


def reference_logits(model: PreTrainedModel, tokens: Sequence[int]) -> np.ndarray:
    """Logits of transformers in float32, [tokens, vocab]: row i predicts token i + 1."""
    with torch.inference_mode():
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()


def kl_divergence(reference: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """KL(reference || measured) in nats for each row of two logit matrices [tokens, vocab]."""
    reference_log = _log_softmax(reference)
    return (np.exp(reference_log) * (reference_log - _log_softmax(measured))).sum(axis=-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
