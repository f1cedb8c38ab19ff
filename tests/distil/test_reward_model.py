"""The process reward model: which tokens it learns from, and that scores are read where it learned."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scipy.stats import binomtest
from transformers import AutoModelForTokenClassification, AutoTokenizer

from edge_distill.distil.distill import train
from edge_distill.distil.recipe import Recipe
from edge_distill.distil.reward_model import load_reward_model
from edge_distill.distil.reward_training import judged, plant_mistake
from edge_distill.distil.spans import Step, StepSpan
from edge_distill.traces.selection import open_scorer
from edge_distill.traces.stats import summarize
from edge_distill.traces.trace import Verdict, make_trace, read_traces
from edge_distill.traces.writing import traces as traces_verb
from edge_distill_export.chat_template import reasoning_markers
from edge_distill_runtime.errors import InputError
from tests.distil.sums import sums, write
from tests.random_models import save_checkpoint, variant_named

STUDENT = variant_named("llama-tied-gqa")


def recipe_in(folder: Path, **training: object) -> Recipe:
    save_checkpoint(folder / "student", STUDENT)
    write(folder / "traces.jsonl", sums(32))
    settings = {"batch_size": 8, "micro_batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1}
    content = {
        "student": str(folder / "student"),
        "out": str(folder / "run"),
        "traces": [str(folder / "traces.jsonl")],
        "validation": [str(folder / "traces.jsonl")],
        "context": 256,
        "reward_model": {"planted": 0.5},
        "training": {**settings, **training},
    }
    return Recipe.model_validate(content)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model after two steps; the student that it began with lies beside it."""
    folder = tmp_path_factory.mktemp("reward")
    train(recipe_in(folder, steps=2))
    return folder / "run"


def test_learns_and_reports_both_kinds_of_steps(tmp_path: Path) -> None:
    result, run = train(recipe_in(tmp_path, epochs=12, learning_rate=3e-3)), tmp_path / "run"
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    validated = [entry for entry in entries if "eval_loss" in entry]
    assert validated[-1]["eval_loss"] < 0.7 * validated[0]["eval_loss"]
    assert result.step_accuracy is not None
    assert result.validation is not None
    # the steps of the traces, counted here: those before a planted mistake are right, it is wrong
    planted = [plant_mistake(trace, 0.5) for trace in sums(32)]
    wrong = sum(trace.steps[-1].verdict == "refuted" for trace in planted)
    counts = {"all": sum(len(trace.steps) for trace in planted), "wrong": wrong}
    counts["right"] = counts["all"] - wrong
    assert {name: found.steps for name, found in result.step_accuracy.items()} == counts
    for name, key in (("all", "accuracy"), ("right", "accuracy_right"), ("wrong", "accuracy_wrong")):
        found = result.step_accuracy[name]
        assert found.accuracy.value == pytest.approx(result.validation[f"eval_{key}"])
        low, high = proportion_confidence(round(found.accuracy.value * found.steps), found.steps)
        assert (found.accuracy.low, found.accuracy.high) == pytest.approx((low, high))
    console = Console(record=True, width=120)
    result.render(console)
    assert (
        f"held-out steps, wrong: {result.step_accuracy['wrong'].accuracy.value:.1%}" in console.export_text()
    )


def proportion_confidence(right: int, items: int) -> tuple[float, float]:
    """Wilson's interval as scipy has it."""
    interval = binomtest(right, items).proportion_ci(0.95, "wilson")
    return interval.low, interval.high


