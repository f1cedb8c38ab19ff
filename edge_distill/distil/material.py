"""What a run learns from and is validated on, and whom it follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill.distil.dataset import Dataset, load_dataset
from edge_distill.distil.teacher import LogitsTeacher, open_logits_teacher
from edge_distill_export.progress import stage
from edge_distill_runtime.bundles.files import sha256_of
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from edge_distill.distil.own_samples import Prompts
    from edge_distill.distil.preferences import Pairs
    from edge_distill.distil.recipe import Recipe
    from edge_distill_export.artifact import Source

__all__ = ["Material", "file_hashes", "load_material"]


@dataclass(frozen=True)
class Material:
    """All of it, read."""

    rows: Dataset | Pairs | Prompts
    validation: Dataset | Pairs | Prompts | None
    teacher: LogitsTeacher | None
    hashes: dict[str, str]
    """SHA-256 of every file that was read, by path."""


def load_material(recipe: Recipe, source: Source, arguments: TrainingArguments) -> Material:
    """Read what a recipe learns from and open its teacher; raises `InputError` when there is too little."""
    kind = "problems" if recipe.grpo else "traces"
    with stage(f"Reading {kind}"):
        hashes = file_hashes(recipe)
        rows, validation = _read(recipe, source)
    if len(rows) < recipe.rows_per_step:
        raise InputError(
            f"too-few-{kind}",
            f"{len(rows)} {kind} are fewer than a batch of {recipe.rows_per_step}",
            f"give more {kind}, or a smaller training.batch_size",
        )
    teacher = _teacher(recipe, source, rows, validation, arguments)
    return Material(rows, validation, teacher, hashes)


def file_hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every file that a recipe names, by its path there; links are followed."""
    return {str(path): sha256_of(path.resolve())[1] for path in recipe.files}


def _read(
    recipe: Recipe, source: Source
) -> tuple[Dataset | Pairs | Prompts, Dataset | Pairs | Prompts | None]:
    tokenizer, context = source.checkpoint.tokenizer, source.context_length
    if recipe.grpo:
        from edge_distill.distil.own_samples import load_prompts

        return load_prompts(recipe.grpo, "train", source), load_prompts(recipe.grpo, "validation", source)
    if recipe.preferences:
        from edge_distill.distil.preferences import load_pairs

        section = recipe.preferences
        pairs = load_pairs(section.pairs, source.style, tokenizer, context=context)
        if not section.validation:
            return pairs, None
        return pairs, load_pairs(section.validation, source.style, tokenizer, context=context)

    edit: dict[str, Any] = {}
    if recipe.reward_model:
        from edge_distill.distil.reward_training import plant_mistake

        edit = {"edit": partial(plant_mistake, share=recipe.reward_model.planted)}

    def read(paths: Sequence[Path]) -> Dataset:
        return load_dataset(
            paths,
            source.style,
            tokenizer,
            context=context,
            granularity=recipe.granularity,
            keep_wrong=recipe.keep_wrong or recipe.reward_model is not None,
            mark_critical=recipe.steps.critical != 1,
            **edit,
        )

    return read(recipe.traces), read(recipe.validation) if recipe.validation else None


def _teacher(
    recipe: Recipe,
    source: Source,
    rows: Dataset | Pairs | Prompts,
    validation: Dataset | Pairs | Prompts | None,
    arguments: TrainingArguments,
) -> LogitsTeacher | None:
    if recipe.teacher is None:
        return None
    import torch

    assert isinstance(rows, Dataset)  # the recipe gives no teacher to other modes
    loss = recipe.loss.loss()
    temperature = next(span.temperature for span in (loss.reasoning, loss.answer) if span.needs_teacher)
    more = validation.examples if isinstance(validation, Dataset) else ()
    with arguments.main_process_first(desc="caching the teacher's logits"):
        return open_logits_teacher(
            recipe.teacher,
            source.checkpoint.tokenizer,
            [*rows.examples, *more],
            temperature=temperature,
            batch_size=recipe.training.micro_batch_size,
            device=arguments.device,
            dtype=torch.bfloat16 if arguments.bf16 else torch.float32,
            writes=arguments.process_index == 0,
        )
