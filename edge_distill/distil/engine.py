"""A recipe in the words of transformers and peft."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

    from edge_distill.distil.recipe import LoraSection, Recipe

__all__ = ["total_steps", "training_arguments", "with_adapters"]


def training_arguments(recipe: Recipe, folder: Path) -> TrainingArguments:
    """The Trainer's settings; opens the process group when `accelerate launch` or torchrun started this process.

    Raises `InputError` for a batch that the processes cannot share, `MissingExtra` for `grpo` without trl.
    """
    from transformers import TrainingArguments

    training = recipe.training
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share = training.micro_batch_size * processes
    if training.batch_size % share:
        raise InputError(
            "bad-batch",
            f"a batch of {training.batch_size} cannot be shared by {processes} processes with "
            f"{training.micro_batch_size} traces at a time",
            f"make training.batch_size a multiple of {share}",
        )
    kind: Any = TrainingArguments
    if recipe.grpo:
        from edge_distill.distil.grpo import arguments_for

        kind = arguments_for(recipe.grpo, training.batch_size)
    on_cpu = training.device == "cpu" or not _has_accelerator()
    arguments: TrainingArguments = kind(
        output_dir=str(folder),
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and processes > 1 else None,
        gradient_accumulation_steps=training.batch_size // share,
        per_device_train_batch_size=training.micro_batch_size,
        per_device_eval_batch_size=training.micro_batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=training.warmup,  # below 1: a part of the steps
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        bf16=training.precision == "bf16" or (training.precision == "auto" and _multiplies_bf16(on_cpu)),
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_total_limit=training.keep_checkpoints,
        report_to=list(training.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
    )
    return arguments


def total_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of the whole run."""
    training = recipe.training
    return training.steps or max(1, math.floor(training.epochs * (rows // recipe.rows_per_step)))


def with_adapters(model: PreTrainedModel, section: LoraSection) -> Any:
    """The model with low-rank adapters on its linear layers, the only weights that are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _multiplies_bf16(on_cpu: bool) -> bool:
    import torch

    from edge_distill_export.grid_training import multiplies_bf16

    if on_cpu:
        return multiplies_bf16()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
