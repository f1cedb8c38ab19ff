"""What an export is judged by is not calibrated on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from edge_distill_export.calibration import builtin_traces
from edge_distill_export.unseen import unseen_traces
from edge_distill_runtime.errors import InputError

HELDOUT = Path(__file__).parents[2] / "export/edge_distill_export/problems/heldout.jsonl"


def template(item: dict[str, Any]) -> tuple[str, ...]:
    """The names of a problem's variables tell its template."""
    return tuple(item["metadata"]["variables"])


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def test_heldout_templates_are_found_whatever_names_and_numbers_stand_in_them(tmp_path: Path) -> None:
    # as `export/make_problems.py` has it
    first = reasoning_gym.create_dataset("gsm_symbolic", size=600, seed=20)
    templates = {f"gsm_symbolic-{item['metadata']['source_index']}": template(item) for item in first}
    heldout = {templates[json.loads(line)["id"]] for line in HELDOUT.read_text("utf-8").splitlines()}
    items = list(reasoning_gym.create_dataset("gsm_symbolic", size=500, seed=77))
    lines = [
        {
            "problem": item["question"],
            "reasoning": item["metadata"]["answer_cot"].partition("####")[0],
            "answer": item["answer"],
        }
        for item in items
    ]
    kept, left_out = unseen_traces(write(tmp_path / "t.jsonl", lines))
    questions = {trace.messages[0]["content"] for trace in kept}
    missed = [item for item in items if template(item) in heldout and item["question"] in questions]
    wrongly = [item for item in items if template(item) not in heldout and item["question"] not in questions]
    known = sum(template(item) in heldout for item in items)
    assert len(kept) + left_out == len(items)
    assert known > 100
    assert len(missed) <= 0.05 * known
    assert not wrongly


@pytest.mark.parametrize("name", ["calibration", "repair", "deciding"])
def test_no_builtin_text_is_left_out(name: str, tmp_path: Path) -> None:
    traces = builtin_traces(name)
    turns = [
        [*trace.messages, {"role": "assistant", "reasoning": trace.reasoning, "content": trace.answer}]
        for trace in traces
    ]
    path = write(tmp_path / "t.jsonl", ({"messages": messages} for messages in turns))
    assert unseen_traces(path) == (traces, 0)


def test_reasoning_and_answers_count_too(tmp_path: Path) -> None:
    said = builtin_traces("heldout")[0].reasoning
    lines = [
        {"problem": "Add.", "reasoning": said, "answer": "2"},
        {"problem": "Add.", "reasoning": "1 + 1 = 2", "answer": said.upper()},
        {"problem": "Add.", "reasoning": "1 + 1 = 2", "answer": "2"},
    ]
    kept, left_out = unseen_traces(write(tmp_path / "t.jsonl", lines))
    assert left_out == 2
    assert [trace.answer for trace in kept] == ["2"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        unseen_traces(HELDOUT)
    assert caught.value.code == "only-heldout-text"
