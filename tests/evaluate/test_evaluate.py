"""The verb, on a tiny checkpoint and a tiny bundle."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_distill.cli import main
from edge_distill.distil.recipe import Recipe, to_yaml
from edge_distill.evaluate.evaluate import evaluate as evaluate_verb
from edge_distill.evaluate.measuring import PARTS
from edge_distill.evaluate.report import Evaluation
from edge_distill.evaluate.tasks import tasks_of_recipe
from edge_distill.traces.trace import make_trace, to_line
from edge_distill_runtime.errors import InputError
from tests.random_models import Variant, save_checkpoint, variant_named
from tests.runtime.bundles import write_manifest

STUDENT = Variant(
    "llama", "student", "smollm", {**variant_named("llama-tied-gqa").config, "max_position_embeddings": 1024}
)
OPTIONS: dict[str, Any] = {"tasks": ["task:chain_sum"], "items": 2, "max_tokens": 24, "threads": 1}


def evaluate(students: list[str], **options: Any) -> Evaluation:
    result = evaluate_verb(students, **options)
    assert isinstance(result, Evaluation)
    return result


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("evaluated") / "student", STUDENT)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def evaluation(checkpoint_folder: Path, out: Path) -> Evaluation:
    """Of a random checkpoint, all parts."""
    return evaluate([str(checkpoint_folder)], out=out, **OPTIONS)


def test_a_whole_report(evaluation: Evaluation, out: Path) -> None:
    (student,) = evaluation.students
    assert student.name == "student"
    assert {figure.part for figure in student.figures} == set(PARTS)
    assert student.skipped == {}
    assert evaluation.siblings == ("task:decimal_chain_sum", "task:basic_arithmetic")
    document = json.loads((out / "evaluation.json").read_text())
    assert document == json.loads(json.dumps(evaluation.to_dict()))
    assert {path.name for path in (out / "rows" / "student").iterdir()} >= {
        "accuracy.jsonl", "siblings.jsonl", "styles-terse.jsonl", "styles-polite.jsonl",
    }  # fmt: skip


def test_the_table(evaluation: Evaluation) -> None:
    console = Console(file=io.StringIO(), width=160, highlight=False, markup=False, emoji=False)
    evaluation.render(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"accuracy +accuracy +2 +0\.0 % +\[0, 66\]", text)  # Wilson of 0 of 2
    assert "styles (reordered, numbers): does not apply to 1 of 2 items" in text
    assert "task:chain_sum" in text
    assert "95 % intervals" in text


def test_a_second_run_asks_nothing(
    evaluation: Evaluation, checkpoint_folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr("edge_distill_runtime.model.Model.sample", fail)
    again = evaluate([str(checkpoint_folder)], out=out, only="accuracy,styles,siblings", **OPTIONS)
    assert again.students[0].figures == tuple(
        figure
        for figure in evaluation.students[0].figures
        if figure.part in ("accuracy", "styles", "siblings")
    )


def test_what_needs_markers_is_skipped(bundles: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bundles["gguf"], tmp_path / "plain")
    write_manifest(folder, "gguf", reasoning=None)
    found = evaluate(
        [str(folder)], siblings=[], only="siblings,cut,faithfulness", out=tmp_path / "out", **OPTIONS
    )
    assert found.students[0].skipped.keys() == {"siblings", "cut", "faithfulness"}
    assert found.students[0].figures == ()


def test_several_students(bundles: dict[str, Path], checkpoint_folder: Path, out: Path) -> None:
    found = evaluate(
        [str(checkpoint_folder), str(bundles["gguf"])],
        tasks=["task:chain_sum"], items=2, max_tokens=16, threads=1, only="accuracy,steps", out=out,
    )  # fmt: skip
    first, second = found.students
    assert (first.name, second.name) == ("student", "gguf")
    compared = {figure.name: figure.first_student for figure in second.figures}
    assert compared["accuracy"] is not None
    assert compared["accuracy"].p_value == 1
    assert compared["steps in a reasoning"] is None
    assert all(figure.first_student is None for figure in first.figures)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"only": "accuracy,stiles"}, "unknown-part"),
        ({"only": ","}, "unknown-part"),
        ({"tasks": None}, "no-tasks"),
        ({"tasks": ["task:nothing"]}, "unknown-task"),
        ({"items": 0}, "bad-count"),
    ],
)
def test_what_cannot_be_evaluated(
    bundles: dict[str, Path], tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        evaluate([str(bundles["onnx"])], out=tmp_path / "out", **{**OPTIONS, **changes})
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_names(bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be called"):
        evaluate([str(bundles["onnx"])] * 2, out=tmp_path, **OPTIONS)
    for run in ("one", "two"):
        shutil.copytree(bundles["gguf"], tmp_path / run / "student")
    found = evaluate(
        [str(tmp_path / run / "student") for run in ("one", "two")],
        tasks=["task:gcd"], items=1, max_tokens=4, threads=1, only="accuracy", out=tmp_path / "out",
    )  # fmt: skip
    assert [student.name for student in found.students] == ["one-student", "two-student"]


def test_tasks_of_a_recipe(tmp_path: Path) -> None:
    traces = tmp_path / "traces.jsonl"
    lines = [to_line(make_trace(f"p{number}", "1 + 1 = 2", "2", task="gcd")) for number in range(2)]
    lines += [
        to_line(make_trace(f"q{number}", "1 + 1 = 2", "2", task=task))
        for number, task in enumerate(("chain_sum", "mine"))
    ]
    traces.write_text("\n".join(lines))
    recipe = Recipe(student="base", out=tmp_path / "run", traces=[traces])
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert tasks_of_recipe(["elsewhere", str(tmp_path)]) == ("task:gcd", "task:chain_sum")
    traces.unlink()
    with pytest.raises(InputError, match="is not there"):
        tasks_of_recipe([str(tmp_path)])


def test_the_command_line(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        str(bundles["onnx"]),
        "--tasks",
        "task:gcd",
        "--items",
        "2",
        "--only",
        "accuracy",
    ]
    code = main([*arguments, "--max-tokens", "8", "--threads", "1", "--out", str(tmp_path), "--json"])
    output = capsys.readouterr()
    assert code == 0, output.err
    document = json.loads(output.out)
    assert document["schema_version"] == 1
    assert document["students"][0]["figures"][0]["items"] == 2
    assert "onnx: accuracy" in output.err  # progress
