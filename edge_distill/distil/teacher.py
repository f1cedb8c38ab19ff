"""The distributions that a student follows: from a teacher that runs beside it, or from a cache of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from edge_distill.distil.cached_logits import CachedLogits, CachedLogitsWriter, CachedTeacher, teacher_hash
from edge_distill.distil.kinds import LENGTHS
from edge_distill.distil.logits import logits_at
from edge_distill.distil.spans import Example, collate
from edge_distill_export.progress import stage
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from edge_distill.distil.losses import TopK
    from edge_distill.distil.recipe import TeacherSection
    from edge_distill_export.checkpoint import Checkpoint

__all__ = ["LogitsTeacher", "open_logits_teacher"]


class LogitsTeacher(Protocol):
    """Whose distributions a loss compares with."""

    def distributions(
        self, texts: Mapping[str, torch.Tensor], examples: Sequence[Example], places: torch.Tensor
    ) -> torch.Tensor | TopK:
        """Those of a padded batch: logits [n, vocabulary] at `places` [batch, length], or the likeliest tokens."""
        ...


class _LiveTeacher:
    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._model = checkpoint.model.to(device, dtype).requires_grad_(False)

    def distributions(
        self, texts: Mapping[str, torch.Tensor], examples: Sequence[Example], places: torch.Tensor
    ) -> torch.Tensor:
        import torch

        with torch.no_grad():
            return logits_at(self._model, texts, places)


class _CachedTeacher:
    def __init__(self, cache: CachedLogits, device: torch.device) -> None:
        self._cache, self._device = cache, device

    def distributions(
        self, texts: Mapping[str, torch.Tensor], examples: Sequence[Example], places: torch.Tensor
    ) -> TopK:
        from edge_distill.distil.losses import TopK

        length = texts["input_ids"].shape[1]
        rows = self._cache.batch([(example.tokens, example.first) for example in examples], length)
        indices, log_probabilities, log_rest = (part.to(self._device) for part in rows[:3])
        return TopK(indices, log_probabilities, log_rest, rows.temperature)


def open_logits_teacher(
    section: TeacherSection,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    *,
    temperature: float,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    writes: bool = True,
) -> LogitsTeacher:
    """Load the teacher, and with a cache write what it lacks of `examples` and let the teacher go.

    `writes` is false for all but one of several processes; they must wait for that one. Raises `InputError`
    "different-vocabularies" when the teacher's tokens are not the student's: then only cross-entropy on the same
    text is possible.
    """
    from edge_distill_export.checkpoint import load_checkpoint

    with stage("Loading the teacher"):
        checkpoint = load_checkpoint(section.checkpoint)
    if checkpoint.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            "different-vocabularies",
            f"{section.checkpoint} has another vocabulary than the student",
            "models with different vocabularies can only share cross_entropy on the same text: leave the teacher out",
        )
    live = _LiveTeacher(checkpoint, device, dtype)
    if section.cache is None:
        return live
    width = checkpoint.config.vocab_size
    identity = CachedTeacher(teacher_hash(checkpoint.lineage), min(section.k, width), width, temperature)
    if writes:
        with CachedLogitsWriter(section.cache, identity) as writer:
            missing = [example for example in examples if example.tokens not in writer]
            with stage("Caching the teacher's logits", len(missing)) as advance:
                for batch in _batches(missing, batch_size):
                    texts = collate(batch, 0, multiple=LENGTHS)
                    names = ("input_ids", "attention_mask", "position_ids")
                    inputs = {name: texts[name].to(device) for name in names}
                    filled = inputs["attention_mask"].bool()
                    logits = live.distributions(inputs, batch, filled)
                    lengths = [len(example.tokens) for example in batch]
                    for example, rows in zip(batch, logits.split(lengths), strict=True):
                        writer.add(example.tokens, rows, first=example.first)
                    advance(len(batch))
    return _CachedTeacher(CachedLogits(section.cache), device)


def _batches(examples: Sequence[Example], size: int) -> Iterator[list[Example]]:
    ordered = sorted(examples, key=lambda example: len(example.tokens))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
