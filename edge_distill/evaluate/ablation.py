"""`edge-distill evaluate STUDENT --ablate granularity,roles,alpha`: which supervision transferred reasoning?

Variants of the student's recipe are trained, each with one thing changed, and compared with the student on the same
items:

- granularity: full, compact, critical, answer; how much of a reasoning is shown
- roles: the steps of one role (decomposition, structure, error, language) have no loss
- alpha: 0, 0.5, 1, 2; what the reasoning's loss weighs beside the answer's

Three questions are asked of each besides accuracy: structure (reasonings without a false statement), adaptability
(changed prompt styles) and transfer (sibling tasks). The smallest form that keeps them is the one that teaches the
fewest tokens (those with a loss whose weight is not 0), among those where none of the four is shown to be lower than
the student's (the upper end of the difference's 95 % interval is below 0). That something is not shown to be lower does
not prove it to be as good: the intervals say how much could be hidden.

A variant is trained once: an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from edge_distill.distil.dataset import load_dataset
from edge_distill.distil.distill import train
from edge_distill.distil.kinds import ANSWER, REASONING
from edge_distill.distil.recipe import Recipe, load_recipe, to_yaml
from edge_distill.distil.run_folder import LINEAGE, RECIPE, STUDENT
from edge_distill.distil.spans import Example
from edge_distill.evaluate.forms import Ablation, Form, answers, lost
from edge_distill.evaluate.measuring import Plan, measure_all, write_result
from edge_distill.traces.granularity import Granularity
from edge_distill.traces.trace import Role
from edge_distill_export.artifact import prepare
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.progress import stage
from edge_distill_runtime.errors import InputError

__all__ = ["ablate", "variants"]

DIMENSIONS = ("granularity", "roles", "alpha")
_ALPHAS = (0.0, 0.5, 1.0, 2.0)
_PARTS = ("accuracy", "styles", "siblings", "steps")


def ablate(students: Sequence[str], dimensions: str, plan: Plan, *, choose_parts: bool = True) -> Ablation:
    """Train what is missing, measure all, and write `ablation.json`; see the module.

    Raises `InputError` for unknown dimensions, several students, and a student without the recipe of its traces.
    """
    if len(students) != 1:
        raise InputError("one-student", f"{len(students)} students", "--ablate takes the recipe of one")
    folder = Path(students[0])
    if not (folder / RECIPE).is_file() or not (folder / LINEAGE).is_file():
        raise InputError(
            "no-recipe", f"{folder} has no {RECIPE} and {LINEAGE}", "give a student that `distill` trained"
        )
    base = load_recipe(folder / RECIPE)
    recipes = {"as trained": base, **variants(base, dimensions, plan.out / "trained")}
    places = {"as trained": folder}
    for name, recipe in list(recipes.items())[1:]:
        _train_once(recipe)
        places[name] = recipe.out / STUDENT
    teaching = _Teaching(folder, base)
    wanted = replace(plan, parts=_PARTS) if choose_parts else plan
    evaluation = measure_all({name: str(place) for name, place in places.items()}, wanted)
    first = answers(evaluation.students[0])
    forms = tuple(
        Form(name, str(place), teaching.tokens(recipes[name]), lost(answers(student), first))
        for (name, place), student in zip(places.items(), evaluation.students, strict=True)
    )
    smallest = min((form for form in forms if not form.loses), key=lambda form: form.tokens)
    result = Ablation(forms, smallest.name, evaluation)
    write_result(plan.out / "ablation.json", result.to_dict())
    return result


def variants(base: Recipe, dimensions: str, out: Path) -> dict[str, Recipe]:
    """The recipes by name, each with one thing changed and a folder of its own in `out`."""
    names = [name.strip() for name in dimensions.split(",")]
    if unknown := [name for name in names if name not in DIMENSIONS]:
        known = ", ".join(DIMENSIONS)
        raise InputError("unknown-dimension", f"{unknown[0]!r} cannot be ablated", f"there are: {known}")
    if not base.traces or base.on_policy or base.reward_model:
        raise InputError(
            "no-traces", "the student was not trained on the text of traces", "ablate one that was"
        )
    changes: dict[str, dict[str, Any]] = {}
    if "granularity" in names:
        others = [level for level in get_args(Granularity) if level != base.granularity]
        changes |= {f"granularity {level}": {"granularity": level} for level in others}
    if "roles" in names:
        weights = base.steps.roles
        for role in get_args(Role):
            if weights.get(role, 1.0):
                steps = base.steps.model_copy(update={"roles": {**weights, role: 0.0}})
                changes[f"without {role}"] = {"steps": steps}
    if "alpha" in names:
        for alpha in _ALPHAS:
            if alpha != base.loss.alpha and (alpha or base.loss.beta):
                loss = base.loss.model_copy(update={"alpha": alpha})
                teacher = base.teacher if loss.loss().needs_teacher else None
                changes[f"alpha {alpha:g}"] = {"loss": loss, "teacher": teacher}
    return {
        name: base.model_copy(update={**change, "out": out / name.replace(" ", "-")})
        for name, change in changes.items()
    }


def _train_once(recipe: Recipe) -> None:
    """Train, unless the same recipe has been trained there."""
    written = recipe.out / STUDENT / RECIPE
    if written.is_file():
        if written.read_text("utf-8") == to_yaml(recipe):
            return
        raise InputError(
            "other-recipe", f"{recipe.out} holds a student by another recipe", "choose another --out"
        )
    train(recipe)


class _Teaching:
    """Counts the tokens that recipes of the same student and traces teach."""

    def __init__(self, student: Path, recipe: Recipe) -> None:
        checkpoint = load_checkpoint(student)
        context = min(recipe.context, checkpoint.config.max_position_embeddings)
        self._source = prepare(checkpoint, context)
        self._examples: dict[Granularity, Sequence[Example]] = {}

    def tokens(self, recipe: Recipe) -> int:
        """Those with a loss whose weight is not 0, once through the traces."""
        if recipe.granularity not in self._examples:
            source = self._source
            with stage(f"Counting tokens: {recipe.granularity}"):
                self._examples[recipe.granularity] = load_dataset(
                    recipe.traces,
                    source.style,
                    source.checkpoint.tokenizer,
                    context=source.context_length,
                    granularity=recipe.granularity,
                    keep_wrong=recipe.keep_wrong,
                ).examples
        return sum(_taught(example, recipe) for example in self._examples[recipe.granularity])


def _taught(example: Example, recipe: Recipe) -> int:
    weights = recipe.steps.weights()
    silent = {
        at for span in example.steps if not weights.of(span.step) for at in range(span.start, span.stop)
    }
    spans = {REASONING: recipe.loss.alpha, ANSWER: recipe.loss.beta}
    return sum(
        bool(spans.get(kind)) and not (kind == REASONING and at in silent)
        for at, kind in enumerate(example.kinds)
    )
