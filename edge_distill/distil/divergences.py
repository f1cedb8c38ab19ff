"""Losses of single tokens: how far a student's next-token distribution is from a target or from a teacher's.

All take logits or log-probabilities [n, vocabulary] and return [n], in nats; float32 at least, also under bf16.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

__all__ = [
    "cross_entropy",
    "forward_kl",
    "jensen_shannon",
    "log_others",
    "reverse_kl",
    "unlikelihood",
    "widened",
]


def widened(logits: torch.Tensor) -> torch.Tensor:
    """bfloat16 and float16 as float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q(target) for logits [n, vocabulary] and token ids [n]."""
    return F.cross_entropy(widened(logits), targets, reduction="none")


def unlikelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log(1 - q(target)): what teaches not to write a token (Welleck et al. 2020, arXiv:1908.04319).

    As a difference of log-sums, so that it neither overflows nor needs a clamp where q(target) is nearly 1.
    """
    logits = widened(logits)
    return logits.logsumexp(-1) - log_others(logits, targets[:, None])


def log_others(logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Log of the summed exponentials of all logits [n, vocabulary] but those at `indices` [n, k]."""
    return logits.scatter(-1, indices, -math.inf).logsumexp(-1)


def forward_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of log-probabilities [n, outcomes]; the student's are finite.

    Outcomes that the teacher excludes count 0: their log-probability, -inf, is taken as the smallest number.
    """
    difference = teacher.clamp(min=torch.finfo(teacher.dtype).min) - student
    return (teacher.exp() * difference).sum(-1)


def reverse_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher): infinite where the teacher excludes what the student may write."""
    return (student.exp() * (student - teacher)).sum(-1)


def jensen_shannon(teacher: torch.Tensor, student: torch.Tensor, mixture: float) -> torch.Tensor:
    """b KL(teacher || m) + (1 - b) KL(student || m), m = b teacher + (1 - b) student, with b = `mixture`.

    The generalized divergence of GKD (Agarwal et al. 2024, arXiv:2306.13649), 0 < b < 1: divided by b it goes to
    the forward KL as b goes to 0, divided by 1 - b to the reverse KL as b goes to 1.
    """
    mixed = torch.logaddexp(teacher + math.log(mixture), student + math.log1p(-mixture))
    return mixture * forward_kl(teacher, mixed) + (1 - mixture) * (student.exp() * (student - mixed)).sum(-1)
