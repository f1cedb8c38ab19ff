"""Every shipped recipe is read, and trains the tiny student for two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_distill.distil.distill import distill
from edge_distill.distil.recipe import load_recipe, to_yaml
from edge_distill.distil.reward_model import load_reward_model, with_reward_head
from edge_distill_export.checkpoint import load_checkpoint
from tests.distil.sums import pair_lines, sums, write
from tests.random_models import random_checkpoint, save_checkpoint, variant_named

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.rglob("*.yaml"))
STUDENT = variant_named("llama-tied-gqa")


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_is_the_same_when_every_default_is_written_out(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(to_yaml(recipe), "utf-8")
    assert load_recipe(resolved) == recipe


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
    if recipe.expert_iteration or recipe.grpo:
        save_reward_model(tmp_path / "reward")
        own = {"rounds": "1", "samples": "2"} if recipe.expert_iteration else {"group": "2"}
        mode = "expert_iteration" if recipe.expert_iteration else "grpo"
        overrides += [f"{mode}.{key}={value}" for key, value in (own_samples(tmp_path) | own).items()]
    result = distill(path, overrides)
    assert result.steps == 2
    if recipe.reward_model:
        load_reward_model(tmp_path / "run" / "student")
    else:
        load_checkpoint(tmp_path / "run" / "student")


def own_samples(folder: Path) -> dict[str, str]:
    """Few and short samples, and a reward model."""
    problems = [json.dumps({"problem": f"What is {n} + 1?", "answer": str(n + 1)}) for n in range(40)]
    (folder / "problems.jsonl").write_text("\n".join(problems), "utf-8")
    files = {"problems": f"[{folder / 'problems.jsonl'}]", "reward_model": str(folder / "reward")}
    return {**files, "count": "4", "held_out": "2", "max_tokens": "8"}


def save_reward_model(folder: Path) -> None:
    """One with a random head."""
    model, tokenizer = random_checkpoint(STUDENT)
    with_reward_head(model, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
