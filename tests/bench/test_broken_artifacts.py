"""The gate on real models: a faithful artifact passes, one with swapped tensors or zeroed scales fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_distill_bench.accuracy import ask_model, measure_accuracy
from edge_distill_bench.fidelity import measure_fidelity
from edge_distill_bench.fidelity_cache import Reference, write_reference
from edge_distill_bench.fidelity_texts import texts_of
from edge_distill_bench.gate import check_gate, evaluate_gate, parse_gate
from edge_distill_bench.outcomes import Answered
from edge_distill_bench.results import GateLine
from edge_distill_runtime import load
from edge_distill_runtime.errors import GateError
from tests.bench.measured import artifact, results
from tests.bench.taught import PROBLEMS, swap_tensors, write_artifacts, zero_scales

TASKS = {"sums": PROBLEMS}
BUDGETS = (0, 32)
GATE = parse_gate("retention>=0.99,kl<=0.05")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    write_artifacts(folder)
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[Answered, Reference]:
    """The student's own answers and distributions."""
    with load(folder / "student", threads=1) as student:
        answered = ask_model(
            student, TASKS, name="fp32", role="student", budgets=BUDGETS, samples=(1,), max_tokens=48
        )
        reference = write_reference(student, texts_of(student, PROBLEMS), folder / "reference", name="fp32")
    accuracy = measure_accuracy(answered, TASKS, budgets=(32,), samples=(1,))
    assert accuracy.cells[0].right > 0.9 * len(PROBLEMS)  # else nothing could be lost
    return answered, reference


def judge(bundle: Path, measured: tuple[Answered, Reference]) -> tuple[GateLine, GateLine]:
    student, reference = measured
    with load(bundle, threads=1) as model:
        answered = ask_model(
            model, TASKS, name="a", role="artifact", budgets=BUDGETS, samples=(1,), max_tokens=48
        )
        fidelity = measure_fidelity(model, reference)
    accuracy = measure_accuracy(answered, TASKS, budgets=BUDGETS, samples=(1,), against=[student])
    retention, kl = evaluate_gate(results(artifact(accuracy=accuracy, fidelity=fidelity)), GATE)
    return retention, kl


@pytest.mark.parametrize("name", ["q8_0", "int8"])
def test_a_faithful_artifact_passes(folder: Path, measured: tuple[Answered, Reference], name: str) -> None:
    lines = judge(folder / name, measured)
    check_gate(lines)
    assert lines[1].value is not None
    assert lines[1].value < 0.01


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),  # silu(a) b for silu(b) a
        ("blk.0.attn_k.weight", "blk.0.attn_v.weight"),
        ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight"),
    ],
)
def test_two_tensors_swapped(
    folder: Path, measured: tuple[Answered, Reference], tmp_path: Path, one: str, two: str
) -> None:
    swap_tensors(folder / "q8_0", tmp_path / "broken", one, two)
    lines = judge(tmp_path / "broken", measured)
    assert [line.passed for line in lines] == [False, False], [line.text for line in lines]
    with pytest.raises(GateError, match=r"retention is .* fails, and 1 more"):
        check_gate(lines)


@pytest.mark.parametrize("name", ["blk.1.attn_output.weight", "blk.0.ffn_down.weight"])
def test_scales_zeroed(folder: Path, measured: tuple[Answered, Reference], tmp_path: Path, name: str) -> None:
    zero_scales(folder / "q8_0", tmp_path / "broken", name)
    lines = judge(tmp_path / "broken", measured)
    assert [line.passed for line in lines] == [False, False], [line.text for line in lines]
