"""Repair after quantization, on random models of two layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edge_distill_export import export, gptq, inspect
from edge_distill_export import repair as repairing
from edge_distill_export.activations import computing_with
from edge_distill_export.calibration import Text, builtin_traces
from edge_distill_export.export import ExportResult
from edge_distill_export.families import embedding_names, linear_names, norm_names
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_export.module_state import frozen, recomputed_layers, swapped_parameters
from edge_distill_export.repair import Repaired, Stages, repair_tensors
from edge_distill_export.repair_text import LOSS_WEIGHTS, RepairText, batches, sign_weights
from edge_distill_runtime.bundles.gguf_header import read_gguf_header
from edge_distill_runtime.bundles.manifest import read_manifest
from edge_distill_runtime.errors import InputError
from tests.export.test_automatic import gguf_integers, onnx_values
from tests.random_models import random_checkpoint, variant_named


@pytest.fixture(autouse=True, scope="module")
def small_and_fast() -> Iterator[None]:
    """Few texts at once, and what takes a real model hundreds of steps in a dozen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_distill_export.repair_text.BATCH_TOKENS", 250)
        patch.setattr("edge_distill_export.grid_training.Integers.RATE", 0.06)
        patch.setattr("edge_distill_export.grid_training.Scales.RATE", 0.03)
        patch.setattr("edge_distill_export.grid_training.Norm.RATE", 1e-3)
        yield


