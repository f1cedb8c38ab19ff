"""`edge-distill distill`: train a student by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edge_distill.distil.recipe import Recipe, load_recipe
from edge_distill.distil.result import Distilled
from edge_distill.distil.training import train_once

__all__ = ["Distilled", "distill", "train"]


def distill(
    recipe: Annotated[Path, "A recipe (YAML); recipes/ holds examples"],
    overrides: Annotated[list[str] | None, "Changes to it, such as training.learning_rate=3e-4"] = None,
    *,
    restart: Annotated[bool, "Throw an earlier run of this folder away and begin again"] = False,
) -> Distilled:
    """Train a student by a recipe; the same command goes on where a killed run stopped.

    On many GPUs: `accelerate launch -m edge_distill distill RECIPE`.
    """
    return train(load_recipe(recipe, overrides or ()), restart=restart)


def train(recipe: Recipe, *, restart: bool = False) -> Distilled:
    """Train by a recipe that has been read; see `distill`.

    Raises `InputError` when the folder holds a finished run, or one by another recipe, and `TrainingFailed` at the
    first step whose loss or gradient is not finite.
    """
    if recipe.expert_iteration:
        from edge_distill.distil.expert_iteration import iterate

        return iterate(recipe, restart=restart)
    return train_once(recipe, restart=restart)
