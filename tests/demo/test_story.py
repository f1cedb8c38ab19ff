"""The demo in small, and that what it needs is there: the teacher, its recipe, and a wheel that holds both."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open

from edge_distill.demo.files import FOLDER, TASK, TEACHER, recipe
from edge_distill.demo.make_teacher import make_tokenizer
from edge_distill.demo.story import TARGETS, Scale, Story, demo
from edge_distill.traces.trace import read_traces
from edge_distill_bench.tasks import load_problems
from edge_distill_export.grid import quantize_rtn
from edge_distill_runtime.bundles.manifest import read_manifest

SMALL = Scale(problems=24, samples=2, steps=4, items=8, rounds=1)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Story]:
    out = tmp_path_factory.mktemp("demo")
    (out / "distilled").mkdir()  # what an earlier demo left is replaced
    (out / "traces.samples.jsonl").write_text("of an earlier demo\n")
    (out / "letter.txt").write_text("not the demo's")
    return out, demo(out=out, scale=SMALL)


def test_every_model_has_a_row(told: tuple[Path, Story]) -> None:
    _, story = told
    assert [row.role for row in story.rows] == ["teacher", "student"] + ["artifact"] * 4
    assert [row.target for row in story.rows] == ["onnx:fp32", "onnx:fp32", *TARGETS]
    teacher, student, *artifacts = story.rows
    assert teacher.of_teacher is None
    assert student.of_student is None
    assert all(row.of_teacher for row in story.rows[1:])
    assert all(row.tokens_per_second > 0 for row in story.rows)
    assert all(row.bytes < student.bytes < teacher.bytes for row in artifacts)
    assert story.teacher_parameters > 3 * story.student_parameters


def test_the_teacher_solves_what_it_is_asked(told: tuple[Path, Story]) -> None:
    out, story = told
    assert story.rows[0].accuracy.value >= 7 / 8
    assert 48 <= story.traces["samples"] <= 60  # unsolved problems are asked again
    assert story.traces["kept"] >= 22
    kept = list(read_traces(out / "traces.jsonl"))
    gold = {p.problem: p.answer for p in load_problems(TASK, split="train", count=24)}
    assert all(trace.answer == gold[trace.problem] for trace in kept)
    assert all(trace.vote_share for trace in kept)


def test_the_students_weights_are_on_the_grid(told: tuple[Path, Story]) -> None:
    out, _ = told
    with safe_open(out / "distilled" / "student" / "model.safetensors", framework="pt") as file:
        weight = file.get_tensor("model.layers.0.self_attn.q_proj.weight")
    assert (quantize_rtn(weight, 4, "weight").dequantize() == weight.numpy()).all()
    manifest = read_manifest(out / "bundles" / "student-int4")
    assert manifest.verification is not None
    assert manifest.verification["parity"]["overall"]["kl_mean"] < 0.01


def test_foreign_files_stay(told: tuple[Path, Story]) -> None:
    assert (told[0] / "letter.txt").read_text() == "not the demo's"


def test_for_people_and_machines(told: tuple[Path, Story]) -> None:
    _, story = told
    file = StringIO()
    story.render(Console(file=file, width=160))
    lines = [line for line in file.getvalue().splitlines() if line.startswith(("teacher ", "student "))]
    assert [line.split()[1] for line in lines] == ["onnx:fp32", "onnx:fp32", *TARGETS]
    assert json.loads(json.dumps(story.to_dict()))["rows"][0]["role"] == "teacher"


def test_recipes_are_read_and_changed() -> None:
    student = recipe("student", out=Path("elsewhere"), training={"steps": 3})
    assert (student.out, student.training.steps, student.quantize) == (Path("elsewhere"), 3, "int4")
    assert student.teacher is not None
    assert recipe("teacher").teacher is None


def test_the_teacher_is_small_and_in_the_wheel() -> None:
    from tests.test_architecture import ROOT, wheel_files

    files = list(TEACHER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 5_000_000
    ours = {str(path.relative_to(FOLDER.parents[1])) for path in [*files, *FOLDER.glob("*.yaml")]}
    assert ours <= wheel_files(ROOT)


def test_the_teachers_tokenizer_is_the_one_that_is_made() -> None:
    made, stored = (
        json.loads(text) for text in (make_tokenizer().to_str(), (TEACHER / "tokenizer.json").read_text())
    )
    assert made["model"] == stored["model"]
    assert made["pre_tokenizer"] == stored["pre_tokenizer"]
