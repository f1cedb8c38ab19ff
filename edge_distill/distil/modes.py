"""The trainer that a recipe asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_distill.distil.engine import total_steps

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from edge_distill.distil.material import Material
    from edge_distill.distil.recipe import Recipe
    from edge_distill.distil.trainer import GuardedTrainer
    from edge_distill_export.artifact import Source

__all__ = ["make_trainer"]

_TIMES = 10  # a run is validated and saved so often by default


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
