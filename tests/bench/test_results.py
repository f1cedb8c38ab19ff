"""results.json: what is written is read again, and nothing else is."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_distill_bench.results import (
    AccuracyCell,
    AccuracyResult,
    ArtifactResult,
    BenchResults,
    Comparison,
    EnergyResult,
    FidelityPart,
    FidelityResult,
    Flips,
    GateLine,
    LatencyResult,
    LengthBin,
    Machine,
    MemoryFigures,
    Noise,
    Quantiles,
    Settings,
    SpeedRatio,
    mean_and_deviation,
    read_results,
    rows_path,
    write_results,
)
from edge_distill_bench.statistics import Equivalence, Estimate
from edge_distill_runtime import InputError, ResourceError

TEACHER = ArtifactResult("big", "0" * 64, "onnx", "fp32", "teacher", 540_000_000, 32.0)
STUDENT = ArtifactResult(
    name="small-q4_0",
    hash="1" * 64,
    format="gguf",
    precision="q4_0",
    role="artifact",
    size_bytes=91_700_000,
    bits_per_weight=4.5,
    latency=LatencyResult(
        load_s=(0.5, 0.75),
        ttft=(0.125, 0.25),
        ttft_tokens=128,
        prefill={"128": (1500.0, 1400.0)},
        decode={"0": (200.0, 190.0), "1000": (150.0, 140.0)},
        inter_token=Quantiles(0.005, 0.006, 0.01, 254),
        time_to_answer=(1.5,),
        thread_sweep={"1": (110.0, 112.0)},
        included="all",
    ),
    memory=(
        MemoryFigures(
            512, (160_000_000,), (150_000_000,), (30_000_000,), 170_000_000, 11_796_480, 91_700_000
        ),
    ),
    energy=EnergyResult(None, "not measured: no RAPL"),
    accuracy=AccuracyResult(
        cells=(AccuracyCell("all", 64, 1, 10, 6, 2, 1, 1, Estimate(0.6, 0.31, 0.83), 0.5, 80.5),),
        comparisons=(
            Comparison(
                against="big",
                role="teacher",
                budget=64,
                samples=1,
                items=10,
                retention=None,
                difference=Estimate(-0.1, -0.4, 0.2),
                mcnemar_p=1.0,
                equivalence=Equivalence(0.02, 0.7, 0.05),
                flips=Flips(2, 1, 0, 7),
            ),
        ),
        lengths=(LengthBin(0, 64, 4, 3),),
    ),
    fidelity=FidelityResult("big", 64, {"all": FidelityPart(1000, 0.05, 0.4, 0.91, None)}),
)
RESULTS = BenchResults(
    created="2026-01-01T00:00:00+00:00",
    command="edge-distill bench small-q4_0",
    machine=Machine("a CPU", 2, None, "Linux", {"python": "3.11"}, 0.25),
    settings=Settings(
        tasks=("task:gsm_symbolic",),
        items=10,
        budgets=(0, 64),
        samples=(1, 8),
        seed=0,
        threads=2,
        max_tokens=192,
        rounds=2,
        contexts=(512,),
        parts=("latency", "accuracy"),
    ),
    noise=Noise("hashing", (1.0, 1.5, 0.5)),
    teacher="big",
    reference=None,
    artifacts=(TEACHER, STUDENT),
    ratios=(SpeedRatio("decode/0", "big", "small-q4_0", Estimate(0.25, 0.2, 0.3)),),
    gate=(GateLine("ttft_p95<=0.5", "small-q4_0", 0.25, True, "0.25 s"),),
)


def test_written_and_read(tmp_path: Path) -> None:
    assert write_results(tmp_path / "new" / "folder", RESULTS).name == "results.json"
    assert read_results(tmp_path / "new" / "folder") == RESULTS
    assert read_results(tmp_path / "new" / "folder" / "results.json") == RESULTS
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "new/folder/results.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["schema_version"], 2, "schema_version 2, this version reads 1"),
        (["artifacts", 1, "speed"], 1, "unknown key 'speed'"),
        (["artifacts", 1, "latency", "ttft", 0], "0.1", "latency.ttft[0] is of type str"),
        (["artifacts", 1, "role"], "judge", "expected one of teacher, student, artifact"),
        (["artifacts", 1, "size_bytes"], True, "size_bytes is of type bool"),
        (["artifacts", 0, "name"], "small-q4_0", "two artifacts have the same name"),
        (["teacher"], "somebody", "there is no artifact 'somebody'"),
        (["noise", "seconds", 0], 1e999, "not finite"),
    ],
)
def test_bad_values_are_named(path: list[Any], value: Any, said: str) -> None:
    document = json.loads(json.dumps(RESULTS.to_dict()))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError) as caught:
        BenchResults.from_dict(document)
    assert caught.value.code == "bad-results"
    assert said in caught.value.what


def test_a_missing_key_is_named() -> None:
    document = copy.deepcopy(RESULTS.to_dict())
    del document["settings"]
    with pytest.raises(InputError, match="lacks the key 'settings'"):
        BenchResults.from_dict(document)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 1, "schema_version": 1}', '{"a": NaN}'])
def test_files_that_are_no_results(tmp_path: Path, text: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        read_results(file)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path, RESULTS)
    full = OSError(28, "No space left on device")

    def fail(descriptor: int) -> None:
        raise full

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ResourceError, match="No space left"):
        write_results(tmp_path, replace(RESULTS, teacher=None))
    assert read_results(tmp_path) == RESULTS
    assert len(list(tmp_path.iterdir())) == 1


def test_derived_numbers_by_hand() -> None:
    # mean 1, squares of the distances 0, 0.25, 0.25, divided by n - 1
    assert mean_and_deviation([1.0, 1.5, 0.5]) == (1.0, 0.5)
    assert RESULTS.noise.deviation == 0.5
    assert mean_and_deviation([3.0]) == (3.0, 0.0)
    assert RESULTS.artifact("big") is TEACHER
    with pytest.raises(InputError, match="they hold: big, small-q4_0"):
        RESULTS.artifact("huge")
    assert rows_path(Path("out"), "a b/../c") == Path("out/rows/a-b-..-c.jsonl")
