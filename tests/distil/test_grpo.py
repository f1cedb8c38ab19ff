"""GRPO: rewards by hand, that a student earns more by it, and what surrounds trl's trainer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edge_distill.distil.dataset import solution_of
from edge_distill.distil.distill import train
from edge_distill.distil.own_samples import load_prompts, reward_of, reward_parts
from edge_distill.distil.recipe import GrpoSection, Recipe, RewardsSection, to_yaml
from edge_distill.distil.result import Distilled
from edge_distill.distil.spans import make_example
from edge_distill.distil.trainer import TrainingFailed
from edge_distill.traces.steps import annotate
from edge_distill.traces.trace import Trace, make_trace
from edge_distill_export.artifact import prepare
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.families import linear_names
from edge_distill_export.grid import quantize_rtn
from edge_distill_runtime.errors import InputError, MissingExtra
from tests.distil.successors import TRAINING, problems, student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that mostly errs, and problems for it."""
    folder = tmp_path_factory.mktemp("policies")
    student(folder, steps=100)
    problems(folder / "successors.jsonl", 480)
    return folder


def recipe_in(folder: Path, out: str, **changes: Any) -> Recipe:
    section = {"problems": [str(folder / "successors.jsonl")], "count": 64, "held_out": 32, "max_tokens": 32}
    section |= {"beta": 0.01}
    section |= changes.pop("grpo", {})
    settings = {
        "batch_size": 64,
        "micro_batch_size": 32,
        "learning_rate": 1e-3,
        "log_every": 1,
        "schedule": "constant",
    }
    settings |= {"steps": 12, "save_every": 5, "evaluate_every": 6, **changes.pop("training", {})}
    content = {
        "student": str(folder / "badly" / "student"),
        "out": str(folder / out),
        "context": 128,
        "grpo": section,
        "training": {**TRAINING, **settings},
    }
    return Recipe.model_validate({**content, **changes})


