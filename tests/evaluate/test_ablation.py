"""Variants of a recipe, trained and compared."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_distill.distil.distill import train
from edge_distill.distil.kinds import ANSWER, PROMPT, REASONING
from edge_distill.distil.recipe import Recipe
from edge_distill.distil.spans import Example, Step, StepSpan
from edge_distill.evaluate import ablation
from edge_distill.evaluate.ablation import variants
from edge_distill.evaluate.evaluate import evaluate
from edge_distill.evaluate.forms import Ablation, answers, lost
from edge_distill.evaluate.measures import Measure
from edge_distill.evaluate.report import evaluated
from edge_distill_runtime.errors import InputError
from tests.distil.sums import sums, write
from tests.random_models import Variant, save_checkpoint, variant_named

STUDENT = Variant(
    "llama", "student", "smollm", {**variant_named("llama-tied-gqa").config, "max_position_embeddings": 1024}
)
BASE: dict[str, Any] = {"student": "base", "out": "run", "traces": ["traces.jsonl"]}


def recipe_of(**changes: Any) -> Recipe:
    return Recipe.model_validate({**BASE, **changes})


def test_the_grid(tmp_path: Path) -> None:
    grid = variants(recipe_of(), "granularity,roles,alpha", tmp_path)
    assert list(grid) == [
        "granularity compact", "granularity critical", "granularity answer",
        "without decomposition", "without structure", "without error", "without language",
        "alpha 0", "alpha 0.5", "alpha 2",
    ]  # fmt: skip
    assert grid["granularity critical"].granularity == "critical"
    assert grid["without error"].steps.roles == {"error": 0}
    assert (grid["alpha 0.5"].loss.alpha, grid["alpha 0.5"].loss.beta) == (0.5, 1)
    assert len({recipe.out for recipe in grid.values()}) == len(grid)
    same = {"out": Path("run"), "granularity": "full"}
    assert grid["granularity answer"].model_copy(update=same) == recipe_of()


def test_what_the_base_is_already_is_left_out(tmp_path: Path) -> None:
    base = recipe_of(granularity="answer", loss={"alpha": 2, "beta": 0}, steps={"roles": {"language": 0}})
    grid = variants(base, "alpha,granularity,roles", tmp_path)
    assert "granularity answer" not in grid
    assert "without language" not in grid
    assert grid["without error"].steps.roles == {"language": 0, "error": 0}
    assert [name for name in grid if name.startswith("alpha")] == ["alpha 0.5", "alpha 1"]


def test_no_teacher_where_no_loss_looks_at_it(tmp_path: Path) -> None:
    base = recipe_of(loss={"reasoning": {"forward_kl": 1}}, teacher={"checkpoint": "teacher"})
    grid = variants(base, "alpha", tmp_path)
    assert grid["alpha 0"].teacher is None
    assert grid["alpha 2"].teacher == base.teacher
    Recipe.model_validate(grid["alpha 0"].model_dump())


@pytest.mark.parametrize(
    ("dimensions", "code"), [("roles,size", "unknown-dimension"), ("", "unknown-dimension")]
)
def test_unknown_dimensions(tmp_path: Path, dimensions: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        variants(recipe_of(), dimensions, tmp_path)
    assert caught.value.code == code


def test_tokens_that_are_taught() -> None:
    steps = (
        StepSpan(1, 3, Step("a", "structure", "verified")),
        StepSpan(4, 6, Step("b", "language", "refuted")),
    )
    kinds = (PROMPT, *[REASONING] * 6, ANSWER, ANSWER)  # the step at 4 is refuted: it weighs nothing
    example = Example(tuple(range(9)), kinds, steps)
    for changes, count in (
        ({}, 6),
        ({"steps": {"roles": {"structure": 0}}}, 4),
        ({"steps": {"refuted": -1}}, 8),
        ({"loss": {"alpha": 0}}, 2),
        ({"loss": {"beta": 0}}, 4),
    ):
        assert ablation._taught(example, recipe_of(**changes)) == count, changes


def measures(accuracy: int, style: int, sound: int | None) -> list[Measure]:
    def share(part: str, name: str, yes: int, items: int = 100) -> Measure:
        return Measure(part, name, {f"i{number}": number < yes for number in range(items)})

    structure = {"yes": 0, "items": 0} if sound is None else {"yes": sound}
    return [
        share("accuracy", "accuracy", accuracy),
        share("styles", "all styles", style),
        share("steps", "reasonings without a false statement", **structure),
    ]


@pytest.mark.parametrize(
    ("found", "loses"),
    [
        (measures(80, 70, 90), ()),
        (measures(95, 60, 90), ("adaptability",)),  # 10 of 100 fewer, all one way
        (measures(79, 69, 89), ()),  # one item is no evidence
        (measures(40, 70, None), ("accuracy", "structure")),  # no reasoning is left
    ],
)
def test_what_a_form_loses(found: list[Measure], loses: tuple[str, ...]) -> None:
    base = measures(80, 70, 90)
    first = answers(evaluated("one", "", base, {}))
    other = answers(evaluated("two", "", found, {}, base))
    assert lost(other, first) == loses


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A student that was trained for two steps."""
    save_checkpoint(tmp_path / "base", STUDENT)
    write(tmp_path / "traces.jsonl", sums(16))
    training = {"steps": 2, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32", "device": "cpu"}
    recipe = Recipe.model_validate(
        {
            "student": str(tmp_path / "base"),
            "out": str(tmp_path / "run"),
            "traces": [str(tmp_path / "traces.jsonl")],
            "context": 256,
            "training": training,
        }
    )
    train(recipe)
    return tmp_path / "run" / "student"


def test_train_and_compare(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "_ALPHAS", (0.0, 1.0))
    trained: list[Path] = []

    def counted(recipe: Recipe) -> None:
        trained.append(recipe.out)
        train(recipe)

    monkeypatch.setattr(ablation, "train", counted)
    options: dict[str, Any] = {
        "tasks": ["task:chain_sum"], "siblings": ["task:gcd"], "items": 2, "max_tokens": 8, "threads": 1,
        "ablate": "alpha", "out": tmp_path / "evaluation",
    }  # fmt: skip
    found = evaluate([str(student)], **options)
    assert isinstance(found, Ablation)
    assert [form.name for form in found.forms] == ["as trained", "alpha 0"]
    assert {figure.part for figure in found.evaluation.students[1].figures} == {
        "accuracy", "styles", "siblings", "steps",
    }  # fmt: skip
    written = json.loads((tmp_path / "evaluation" / "ablation.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    # the answers alone are taught: less than a third, for every sum has a line of reasoning at least
    assert 0 < 3 * found.forms[1].tokens < found.forms[0].tokens
    console = Console(file=io.StringIO(), width=200)
    found.render(console)
    assert "alpha 0" in console.file.getvalue()  # type: ignore[attr-defined]

    again = evaluate([str(student)], **options)
    assert isinstance(again, Ablation)
    assert again.forms == found.forms
    assert len(trained) == 1


def test_what_cannot_be_ablated(bundles: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"tasks": ["task:gcd"], "ablate": "alpha", "out": tmp_path}
    for references, code in (
        ([str(bundles["onnx"])], "no-recipe"),
        ([str(bundles["onnx"]), "other"], "one-student"),
    ):
        with pytest.raises(InputError) as caught:
            evaluate(references, **options)
        assert caught.value.code == code
