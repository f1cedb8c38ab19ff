"""The distillation loss L = alpha * L_reasoning + beta * L_answer of a causal language model.

For a sequence b with a span S_b (its reasoning, or its answer), token losses l_t and weights w_t:

    L_span = 1/N  sum_b  1/|S_b|  sum_{t in S_b} w_t l_t

|S_b| is the number of tokens of the span, whatever their weights: a weight of 0 removes a token's loss and does not
make the others louder. N is the number of sequences that have such a span at all, so that traces without reasoning
do not dilute alpha. N belongs to the optimizer step, not to the micro-batch: under gradient accumulation and data
parallelism pass the count over all micro-batches of all processes, and the losses of the micro-batches add up to the
loss of the whole batch (times the number of processes where gradients are averaged over them, as DDP does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from edge_distill.distil.divergences import (
    cross_entropy,
    forward_kl,
    jensen_shannon,
    log_others,
    reverse_kl,
    unlikelihood,
    widened,
)
from edge_distill.distil.kinds import ANSWER, REASONING
from edge_distill_runtime.errors import InputError

__all__ = [
    "DistillationLoss",
    "LossParts",
    "SpanLoss",
    "TopK",
    "distillation_loss",
    "predicting",
    "span_counts",
]


@dataclass(frozen=True)
class SpanLoss:
    """What a token costs: a mix of terms, each with its weight; those to the teacher at one temperature.

    Divergences are multiplied by temperature squared, which keeps their gradients' size (Hinton et al. 2015).
    """

    cross_entropy: float = 1.0
    forward_kl: float = 0.0
    reverse_kl: float = 0.0
    jensen_shannon: float = 0.0
    mixture: float = 0.5
    """The teacher's share in the Jensen-Shannon divergence's mixture, between 0 and 1."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        terms = (self.cross_entropy, self.forward_kl, self.reverse_kl, self.jensen_shannon)
        if not all(math.isfinite(term) and term >= 0 for term in terms) or not any(terms):
            raise InputError(
                "bad-loss",
                f"the terms of a loss have the weights {terms}",
                "give numbers from 0, one above 0",
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError("bad-temperature", f"the temperature is {self.temperature}", "give more than 0")
        if not 0 < self.mixture < 1:
            raise InputError(
                "bad-mixture",
                f"the Jensen-Shannon mixture is {self.mixture}, it lies between 0 and 1",
                "the limits are forward_kl (0) and reverse_kl (1)",
            )

    @property
    def needs_teacher(self) -> bool:
        return bool(self.forward_kl or self.reverse_kl or self.jensen_shannon)


@dataclass(frozen=True)
class DistillationLoss:
    """The whole loss: alpha and beta weigh the spans against each other."""

    alpha: float = 1.0
    beta: float = 1.0
    reasoning: SpanLoss = field(default_factory=SpanLoss)
    answer: SpanLoss = field(default_factory=SpanLoss)

    def __post_init__(self) -> None:
        weights = (self.alpha, self.beta)
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise InputError(
                "bad-loss", f"alpha and beta are {weights}", "give numbers from 0, one of them above 0"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any span that counts looks at the teacher."""
        return bool(
            (self.alpha and self.reasoning.needs_teacher) or (self.beta and self.answer.needs_teacher)
        )


class TopK(NamedTuple):
    """A teacher's distributions as its k likeliest tokens and one bucket for all others.

    Row t of a sequence is the distribution *of* token t (the logits of position t - 1). With k the whole vocabulary
    there are no others, and divergences equal those of the live teacher. With less, they are those of the
    distributions with the others merged: a lower bound of the live ones, by the data processing inequality.
    """

    indices: torch.Tensor
    """int64 [batch, length, k]: token ids."""
    log_probabilities: torch.Tensor
    """float32 [batch, length, k], at `temperature`."""
    log_rest: torch.Tensor
    """float32 [batch, length]: log of the probability of all other tokens; not used where k is the vocabulary."""
    temperature: float


class LossParts(NamedTuple):
    """The loss to go back from, and its two parts before alpha and beta, detached, for the log."""

    total: torch.Tensor
    reasoning: torch.Tensor
    answer: torch.Tensor


def span_counts(kinds: torch.Tensor) -> torch.Tensor:
    """float32 [2]: how many sequences of kinds [batch, length] have reasoning and how many an answer.

    Sum it over the micro-batches and processes of one optimizer step and pass it as `counts`.
    """
    seen = kinds[:, 1:]  # nothing predicts the first token
    return torch.stack([(seen == kind).any(-1).sum() for kind in (REASONING, ANSWER)]).float()


def distillation_loss(
    loss: DistillationLoss,
    logits: torch.Tensor,
    tokens: torch.Tensor,
    kinds: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    teacher: torch.Tensor | TopK | None = None,
    counts: torch.Tensor | None = None,
) -> LossParts:
    """The loss of logits [batch, length, vocabulary] on tokens [batch, length].

    Logits, and a live teacher's too, may also be those at `predicting(kinds)` alone, [n, vocabulary]. `kinds` [batch,
    length] says what each token is (`kinds.py`); only reasoning and answer count. `weights` [batch, length] multiply
    the tokens' losses; a negative one makes the token unlikely (`unlikelihood`), with its absolute value. `teacher` is
    live logits of the student's shape, or `TopK`. `counts` [2] is the normalizer of the whole optimizer step
    (`span_counts`); by default this batch is all of it. Raises `InputError` when the loss needs a teacher and has none,
    or one of another vocabulary.
    """
    _check_teacher(loss, logits, teacher)
    places = predicting(kinds)
    logits = _at(places, logits)
    if isinstance(teacher, torch.Tensor):
        teacher = _at(places, teacher)
    counts = span_counts(kinds) if counts is None else counts
    spans = ((loss.alpha, loss.reasoning, REASONING), (loss.beta, loss.answer, ANSWER))
    total = widened(logits[:0]).sum()  # 0, and part of the graph even when no token counts
    parts = []
    for (factor, span_loss, kind), count in zip(spans, counts.to(logits.device), strict=True):
        mask = kinds == kind
        mask[:, 0] = False  # `==` made it, so it is ours
        with torch.set_grad_enabled(bool(factor) and torch.is_grad_enabled()):
            rows = mask[:, 1:][places[:, :-1]]  # token t is predicted from position t - 1
            part = _span(span_loss, mask, rows, logits, tokens, weights, teacher) / count.clamp(min=1)
        parts.append(part.detach())
        if factor:
            total = total + factor * part
    return LossParts(total, parts[0], parts[1])


def predicting(kinds: torch.Tensor) -> torch.Tensor:
    """bool [batch, length]: the places whose next token counts in a loss."""
    found = torch.zeros_like(kinds, dtype=torch.bool)
    found[:, :-1] = (kinds[:, 1:] == REASONING) | (kinds[:, 1:] == ANSWER)
    return found


def _at(places: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dim() == 2 else logits[places]


def _span(
    loss: SpanLoss,
    mask: torch.Tensor,
    rows: torch.Tensor,
    logits: torch.Tensor,
    tokens: torch.Tensor,
    weights: torch.Tensor | None,
    teacher: torch.Tensor | TopK | None,
) -> torch.Tensor:
    """Sum over sequences of the mean weighted token loss of the span in `mask` [batch, length].

    `rows` says which rows of logits [n, vocabulary] predict it.
    """
    student = widened(logits[rows])
    targets = tokens[mask]
    weight = torch.ones_like(student[:, 0]) if weights is None else weights[mask].to(student)
    wanted, refuted = weight > 0, weight < 0
    token_losses = torch.zeros_like(weight)
    if wanted.any():
        likely = _teacher_rows(loss, teacher, mask, rows, wanted)
        token_losses[wanted] = _token_losses(loss, student[wanted], targets[wanted], likely)
    if refuted.any():
        token_losses[refuted] = unlikelihood(student[refuted], targets[refuted])
    lengths = mask.sum(-1, keepdim=True).expand_as(mask)[mask]
    return (token_losses * weight.abs() / lengths).sum()


def _teacher_rows(
    loss: SpanLoss,
    teacher: torch.Tensor | TopK | None,
    mask: torch.Tensor,
    rows: torch.Tensor,
    wanted: torch.Tensor,
) -> torch.Tensor | TopK | None:
    """The teacher's distributions of the tokens that count, without a gradient."""
    if teacher is None or not loss.needs_teacher:
        return None
    if isinstance(teacher, TopK):
        if teacher.temperature != loss.temperature:
            raise InputError(
                "cache-temperature",
                f"the teacher's logits were cached at temperature {teacher.temperature}, the loss has "
                f"{loss.temperature}",
                "cache them again, or take the cache's temperature",
            )
        indices, log_probabilities, log_rest = (part[mask][wanted].detach() for part in teacher[:3])
        return TopK(indices, log_probabilities, log_rest, teacher.temperature)
    return widened(teacher[rows][wanted]).detach()


def _token_losses(
    loss: SpanLoss, student: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | TopK | None
) -> torch.Tensor:
    """The mix of terms for logits [n, vocabulary] and targets [n]: [n]."""
    total = torch.zeros_like(student[:, 0])
    if loss.cross_entropy:
        total = total + loss.cross_entropy * cross_entropy(student, targets)
    if teacher is None:
        return total
    scaled = student if loss.temperature == 1 else student / loss.temperature
    teacher_log, student_log = _log_probabilities(teacher, scaled, loss.temperature)
    square = loss.temperature**2
    if loss.forward_kl:
        total = total + loss.forward_kl * square * forward_kl(teacher_log, student_log)
    if loss.reverse_kl:
        total = total + loss.reverse_kl * square * reverse_kl(teacher_log, student_log)
    if loss.jensen_shannon:
        divergence = jensen_shannon(teacher_log, student_log, loss.mixture)
        total = total + loss.jensen_shannon * square * divergence
    return total


def _log_probabilities(
    teacher: torch.Tensor | TopK, scaled: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of teacher and student over the same outcomes: all tokens, or k of them and the rest.

    `scaled` are the student's logits [n, vocabulary] divided by the temperature.
    """
    if not isinstance(teacher, TopK):
        teacher_scaled = teacher if temperature == 1 else teacher / temperature
        return teacher_scaled.log_softmax(-1), scaled.log_softmax(-1)
    normalizer = scaled.logsumexp(-1, keepdim=True)
    likely = scaled.gather(-1, teacher.indices) - normalizer
    if teacher.indices.shape[-1] == scaled.shape[-1]:
        return teacher.log_probabilities.to(scaled), likely
    rest = log_others(scaled, teacher.indices)[:, None] - normalizer
    log_probabilities = torch.cat([teacher.log_probabilities, teacher.log_rest[:, None]], -1)
    return log_probabilities.to(scaled), torch.cat([likely, rest], -1)


def _check_teacher(loss: DistillationLoss, logits: torch.Tensor, teacher: torch.Tensor | TopK | None) -> None:
    if not loss.needs_teacher:
        return
    if teacher is None:
        raise InputError(
            "no-teacher",
            "the loss compares with a teacher's distributions, and there is no teacher",
            "give a teacher or a cache of its logits, or use cross_entropy alone",
        )
    if isinstance(teacher, TopK):
        return
    if teacher.shape != logits.shape:
        raise InputError(
            "different-vocabularies",
            f"the teacher's logits are {tuple(teacher.shape)}, the student's {tuple(logits.shape)}",
            "models with different vocabularies can only share cross_entropy on the same text",
        )
