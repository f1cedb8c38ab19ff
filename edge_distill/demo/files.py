"""What lies beside the demo's code: the teacher's checkpoint and the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_distill.distil.recipe import Recipe

__all__ = ["FOLDER", "TASK", "TEACHER", "recipe"]

FOLDER = Path(__file__).parent
TEACHER = FOLDER / "teacher"
TASK = "task:chain_sum?min_terms=3&max_terms=4&max_digits=1"
"""Sums and differences of three or four one-digit numbers, worked out from left to right."""


def recipe(name: str, *, training: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """The recipe NAME.yaml with other values for some of its keys, and for some of its `training`."""
    from edge_distill.distil.recipe import Recipe, load_recipe

    content = load_recipe(FOLDER / f"{name}.yaml").model_dump()
    content["training"].update(training or {})
    return Recipe.model_validate({**content, **changes})
