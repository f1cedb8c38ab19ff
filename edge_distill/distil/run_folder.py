"""The folder of a run: made for one recipe, and what it is for in the end, the student, put into its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edge_distill.distil.recipe import Recipe, load_recipe, to_yaml
from edge_distill.distil.result import Distilled
from edge_distill_export.bundle import publish
from edge_distill_runtime.errors import InputError

__all__ = ["CHECKPOINTS", "LINEAGE", "METRICS", "RECIPE", "STUDENT", "prepare_folder", "put_student"]

STUDENT = "student"
RECIPE = "recipe.yaml"
LINEAGE = "distill.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


def prepare_folder(recipe: Recipe, restart: bool) -> None:
    """Make the run's folder with the resolved recipe; what is there already must belong to the same recipe."""
    out, text = recipe.out, to_yaml(recipe)
    if restart:
        for path in (out / CHECKPOINTS, out / STUDENT, *out.glob("round-*")):
            shutil.rmtree(path, ignore_errors=True)
        for name in (RECIPE, METRICS):
            (out / name).unlink(missing_ok=True)
    if (out / STUDENT).exists():
        raise InputError(
            "finished",
            f"{out / STUDENT} is there already",
            "choose another out=FOLDER, or train again with --restart",
        )
    if (out / RECIPE).exists() and load_recipe(out / RECIPE) != recipe:
        raise InputError(
            "other-recipe",
            f"{out} holds a run by another recipe",
            f"compare with {out / RECIPE}; choose another out=FOLDER, or begin again with --restart",
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / RECIPE).write_text(text, "utf-8")


def put_student(
    directory: Path, recipe: Recipe, distilled: Distilled, lineage: dict[str, Any], hashes: dict[str, str]
) -> None:
    """Add where a staged student comes from, and move it to its place; `lineage` is that of its beginning."""
    content = {
        **distilled.to_dict(),
        "path": STUDENT,
        "student": lineage,
        "traces": hashes,
        "quantize": recipe.quantize,
    }
    (directory / LINEAGE).write_text(json.dumps(content, indent=2), "utf-8")
    (directory / RECIPE).write_text(to_yaml(recipe), "utf-8")
    publish(directory, recipe.out / STUDENT)
