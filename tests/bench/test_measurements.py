"""Every measurement on the tiny bundles: structure and sanity; speed is none of a test's business."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edge_distill_bench import (
    batching,
    decode,
    early_stop,
    memory,
    prompt_cache,
    prompt_lookup,
    self_consistency,
)
from edge_distill_bench.measure import endless, text_of
from edge_distill_bench.prompts import TRACE
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_runtime import InputError, Model, load
from edge_distill_runtime.engines.llama import library
from tests.export.bundle_files import reseal, source_of, write_bundle
from tests.random_models import save_checkpoint, variant_named


@pytest.fixture(params=["gguf", "onnx"])
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Path:
    return bundles[request.param]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def are_speeds(values: tuple[float, ...], rounds: int) -> bool:
    return len(values) == rounds and all(0 < value < math.inf for value in values)


def test_decode_gguf(bundles: dict[str, Path]) -> None:
    result = decode.compare_decoding(bundles["gguf"], prompt_tokens=40, tokens=12, rounds=3, threads=1)
    assert list(result.tokens_per_second) == ["edge-distill", "llama_decode"]
    assert all(are_speeds(column, 3) for column in result.tokens_per_second.values())
    # the same library and file, one thread: not one bit differs
    assert result.same_tokens
    assert (result.format, result.precision, result.new_tokens) == ("gguf", "f32", 12)
    assert abs(result.prompt_tokens - 40) <= 8


def test_decode_goes_on_behind_tokens_that_end_a_text(tmp_path: Path) -> None:
    """onnxruntime-genai must not avoid a token that the runtime chooses."""
    saved = save_checkpoint(tmp_path / "student", variant_named("llama-tied-gqa"))
    write_bundle(source_of(load_checkpoint(saved)), "onnx:fp32", tmp_path / "fp32")
    with load(tmp_path / "fp32", threads=1) as model:
        text = text_of(model, TRACE, 40)
        chosen = endless(model).generate(text, raw=True, max_tokens=12, temperature=0.0).tokens
    config = json.loads((tmp_path / "fp32" / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = chosen[3]
    (tmp_path / "fp32" / "genai_config.json").write_text(json.dumps(config))
    reseal(tmp_path / "fp32")
    result = decode.compare_decoding(tmp_path / "fp32", prompt_tokens=40, tokens=12, rounds=1, threads=1)
    assert list(result.tokens_per_second) == ["edge-distill", "onnxruntime-genai"]
    assert result.same_tokens


def test_decode_names_the_remedy(bundles: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"1,?024|exceed the bundle's context"):
        decode.compare_decoding(bundles["gguf"], prompt_tokens=40, tokens=1024, rounds=1, threads=1)
    with pytest.raises(InputError, match="new_tokens is 0"):
        decode.compare_decoding(bundles["gguf"], tokens=1, rounds=1, threads=1)
    with pytest.raises(InputError, match=r"build_llama_bench\.sh"):
        decode.compare_decoding(
            bundles["gguf"],
            prompt_tokens=8,
            tokens=4,
            rounds=1,
            threads=1,
            llama_bench=Path("/no/such/program"),
        )


def test_llama_bench_report() -> None:
    # two entries of `llama-bench -o json`, shortened: a prompt's and a generation's
    report = (
        '[{"n_prompt": 512, "n_gen": 0, "avg_ts": 1500.5}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 187.25}]'
    )
    assert decode._generation_speed(report) == 187.25


def test_self_consistency(bundles: dict[str, Path]) -> None:
    result = self_consistency.compare_self_consistency(
        list(bundles.values()), prompt_tokens=30, samples=3, tokens=6, rounds=2, threads=1
    )
    names = ["gguf", "onnx", self_consistency.THEIRS, self_consistency.THEIRS_MATCHED]
    assert list(result.tokens_per_second) == names
    assert all(are_speeds(column, 2) for column in result.tokens_per_second.values())
    assert set(result.ratios(self_consistency.THEIRS)) == {"gguf", "onnx"}
    with pytest.raises(InputError, match="none of the bundles is GGUF"):
        self_consistency.compare_self_consistency([bundles["onnx"]], prompt_tokens=30, threads=1)


def test_completions_stop_again_afterwards() -> None:
    before = library().llama_vocab_is_eog
    with self_consistency._llama_never_stops():
        assert library().llama_vocab_is_eog(None, 0) is False
    assert library().llama_vocab_is_eog is before


def test_early_stop(bundle: Path) -> None:
    result = early_stop.compare_early_stop(
        bundle, problems=["What is 2 + 2?"], samples=3, tokens=8, threads=1
    )
    (problem,) = result.problems
    assert problem.tokens == 24  # no stop tokens: all of them have 8
    assert 8 <= problem.early_tokens <= 24
    assert result.summary["all"]["problems"] == 1
    assert result.summary["all"]["tokens_ratio"] == 24 / problem.early_tokens


def test_early_stop_counts_agreed_problems_alone() -> None:
    def problem(agreement: float, answer: str, tokens: int, early_tokens: int) -> early_stop.Problem:
        return early_stop.Problem("?", agreement, answer, "7", tokens, early_tokens, 2.0, 1.0)

    problems = (problem(0.75, "7", 80, 40), problem(1.0, "8", 100, 20), problem(0.74, "7", 90, 90))
    unparsed = problem(1.0, "", 90, 90)
    summary = early_stop.EarlyStopResult("tiny", "gguf", 8, (*problems, unparsed)).summary
    assert summary["agreed"] == {"problems": 2, "same_answer": 1, "tokens_ratio": 3.0, "seconds_ratio": 2.0}
    assert summary["all"] == {"problems": 4, "same_answer": 2, "tokens_ratio": 1.5, "seconds_ratio": 2.0}


def test_prompt_cache(bundle: Path) -> None:
    result = prompt_cache.compare_prompt_cache(bundle, prefix_tokens=8, rounds=3, threads=1)
    assert result.prefix_tokens < result.prompt_tokens
    for seconds in (result.cold, result.memory, result.disk):
        assert are_speeds(seconds, 3)
    assert result.same_token
    assert set(result.summary["speedup"]) == {"memory", "disk"}


def test_prompt_lookup(bundle: Path) -> None:
    prompts = {"copying": ["one two three four five one two three"], "ordinary": ["seven"]}
    result = prompt_lookup.compare_prompt_lookup(bundle, prompts=prompts, tokens=24, rounds=3, threads=1)
    assert [trace.kind for trace in result.traces] == ["copying", "ordinary"]
    for trace in result.traces:
        assert are_speeds(trace.with_lookup, 3)
        assert are_speeds(trace.without, 3)
        assert trace.same_tokens == (trace.gap == 0)
        assert trace.gap < 0.05  # where the tokens differ, it was a near-tie
        assert 0 <= trace.repeats <= 1
    assert set(result.summary["ratios"]) == {"copying", "ordinary"}


def test_repeats_by_hand() -> None:
    # new 3-grams end at 3, 1, 2 and 9: (1 2 3) is new, (2 3 1), (3 1 2) are new; then 1 2 3 again
    assert prompt_lookup._repeats([1, 2], [3, 1, 2, 3]) == 1 / 4
    assert prompt_lookup._repeats([1, 2, 3], [1, 2, 3, 1]) == 2 / 4


def test_gap_is_that_of_the_first_difference(model: Model) -> None:
    prompt = model.encode("a number", raw=True)
    sequence = model.backend.prefill([*prompt, 5])
    logits = sequence.logits.astype(float)
    model.backend.release(sequence)
    gap = prompt_lookup._gap(model, prompt, [5, 6, 1], [5, 9, 2])
    assert gap == pytest.approx(abs(logits[6] - logits[9]), abs=1e-4)
    assert prompt_lookup._gap(model, prompt, [5, 6], [5, 6]) == 0


def test_memory(bundle: Path) -> None:
    result = memory.compare_memory(bundle, context=64, threads=1)
    weights = [path for path in bundle.iterdir() if ".onnx" in path.name or path.suffix == ".gguf"]
    assert result.file == sum(path.stat().st_size for path in weights)
    (peak,), (before,) = result.peak, result.before
    assert result.file < before < peak < 1 << 30
    assert result.aim == result.file + result.cache + 40_000_000
    assert result.summary["ratio"] == peak / result.aim
    with pytest.raises(InputError, match="context is 0"):
        memory.compare_memory(bundle, context=0, threads=1)


def test_batching(bundle: Path) -> None:
    result = batching.compare_batching(bundle, clients=4, prompt_tokens=16, tokens=8, rounds=3, threads=1)
    assert are_speeds(result.together, 3)
    assert are_speeds(result.alone, 3)
    assert result.summary["ratio"] > 0


def test_command_prints_a_table_and_one_json_line(
    bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(path) for path in bundles.values()]
    options = ["--clients", "2", "--tokens", "4", "--rounds", "2", "--threads", "1"]
    assert batching.main([*arguments, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert document["benchmark"] == "batching"
    assert [result["format"] for result in document["results"]] == ["gguf", "onnx"]
    assert all(len(result["together"]) == 2 and result["ratio"] > 0 for result in document["results"])
    assert document["machine"]["usable_cpus"] >= 1
    assert {"python", "numpy", "llama-cpp-python", "onnxruntime"} <= document["versions"].keys()
    assert any("2 requests of 64 and 4 tokens" in line for line in lines)

    assert batching.main([*arguments, *options, "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_command_says_what_is_wrong(bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert batching.main([str(bundles["gguf"]), "--rounds", "0"]) == InputError("", "").exit_code
    assert "rounds is 0" in capsys.readouterr().err
