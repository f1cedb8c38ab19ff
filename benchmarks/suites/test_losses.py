"""The distillation loss of 128 tokens over SmolLM2's vocabulary, forth and back."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from edge_distill.distil.kinds import ANSWER, PROMPT, REASONING
from edge_distill.distil.losses import DistillationLoss, SpanLoss, TopK, distillation_loss

VOCABULARY, LENGTH, K = 49_152, 160, 64
LOSSES = {
    "cross-entropy": SpanLoss(),
    "forward-kl": SpanLoss(cross_entropy=0, forward_kl=1),
    "reverse-kl": SpanLoss(cross_entropy=0, reverse_kl=1),
    "jensen-shannon": SpanLoss(cross_entropy=0, jensen_shannon=1),
}


def random(seed: int) -> torch.Tensor:
    return 3 * torch.randn(1, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def student() -> torch.Tensor:
    return random(0).requires_grad_()


@pytest.fixture(scope="module")
def teacher() -> torch.Tensor:
    return random(1)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def kinds() -> torch.Tensor:
    return torch.tensor([[PROMPT] * 32 + [REASONING] * 112 + [ANSWER] * 16])


@pytest.mark.parametrize("name", LOSSES)
def test_full_vocabulary(
    benchmark: BenchmarkFixture,
    student: torch.Tensor,
    teacher: torch.Tensor,
    tokens: torch.Tensor,
    kinds: torch.Tensor,
    name: str,
) -> None:
    loss = DistillationLoss(reasoning=LOSSES[name], answer=LOSSES[name])

    def forth_and_back() -> float:
        student.grad = None
        total = distillation_loss(loss, student, tokens, kinds, teacher=teacher).total
        total.backward()
        return total.item()

    assert benchmark.pedantic(forth_and_back, rounds=5, warmup_rounds=1) > 0
    assert student.grad is not None
    assert student.grad[:, :31].abs().max() == 0  # the prompt's tokens count for nothing
    assert student.grad[:, 31:-1].abs().max() > 0


def test_cached_top_k(
    benchmark: BenchmarkFixture,
    student: torch.Tensor,
    teacher: torch.Tensor,
    tokens: torch.Tensor,
    kinds: torch.Tensor,
) -> None:
    """Against the teacher's 64 likeliest tokens and the rest as one."""
    log = teacher.log_softmax(-1)
    likely, indices = log.topk(K, dim=-1)
    cached = TopK(indices, likely, torch.log1p(-likely.exp().sum(-1)), 1.0)
    span = LOSSES["forward-kl"]

    def forth_and_back() -> float:
        student.grad = None
        loss = DistillationLoss(reasoning=span, answer=span)
        total = distillation_loss(loss, student, tokens, kinds, teacher=cached).total
        total.backward()
        return total.item()

    assert benchmark.pedantic(forth_and_back, rounds=5, warmup_rounds=1) > 0
    assert student.grad is not None