def metrics_of(run: Path, name: str) -> dict[int, float]:
    """Its values by step."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {entry["step"]: entry[name] for entry in entries if name in entry}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Distilled:
    def fail(**_: Any) -> None:
        raise AssertionError("telemetry was sent")

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)  # trl sends none there
        patch.setattr("trl.trainer.base_trainer.send_telemetry", fail)
        return train(recipe_in(folder, "whole"))


def test_the_reward_rises(folder: Path, whole: Distilled) -> None:
    run = folder / "whole"
    held_out = metrics_of(run, "eval_answer")
    assert list(held_out) == [0, 6, 12]
    assert held_out[0] < 0.5
    assert held_out[12] > 0.65
    rewards = metrics_of(run, "reward")
    assert list(rewards) == list(range(1, 13))
    assert sum(rewards[step] for step in (10, 11, 12)) > sum(rewards[step] for step in (1, 2, 3)) + 0.5
    assert whole.validation is not None
    assert whole.validation["eval_answer"] == held_out[12]
    assert set(whole.validation) == {"eval_loss", "eval_reward", "eval_answer", "eval_steps"}
    assert (whole.steps, whole.examples, whole.left_out) == (12, 64, {})
    # the reward is the sum that the recipe asks for
    answer, steps = metrics_of(run, "answer"), metrics_of(run, "steps")
    assert rewards[3] == pytest.approx(answer[3] + 0.5 * steps[3], abs=1e-5)


def test_the_student_keeps_its_form(folder: Path, whole: Distilled) -> None:
    before, after = folder / "badly" / "student", folder / "whole" / "student"
    load_checkpoint(after)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((after / name).read_text("utf-8")) == json.loads((before / name).read_text("utf-8"))
    lineage = json.loads((after / "distill.json").read_text("utf-8"))
    assert lineage["steps"] == 12


def test_a_killed_run_ends_in_the_same_bits(folder: Path, whole: Distilled) -> None:
    run = folder / "killed"
    shutil.copytree(folder / "whole", run)
    shutil.rmtree(run / "student")
    shutil.rmtree(run / "checkpoints" / "checkpoint-12", ignore_errors=True)
    recipe = recipe_in(folder, "killed")
    (run / "recipe.yaml").write_text(to_yaml(recipe), "utf-8")
    assert train(recipe).resumed_from == 10  # in the second epoch
    weights = [load_file(folder / name / "student" / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert metrics_of(run, "reward") == metrics_of(folder / "whole", "reward")


@pytest.mark.parametrize(
    "way", [{}, {"lora": {"rank": 4}}, {"quantize": "int4"}], ids=["whole", "lora", "int4"]
)
def test_the_divergence_is_to_the_beginning(folder: Path, way: dict[str, Any]) -> None:
    name = f"beta-{next(iter(way), 'whole')}"
    settings = {"steps": 3, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 1e-2, "warmup": 0}
    train(recipe_in(folder, name, grpo={"beta": 0.5, "held_out": 2}, training=settings, **way))
    divergence = metrics_of(folder / name, "kl")
    assert divergence[1] == pytest.approx(0, abs=1e-6)  # the same weights; sums in another order
    assert divergence[3] > 1e-4
    checkpoint = load_checkpoint(folder / name / "student")
    if way.get("quantize"):
        weight = dict(checkpoint.model.named_parameters())[linear_names(checkpoint.config)[0]].detach()
        assert torch.equal(torch.from_numpy(quantize_rtn(weight, 4, "weight").dequantize()), weight)


def test_a_run_that_diverges_is_told(folder: Path) -> None:
    broken = load_checkpoint(folder / "badly" / "student")
    weight = broken.model.get_output_embeddings().weight.data
    weight[7], weight[8] = 3e38, -3e38  # one of their logits is infinite
    broken.model.save_pretrained(folder / "broken")
    broken.tokenizer.save_pretrained(folder / "broken")
    with pytest.raises(TrainingFailed, match="not finite; its problems: successors") as failure:
        train(recipe_in(folder, "diverged", student=str(folder / "broken")))
    assert failure.value.data["step"] == 1


def test_prompts_are_those_of_the_training_texts(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "badly" / "student")
    source = prepare(checkpoint, 128)
    section = GrpoSection(problems=[str(folder / "successors.jsonl")], max_tokens=32)
    prompts = load_prompts(section, "train", source)
    for problem, tokens in zip(prompts.problems, prompts.tokens, strict=True):
        trace = make_trace(problem.problem, "1 + 1 = 2", "2")
        example = make_example(solution_of(trace, "full"), source.style, checkpoint.tokenizer, 128)
        assert example.tokens[: len(tokens)] == tokens
        assert example.first == len(tokens)
    longest = max(prompts.lengths)
    tight = section.model_copy(update={"max_tokens": 128 - longest + 1})
    assert load_prompts(tight, "train", source).left_out == {
        "prompt-too-long": prompts.lengths.count(longest)
    }
    with pytest.raises(InputError, match="leaves room for 128 tokens in 128"):
        load_prompts(section.model_copy(update={"max_tokens": 128}), "train", source)


def sample(reasoning: str, *, correct: bool | None = True, **notes: Any) -> Trace:
    return make_trace("1 + 1?", reasoning, "2", steps=annotate(reasoning), correct=correct, notes=notes)


class Scorer:
    """Says how many steps a reasoning has."""

    name = "steps"

    def __call__(self, problem: str, steps: Sequence[str]) -> float:
        return float(len(steps))

    def score_traces(self, traces: Sequence[Trace]) -> list[float]:
        return [len(trace.steps) / 4 for trace in traces]


def test_rewards() -> None:
    samples = [
        sample("1 + 1 = 2"),
        sample("1 + 2 = 3\n1 + 1 = 3\nSo it is 2.", correct=False),
        sample("It is 2."),
        sample("1 + 1 = 2\n1 + 1 = 2", correct=None, finish_reason="length"),
    ]
    parts = reward_parts(samples, None)
    assert parts == {"answer": [1, 0, 1, 0], "steps": [1, 0.5, 0, 0]}
    assert reward_of(parts, RewardsSection(answer=1, steps=0.5)) == [1.5, 0.25, 1, 0]
    parts = reward_parts(samples, Scorer())
    assert parts["reward_model"] == [0.25, 0.75, 0.25, 0]
    assert reward_of(parts, RewardsSection(answer=2, steps=0, reward_model=4)) == [3, 3, 3, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traces": ["a.jsonl"]}, "its own samples alone"),
        (
            {"expert_iteration": {"problems": ["task:chain_sum"]}},
            "expert_iteration and grpo exclude each other",
        ),
        ({"grpo": {"group": 24}}, "no multiple of grpo.group 24"),
        ({"grpo": {"rewards": {"answer": 0, "steps": 0}}}, "all rewards of grpo are 0"),
    ],
)
def test_recipes_that_are_none(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_in(tmp_path, "out", **changes)


def test_too_few_problems_are_told(folder: Path) -> None:
    with pytest.raises(InputError, match="4 problems are fewer than a batch of 8"):
        train(recipe_in(folder, "few", grpo={"count": 4}))


def test_without_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge_distill.distil.grpo", raising=False)
    monkeypatch.setitem(sys.modules, "trl", None)  # what an import finds then raises ImportError
    with pytest.raises(MissingExtra, match=r'pip install "edge-distill\[rl\]"'):
        train(recipe_in(tmp_path, "out"))
    assert not (tmp_path / "out").exists()
