"""From a recipe to the trainer that it asks for, with its data and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill.distil.dataset import Dataset, load_dataset
from edge_distill.distil.engine import total_steps
from edge_distill.distil.teacher import LogitsTeacher, open_logits_teacher
from edge_distill_export.progress import stage
from edge_distill_runtime.bundles.files import sha256_of
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from edge_distill.distil.own_samples import Prompts
    from edge_distill.distil.preferences import Pairs
    from edge_distill.distil.recipe import Recipe
    from edge_distill.distil.trainer import GuardedTrainer
    from edge_distill_export.artifact import Source

__all__ = ["Material", "file_hashes", "load_material", "make_trainer"]

_TIMES = 10  # a run is validated and saved so often by default


@dataclass(frozen=True)
class Material:
    """What a run learns from and is validated on, and whom it follows."""

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


def make_trainer(
    recipe: Recipe,
    model: Any,
    source: Source,
    material: Material,
    arguments: TrainingArguments,
) -> GuardedTrainer:
    """The trainer of a recipe's mode."""
    from transformers.trainer_utils import IntervalStrategy

    training = recipe.training
    arguments.max_steps = steps = total_steps(recipe, len(material.rows))
    arguments.save_steps = training.save_every or max(1, steps // _TIMES)
    arguments.eval_steps = training.evaluate_every or max(1, steps // _TIMES)
    arguments.eval_strategy = IntervalStrategy.STEPS if material.validation else IntervalStrategy.NO
    if recipe.grpo:
        from edge_distill.distil.grpo import make_policy_trainer

        return make_policy_trainer(recipe.grpo, model, source, material, arguments)
    common: dict[str, Any] = {
        "rows": material.rows,
        "validation": material.validation,
        "pad_id": source.checkpoint.tokenizer.pad_token_id or 0,
        "batch_size": training.batch_size,
    }
    if recipe.preferences:
        from edge_distill.distil.preferences import PreferenceTrainer

        section = recipe.preferences
        common |= {"beta": section.beta, "cross_entropy": section.cross_entropy}
        return PreferenceTrainer(model, arguments, **common)
    if recipe.reward_model:
        from edge_distill.distil.reward_training import RewardTrainer

        return RewardTrainer(model, arguments, **common)
    common |= {
        "loss": recipe.loss.loss(),
        "weights": recipe.steps.weights(),
        "teacher": material.teacher,
    }
    if recipe.on_policy:
        from edge_distill.distil.on_policy import OnPolicyTrainer, Writing

        own = recipe.on_policy
        tokenizer, markers = source.checkpoint.tokenizer, source.style.markers
        writing = Writing(own.share, own.temperature, own.max_tokens, source.stop_ids, tokenizer, markers)
        return OnPolicyTrainer(model, arguments, writing=writing, **common)
    from edge_distill.distil.following import DistillationTrainer

    return DistillationTrainer(model, arguments, **common)


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
