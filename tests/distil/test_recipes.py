"""Every shipped recipe is read, and trains the tiny student for two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_distill.distil.distill import distill
from edge_distill.distil.recipe import load_recipe
from edge_distill.distil.reward_model import load_reward_model
from edge_distill_export.checkpoint import load_checkpoint
from tests.distil.sums import pair_lines, sums, write
from tests.random_models import save_checkpoint, variant_named

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.rglob("*.yaml"))
STUDENT = variant_named("llama-tied-gqa")


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_can_be_read(path: Path) -> None:
    load_recipe(path)


def test_the_list_names_every_recipe() -> None:
    listed = (RECIPES / "README.md").read_text("utf-8")
    assert [path.name for path in sorted(RECIPES.glob("*.yaml")) if f"`{path.name}`" not in listed] == []


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_trains(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    save_checkpoint(tmp_path / "student", STUDENT)
    save_checkpoint(tmp_path / "teacher", STUDENT, seed=3)
    write(tmp_path / "traces.jsonl", sums(12))
    overrides = [
        f"student={tmp_path / 'student'}",
        f"out={tmp_path / 'run'}",
        "context=256",
        *("training.steps=2", "training.batch_size=4", "training.micro_batch_size=4", "training.device=cpu"),
    ]
    if recipe.traces:
        overrides += [f"{key}=[{tmp_path / 'traces.jsonl'}]" for key in ("traces", "validation")]
    if recipe.preferences:
        (tmp_path / "pairs.jsonl").write_text("\n".join(pair_lines(8)), "utf-8")
        overrides += [f"preferences.pairs=[{tmp_path / 'pairs.jsonl'}]"]
    if recipe.teacher:
        overrides += [f"teacher.checkpoint={tmp_path / 'teacher'}"]
        overrides += [f"teacher.cache={tmp_path / 'cache'}"] if recipe.teacher.cache else []
    if recipe.on_policy:
        overrides += ["on_policy.max_tokens=8"]
    result = distill(path, overrides)
    assert result.steps == 2
    if recipe.reward_model:
        load_reward_model(tmp_path / "run" / "student")
    else:
        load_checkpoint(tmp_path / "run" / "student")
