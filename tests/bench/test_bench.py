"""Whole runs over tiny bundles: everything is there, nothing is measured twice, another machine's answers count."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge_distill.bench import Benched
from edge_distill_bench import bench_options, parts
from edge_distill_bench.answering import read_rows
from edge_distill_bench.bench import bench, main
from edge_distill_bench.bench_options import Options, numbers, words
from edge_distill_bench.items import hash_tasks, load_tasks, read_tasks, write_tasks
from edge_distill_bench.report.entries import entries_of
from edge_distill_bench.report.tables import overview_table
from edge_distill_bench.results import BenchResults, read_results, rows_path
from edge_distill_bench.run import subjects_of
from edge_distill_runtime import InputError
from edge_distill_runtime.bundles.manifest import read_manifest
from edge_distill_runtime.errors import GateError
from tests.bench.measured import artifact, results

ITEMS = 4


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_options, "_ANSWER", 12)
        yield


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    lines = [
        {
            "problem": f"Add {number} and {number}.",
            "answer": str(2 * number),
            "solution": f"{number} + {number} = {2 * number}",
        }
        for number in range(ITEMS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def options(problems: Path) -> Options:
    return Options(
        tasks=(str(problems),),
        items=ITEMS,
        budgets=(0, 8),
        samples=(1, 2),
        split="all",
        threads=1,
        rounds=1,
        contexts=(32, 4096),
    )


@pytest.fixture(scope="session")
def finished(bundles: dict[str, Path], options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the ONNX bundle as the student and the GGUF bundle as its artifact; must not be changed."""
    out = tmp_path_factory.mktemp("bench")
    bench([bundles["gguf"]], out=out, student=bundles["onnx"], options=options, command="a test")
    return out


def without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("this was measured already")

    for name in ("measure_rounds", "compare_memory", "ask_model", "measure_fidelity", "write_reference"):
        monkeypatch.setattr(parts, name, fail)


def test_everything_is_there(finished: Path, bundles: dict[str, Path]) -> None:
    results = read_results(finished)
    assert (results.teacher, results.reference, results.command) == (None, "onnx", "a test")
    assert [(one.name, one.role) for one in results.artifacts] == [("onnx", "student"), ("gguf", "artifact")]
    assert len(results.noise.seconds) == 3 + 2 + 3  # at the start, before each model, after the answers
    for one in results.artifacts:
        manifest = read_manifest(bundles[one.format])
        assert one.bits_per_weight == manifest.precision.bits_per_weight
        assert one.size_bytes == sum(e.size for e in manifest.files if e.path.startswith("model."))
        assert one.latency is not None
        assert list(one.latency.decode) == ["0"]
        assert one.latency.notes  # 512 tokens do not fit the context of 256
        assert len(one.latency.time_to_answer) == ITEMS
        assert [figures.context for figures in one.memory] == [32, 256]
        assert one.energy is not None
        assert not one.peer
        assert one.accuracy is not None
        assert {(cell.budget, cell.samples) for cell in one.accuracy.cells} == {
            (budget, samples) for budget in (0, 8) for samples in (1, 2)
        }
        assert {cell.items for cell in one.accuracy.cells} == {ITEMS}
    student, artifact = results.artifacts
    assert student.fidelity is None
    assert artifact.fidelity is not None
    assert artifact.fidelity.against == "onnx"
    # the same weights in float32: rounding alone
    assert artifact.fidelity.parts["all"].mean_kl < 1e-3
    assert artifact.accuracy is not None
    assert {one.against for one in artifact.accuracy.comparisons} == {"onnx"}
    assert {ratio.metric for ratio in results.ratios} == {"load", "ttft", "prefill/128", "decode/0"}
    assert len(read_tasks(finished)) == 1
    # greedy and two samples; a model without reasoning markers is asked once
    budgets = 2 if read_manifest(bundles["gguf"]).reasoning else 1
    assert len(read_rows(rows_path(finished, "gguf"))) == budgets * 3 * ITEMS


def test_a_file_without_a_manifest_is_a_peer(
    bundles: dict[str, Path], options: Options, tmp_path: Path
) -> None:
    short = replace(options, parts=("memory",), contexts=(32,))
    out = tmp_path / "bench"
    bench([bundles["gguf"], bundles["gguf"] / "model.gguf"], out=out, options=short, command="a test")
    assert [one.peer for one in read_results(out).artifacts] == [False, True]


