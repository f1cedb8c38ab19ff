"""The process reward model: which tokens it learns from, and that scores are read where it learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from edge_distill.distil.distill import train
from edge_distill.distil.recipe import Recipe
from edge_distill.distil.reward_model import load_reward_model
from edge_distill.distil.reward_training import judged, plant_mistake
from edge_distill.distil.spans import Step, StepSpan
from edge_distill.traces.trace import Verdict
from edge_distill_export.chat_template import reasoning_markers
from edge_distill_runtime.errors import InputError
from tests.distil.sums import sums, write
from tests.random_models import save_checkpoint, variant_named

STUDENT = variant_named("llama-tied-gqa")


def trained(folder: Path, **training: object) -> Path:
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
    train(Recipe.model_validate(content))
    return folder / "run"


def test_learns_and_reports_both_kinds_of_steps(tmp_path: Path) -> None:
    run = trained(tmp_path, epochs=12, learning_rate=3e-3)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    validated = [entry for entry in entries if "eval_loss" in entry]
    assert validated[-1]["eval_loss"] < 0.7 * validated[0]["eval_loss"]
    assert {"eval_accuracy", "eval_accuracy_right", "eval_accuracy_wrong"} <= validated[-1].keys()


def test_scores_are_those_of_transformers(tmp_path: Path) -> None:
    """Prompt and steps rendered by hand, the probability read at each step's last token."""
    run = trained(tmp_path, steps=2)
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
