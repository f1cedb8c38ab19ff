"""Mixed precision, end to end on random models of two layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console
from transformers import PreTrainedModel

from edge_distill_export import export, inspect, plan
from edge_distill_export import sensitivity_file as stored
from edge_distill_export.artifact import write_model
from edge_distill_export.automatic import costs_of, smallest_bytes
from edge_distill_export.blocks import unpack_q4_0, unpack_q8_0
from edge_distill_export.calibration import Text
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.choose import Chooser
from edge_distill_export.export import ExportResult
from edge_distill_export.families import embedding_names, linear_names
from edge_distill_export.grid import quantize_rtn
from edge_distill_export.mixed import rules
from edge_distill_export.onnx_graph import GRAPH_FILE
from edge_distill_export.onnx_packing import unpack_blocks
from edge_distill_export.parity import References
from edge_distill_export.plan import Plan
from edge_distill_export.sensitivity import draw_products
from edge_distill_export.targets import Budget, parse_budgets, parse_targets
from edge_distill_runtime.bundles.gguf_header import read_gguf_header
from edge_distill_runtime.bundles.manifest import read_manifest
from edge_distill_runtime.errors import InputError
from tests.export.bundle_files import source_of
from tests.export.gguf_files import checkpoint_of, libllama_logits
from tests.export.onnx_files import onnx_logits, put_back, quantize_all, random_tokens
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import random_checkpoint, variant_named

TARGETS = ["gguf:auto", "onnx:auto"]


@pytest.fixture(scope="module")
def smallest(student: Path) -> int:
    return smallest_bytes(source_of(load_checkpoint(student)), parse_targets(TARGETS, [Budget(bytes=1)]))


@pytest.fixture(scope="module")
def exported(
    student: Path, traces: Path, smallest: int, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportResult]:
    out = tmp_path_factory.mktemp("bundles")
    sizes = [f"{smallest + 20_000}B", f"{smallest + 60_000}B"]
    result = export(str(student), to=TARGETS, out=out, calibrate=traces, size=sizes, limit_kl=5.0)
    assert isinstance(result, ExportResult)
    return out, result


def gguf_integers(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Type, and rows of integers times scales, of every tensor on the grid."""
    data, found = path.read_bytes(), {}
    for tensor in read_gguf_header(path).tensors:
        if tensor.type not in ("Q4_0", "Q8_0"):
            continue
        rows, columns = tensor.shape
        size, unpack = {"Q4_0": (18, unpack_q4_0), "Q8_0": (34, unpack_q8_0)}[tensor.type]
        blocks = np.frombuffer(data[tensor.offset : tensor.offset + tensor.size], np.uint8)
        integers, scales = unpack(blocks.reshape(rows, columns // 32 * size))
        values = integers.reshape(rows, -1, 32).astype(np.float32) * scales.astype(np.float32)[..., None]
        found[tensor.name] = tensor.type, values.reshape(rows, columns)
    return found


def onnx_values(folder: Path) -> dict[str, tuple[int, np.ndarray]]:
    """Bits, and rows of integers times scales, of every MatMulNBits by its node's name."""
    graph = onnx.load(str(folder / "model.onnx")).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
            integers = unpack_blocks(tensors[node.input[1]], bits)
            rows = len(integers)
            values = integers.reshape(rows, -1, 32) * tensors[node.input[2]].reshape(rows, -1)[..., None]
            found[node.name] = bits, values.reshape(rows, -1)
    return found


def test_budgets_are_kept_and_used(exported: tuple[Path, ExportResult], smallest: int) -> None:
    by_target = {bundle.target: bundle for bundle in exported[1].bundles}
    assert len(by_target) == 4
    kls = []
    for extra in (20_000, 60_000):
        budget = f"{(smallest + extra) / 1e6:g}MB"
        bundle = by_target[f"gguf:auto-{budget}"]
        assert (Path(bundle.path) / "model.gguf").stat().st_size == bundle.bytes
        assert smallest + extra - 10_000 < bundle.bytes <= smallest + extra
        assert Path(bundle.path).name == f"student-auto-{budget}-gguf"
        assert bundle.choice == by_target[f"onnx:auto-{budget}"].choice
        assert bundle.choice is not None
        assert bundle.choice["deciding_kl"] == min(item["kl"] for item in bundle.choice["candidates"])
        kls.append(bundle.choice["deciding_kl"])
    assert kls[1] < kls[0]


def test_both_formats_hold_the_same_integers(exported: tuple[Path, ExportResult]) -> None:
    bundles = {bundle.target: Path(bundle.path) for bundle in exported[1].bundles}
    roles = {"attn_v": "attn/v_proj", "attn_output": "attn/o_proj", "ffn_gate": "mlp/gate_proj"}
    roles |= {"ffn_up": "mlp/up_proj", "ffn_down": "mlp/down_proj", "attn_q": "attn/q_proj"}
    for target, folder in bundles.items():
        if not target.startswith("gguf"):
            continue
        ours = gguf_integers(folder / "model.gguf")
        theirs = onnx_values(bundles[target.replace("gguf:", "onnx:")])
        for layer in range(2):
            for gguf, role in roles.items():
                kind, values = ours[f"blk.{layer}.{gguf}.weight"]
                name = next((n for n in theirs if f"layers.{layer}/{role}" in n), None)
                bits, others = theirs[name or f"/model/layers.{layer}/attn/qkv_proj/MatMul"]
                assert {"Q4_0": 4, "Q8_0": 8}[kind] == bits
                if name is None:  # query, key and value in one, as all have the same precision
                    others = others[: len(values)] if gguf == "attn_q" else others[-len(values) :]
                if gguf == "attn_q":  # rows of a head in another order
                    assert sorted(map(bytes, values)) == sorted(map(bytes, others))
                else:
                    assert np.array_equal(values, others), (name, role)
        head = next(values for name, (_, values) in theirs.items() if "lm_head" in name)
        assert np.array_equal(ours["token_embd.weight"][1], head)


@pytest.mark.parametrize("wide", ["q_proj", "k_proj", "v_proj"])
def test_one_of_query_key_and_value_may_have_8_bits(wide: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("qwen2-tied-gqa"))  # with biases
    tensors = quantize_all(checkpoint, 4)
    name = f"model.layers.1.self_attn.{wide}.weight"
    tensors[name] = quantize_rtn(checkpoint.model.get_parameter(name).detach(), 8, name)
    source = source_of(checkpoint)
    for target in parse_targets(TARGETS, [Budget(bytes=1_000_000)]):
        (tmp_path / target.format).mkdir()
        write_model(source, target, tmp_path / target.format, tensors)

    ours = gguf_integers(tmp_path / "gguf" / "model.gguf")
    theirs = onnx_values(tmp_path / "onnx")
    assert theirs["/model/layers.0/attn/qkv_proj/MatMul"][0] == 4
    assert "/model/layers.1/attn/qkv_proj/MatMul" not in theirs
    for role in "qkv":
        kind, values = ours[f"blk.1.attn_{role}.weight"]
        bits, others = theirs[f"/model/layers.1/attn/{role}_proj/MatMul"]
        assert (kind, bits) == (("Q8_0", 8) if wide.startswith(role) else ("Q4_0", 4))
        assert np.array_equal(values, others)

    put_back(checkpoint, tensors)
    tokens = random_tokens(48)
    expected = reference_logits(checkpoint.model, tokens)
    for logits in (
        libllama_logits(tmp_path / "gguf" / "model.gguf", tokens),
        onnx_logits(tmp_path / "onnx" / GRAPH_FILE, tokens),
    ):
        assert kl_divergence(expected, logits).mean() < 5e-3  # activations have 8 bits


def test_formats_agree_on_the_held_out_text(exported: tuple[Path, ExportResult]) -> None:
    kls = {bundle.target: bundle.parity.overall.kl_mean for bundle in exported[1].bundles}
    for target, kl in kls.items():
        assert kl == pytest.approx(kls[target.replace("onnx:", "gguf:")], rel=0.1)


def test_the_choice_is_recorded_and_shown(exported: tuple[Path, ExportResult]) -> None:
    bundle = exported[1].bundles[0]
    manifest = read_manifest(Path(bundle.path))
    assert manifest.lineage["precision_choice"] == bundle.choice
    assert manifest.precision.target == bundle.target.removeprefix("gguf:")
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        inspect(Path(bundle.path)).render(console)
        exported[1].render(console)
    assert capture.get().count("8 bits for") >= 3
    assert "8 bits by measured sensitivity" in (Path(bundle.path) / "README.md").read_text()


def test_sensitivities_are_reused_and_the_choice_is_the_same(
    exported: tuple[Path, ExportResult],
    student: Path,
    traces: Path,
    smallest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, first = exported
    path = out / "student-sensitivity.json"
    before = path.read_bytes()
    monkeypatch.setattr(stored, "draw_products", lambda *a, **k: pytest.fail("measured again"))
    again = export(
        str(student),
        to=["gguf:auto"],
        out=out,
        calibrate=traces,
        size=[f"{smallest + 20_000}B"],
        limit_kl=5.0,
        force=True,
    )
    assert isinstance(again, ExportResult)
    assert again.bundles[0].choice == first.bundles[0].choice
    assert path.read_bytes() == before


def test_plan_shows_what_will_be_chosen(
    exported: tuple[Path, ExportResult], student: Path, smallest: int
) -> None:
    out, result = exported
    size = f"{smallest + 60_000}B"
    found = plan(str(student), to=TARGETS, size=[size], sensitivity=out / "student-sensitivity.json")
    bundle = next(b for b in result.bundles if b.bytes > smallest + 40_000)
    planned = found.targets[0]
    assert planned.target == bundle.target
    assert planned.file_bytes == pytest.approx(bundle.bytes, rel=0.03)
    assert planned.eight_bits
    assert planned.predicted_kl
    assert planned.eight_bits == found.targets[1].eight_bits
    without = plan(str(student), to=TARGETS, size=[size, "1kB"]).targets
    assert without[0].file_bytes is not None
    assert without[0].file_bytes <= smallest + 60_000
    assert without[1].problem is not None
    assert "4 bits everywhere" in without[1].problem
    dry = export(str(student), to=TARGETS, out=out, kl=[0.1], dry_run=True)
    assert isinstance(dry, Plan)


def test_a_wanted_divergence_is_kept(student: Path, traces: Path, smallest: int, tmp_path: Path) -> None:
    result = export(
        str(student), to=["gguf:auto"], out=tmp_path, calibrate=traces, kl=[0.5], method="rtn", limit_kl=5.0
    )
    assert isinstance(result, ExportResult)
    (bundle,) = result.bundles
    assert bundle.choice is not None
    assert bundle.choice["deciding_kl"] <= 0.5
    assert bundle.parity.overall.kl_mean <= 0.5
    assert Path(bundle.path).name == "student-auto-kl0.5-gguf"
    assert smallest < bundle.bytes < smallest + 150_000  # not everything at 8 bits, some 190,000


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"to": TARGETS}, "no-budget"),
        ({"to": ["gguf:q4_0"], "size": ["95MB"]}, "unused-budget"),
        ({"to": TARGETS, "size": ["much"]}, "bad-size"),
        ({"to": TARGETS, "kl": [0.0]}, "bad-budget"),
        ({"to": TARGETS, "kl": [float("nan")]}, "bad-budget"),
    ],
)
def test_budgets_that_make_no_sense(options: dict[str, list[str]], code: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        export("nowhere", out=tmp_path, **options)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_budgets_that_cannot_be_kept(student: Path, traces: Path, tmp_path: Path) -> None:
    for options, code in (({"size": ["50kB"]}, "budget-too-small"), ({"kl": [1e-7]}, "kl-too-small")):
        with pytest.raises(InputError) as caught:
            export(
                str(student),
                to=["onnx:auto"],
                out=tmp_path,
                calibrate=traces,
                method="rtn",
                **options,
            )
        assert caught.value.code == code
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_budgets_have_one_name() -> None:
    budgets = parse_budgets(["94MB", "94.0 mb", "94000kB"], [0.02])
    targets = parse_targets(["gguf:auto", "onnx:fp32"], budgets)
    assert [str(target) for target in targets] == ["gguf:auto-94MB", "gguf:auto-kl0.02", "onnx:fp32"]


# A model built to have one sensitive tensor: weights that meet only zeros make one grid coarse.


def planted_model(seed: int) -> tuple[PreTrainedModel, str]:
    model, _ = random_checkpoint(variant_named("llama-tied-gqa"), seed)
    layer = model.model.layers[seed % 2].self_attn
    with torch.no_grad():
        layer.v_proj.weight[::32] = 0.0
        layer.o_proj.weight[:, ::32] = 3.0
    return model, f"model.layers.{seed % 2}.self_attn.o_proj.weight"


def random_texts(count: int, seed: int) -> list[Text]:
    generator = np.random.default_rng(seed)
    return [Text(generator.integers(5, 500, 40).tolist(), 8, 30) for _ in range(count)]


def chooser_of(model: PreTrainedModel, folder: Path, file: object) -> Chooser:
    names = [*linear_names(model.config), *embedding_names(model)]
    low = {name: quantize_rtn(model.get_parameter(name).data, 4, name) for name in names}
    found = stored.measure(model, random_texts(8, 0), low, {}, folder / "sensitivity.json")
    source = source_of(replace(checkpoint_of(variant_named("llama-tied-gqa")), model=model))
    references = References(model, random_texts(4, 1), file, lambda: None)  # type: ignore[arg-type]
    return Chooser(source, low, costs_of(found, source), references)


@pytest.mark.parametrize("seed", [0, 1])
def test_never_worse_than_by_rule_and_the_planted_tensor_is_found(seed: int, tmp_path: Path) -> None:
    model, planted = planted_model(seed)
    with TemporaryFile() as file:
        chooser = chooser_of(model, tmp_path, file)
        costs = chooser._costs
        for room in (planted_room(costs.names, costs.extra, planted), 30_000, 80_000):
            choice, record = chooser.choose(Budget(bytes=room), 0)
            assert planted in choice.high, room
            assert costs.spent(choice.high) <= room
            for rule in rules(costs, room, []):
                assert record["deciding_kl"] <= chooser.measure(rule.high).overall.kl_mean * (1 + 1e-6), rule
            assert chooser.choose(Budget(bytes=room), 0)[0] == choice


def planted_room(names: Sequence[str], extra: np.ndarray, planted: str) -> int:
    return int(extra[list(names).index(planted)])


def test_an_interrupted_measurement_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = random_checkpoint(variant_named("llama-tied-gqa"))
    name = linear_names(model.config)[0]
    low = {name: quantize_rtn(model.get_parameter(name).data, 4, name)}
    texts, calls = random_texts(4, 0), []
    whole = stored.measure(model, texts, low, {"a": 1}, tmp_path / "whole.json")
    real = draw_products

    def failing(*arguments: object, **options: object) -> np.ndarray:
        calls.append(options["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(stored, "draw_products", failing)
    path = tmp_path / "part.json"
    with pytest.raises(KeyboardInterrupt):
        stored.measure(model, texts, low, {"a": 1}, path)
    resumed = stored.measure(model, texts, low, {"a": 1}, path)
    assert calls == [0, 1, 2, 2, 3]
    np.testing.assert_allclose(resumed.products, whole.products, rtol=1e-8)
    stored.measure(model, texts, low, {"a": 2}, path)  # of something else: anew
    assert calls[5:] == [0, 1, 2, 3]
    for damage in (
        '{"schema_version": 2}',
        '{"schema_version": 1, "names": ["a"], "products": [[null]]}',
        "[",
    ):
        path.write_text(damage)
        with pytest.raises(InputError):
            stored.read_sensitivity(path)