def test_nothing_is_measured_twice(
    finished: Path,
    bundles: dict[str, Path],
    options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = read_results(finished)
    out = Path(shutil.copytree(finished, tmp_path / "again"))
    without_measuring(monkeypatch)
    again = bench([bundles["gguf"]], out=out, student=bundles["onnx"], options=options)
    assert again.artifacts == before.artifacts
    assert again.ratios == before.ratios
    assert again.created == before.created
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in finished.iterdir())
    # fewer parts are measured already, too
    bench([bundles["gguf"]], out=out, student=bundles["onnx"], options=replace(options, parts=("latency",)))


def test_an_interrupted_run_goes_on(
    finished: Path,
    bundles: dict[str, Path],
    options: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    some = replace(options, parts=("memory", "accuracy"), contexts=(64,), budgets=(0,), samples=(1,))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, "measure_accuracy", interrupt)
        bench(list(bundles.values()), out=tmp_path, options=some)
    assert all(one.memory and not one.accuracy for one in read_results(tmp_path).artifacts)
    rows = rows_path(tmp_path, "gguf").read_bytes()
    results = bench(list(bundles.values()), out=tmp_path, options=some)
    assert all(one.accuracy for one in results.artifacts)
    assert rows_path(tmp_path, "gguf").read_bytes() == rows  # nobody was asked again


def test_other_settings_begin_anew_and_keep_the_old_results(
    finished: Path, bundles: dict[str, Path], options: Options, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "again"))
    old = read_results(out)
    other = replace(options, contexts=(64,), parts=("memory",))
    results = bench([bundles["gguf"]], out=out, options=other)
    assert [one.name for one in results.artifacts] == ["gguf"]
    assert results.artifacts[0].accuracy is None
    (kept,) = out.glob("results-*.json")
    assert BenchResults.from_dict(json.loads(kept.read_text())) == old


def test_another_student_is_compared_anew(
    finished: Path, bundles: dict[str, Path], options: Options, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "again"))
    changed = tmp_path / "new" / "onnx"
    shutil.copytree(bundles["onnx"], changed)
    path = changed / "edge_distill.json"
    manifest = json.loads(path.read_text())
    manifest.pop("seal", None)
    manifest["stop_ids"] = [*manifest["stop_ids"], 77]  # the same name, another model
    path.write_text(json.dumps(manifest))
    none = replace(options, parts=("memory",))
    results = bench([bundles["gguf"]], out=out, student=changed, options=none)
    student, artifact = results.artifacts
    assert student.latency is None  # another model: nothing is known of it
    assert student.accuracy is None
    assert artifact.latency is not None
    assert artifact.accuracy is None
    assert artifact.fidelity is None
    assert len(list(out.glob("results-*.json"))) == 1
    bench([bundles["gguf"]], out=out, options=none)  # begun at the same time: the kept one stays
    assert len(list(out.glob("results-*.json"))) == 2


