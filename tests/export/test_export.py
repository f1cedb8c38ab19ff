"""The export verb, end to end on a random two-layer model."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_genai
import pytest
import torch
from onnx import numpy_helper

from edge_distill_export import export
from edge_distill_export.blocks import unpack_q4_0, unpack_q8_0
from edge_distill_export.export import ExportResult
from edge_distill_export.onnx_packing import unpack_blocks
from edge_distill_runtime import load
from edge_distill_runtime.bundles.gguf_header import read_gguf_header
from edge_distill_runtime.bundles.manifest import read_manifest, verify_files
from edge_distill_runtime.errors import InputError, ParityError, ResourceError
from tests.export.conftest import STUDENT
from tests.random_models import Variant, save_checkpoint

# The package's attribute of this name is the function.
export_module = import_module("edge_distill_export.export")
quantize_module = import_module("edge_distill_export.quantize")

TRACE = {
    "messages": [
        {"role": "user", "content": "A tray holds 28 rolls. How many are on 4 trays?"},
        {"role": "assistant", "reasoning_content": "28 * 4 = 112", "content": "The answer is 112."},
    ]
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    lines = [json.dumps(TRACE).replace("28", str(number)) for number in range(20, 40)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def exported(
    student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportResult]:
    out = tmp_path_factory.mktemp("bundles")
    to = ["gguf:q4_0", "onnx:int4", "gguf:q8_0", "onnx:int8", "gguf:f16", "onnx:fp32", "gguf:q5_k_m"]
    result = export(str(student), to=to, out=out, calibrate=traces, limit_kl=2.0)
    assert isinstance(result, ExportResult)
    return out, result


def test_every_target_is_a_whole_bundle(exported: tuple[Path, ExportResult]) -> None:
    out, result = exported
    assert len(result.bundles) == 7
    for bundle in result.bundles:
        manifest = read_manifest(Path(bundle.path))
        verify_files(Path(bundle.path), manifest)
        assert manifest.verification["parity"]["overall"]["kl_mean"] == bundle.parity.overall.kl_mean
        assert manifest.verification["tokenizer_strings"] > 20
        assert manifest.verification["chat_prompts"] >= 2
        assert manifest.lineage["checkpoint"]["weights"].keys() == {"model.safetensors"}
        assert f"| {bundle.parity.overall.tokens:,} |" in (Path(bundle.path) / "README.md").read_text()
    assert {path.name for path in out.iterdir()} == {
        f"student-{precision}" for precision in ("q4_0", "int4", "q8_0", "int8", "f16", "fp32", "q5_k_m")
    }


def test_unquantized_targets_are_the_checkpoint(exported: tuple[Path, ExportResult]) -> None:
    by_target = {bundle.target: bundle for bundle in exported[1].bundles}
    for target in ("gguf:f16", "onnx:fp32"):
        assert by_target[target].parity.overall.kl_mean <= 1e-4
        assert by_target[target].method == "none"
    assert by_target["gguf:q4_0"].method == "gptq"
    assert by_target["gguf:q8_0"].method == "rtn"
    assert by_target["gguf:q5_k_m"].method == "k-quant"
    assert by_target["gguf:q8_0"].parity.overall.kl_mean < by_target["gguf:q4_0"].parity.overall.kl_mean


def gguf_tensor(path: Path, name: str) -> np.ndarray:
    """float32 rows of a Q4_0 or Q8_0 tensor, from the bytes of the file."""
    header = read_gguf_header(path)
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    data = path.read_bytes()[tensor.offset : tensor.offset + tensor.size]
    rows, columns = tensor.shape
    size, unpack = {"Q4_0": (18, unpack_q4_0), "Q8_0": (34, unpack_q8_0)}[tensor.type]
    integers, scales = unpack(np.frombuffer(data, np.uint8).reshape(rows, columns // 32 * size))
    blocks = integers.reshape(rows, -1, 32).astype(np.float32) * scales.astype(np.float32)[..., None]
    return blocks.reshape(rows, columns)


def onnx_tensor(folder: Path, name: str, bits: int) -> np.ndarray:
    model = onnx.load(str(folder / "model.onnx"))
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and name in n.name)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    packed, scales = stored[node.input[1]], stored[node.input[2]]
    integers = unpack_blocks(packed, bits)
    rows = integers.shape[0]
    return (integers.reshape(rows, -1, 32) * scales.reshape(rows, -1)[..., None]).reshape(rows, -1)


@pytest.mark.parametrize(("gguf", "onnx_name", "bits"), [("q4_0", "int4", 4), ("q8_0", "int8", 8)])
def test_both_formats_hold_the_same_model(
    exported: tuple[Path, ExportResult], gguf: str, onnx_name: str, bits: int
) -> None:
    out, _ = exported
    path, folder = out / f"student-{gguf}" / "model.gguf", out / f"student-{onnx_name}"
    for layer in range(2):
        for ours, theirs in (
            ("ffn_gate", "gate_proj"),
            ("ffn_up", "up_proj"),
            ("ffn_down", "down_proj"),
            ("attn_output", "o_proj"),
        ):
            first = gguf_tensor(path, f"blk.{layer}.{ours}.weight")
            second = onnx_tensor(
                folder, f"layers.{layer}/{'mlp' if 'ffn' in ours else 'attn'}/{theirs}", bits
            )
            assert np.array_equal(first, second), (layer, ours)
        # llama.cpp wants the rows of a head in another order: the same rows, permuted
        q, k = (gguf_tensor(path, f"blk.{layer}.attn_{part}.weight") for part in "qk")
        v = gguf_tensor(path, f"blk.{layer}.attn_v.weight")
        fused = onnx_tensor(folder, f"layers.{layer}/attn/qkv_proj", bits)
        for part, rows in ((q, fused[: len(q)]), (k, fused[len(q) : len(q) + len(k)])):
            assert sorted(map(bytes, part)) == sorted(map(bytes, rows))
        assert np.array_equal(v, fused[len(q) + len(k) :])


def test_a_tied_embedding_is_stored_once_with_8_bits(exported: tuple[Path, ExportResult]) -> None:
    out, _ = exported
    for gguf in ("q4_0", "q8_0"):
        types = {
            tensor.name: tensor.type
            for tensor in read_gguf_header(out / f"student-{gguf}" / "model.gguf").tensors
        }
        assert types["token_embd.weight"] == "Q8_0"
        assert "output.weight" not in types
    graph = onnx.load(str(out / "student-int4" / "model.onnx"), load_external_data=False).graph
    large = [tensor.name for tensor in graph.initializer if np.prod(tensor.dims) == 512 * 128]
    assert len(large) == 1


def test_the_onnx_bundle_opens_in_onnxruntime_genai(exported: tuple[Path, ExportResult]) -> None:
    folder = exported[0] / "student-int4"
    model = onnxruntime_genai.Model(str(folder))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=40, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    with load(folder) as ours:
        prompt = ours.encode("What is 2 + 2?")
        generator.append_tokens(prompt)
        expected: list[int] = []
        while not generator.is_done() and len(expected) < 8:
            generator.generate_next_token()
            expected.append(int(generator.get_next_tokens()[0]))
        found = list(ours.generate("What is 2 + 2?", max_tokens=8).tokens)
    assert found == expected[: len(found)]


def test_both_formats_answer(exported: tuple[Path, ExportResult]) -> None:
    for name in ("q4_0", "int4"):
        with load(exported[0] / f"student-{name}") as model:
            assert model.generate("What is 2 + 2?", max_tokens=4).prompt_tokens > 4


def test_the_modelfile(exported: tuple[Path, ExportResult]) -> None:
    text = (exported[0] / "student-q4_0" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert "{{ .Prompt }}" in text
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_without_traces_the_student_writes_its_own(student: Path, tmp_path: Path) -> None:
    result = export(str(student), to=["gguf:q4_0"], out=tmp_path, limit_kl=3.0)
    assert isinstance(result, ExportResult)
    assert result.calibration is not None
    assert result.calibration["origin"] == "own"
    lines = (tmp_path / "student-calibration.jsonl").read_text().splitlines()
    assert len(lines) == result.calibration["texts"] or result.calibration["tokens"] > 20_000
    # what was written can be given back
    again = export(
        str(student),
        to=["gguf:q4_0"],
        out=tmp_path,
        limit_kl=3.0,
        force=True,
        calibrate=tmp_path / "student-calibration.jsonl",
    )
    assert isinstance(again, ExportResult)


def test_k_quants_share_calibration_and_floats(
    student: Path, traces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = ["gguf:q4_0", "gguf:q4_k_m", "gguf:q6_k"]
    export(str(student), to=to, out=tmp_path, calibrate=traces, limit_kl=2.0)
    stages = [line.split(":")[0] for line in capfd.readouterr().err.splitlines() if "started" in line]
    assert stages.count("Quantizing layers with GPTQ") == 1
    assert "Measuring the importance of inputs" not in stages  # H's diagonal is it
    assert stages.count("Writing the floats that K-quants are made from") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"student-q4_0", "student-q4_k_m", "student-q6_k"}


def test_the_same_call_gives_the_same_bytes(student: Path, traces: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(
            str(student), to=["gguf:q4_0", "onnx:int4"], out=tmp_path / name, calibrate=traces, limit_kl=2.0
        )
    for file in ("student-q4_0/model.gguf", "student-int4/model.onnx.data", "student-int4/model.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_beyond_its_limit_an_export_fails_and_leaves_no_bundle(student: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=r"gguf:q4_0 has a mean KL.*limit is 1e-05; the worst layer is .*; made: onnx:fp32"
    ) as error:
        export(str(student), to=["gguf:q4_0", "onnx:fp32"], out=tmp_path, method="rtn", limit_kl=1e-5)
    assert error.value.exit_code == 4
    data = error.value.data
    assert f"a mean KL divergence of {data['mean_kl']:.4f}" in str(error.value)
    assert data["worst_layer"] in str(error.value)
    assert (data["target"], data["limit"]) == ("gguf:q4_0", 1e-5)
    assert data["p99"] > data["mean_kl"]
    assert 0 < data["top1"] <= 1
    assert {path.name for path in tmp_path.iterdir()} == {"student-fp32"}


def test_a_layer_gone_wrong_is_named(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = quantize_module.quantize_rtn

    def broken(weight: torch.Tensor, bits: int, name: str) -> object:
        tensor = original(weight, bits, name)
        if name == "model.layers.1.mlp.down_proj.weight":
            tensor.scales[:] = 0
        return tensor

    monkeypatch.setattr(quantize_module, "quantize_rtn", broken)
    with pytest.raises(
        ParityError,
        match=r"the worst layer is model\.layers\.1\.mlp\.down_proj\.weight \(relative error 1\.000\)",
    ):
        export(str(student), to=["gguf:q8_0"], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_damage_done_while_writing_is_found(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = export_module.write_model

    def broken(source: object, target: object, directory: Path, *rest: object) -> None:
        original(source, target, directory, *rest)
        path = directory / "model.gguf"
        tensor = next(t for t in read_gguf_header(path).tensors if t.name == "blk.0.ffn_up.weight")
        data = bytearray(path.read_bytes())
        data[tensor.offset : tensor.offset + tensor.size] = bytes(tensor.size)
        path.write_bytes(data)

    monkeypatch.setattr(export_module, "write_model", broken)
    with pytest.raises(ParityError, match="gguf:q8_0 has a mean KL"):
        export(str(student), to=["gguf:q8_0"], out=tmp_path)
    assert not list(tmp_path.iterdir())


BAD_CALLS: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "unknown target": (
        {"to": ["gguf:q4_1"]},
        InputError,
        r"target 'gguf:q4_1' is unknown.*did you mean gguf:q4_0",
    ),
    "no target": ({"to": []}, InputError, "no target was given"),
    "limit": ({"limit_kl": 0.0}, InputError, "--limit-kl is 0"),
    "context too long": ({"context": 4096}, InputError, "a context of 4096 was asked for.*takes 32 to 1024"),
    "context too short": ({"context": 40}, InputError, "held-out traces fit a context of 40"),
    "missing traces": ({"calibrate": Path("nowhere.jsonl")}, InputError, "nowhere.jsonl does not exist"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_get_one_line(student: Path, tmp_path: Path, case: str) -> None:
    options, kind, message = BAD_CALLS[case]
    with pytest.raises(kind, match=message) as error:
        export(**{"checkpoint": str(student), "to": ["gguf:q4_0"], "out": tmp_path, **options})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_calibration_text_longer_than_the_context(student: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"problem": "p", "reasoning": "so " * 2000, "answer": "a"}))
    with pytest.raises(InputError, match=r"a trace has \d+ tokens, the context 1024"):
        export(str(student), to=["gguf:q4_0"], out=tmp_path / "out", calibrate=path)


def test_rows_that_do_not_divide(tmp_path: Path) -> None:
    variant = Variant("llama", "narrow", "smollm", {**STUDENT.config, "intermediate_size": 272})
    save_checkpoint(tmp_path / "narrow", variant)
    with pytest.raises(
        InputError, match=r"down_proj\.weight has rows of 272 weights, which is not a multiple of 32"
    ):
        export(str(tmp_path / "narrow"), to=["gguf:q4_0"], out=tmp_path / "out", method="rtn")


def test_an_existing_bundle_is_kept_without_force(exported: tuple[Path, ExportResult], student: Path) -> None:
    before = (exported[0] / "student-q8_0" / "edge_distill.json").read_bytes()
    with pytest.raises(InputError, match="student-q8_0 exists already"):
        export(str(student), to=["gguf:q8_0"], out=exported[0])
    assert (exported[0] / "student-q8_0" / "edge_distill.json").read_bytes() == before


def test_a_full_disk(student: Path, small_disk: Path) -> None:
    with pytest.raises(ResourceError, match="is full"):
        export(str(student), to=["gguf:f16", "onnx:fp32"], out=small_disk)
    assert not list(small_disk.iterdir())


def test_dry_run_writes_nothing(student: Path, tmp_path: Path) -> None:
    plan = export(str(student), to=["gguf:q4_0"], out=tmp_path / "out", dry_run=True)
    assert not isinstance(plan, ExportResult)
    assert not (tmp_path / "out").exists()
