"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_distill_runtime.backend import Floats
from edge_distill_runtime.errors import InputError

__all__ = ["Sampler", "SamplingOptions", "make_sampler", "probabilities"]

Sampler = Callable[[Floats], int]


@dataclass(frozen=True)
class SamplingOptions:
    """Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch a filter off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, valid, limits in (
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "[0, 100]"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "(0, 1]"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "[0, 1]"),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not valid:
                raise InputError("bad-sampling", f"{name} is {value}", f"it must be {limits}")


def make_sampler(options: SamplingOptions) -> Sampler:
    """A function from logits [vocab] to a token id; the same seed gives the same tokens."""
    if options.temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = np.random.default_rng(options.seed)

    def sample(logits: Floats) -> int:
        ids, weights = probabilities(logits, options)
        # inverse of the cumulative distribution: one random number a token
        cumulative = np.cumsum(weights)
        index = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
        return int(ids[min(index, len(ids) - 1)])

    return sample


def probabilities(
    logits: Floats, options: SamplingOptions
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Token ids that survive the filters, likeliest first, and their probabilities (float64, sum 1).

    The filters apply in the order top_k, temperature, top_p, min_p; at least one token survives.
    """
    top_k = options.top_k if 0 < options.top_k < len(logits) else len(logits)
    if top_k < len(logits):
        ids = np.argpartition(logits, -top_k)[-top_k:]
    else:
        ids = np.arange(len(logits))
    scaled = logits[ids].astype(np.float64) / max(options.temperature, 1e-6)
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    # Sorting the vocabulary would take longer than the model: first drop what no filter can keep. Tokens below
    # (1 - top_p) / vocab weigh less than 1 - top_p together, so the likeliest ones reach top_p without them.
    floor = max((1 - options.top_p) / len(weights), options.min_p * float(weights.max()))
    if floor > 0:
        ids, weights = ids[weights >= floor], weights[weights >= floor]
    # ties in the order of token ids, so that the result does not depend on the partition
    order = np.lexsort((ids, -weights))
    ids, weights = ids[order], weights[order]
    if options.top_p < 1:
        # the smallest set whose probability reaches top_p
        keep = int(np.searchsorted(np.cumsum(weights), options.top_p)) + 1
        ids, weights = ids[:keep], weights[:keep]
    return ids, weights / weights.sum()
