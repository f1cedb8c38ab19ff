"""Choosing the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_distill_runtime.engines.backend import Floats
from edge_distill_runtime.errors import InputError

__all__ = ["Sampler", "SamplingOptions", "log_probabilities", "probabilities", "top_ids"]

Ids = np.ndarray[Any, np.dtype[np.int64]]
Weights = np.ndarray[Any, np.dtype[Any]]

_STRETCH = 256
_COLDEST = 1e-6  # of temperatures
_BELOW = 0.999  # of a threshold: what float32 rounds must not be lost


@dataclass(frozen=True)
class SamplingOptions:
    """Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 switch a filter off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, valid, limits in (
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "[0, 100]"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "(0, 1]"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "[0, 1]"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty <= 10, "(0, 10]"),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not valid:
                raise InputError("bad-sampling", f"{name} is {value}", f"it must be {limits}")


class Sampler:
    """Draws the tokens of one sequence; the same seed and logits give the same tokens."""

    def __init__(self, options: SamplingOptions, prompt: Iterable[int] = ()) -> None:
        self._options = options
        self._random = None if options.temperature == 0 else np.random.default_rng(options.seed)
        self._seen = set(prompt) if options.repetition_penalty != 1 else None

    @property
    def is_greedy(self) -> bool:
        return self._random is None

    def sample(self, logits: Floats) -> int:
        """A token id for logits float32 [vocab], which are not changed."""
        if self._seen is not None:
            logits = self._penalized(logits)
        token = int(logits.argmax()) if self._random is None else self._draw(logits, self._random)
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _draw(self, logits: Floats, random: np.random.Generator) -> int:
        options = self._options
        if options.top_k == 0 and options.top_p == 1 and options.min_p == 0:
            # all tokens, in no need of an order: first a stretch of the vocabulary, then a token of it
            weights = _exponentials(logits, options.temperature)
            stretch, rest = _find(np.add.reduceat(weights, range(0, len(weights), _STRETCH)), random.random())
            start = stretch * _STRETCH
            return start + _find(weights[start : start + _STRETCH], rest)[0]
        ids, shares = probabilities(logits, options)
        return int(ids[_find(shares, random.random())[0]])

    def _penalized(self, logits: Floats) -> Floats:
        """As in CTRL (Keskar et al. 2019), over the prompt and what was drawn so far."""
        assert self._seen is not None
        seen = np.fromiter(self._seen, np.int64, len(self._seen))
        logits = logits.copy()
        values, penalty = logits[seen], np.float32(self._options.repetition_penalty)
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        return logits


def probabilities(logits: Floats, options: SamplingOptions) -> tuple[Ids, Weights]:
    """Token ids that survive the filters, likeliest first, and their probabilities (float64, sum 1).

    The filters apply in the order top_k, temperature, top_p, min_p; at least one token survives.
    """
    ids = _largest(logits, options.top_k)
    largest, temperature = float(logits.max()), max(options.temperature, _COLDEST)
    weights = _exponentials(logits[ids] if options.top_k else logits, options.temperature)
    # Sorting the vocabulary would take longer than the model: first drop what no filter can keep. Tokens below
    # (1 - top_p) / vocab weigh less than 1 - top_p together, so the likeliest ones reach top_p without them.
    total = float(weights.sum(dtype=np.float64))
    floor = max((1 - options.top_p) / len(weights) * total, options.min_p)
    if floor > 0:
        kept = np.flatnonzero(weights >= np.float32(floor * _BELOW))
        ids, weights = ids[kept], weights[kept]
    exact: Weights = np.exp((logits[ids].astype(np.float64) - largest) / temperature) / total
    # ties in the order of token ids, so that the result does not depend on the partition
    order = np.lexsort((ids, -exact))
    ids, exact = ids[order], exact[order]
    keep = len(ids)
    if options.top_p < 1:
        # the smallest set whose probability reaches top_p
        keep = int(np.searchsorted(np.cumsum(exact), options.top_p)) + 1
    if options.min_p > 0:
        keep = min(keep, int((exact >= options.min_p * exact[0]).sum()))
    ids, exact = ids[:keep], exact[:keep]
    return ids, exact / exact.sum()


def _exponentials(logits: Floats, temperature: float) -> Floats:
    """exp((logits - max) / temperature): the largest is 1. float32, which takes a tenth of the time of float64."""
    result: Floats = np.exp((logits - logits.max()) * np.float32(1 / max(temperature, _COLDEST)))
    return result


def _find(weights: Weights, share: float) -> tuple[int, float]:
    """Where `share` of the sum of `weights` is reached (inverse of the cumulative distribution).

    Also how much of that weight it takes, from 0 to 1: as random as `share` was.
    """
    cumulative = np.cumsum(weights, dtype=np.float64)
    target = share * cumulative[-1]
    index = min(int(np.searchsorted(cumulative, target, side="right")), len(cumulative) - 1)
    weight = float(weights[index])
    taken = (target - float(cumulative[index])) / weight + 1 if weight > 0 else 0.0
    return index, min(max(taken, 0.0), 1.0)


def log_probabilities(logits: Floats, tokens: Iterable[int]) -> list[float]:
    """Natural logarithms of the probabilities of `tokens` under logits [vocab], at temperature 1."""
    largest = logits.max()
    total = math.log(float(np.exp(logits - largest).sum(dtype=np.float64)))
    return [float(logits[token]) - float(largest) - total for token in tokens]


def top_ids(logits: Floats, count: int) -> list[int]:
    """Ids of the `count` largest logits, largest first."""
    ids = _largest(logits, count) if count else np.empty(0, np.int64)
    order = np.lexsort((ids, -logits[ids]))
    return [int(token) for token in ids[order][:count]]


def _largest(logits: Floats, top_k: int) -> Ids:
    """Ids of the `top_k` largest logits, of all when it is 0, in their own order; ties go to the smaller id."""
    if not 0 < top_k < len(logits):
        return np.arange(len(logits))
    # the largest ones lie close together: a partition of the whole vocabulary would take ten times as long
    top, distance = float(logits.max()), 4.0
    near = np.flatnonzero(logits >= top - distance)
    while len(near) < top_k:
        distance *= 4
        near = np.flatnonzero(logits >= top - distance) if distance < 1e6 else np.arange(len(logits))
    values = logits[near]
    smallest = np.partition(values, -top_k)[-top_k]
    above, equal = near[values > smallest], near[values == smallest]
    return np.sort(np.concatenate([above, equal[: top_k - len(above)]]))
