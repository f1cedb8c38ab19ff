"""One training run, from a recipe to a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_distill.distil.recipe import Recipe
from edge_distill.distil.result import Distilled
from edge_distill.distil.run_folder import CHECKPOINTS, METRICS, STUDENT, prepare_folder, put_student
from edge_distill.distil.snapshots import last_complete
from edge_distill_export.artifact import Source, prepare
from edge_distill_export.bundle import staged
from edge_distill_export.checkpoint import Checkpoint, load_checkpoint
from edge_distill_export.families import linear_names
from edge_distill_export.progress import stage

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from edge_distill.distil.material import Material
    from edge_distill.distil.result import StepAccuracy

__all__ = ["train_once"]


def train_once(recipe: Recipe, *, restart: bool = False) -> Distilled:
    """Train by a recipe without rounds; raises as `distill.train` does."""
    from edge_distill.distil.engine import training_arguments
    from edge_distill.distil.material import load_material

    arguments = training_arguments(recipe, recipe.out / CHECKPOINTS)
    with arguments.main_process_first(desc="preparing the folder"):
        if arguments.process_index == 0:
            prepare_folder(recipe, restart)
    with stage("Loading the student"):
        checkpoint = load_checkpoint(recipe.student)
    source = prepare(checkpoint, min(recipe.context, checkpoint.config.max_position_embeddings))
    material = load_material(recipe, source, arguments)
    return _run(recipe, source, material, arguments)


def _run(recipe: Recipe, source: Source, material: Material, arguments: TrainingArguments) -> Distilled:
    from edge_distill.distil.engine import with_adapters
    from edge_distill.distil.modes import make_trainer
    from edge_distill.distil.trainer import Recorder

    model: Any = source.checkpoint.model
    if recipe.reward_model:
        from edge_distill.distil.reward_model import with_reward_head

        model = with_reward_head(model, recipe.training.seed)
    if recipe.lora:
        model = with_adapters(model, recipe.lora)
    if recipe.quantize:
        from edge_distill.distil.qat import quantize_aware

        quantize_aware(model, linear_names(model.config), bits=int(recipe.quantize.removeprefix("int")))
    resumed = last_complete(recipe.out / CHECKPOINTS)
    arguments.eval_on_start = recipe.grpo is not None and resumed is None  # what it gained is the result
    trainer = make_trainer(recipe, model, source, material, arguments)
    with stage("Training", arguments.max_steps) as advance:
        trainer.add_callback(Recorder(recipe.out / METRICS, advance))
        result = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    history = trainer.state.log_history
    validated: dict[str, float] = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
    names = [f"eval_{name}" for name in ("loss", *trainer.parts)]
    validation = {name: validated[name] for name in names if name in validated}
    distilled = Distilled(
        path=str(recipe.out / STUDENT),
        steps=trainer.state.global_step,
        examples=len(material.rows),
        left_out=material.rows.left_out,
        tokens=sum(material.rows.lengths),
        resumed_from=int(resumed.name.rpartition("-")[2]) if resumed else 0,
        loss=next((entry["loss"] for entry in reversed(history) if "loss" in entry), None),
        validation=validation or None,
        seconds=result.metrics["train_runtime"],
        step_accuracy=_step_accuracy(recipe, material, validated),
    )
    if trainer.is_world_process_zero():
        student = trainer.accelerator.unwrap_model(trainer.model)
        _save(recipe, source.checkpoint, student, distilled, material.hashes)
    trainer.accelerator.wait_for_everyone()
    return distilled


def _step_accuracy(
    recipe: Recipe, material: Material, validated: dict[str, float]
) -> dict[str, StepAccuracy] | None:
    if not (recipe.reward_model and validated):
        return None
    from edge_distill.distil.dataset import Dataset
    from edge_distill.distil.step_accuracy import step_accuracies

    assert isinstance(material.validation, Dataset)  # of traces, as a reward model learns from nothing else
    return step_accuracies(material.validation.examples, validated)


def _save(
    recipe: Recipe, checkpoint: Checkpoint, model: Any, distilled: Distilled, hashes: dict[str, str]
) -> None:
    """Put the student into its place, whole; float32, adapters merged, the grid's weights exactly on the grid."""
    import torch

    with stage("Writing the student"), staged(recipe.out / STUDENT) as directory:
        if recipe.lora:
            model = model.merge_and_unload()
        if recipe.quantize:
            from edge_distill.distil.qat import bake

            bake(model)
        model.to(torch.float32).save_pretrained(directory)
        checkpoint.tokenizer.save_pretrained(directory)
        put_student(directory, recipe, distilled, checkpoint.lineage, hashes)
