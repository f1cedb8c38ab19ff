"""Expert iteration: what is accepted, that a student gets better by it, and four kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from edge_distill.distil.distill import train
from edge_distill.distil.expert_iteration import accepted
from edge_distill.distil.recipe import Recipe, to_yaml
from edge_distill.distil.result import Distilled
from edge_distill.traces.steps import annotate
from edge_distill.traces.trace import Trace, make_trace, read_traces
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_runtime.errors import InputError
from tests.distil.killing import has_step, kill_when
from tests.distil.successors import TRAINING, problems, student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that mostly errs, and problems for it."""
    folder = tmp_path_factory.mktemp("experts")
    student(folder, steps=100)
    problems(folder / "successors.jsonl", 240)
    return folder


def recipe_in(folder: Path, out: str, **changes: object) -> Recipe:
    section = {"problems": [str(folder / "successors.jsonl")], "count": 64, "held_out": 16, "rounds": 2}
    content = {
        "student": str(folder / "badly" / "student"),
        "out": str(folder / out),
        "context": 128,
        "expert_iteration": {**section, "samples": 4, "max_tokens": 32, "at_once": 64, **changes},
        "training": {**TRAINING, "steps": 16, "learning_rate": 1e-3, "log_every": 1},
    }
    return Recipe.model_validate(content)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Distilled:
    return train(recipe_in(folder, "whole"))


def test_the_student_gets_better(folder: Path, whole: Distilled) -> None:
    before, first, last = whole.rounds
    assert before.accuracy.value < 0.7
    assert last.accuracy.value > 0.9
    assert (first.number, first.samples, first.steps, first.held_out, whole.steps) == (1, 256, 16, 16, 32)
    assert 16 <= first.accepted < last.accepted <= last.solved * 4
    run = folder / "whole"
    right = [count_right(run / f"round-{n}" / "asked.samples.jsonl") for n in (1, 2)]
    assert right[1] > 1.5 * right[0]
    # a right answer by a wrong step is not rewarded
    learned = list(read_traces(run / "round-1" / "accepted.jsonl"))
    assert all(trace.correct and trace.steps[0].verdict == "verified" for trace in learned)
    load_checkpoint(run / "student")
    lineage = json.loads((run / "student" / "distill.json").read_text("utf-8"))
    assert lineage["student"] == json.loads((run / "round-1/student/distill.json").read_text())["student"]
    assert [turn["accuracy"]["value"] for turn in lineage["rounds"]] == [
        turn.accuracy.value for turn in whole.rounds
    ]
    console = Console(record=True, width=160)
    whole.render(console)
    assert f"round 1: {first.accuracy.value:.1%}" in console.export_text()
    with pytest.raises(InputError, match="is there already"):
        train(recipe_in(folder, "whole"))


def count_right(path: Path) -> int:
    return sum(trace.correct is True for trace in read_traces(path))


def test_killed_while_it_samples_learns_and_measures(folder: Path, whole: Distilled, tmp_path: Path) -> None:
    recipe = recipe_in(folder, "killed")
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), "utf-8")
    one, two = (folder / "killed" / f"round-{number}" for number in (1, 2))
    answers = one / "asked.answers.jsonl"
    kill_when(path, lambda: answers.exists() and answers.stat().st_size > 0)
    asked = answers.read_bytes()
    kill_when(path, lambda: has_step(one / "metrics.jsonl", 5))
    assert answers.read_bytes().startswith(asked[: asked.rindex(b"\n") + 1])
    kill_when(path, (one / "round.json").exists)
    assert not (one / "checkpoints").exists() or (one / "student").exists()
    kill_when(path, lambda: has_step(two / "metrics.jsonl", 12))
    assert not (folder / "killed" / "student").exists()
    result = train(recipe)
    assert result.resumed_from > 16
    assert result.rounds == whole.rounds
    assert len(answers.read_text("utf-8").splitlines()) == 256
    first, second = (
        load_file(folder / name / "student" / "model.safetensors") for name in ("whole", "killed")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def sample(seed: int, reasoning: str = "1 + 1 = 2", *, score: float | None = None, **fields: Any) -> Trace:
    notes = {} if score is None else {"score": score}
    content: dict[str, Any] = {"steps": annotate(reasoning), "correct": True, "notes": notes, **fields}
    return make_trace("What is 1 + 1?", reasoning, "2", seed=seed, **content)


def test_what_is_accepted() -> None:
    right, twice, other = sample(1), sample(2), sample(3, "2 = 1 + 1")
    bad = [
        sample(0, correct=False),
        sample(4, "1 + 1 = 3", correct=True),
        sample(5, correct=None, notes={"finish_reason": "length"}),
        sample(6, correct=None),
    ]
    assert accepted([other, twice, *bad, right], 0.5) == [right, other]
    scored = [sample(seed, f"{seed} + 1 = {seed + 1}", score=seed / 10) for seed in range(10)]
    assert accepted(scored, 0.7) == scored[7:]


def test_a_student_that_knows_nothing_is_told(folder: Path) -> None:
    lines = [
        json.dumps({"problem": f"Item {n}: what comes after {n % 8}?", "answer": "no"}) for n in range(80)
    ]
    (folder / "hopeless.jsonl").write_text("\n".join(lines), "utf-8")
    changes = {"problems": [str(folder / "hopeless.jsonl")], "count": 8, "held_out": 2}
    with pytest.raises(
        InputError, match="0 of 32 samples of round 1 were accepted, fewer than a batch of 16"
    ):
        train(recipe_in(folder, "hopeless", **changes))


def test_one_process_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="in one process"):
        train(recipe_in(folder, "many"))
