"""Losses of single tokens against numbers worked by hand, plain PyTorch and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from edge_distill.distil.divergences import (
    cross_entropy,
    forward_kl,
    jensen_shannon,
    log_others,
    reverse_kl,
    unlikelihood,
    widened,
)

# p = (1/2, 1/4, 1/4) is the teacher, q = (1/4, 1/2, 1/4) the student.
TEACHER = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
STUDENT = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()


def random_log_probabilities(seed: int, rows: int = 5, outcomes: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, outcomes, generator=generator, dtype=torch.float64)).log_softmax(-1)


def test_by_hand() -> None:
    # KL(p||q) = 1/2 log 2 + 1/4 log 1/2 = log 2 / 4, and the same the other way round
    assert forward_kl(TEACHER, STUDENT).item() == pytest.approx(math.log(2) / 4)
    assert reverse_kl(TEACHER, STUDENT).item() == pytest.approx(math.log(2) / 4)
    # m = (3/8, 3/8, 1/4): KL(p||m) = 1/2 log 4/3 + 1/4 log 2/3, KL(q||m) the same by symmetry
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    assert jensen_shannon(TEACHER, STUDENT, 0.5).item() == pytest.approx(expected)
    # b = 1/4: m = p/4 + 3q/4 = (5/16, 7/16, 1/4)
    teacher_side = 0.5 * math.log(8 / 5) + 0.25 * math.log(4 / 7)
    student_side = 0.25 * math.log(4 / 5) + 0.5 * math.log(8 / 7)
    measured = jensen_shannon(TEACHER, STUDENT, 0.25).item()
    assert measured == pytest.approx(teacher_side / 4 + 3 * student_side / 4)
    target = torch.tensor([1])
    assert cross_entropy(STUDENT + 7, target).item() == pytest.approx(math.log(2))
    assert unlikelihood(STUDENT + 7, torch.tensor([0])).item() == pytest.approx(-math.log(3 / 4))
    assert log_others(STUDENT, torch.tensor([[0, 2]])).item() == pytest.approx(math.log(0.5))


def test_asymmetric_by_hand() -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log()
    assert forward_kl(teacher, student).item() == pytest.approx(math.log(2))
    assert reverse_kl(teacher, student).item() == math.inf
    # m = (3/8, 3/8, 1/4): KL(p||m) = log 4/3, KL(q||m) = 1/2 log 2/3 + 1/2 log 2
    expected = 0.5 * math.log(4 / 3) + 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert jensen_shannon(teacher, student, 0.5).item() == pytest.approx(expected)


def test_against_pytorch() -> None:
    teacher, student = random_log_probabilities(0), random_log_probabilities(1)
    expected = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(forward_kl(teacher, student), expected)
    expected = F.kl_div(teacher, student, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(reverse_kl(teacher, student), expected)
    for mixture in (0.1, 0.5, 0.9):
        mixed = (mixture * teacher.exp() + (1 - mixture) * student.exp()).log()
        expected = mixture * F.kl_div(mixed, teacher, log_target=True, reduction="none").sum(-1)
        expected += (1 - mixture) * F.kl_div(mixed, student, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(jensen_shannon(teacher, student, mixture), expected)


def test_jensen_shannon_goes_to_the_two_kls() -> None:
    teacher, student = random_log_probabilities(2), random_log_probabilities(3)
    # the next term of the expansion is of the order of the mixture itself times a chi-squared distance
    b = 1e-7
    torch.testing.assert_close(
        jensen_shannon(teacher, student, b) / b, forward_kl(teacher, student), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        jensen_shannon(teacher, student, 1 - b) / b, reverse_kl(teacher, student), rtol=1e-3, atol=0
    )


def test_equal_distributions_are_at_no_distance() -> None:
    teacher = random_log_probabilities(4)
    for measured in (forward_kl, reverse_kl, lambda p, q: jensen_shannon(p, q, 0.3)):
        torch.testing.assert_close(measured(teacher, teacher), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["forward", "reverse", "jensen_shannon", "cross_entropy", "unlikelihood"])
def test_gradients(name: str) -> None:
    teacher, targets = random_log_probabilities(5), torch.tensor([0, 3, 10, 4, 4])
    functions = {
        "forward": lambda logits: forward_kl(teacher, logits.log_softmax(-1)),
        "reverse": lambda logits: reverse_kl(teacher, logits.log_softmax(-1)),
        "jensen_shannon": lambda logits: jensen_shannon(teacher, logits.log_softmax(-1), 0.3),
        "cross_entropy": lambda logits: cross_entropy(logits, targets),
        "unlikelihood": lambda logits: unlikelihood(logits, targets),
    }
    logits = random_log_probabilities(6).requires_grad_()
    assert torch.autograd.gradcheck(functions[name], (logits,))


def test_what_the_teacher_excludes_gives_no_nan_gradient() -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    for divergence in (forward_kl, lambda p, q: jensen_shannon(p, q, 0.5)):
        logits = torch.zeros(1, 3, requires_grad=True)
        divergence(teacher, logits.log_softmax(-1)).sum().backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


def test_unlikelihood_of_a_certain_token_is_finite() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = unlikelihood(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(200 - math.log(2))  # 1 - q would be 0 in float32
    loss.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]))


def test_half_precision_is_widened() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(7)).bfloat16()
    targets = torch.tensor([1, 2, 3, 4])
    assert cross_entropy(logits, targets).dtype == torch.float32
    torch.testing.assert_close(
        cross_entropy(logits, targets), F.cross_entropy(logits.float(), targets, reduction="none")
    )
    assert unlikelihood(logits, targets).dtype == torch.float32
    assert widened(logits.double()).dtype == torch.float64
