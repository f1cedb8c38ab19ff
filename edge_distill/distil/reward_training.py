"""Training a process reward model on the checker's verdicts, and on mistakes that were planted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from edge_distill.distil.kinds import IGNORED, LENGTHS
from edge_distill.distil.reward_model import RIGHT
from edge_distill.distil.spans import StepSpan, collate
from edge_distill.distil.trainer import Losses, StudentTrainer
from edge_distill.traces.edits import with_mistake
from edge_distill.traces.steps import annotate
from edge_distill.traces.trace import Trace

__all__ = ["RewardTrainer", "judged", "plant_mistake"]


class RewardTrainer(StudentTrainer):
    """Trains on `dataset.Dataset`: the class of each judged step, at its last token."""

    parts = ("cross_entropy", "accuracy", "accuracy_right", "accuracy_wrong")

    def __init__(self, *arguments: Any, pad_id: int, **rest: Any) -> None:
        self.pad_id = pad_id
        super().__init__(*arguments, **rest)

    def collate(self, rows: list[int], dataset: Any) -> dict[str, torch.Tensor]:
        examples = [dataset.examples[row] for row in rows]
        batch = collate(examples, self.pad_id, multiple=LENGTHS)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, example in enumerate(examples):
            for span in judged(example.steps):
                labels[row, span.stop - 1] = RIGHT if span.step.verdict == "verified" else 1 - RIGHT
        names = ("input_ids", "attention_mask", "position_ids")
        return {**{name: batch[name] for name in names}, "labels": labels}

    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        right, wrong = (batch["labels"] == RIGHT).sum(), (batch["labels"] == 1 - RIGHT).sum()
        return torch.stack([right + wrong, right + wrong, right, wrong]).float()

    def total(self, parts: Sequence[float]) -> float:
        return parts[0]

    def losses(
        self, model: Any, batch: dict[str, torch.Tensor], counts: torch.Tensor, dataset: Any
    ) -> Losses:
        labels = batch["labels"]
        with self.compute_loss_context_manager():
            texts = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
            logits = model(**texts).logits.float()
        entropies = F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
        hits = logits.argmax(-1) == labels
        sums = [entropies, hits.sum(), (hits & (labels == RIGHT)).sum(), (hits & (labels == 1 - RIGHT)).sum()]
        parts = torch.stack([part.float() for part in sums]) / counts.clamp(min=1)
        return Losses(parts[0], parts.detach(), (labels >= 0).sum())


def judged(steps: Sequence[StepSpan]) -> list[StepSpan]:
    """The steps with a verdict, up to the first refuted one: what follows a mistake is not judged."""
    found = []
    for span in steps:
        if span.step.verdict != "unknown":
            found.append(span)
        if span.step.verdict == "refuted":
            break
    return found


def plant_mistake(trace: Trace, share: float) -> Trace:
    """A part of the traces, chosen by their ids, with a mistake in one step and cut behind it."""
    number = int(hashlib.sha256(trace.id.encode()).hexdigest()[:12], 16)
    if number % 1000 >= share * 1000:
        return trace
    wrong = with_mistake(trace.reasoning, trace.answer, number // 1000)
    if wrong is None:
        return trace
    last = {**trace.messages[-1], "reasoning_content": wrong.rstrip()}
    steps = annotate(wrong.rstrip())
    if steps[-1].verdict != "refuted":  # the checker must see it, or the label would be wrong
        return trace
    return replace(trace, messages=(*trace.messages[:-1], last), reasoning=wrong.rstrip(), steps=steps)
