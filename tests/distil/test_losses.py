"""The loss of a batch: normalization, masks, weights, accumulation, cached teachers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from edge_distill.distil.kinds import ANSWER, OBSERVATION, PROMPT, REASONING
from edge_distill.distil.losses import DistillationLoss, SpanLoss, TopK, distillation_loss, span_counts
from edge_distill_runtime.errors import InputError

P, R, A, X = PROMPT, REASONING, ANSWER, OBSERVATION
KL = SpanLoss(cross_entropy=0, forward_kl=1)


def random(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(seed: int, kinds: list[list[int]], vocabulary: int = 7) -> tuple[torch.Tensor, ...]:
    """Logits, tokens and kinds."""
    marks = torch.tensor(kinds)
    tokens = torch.randint(vocabulary, marks.shape, generator=torch.Generator().manual_seed(seed))
    return random(seed, *marks.shape, vocabulary), tokens, marks


def test_by_hand() -> None:
    # probabilities of the tokens 1/2, 1/4, 1/4, 1/8: reasoning costs (log 2 + log 4) / 2, the answer log 4, log 8
    rows = [[2, 1, 1], [2, 1, 1], [1, 2, 1], [1, 1, 6], [1, 1, 1]]
    logits = torch.tensor([rows]).float().log()
    tokens, kinds = torch.tensor([[2, 0, 1, 2, 0]]), torch.tensor([[P, R, R, A, A]])
    parts = distillation_loss(DistillationLoss(alpha=2, beta=3), logits, tokens, kinds)
    assert parts.reasoning.item() == pytest.approx(1.5 * math.log(2))
    assert parts.answer.item() == pytest.approx(2.5 * math.log(2))
    assert parts.total.item() == pytest.approx((2 * 1.5 + 3 * 2.5) * math.log(2))


def test_spans_count_by_length_and_sequences_by_number() -> None:
    kinds = [[P, R, R, R, A, P], [P, P, R, A, A, A], [P, A, P, P, P, P]]
    logits, tokens, marks = batch(0, kinds)
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    nll = torch.cat([torch.zeros(3, 1), nll.view(3, 5)], 1)
    parts = distillation_loss(DistillationLoss(0.25, 4), logits, tokens, marks)
    reasoning = (nll[0, 1:4].mean() + nll[1, 2]) / 2  # two of the three sequences reason
    answer = (nll[0, 4] + nll[1, 3:].mean() + nll[2, 1]) / 3
    torch.testing.assert_close(parts.reasoning, reasoning)
    torch.testing.assert_close(parts.answer, answer)
    torch.testing.assert_close(parts.total, 0.25 * reasoning + 4 * answer)
    assert span_counts(marks).tolist() == [2, 3]


def test_one_span_of_one_sequence_is_cross_entropy_with_labels() -> None:
    logits, tokens, marks = batch(1, [[P, P, A, A, A, P]])
    labels = tokens.masked_fill(marks != A, -100)
    expected = F.cross_entropy(logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(distillation_loss(DistillationLoss(), logits, tokens, marks).total, expected)


@pytest.mark.parametrize("kinds", [[R, R, A, A], [P, R, A, X], [P, X, R, A], [A, A, A, A], [P, R, X, R]])
def test_gradient_reaches_only_the_rows_before_counting_tokens(kinds: list[int]) -> None:
    logits, tokens, marks = batch(2, [kinds])
    logits.requires_grad_()
    loss = DistillationLoss(reasoning=SpanLoss(1, 1, 1, 1), answer=SpanLoss(1, 1, 1, 1))
    teacher = random(3, *logits.shape)
    distillation_loss(loss, logits, tokens, marks, teacher=teacher).total.backward()
    assert logits.grad is not None
    touched = (logits.grad[0] != 0).any(-1).tolist()
    assert touched == [kind in (R, A) for kind in kinds[1:]] + [False]


def test_no_token_counts() -> None:
    logits, tokens, marks = batch(3, [[R, P, X, P]])  # nothing predicts the first token
    logits.requires_grad_()
    parts = distillation_loss(DistillationLoss(), logits, tokens, marks)
    assert parts.total.item() == 0
    parts.total.backward()  # a batch of which nothing counts must not end a run
    assert span_counts(marks).tolist() == [0, 0]


def test_weights_scale_tokens_and_leave_the_others() -> None:
    logits, tokens, marks = batch(4, [[P, R, R, R, A]])
    nll = F.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")
    weights = torch.tensor([[9.0, 0.0, 2.0, -0.5, 1.0]])
    refuted = -(1 - logits[0, 2].softmax(-1)[tokens[0, 3]]).log()
    parts = distillation_loss(DistillationLoss(), logits, tokens, marks, weights=weights)
    torch.testing.assert_close(parts.reasoning, (2 * nll[1] + 0.5 * refuted) / 3)
    torch.testing.assert_close(parts.answer, nll[3])


def test_mix_with_temperature_against_pytorch() -> None:
    logits, tokens, marks = batch(5, [[P, R, R, A], [P, R, A, A]])
    teacher = random(6, *logits.shape)
    mix = SpanLoss(cross_entropy=0.3, forward_kl=0.5, reverse_kl=0.2, temperature=3)
    measured = distillation_loss(DistillationLoss(1, 0, mix), logits, tokens, marks, teacher=teacher).total
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(2, 3)
    q, p = (logits / 3).log_softmax(-1)[:, :-1], (teacher / 3).log_softmax(-1)[:, :-1]
    forward = 9 * F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    backward = 9 * F.kl_div(p, q, log_target=True, reduction="none").sum(-1)
    tokens_cost = 0.3 * nll + 0.5 * forward + 0.2 * backward
    expected = (tokens_cost[0, :2].mean() + tokens_cost[1, 0]) / 2
    torch.testing.assert_close(measured, expected)


def test_temperature_squared_keeps_the_gradient() -> None:
    """At a high temperature, T^2 KL goes to half the mean squared difference of the centred logits."""
    logits, tokens, marks = batch(7, [[P, A]])
    teacher = random(8, *logits.shape)
    hot = DistillationLoss(answer=SpanLoss(0, 1, temperature=1e4))
    measured = distillation_loss(hot, logits, tokens, marks, teacher=teacher).total
    difference = (teacher - logits)[0, 0]
    expected = 0.5 * (difference - difference.mean()).square().mean()
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("cached", [False, True])
def test_gradcheck(cached: bool) -> None:
    logits, tokens, marks = batch(9, [[P, R, R, A, A], [R, A, X, R, P]], vocabulary=5)
    weights = torch.tensor([[1.0, 2.0, -1.0, 0.5, 1.0]] * 2)
    loss = DistillationLoss(0.7, 1.3, SpanLoss(1, 1, 1, 1, 0.3, 2), SpanLoss(0, 0, 0, 1, 0.8, 2))
    live = random(10, *logits.shape)
    teacher: Any = top_k(live, 3, 2.0) if cached else live
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: distillation_loss(loss, x, tokens, marks, weights=weights, teacher=teacher).total, (logits,)
    )


def test_accumulation_and_data_parallel_give_the_gradient_of_the_whole_batch() -> None:
    """The bug of per-micro-batch means: micro-batches with few spans must not weigh more."""
    kinds = [[P, R, R, A], [P, P, P, A], [P, R, A, A], [P, R, R, R], [P, P, A, A]]
    logits, tokens, marks = batch(11, kinds)
    loss = DistillationLoss(0.4, 1.0, SpanLoss(1, 1), SpanLoss(1))
    teacher = random(12, *logits.shape)
    whole = logits.clone().requires_grad_()
    total = distillation_loss(loss, whole, tokens, marks, teacher=teacher).total
    total.backward()
    assert whole.grad is not None
    parted = logits.clone().requires_grad_()
    counts = span_counts(marks)
    summed = 0.0
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        part = distillation_loss(
            loss, parted[rows], tokens[rows], marks[rows], teacher=teacher[rows], counts=counts
        ).total
        part.backward()
        summed += part.item()
    torch.testing.assert_close(parted.grad, whole.grad)
    assert summed == pytest.approx(total.item())
    # without the counts, it is another gradient
    naive = logits.clone().requires_grad_()
    for rows in (slice(0, 2), slice(2, 5)):
        part = distillation_loss(loss, naive[rows], tokens[rows], marks[rows], teacher=teacher[rows]).total
        (part / 2).backward()
    assert naive.grad is not None
    assert (naive.grad - whole.grad).abs().max() > 1e-3


def test_bfloat16_logits_give_a_float32_loss() -> None:
    logits, tokens, marks = batch(13, [[P, R, R, A, A]])
    narrow, teacher = logits.bfloat16(), random(14, *logits.shape).bfloat16()
    loss = DistillationLoss(1, 1, SpanLoss(1, 1, 1, 1), SpanLoss(1, 1, 1, 1))
    measured = distillation_loss(loss, narrow, tokens, marks, teacher=teacher).total
    assert measured.dtype == torch.float32
    expected = distillation_loss(loss, narrow.float(), tokens, marks, teacher=teacher.float()).total
    assert measured.item() == expected.item()


def test_a_span_that_does_not_count_gets_no_gradient() -> None:
    logits, tokens, marks = batch(15, [[P, R, R, A]])
    logits.requires_grad_()
    parts = distillation_loss(DistillationLoss(alpha=0, reasoning=KL), logits, tokens, marks)
    parts.total.backward()
    assert logits.grad is not None
    assert not logits.grad[0, :2].any()
    assert logits.grad[0, 2].any()


def top_k(logits: torch.Tensor, k: int, temperature: float) -> TopK:
    """What a cache would hold, by plain sums."""
    probabilities = (logits / temperature).softmax(-1).roll(1, dims=1)  # row t: of token t
    values, indices = probabilities.topk(k, dim=-1)
    return TopK(indices, values.log(), (1 - values.sum(-1)).log(), temperature)


DIVERGENCES = [SpanLoss(0, 1, temperature=2), SpanLoss(0, 0, 1, temperature=2), SpanLoss(0, 0, 0, 1, 0.3, 2)]


@pytest.mark.parametrize("span", DIVERGENCES)
def test_cached_loss_rises_to_the_live_one(span: SpanLoss) -> None:
    logits, tokens, marks = batch(16, [[P, R, R, A, A], [P, A, X, R, P]])
    teacher = random(17, *logits.shape)
    loss = DistillationLoss(1, 1, span, span)
    live = distillation_loss(loss, logits, tokens, marks, teacher=teacher).total.item()
    cached = [
        distillation_loss(loss, logits, tokens, marks, teacher=top_k(teacher, k, 2.0)).total.item()
        for k in range(1, 8)
    ]
    # refining a partition never lowers an f-divergence; 1e-12 of it is float64's rounding
    assert all(fewer <= more * (1 + 1e-12) for fewer, more in pairwise(cached))
    assert cached[0] < live - 1e-3
    # one token less than all leaves a bucket of one token, which is that token
    assert cached[-2] == pytest.approx(live, rel=1e-9)
    assert cached[-1] == pytest.approx(live, rel=1e-9)


def test_merged_outcomes_by_hand() -> None:
    # teacher (1/2, 1/4, 1/4) and student (1/4, 1/2, 1/4), all but token 0 merged: (1/2, 1/2) against (1/4, 3/4)
    logits = torch.tensor([[[1.0, 2.0, 1.0], [1.0, 1.0, 1.0]]]).log()
    half = torch.tensor([[[0.5], [0.5]]]).log()
    teacher = TopK(torch.zeros(1, 2, 1, dtype=torch.long), half, half[..., 0], 1.0)
    loss = DistillationLoss(answer=KL)
    parts = distillation_loss(loss, logits, torch.tensor([[0, 0]]), torch.tensor([[P, A]]), teacher=teacher)
    assert parts.answer.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_errors() -> None:
    logits, tokens, marks = batch(18, [[P, R, A]])
    loss = DistillationLoss(reasoning=KL)
    with pytest.raises(InputError) as caught:
        distillation_loss(loss, logits, tokens, marks)
    assert caught.value.code == "no-teacher"
    with pytest.raises(InputError) as caught:
        distillation_loss(loss, logits, tokens, marks, teacher=random(19, 1, 3, 8))
    assert caught.value.code == "different-vocabularies"
    with pytest.raises(InputError) as caught:
        distillation_loss(loss, logits, tokens, marks, teacher=top_k(logits, 2, 2.0))
    assert caught.value.code == "cache-temperature"
    for bad, code in (
        (lambda: SpanLoss(0), "bad-loss"),
        (lambda: SpanLoss(math.nan), "bad-loss"),
        (lambda: SpanLoss(-1, 1), "bad-loss"),
        (lambda: SpanLoss(temperature=0), "bad-temperature"),
        (lambda: SpanLoss(0, 0, 0, 1, mixture=1), "bad-mixture"),
        (lambda: DistillationLoss(0, 0), "bad-loss"),
        (lambda: DistillationLoss(math.inf), "bad-loss"),
    ):
        with pytest.raises(InputError) as caught:
            bad()
        assert caught.value.code == code
