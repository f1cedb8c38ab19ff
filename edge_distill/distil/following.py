"""Distillation from traces: the student follows their text, or a teacher's distributions on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from edge_distill.distil.kinds import LENGTHS
from edge_distill.distil.logits import logits_at
from edge_distill.distil.losses import DistillationLoss, TopK, distillation_loss, predicting, span_counts
from edge_distill.distil.spans import StepWeights, collate
from edge_distill.distil.trainer import Losses, StudentTrainer

if TYPE_CHECKING:
    from edge_distill.distil.teacher import LogitsTeacher

__all__ = ["DistillationTrainer"]


class DistillationTrainer(StudentTrainer):
    """Trains on `dataset.Dataset` with the loss of `losses.py`."""

    parts = ("reasoning", "answer")

    def __init__(
        self,
        *arguments: Any,
        loss: DistillationLoss,
        pad_id: int,
        weights: StepWeights,
        teacher: LogitsTeacher | None,
        **rest: Any,
    ) -> None:
        self.span_loss, self.pad_id, self.weights, self.teacher = loss, pad_id, weights, teacher
        super().__init__(*arguments, **rest)

    def collate(self, rows: list[int], dataset: Any) -> dict[str, torch.Tensor]:
        return collate([dataset.examples[row] for row in rows], self.pad_id, self.weights, multiple=LENGTHS)

    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return span_counts(batch["kinds"])

    def total(self, parts: Sequence[float]) -> float:
        return self.span_loss.alpha * parts[0] + self.span_loss.beta * parts[1]

    def losses(
        self, model: Any, batch: dict[str, torch.Tensor], counts: torch.Tensor, dataset: Any
    ) -> Losses:
        texts = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        places = predicting(batch["kinds"])
        with self.compute_loss_context_manager():
            logits = logits_at(model, texts, places)
            teacher: torch.Tensor | TopK | None = None
            if self.teacher is not None:
                examples = [dataset.examples[row] for row in batch["rows"].tolist()]
                teacher = self.teacher.distributions(texts, examples, places)
        parts = distillation_loss(
            self.span_loss,
            logits,
            batch["input_ids"],
            batch["kinds"],
            weights=batch["weights"],
            teacher=teacher,
            counts=counts,
        )
        tokens = (batch["labels"][:, 1:] >= 0).sum()
        return Losses(parts.total, torch.stack([parts.reasoning, parts.answer]), tokens)