def test_answers_of_another_machine(
    finished: Path, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the device: one bundle, the student's answers and distributions from elsewhere."""
    arguments = [str(bundles["gguf"]), "--teacher-results", str(finished), "--out", str(tmp_path / "out")]
    less = ["--threads", "1", "--rounds", "1", "--parts", "accuracy,fidelity"]
    assert main([*arguments, *less, "--gate", "kl<=0.001,bits<=1"]) == GateError.exit_code
    said = capsys.readouterr()
    assert "ok   gguf: kl is" in said.out
    assert "FAIL gguf: bits is" in said.out
    assert "answered on another machine" in said.out
    assert said.err.splitlines()[-1].startswith("error: gguf: bits is")

    results, elsewhere = read_results(tmp_path / "out"), read_results(finished)
    assert [line.passed for line in results.gate] == [True, False]
    there, here = elsewhere.artifact("gguf"), results.artifact("gguf")
    assert here.accuracy is not None
    assert there.accuracy is not None
    # only the seconds differ
    assert here.accuracy == replace(there.accuracy, cells=here.accuracy.cells)
    assert here.fidelity is not None
    assert there.fidelity is not None
    assert here.fidelity.parts == there.fidelity.parts
    assert results.artifact("onnx").latency is None
    assert rows_path(tmp_path / "out", "onnx").read_bytes() == rows_path(finished, "onnx").read_bytes()

    assert main([*arguments, "--budgets", "4"]) == InputError.exit_code
    assert "budgets (4,) was asked for, the teacher's run has (0, 8)" in capsys.readouterr().err


def test_a_device_needs_no_toolchain(finished: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    """In a fresh process that has the runtime, this part and what grades, and nothing else."""
    missing = [
        *(
            "accelerate",
            "edge_distill",
            "edge_distill_export",
            "gguf",
            "onnx",
            "onnx_ir",
            "onnxruntime_genai",
        ),
        *("peft", "pytest", "reasoning_gym", "rich", "safetensors", "torch", "transformers", "typer"),
    ]
    code = (
        f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
        "from edge_distill_bench.bench import main\nsys.exit(main())"
    )
    arguments = [str(bundles["gguf"]), "--teacher-results", str(finished), "--out", str(tmp_path)]
    less = ["--threads", "1", "--rounds", "1", "--parts", "accuracy,fidelity"]
    command = [sys.executable, "-W", "error", "-c", code, *arguments, *less]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "mean KL" in done.stdout
    assert read_results(tmp_path).artifact("gguf").accuracy is not None


def test_json_on_stdout(bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(bundles["gguf"]), "--parts", "memory", "--contexts", "64", "--threads", "1"]
    assert main([*arguments, "--out", str(tmp_path), "--json"]) == 0
    assert BenchResults.from_dict(json.loads(capsys.readouterr().out)) == read_results(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gate", "kl>=1"], "turn the sign round"),
        (["--parts", "speed"], "there is no part 'speed'"),
        (["--budgets", "1,-2"], "give whole numbers"),
        (["--tasks", "a,,b"], "give a list"),
        (["--rounds", "0"], "rounds is 0"),
        (["--contexts", "0"], "context is 0"),
        (["--teacher-results", "/no/such/folder"], "does not exist"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    assert main([str(bundles["gguf"]), "--out", str(tmp_path), *arguments]) == InputError.exit_code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_lists_of_the_command_line() -> None:
    assert numbers("budgets", " 64,0,64") == (0, 64)
    assert words("tasks", "a, b") == ("a", "b")
    assert numbers("budgets", None) is None


def test_names_are_unique_and_a_path_is_measured_once(tmp_path: Path) -> None:
    one, two, file = tmp_path / "a" / "model", tmp_path / "b" / "model", tmp_path / "b" / "model.gguf"
    found = subjects_of([one, two, file, one], one, one)
    assert [(subject.name, subject.role) for subject in found] == [
        ("model", "teacher"),
        ("model-2", "artifact"),
        ("model-3", "artifact"),
    ]


def test_items_are_shared_among_tasks_and_read_again(problems: Path, tmp_path: Path) -> None:
    second = tmp_path / "more.jsonl"
    second.write_text("".join(f'{{"problem": "Halve {n}.", "answer": "{n / 2}"}}\n' for n in range(9)))
    tasks = load_tasks([str(problems), str(second)], 7, split="all")
    assert [len(found) for found in tasks.values()] == [4, 3]
    write_tasks(tmp_path / "out", tasks)
    assert read_tasks(tmp_path / "out") == tasks
    assert hash_tasks(read_tasks(tmp_path / "out")) == hash_tasks(tasks)
    for specs, items in (([], 5), (["a", "a"], 5), (["a", "b"], 1)):
        with pytest.raises(InputError):
            load_tasks(specs, items)
    (tmp_path / "out" / "problems.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(InputError, match="line 1"):
        read_tasks(tmp_path / "out")


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_the_table_cuts_nothing(width: int) -> None:
    """On a narrow terminal it becomes several, each with the names."""
    names = ("student-q4_0", "student-q4_k_m")
    written = io.StringIO()
    measured = results(*(artifact(name=name) for name in names))
    Benched(measured, Path("out")).render(Console(width=width, file=written))
    shown = written.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    assert (shown.count("student-q4_k_m") == 1) == (width >= 100)
    for row in overview_table(entries_of(measured)).rows:
        for cell in row:
            assert cell in shown