def test_scores_are_those_of_transformers(run: Path) -> None:
    """Prompt and steps rendered by hand, the probability read at each step's last token."""
    scores = load_reward_model(run / "student").score_steps([("What is 1 + 1?", ["1 + 1 = 2", "so 2"])])[0]
    model = AutoModelForTokenClassification.from_pretrained(run / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 + 1?"}], tokenize=False, add_generation_prompt=True
    )
    markers = reasoning_markers(tokenizer)
    prompt += f"{markers.open}\n" if markers else ""
    expected = []
    for text in ("1 + 1 = 2", "1 + 1 = 2\nso 2"):
        tokens = tokenizer(prompt + text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(float(model(tokens).logits[0, -1].softmax(-1)[1]))
    assert scores == pytest.approx(expected, abs=1e-5)


def test_a_trace_is_worth_its_least_likely_step(run: Path) -> None:
    model = load_reward_model(run / "student")
    assert model.name == load_reward_model(run / "student").name
    assert re.fullmatch(r"prm:[0-9a-f]{8}", model.name)
    traces = sums(11)
    steps = model.score_steps(
        [(trace.problem, [step.text for step in trace.steps]) for trace in reversed(traces)]
    )
    assert model.score_traces(traces) == pytest.approx([min(scores) for scores in reversed(steps)], abs=1e-5)
    problem, texts = traces[2].problem, [step.text for step in traces[2].steps]
    assert model(problem, texts) == pytest.approx(min(steps[-3]), abs=1e-5)
    assert model(problem, []) == 1.0
    # nothing speaks for what has no steps, is too long for the context, or cannot be learned from
    unfit = [make_trace("p", text, "1") for text in ("", "1 + 1 = 2\n" * 300, "1 + 1 = 2<|im_end|>")]
    assert model.score_traces(unfit) == [0.0, 0.0, 0.0]
    assert model(problem, ["1 + 1 = 2"] * 300) == 0.0


def test_samples_are_scored_chosen_and_measured_by_the_verbs(run: Path, tmp_path: Path) -> None:
    scorer = f"prm:{run / 'student'}"
    lines = [json.dumps({"problem": f"What is {n} + 1?", "answer": str(n + 1)}) for n in range(3)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines), "utf-8")
    out = tmp_path / "out" / "traces.jsonl"
    asked = {
        "teacher": f"hf:{run.parent / 'student'}",
        "split": "all",
        "tries": 1,
        "samples": 2,
        "max_tokens": 4,
    }
    traces_verb([str(tmp_path / "problems.jsonl")], out=out, scorer=scorer, **asked)  # type: ignore[arg-type]
    samples = list(read_traces(tmp_path / "out" / "traces.samples.jsonl"))
    assert len(samples) == 6
    name = load_reward_model(Path(scorer.removeprefix("prm:"))).name
    assert {trace.sampling["scorer"] for trace in samples} == {name}
    graded = [replace(trace, notes={}, correct=False) for trace in samples]
    write(tmp_path / "graded.jsonl", graded)
    stats = summarize(tmp_path / "graded.jsonl", scorer=scorer)
    assert stats.selection is not None
    assert (stats.selection.scorer, stats.selection.problems, stats.selection.samples) == (name, 3, 2)
    assert stats.selection.best_of_n.value == 0


def test_nothing_behind_a_mistake_is_judged() -> None:
    verdicts: list[Verdict] = ["verified", "unknown", "refuted", "verified"]
    spans = [StepSpan(i, i + 1, Step(str(i), "structure", verdict)) for i, verdict in enumerate(verdicts)]
    assert [span.step.text for span in judged(spans)] == ["0", "2"]


def test_planted_mistakes_end_the_trace_in_a_refuted_step() -> None:
    traces = sums(200)
    planted = [plant_mistake(trace, 0.5) for trace in traces]
    changed = [trace for trace, before in zip(planted, traces, strict=True) if trace is not before]
    assert 60 < len(changed) < 140
    for trace in changed:
        assert [step.verdict for step in trace.steps][-1] == "refuted"
        assert all(step.verdict == "verified" for step in trace.steps[:-1])
        assert trace.messages[-1]["reasoning_content"] == trace.reasoning
    assert [plant_mistake(trace, 0) for trace in traces] == traces


def test_a_student_is_no_reward_model(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "student", STUDENT)
    with pytest.raises(InputError, match="is no reward model"):
        load_reward_model(tmp_path / "student")
    with pytest.raises(InputError, match="is no reward model"):
        open_scorer(f"prm:{tmp_path / 'student'}")