@dataclass(frozen=True)
class Damaged:
    """A model, and tensors that could be better."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    tensors: dict[str, QuantizedTensor]
    text: RepairText

    def repaired(self, stages: Stages = "both", steps: int = 24, seed: int = 0) -> Repaired:
        return repair_tensors(
            self.model, self.tensors, self.text, self.tokenizer, steps=steps, stages=stages, seed=seed
        )


@pytest.fixture(scope="module")
def damaged() -> Damaged:
    """Rounded, and then some scales a fifth too large and some integers off by one: all of it can be undone."""
    model, tokenizer = random_checkpoint(variant_named("llama-tied-gqa"))
    generator = np.random.default_rng(0)
    tensors = {}
    for name in linear_names(model.config):
        tensor = quantize_rtn(model.get_parameter(name).data, 4, name)
        larger = np.where(generator.random(tensor.scales.shape) < 0.3, 1.2, 1.0)
        moved = tensor.integers + (generator.random(tensor.integers.shape) < 0.03)
        scales = (tensor.scales * larger).astype(np.float16)
        tensors[name] = QuantizedTensor(moved.clip(-8, 7).astype(np.int8), scales, 4)
    for name in embedding_names(model):
        tensors[name] = quantize_rtn(model.get_parameter(name).data, 8, name)
    texts = [Text(generator.integers(5, 500, 40).tolist(), 8, 30) for _ in range(56)]
    return Damaged(model, tokenizer, tensors, RepairText(tuple(texts[:48]), tuple(texts[48:])))


@pytest.fixture(scope="module")
def repaired(damaged: Damaged) -> Repaired:
    return damaged.repaired()


def test_planted_damage_is_repaired(damaged: Damaged, repaired: Repaired) -> None:
    record = repaired.record
    scales, integers = record["stages"]
    assert [scales["stage"], integers["stage"]] == ["scales", "integers"]
    assert scales["deciding_kl"] < record["deciding_kl_before"]
    assert integers["deciding_kl"] < scales["deciding_kl"]
    assert record["deciding_kl"] < 0.85 * record["deciding_kl_before"]
    assert record["deciding_kl"] == integers["deciding_kl"]
    assert (record["texts"], record["tokens"], record["deciding_texts"]) == (48, 48 * 40, 8)


def test_the_result_lies_on_the_grid(damaged: Damaged, repaired: Repaired) -> None:
    for name, tensor in repaired.tensors.items():
        before = damaged.tensors[name]
        assert tensor.integers.dtype == np.int8
        assert tensor.scales.dtype == np.float16
        assert np.isfinite(tensor.scales).all()
        assert tensor.integers.shape == before.integers.shape
        if before.bits == 8:
            assert tensor is before
        else:
            assert tensor.integers.min() >= -8
            assert tensor.integers.max() <= 7
    assert repaired.norms.keys() == set(norm_names(damaged.model))


def test_the_integers_stay_while_scales_learn(damaged: Damaged) -> None:
    found = damaged.repaired("scales")
    moved = 0
    for name in linear_names(damaged.model.config):
        assert np.array_equal(found.tensors[name].integers, damaged.tensors[name].integers)
        moved += (found.tensors[name].scales != damaged.tensors[name].scales).sum()
    assert moved > 0
    assert [stage["stage"] for stage in found.record["stages"]] == ["scales"]


def test_the_scales_stay_while_integers_learn(damaged: Damaged) -> None:
    found = damaged.repaired("integers")
    moved = 0
    for name in linear_names(damaged.model.config):
        assert np.array_equal(found.tensors[name].scales, damaged.tensors[name].scales)
        moved += (found.tensors[name].integers != damaged.tensors[name].integers).sum()
    assert moved > 0


def test_training_starts_from_exactly_what_was_quantized(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_distill_export.grid_training.Integers.RATE", 0.0)
    monkeypatch.setattr("edge_distill_export.grid_training.Norm.RATE", 0.0)
    seen = []
    real = repairing._measure

    def keep(model: object, references: object, state: repairing.State) -> float:
        seen.append(state)
        return real(model, references, state)  # type: ignore[arg-type]

    monkeypatch.setattr(repairing, "_measure", keep)
    damaged.repaired("integers", steps=2)
    for name, tensor in seen[-1].tensors.items():
        assert np.array_equal(tensor.integers, damaged.tensors[name].integers), name
        assert np.array_equal(tensor.scales, damaged.tensors[name].scales), name


@pytest.mark.parametrize("stages", ["scales", "integers", "both"])
def test_what_cannot_improve_is_rolled_back(
    damaged: Damaged, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    for learner in ("Scales", "Integers", "Norm"):  # uphill
        monkeypatch.setattr(f"edge_distill_export.grid_training.{learner}.RATE", -1e-2)
    monkeypatch.setattr(repairing, "_EVERY", 2)
    found = damaged.repaired(stages)
    assert found.tensors == damaged.tensors  # the very same objects
    assert not found.norms
    assert found.record["deciding_kl"] == found.record["deciding_kl_before"]
    assert all(stage["steps"] < 12 for stage in found.record["stages"])  # and it stopped early


def test_the_same_seed_gives_the_same_bits(damaged: Damaged, repaired: Repaired) -> None:
    again, other = damaged.repaired(), damaged.repaired(seed=1)
    assert again.record == repaired.record
    differing = 0
    for name, tensor in repaired.tensors.items():
        assert np.array_equal(again.tensors[name].integers, tensor.integers)
        assert np.array_equal(again.tensors[name].scales, tensor.scales)
        differing += not np.array_equal(other.tensors[name].integers, tensor.integers)
    assert differing


def test_the_checkpoint_stays_as_it_was(damaged: Damaged) -> None:
    before = {name: weight.clone() for name, weight in damaged.model.state_dict().items()}
    needed = [parameter.requires_grad for parameter in damaged.model.parameters()]
    damaged.repaired(steps=4)
    assert all(torch.equal(weight, before[name]) for name, weight in damaged.model.state_dict().items())
    assert [parameter.requires_grad for parameter in damaged.model.parameters()] == needed
    assert all(parameter.grad is None for parameter in damaged.model.parameters())


def test_gradient_is_that_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(5, 11, generator=generator).log_softmax(-1)
    logits = torch.randn(5, 11, generator=generator, requires_grad=True)
    weights = torch.tensor([1.0, 1.0, 2.0, 0.5, 1.5])
    divergence = (expected.exp() * (expected - logits.log_softmax(-1))).sum(-1)
    ((divergence * weights).sum() / weights.sum()).backward()
    found = repairing._gradient(expected.clone(), logits.detach(), weights)
    torch.testing.assert_close(found, logits.grad, atol=1e-7, rtol=1e-5)


def test_recomputed_layers_lead_to_the_same_gradients(damaged: Damaged) -> None:
    names = [*linear_names(damaged.model.config)[:3], *embedding_names(damaged.model)]
    tokens = torch.tensor([damaged.text.texts[0].tokens])
    gradients = []
    for context in (recomputed_layers(damaged.model), nullcontext()):
        leaves = {name: (2 * damaged.model.get_parameter(name).detach()).requires_grad_() for name in names}
        with frozen(damaged.model), swapped_parameters(damaged.model, leaves), context:
            damaged.model(tokens).logits.logsumexp(-1).sum().backward()
        gradients.append([leaf.grad for leaf in leaves.values()])
    for recomputed, kept in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, kept)
    assert "forward" not in vars(damaged.model.model.layers[0])


def test_both_ways_to_compute_with_other_weights_agree(damaged: Damaged) -> None:
    tokens = torch.tensor([damaged.text.texts[0].tokens])
    leaves = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in damaged.tensors.items()}
    with torch.inference_mode():
        own = damaged.model(tokens).logits
        with swapped_parameters(damaged.model, leaves):  # the tied head with the embedding
            swapped = damaged.model(tokens).logits
        with computing_with(damaged.model, damaged.tensors):
            lazily = damaged.model(tokens).logits
        torch.testing.assert_close(swapped, lazily)
        assert (swapped - own).abs().max() > 0.1
        torch.testing.assert_close(damaged.model(tokens).logits, own, atol=0.0, rtol=0.0)


# Text


def test_batches_hold_every_text_once_a_round() -> None:
    generator = np.random.default_rng(0)
    texts = [Text([index] * int(generator.integers(20, 200)), 8, 15) for index in range(40)]
    weights = np.ones(100, np.float32)
    seen: list[int] = []
    for batch in islice(batches(texts, weights, 0), 80):
        assert batch.tokens.shape == batch.positions.shape
        assert batch.tokens.shape[1] <= 250
        assert len(batch.before) == len(batch.weights)
        starts = (batch.positions[0] == 0).nonzero()[:, 0].tolist()
        assert (batch.positions[0, batch.before] >= 7).all()  # the prompt is not predicted
        seen += batch.tokens[0, starts].tolist()
    assert sorted(seen[:40]) == list(range(40))
    assert sorted(seen[40:80]) == list(range(40))
    assert seen[:40] != seen[40:80]


def test_texts_in_a_row_do_not_see_each_other(damaged: Damaged) -> None:
    texts = damaged.text.texts[:3]
    (batch,) = islice(batches(texts, np.ones(512, np.float32), 0), 1)
    with torch.inference_mode():
        together = damaged.model(
            batch.tokens, position_ids=batch.positions, logits_to_keep=batch.before, use_cache=False
        ).logits[0]
    row = 0
    for index in (batch.positions[0] == 0).nonzero()[:, 0].tolist():
        with torch.inference_mode():
            alone = damaged.model(batch.tokens[:, index : index + 40]).logits[0, 7:-1]
        torch.testing.assert_close(together[row : row + 32], alone, atol=2e-4, rtol=1e-4)
        row += 32
    assert row == len(together)


def test_numbers_and_operators_count_more(damaged: Damaged) -> None:
    weights = sign_weights(damaged.tokenizer, 512)
    by_sign = {damaged.tokenizer.decode([token]).strip(): weights[token] for token in range(512)}
    assert by_sign["7"] == LOSS_WEIGHTS["number"] > 1
    assert by_sign["+"] == LOSS_WEIGHTS["operator"] > 1
    assert by_sign["a"] == 1
    assert weights.dtype == np.float32


def test_problems_are_fresh_and_the_deciding_ones_apart() -> None:
    problems = {
        name: {trace.messages[0]["content"] for trace in builtin_traces(name)}
        for name in ("calibration", "heldout", "repair", "deciding")
    }
    assert len(problems["repair"]) == 448
    assert len(problems["deciding"]) == 22
    assert len(set.union(*problems.values())) == sum(map(len, problems.values()))


# Export


@pytest.fixture(scope="module")
def exported(
    student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExportResult]:
    out = tmp_path_factory.mktemp("bundles")
    to = ["gguf:q4_0", "onnx:int4", "gguf:q8_0", "onnx:fp32"]
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # GPTQ itself leaves nothing to repair in a model as small as this
        patch.setattr(gptq, "quantize_layer", lambda weight, _, name: quantize_rtn(weight, 4, name))
        patch.setattr(gptq, "compensated", lambda weight, *_: weight)
        result = export(str(student), to=to, out=out, calibrate=traces, repair=20, limit_kl=5.0)
    assert isinstance(result, ExportResult)
    return out, result


def test_both_formats_hold_the_same_repaired_model(exported: tuple[Path, ExportResult]) -> None:
    out, _ = exported
    ours, theirs = gguf_integers(out / "student-q4_0" / "model.gguf"), onnx_values(out / "student-int4")
    roles = {"attn_output": "attn/o_proj", "ffn_gate": "mlp/gate_proj", "ffn_down": "mlp/down_proj"}
    for layer in range(2):
        for gguf, role in roles.items():
            other = next(values for name, (_, values) in theirs.items() if f"layers.{layer}/{role}" in name)
            assert np.array_equal(ours[f"blk.{layer}.{gguf}.weight"][1], other)


def gguf_norms(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    return {
        tensor.name: np.frombuffer(data[tensor.offset : tensor.offset + tensor.size], np.float32)
        for tensor in read_gguf_header(path).tensors
        if "norm" in tensor.name
    }


def onnx_norms(folder: Path) -> list[bytes]:
    graph = onnx.load(str(folder / "model.onnx")).graph
    return [numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer if "norm" in tensor.name]


def test_norms_reach_both_formats_and_only_repaired_targets(exported: tuple[Path, ExportResult]) -> None:
    out, _ = exported
    repaired, rounded = (gguf_norms(out / f"student-{name}" / "model.gguf") for name in ("q4_0", "q8_0"))
    assert sorted(value.tobytes() for value in repaired.values()) == sorted(onnx_norms(out / "student-int4"))
    assert sorted(value.tobytes() for value in rounded.values()) == sorted(onnx_norms(out / "student-fp32"))
    assert any(not np.array_equal(value, rounded[name]) for name, value in repaired.items())


def test_the_repair_is_recorded_and_shown(exported: tuple[Path, ExportResult]) -> None:
    out, result = exported
    by_target = {bundle.target: bundle for bundle in result.bundles}
    record = read_manifest(out / "student-q4_0").lineage["repair"]
    assert record == read_manifest(out / "student-int4").lineage["repair"]
    assert record["deciding_kl"] < record["deciding_kl_before"]
    assert "repair" not in read_manifest(out / "student-q8_0").lineage
    assert by_target["onnx:fp32"].parity.overall.kl_mean <= 1e-4  # compared with the checkpoint's own norms
    assert "repaired" in (out / "student-q4_0" / "README.md").read_text()
    assert "repaired" not in (out / "student-q8_0" / "README.md").read_text()
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        inspect(out / "student-q4_0").render(console)
    assert "repaired" in capture.get()


def test_mixed_precision_is_repaired_too(student: Path, traces: Path, tmp_path: Path) -> None:
    result = export(
        str(student), to=["gguf:auto"], out=tmp_path, size=["250kB"], calibrate=traces, repair=2, limit_kl=5.0
    )
    assert isinstance(result, ExportResult)
    (bundle,) = result.bundles
    assert read_manifest(Path(bundle.path)).lineage["repair"]["steps"] == 2
    kinds = [kind for kind, _ in gguf_integers(Path(bundle.path) / "model.gguf").values()]
    assert {"Q4_0", "Q8_0"} == set(kinds)


def test_without_traces_the_student_writes_a_part_of_the_text(student: Path, tmp_path: Path) -> None:
    result = export(str(student), to=["gguf:q4_0"], out=tmp_path, repair=2, limit_kl=5.0)
    assert isinstance(result, ExportResult)
    record = read_manifest(tmp_path / "student-q4_0").lineage["repair"]
    assert record["texts"] == 8 + 3  # four problems a step, every third of them also solved by the student
    assert record["deciding_texts"] == 22 + 2


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"to": ["gguf:q4_0"], "repair": 9, "method": "rtn"}, "repair-without-gptq"),
        ({"to": ["gguf:q8_0", "onnx:fp32", "gguf:q4_k_m"], "repair": 9}, "nothing-to-repair"),
        ({"to": ["gguf:q4_0"], "repair": -1}, "bad-repair"),
    ],
)
def test_repairs_that_make_no_sense(options: dict[str, object], code: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        export("nowhere", out=tmp_path, **options)  # type: ignore[arg-type]
    assert caught.value.code == code
