"""Students cut from tiny random teachers of every family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from edge_distill.distil.cutting import (
    block_influence,
    channel_scores,
    cut,
    evenly_spaced,
    most_influential,
    smaller_config,
)
from edge_distill.distil.init_student import LINEAGE, init_student
from edge_distill_export.calibration import Text
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_runtime.errors import InputError
from tests.numerics import reference_logits
from tests.random_models import VARIANTS, Variant, random_checkpoint, save_checkpoint, variant_named

TOKENS = [5, 17, 300, 4, 4, 250, 99, 41, 7]
TEXTS = [Text(TOKENS, 1, 5), Text(TOKENS[::-1][:6], 1, 3)]
DEEP = Variant(
    "qwen3", "deep", "qwen2",
    {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
     "num_hidden_layers": 6, "max_position_embeddings": 1024},
)  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "keep", "expected"),
    [
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (6, 3, (0, 3, 5)),  # 0, 2.5, 5
        (6, 2, (0, 5)),
        (6, 1, (0,)),
        (30, 4, (0, 10, 19, 29)),  # 0, 9.67, 19.33, 29
        (5, 4, (0, 1, 3, 4)),  # 0, 1.33, 2.67, 4
        (30, 15, (0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27, 29)),  # steps of 29 / 14 = 2.07
    ],
)
def test_evenly_spaced(layers: int, keep: int, expected: tuple[int, ...]) -> None:
    assert evenly_spaced(layers, keep) == expected


def test_evenly_spaced_layers_are_different_ones() -> None:
    for layers in range(1, 40):
        for keep in range(1, layers + 1):
            assert len(set(evenly_spaced(layers, keep))) == keep


def test_most_influential() -> None:
    assert most_influential([0.5, 0.1, 0.3, 0.3, 0.9], 3) == (0, 2, 4)
    assert most_influential([0.0, 0.0], 2) == (0, 1)


def everything(model: PreTrainedModel) -> list[torch.Tensor]:
    return [torch.arange(model.config.intermediate_size)] * model.config.num_hidden_layers


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_cut_that_keeps_everything_is_the_teacher(variant: Variant) -> None:
    teacher, _ = random_checkpoint(variant)
    student = cut(teacher, range(teacher.config.num_hidden_layers), everything(teacher))
    np.testing.assert_array_equal(reference_logits(student, TOKENS), reference_logits(teacher, TOKENS))
    state = teacher.state_dict()
    assert student.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in student.state_dict().items())
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert tied == teacher.config.tie_word_embeddings


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_cut_computes_what_the_teacher_computes_without_the_rest(variant: Variant) -> None:
    """The reference: the teacher itself, other layers bypassed, other channels of the down projection at zero."""
    teacher, _ = random_checkpoint(variant)
    layers = [0, teacher.config.num_hidden_layers - 1][1:]
    channels = torch.arange(3, 195, 2)
    student = cut(teacher, layers, [channels])
    assert student.config.num_hidden_layers == 1
    assert student.config.intermediate_size == 96
    logits = reference_logits(student, TOKENS)
    decoder = teacher.get_decoder()
    for index, layer in enumerate(decoder.layers):
        if index not in layers:
            layer.forward = lambda hidden_states, **_: hidden_states
        mask = torch.zeros(256)
        mask[channels] = 1
        layer.mlp.down_proj.weight.data *= mask
    # float32, in another order of summation
    np.testing.assert_allclose(logits, reference_logits(teacher, TOKENS), rtol=1e-3, atol=2e-4)


def test_block_influence_against_hidden_states() -> None:
    teacher, _ = random_checkpoint(variant_named("smollm3-tied-gqa"))
    expected = np.zeros(4)
    for text in TEXTS:
        with torch.inference_mode():
            states = teacher(torch.tensor([text.tokens]), output_hidden_states=True).hidden_states
        # the last state that transformers gives has gone through the final norm
        for layer in range(3):
            before, after = states[layer][0].double(), states[layer + 1][0].double()
            cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
            expected[layer] += (1 - cosine).sum().item()
    expected /= sum(len(text.tokens) for text in TEXTS)
    measured = block_influence(teacher, TEXTS)
    np.testing.assert_allclose(measured[:3], expected[:3], rtol=1e-4)  # float32 against float64
    assert len(measured) == 4


def test_a_layer_that_does_nothing_goes_first() -> None:
    teacher, _ = random_checkpoint(DEEP)
    idle = teacher.get_decoder().layers[2]
    idle.self_attn.o_proj.weight.data.zero_()
    idle.mlp.down_proj.weight.data.zero_()
    influence = block_influence(teacher, TEXTS)
    assert abs(influence[2]) < 1e-6
    kept = most_influential(influence, 5)
    assert kept == (0, 1, 3, 4, 5)
    student = cut(teacher, kept, everything(teacher)[:5])
    np.testing.assert_allclose(
        reference_logits(student, TOKENS), reference_logits(teacher, TOKENS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["llama-tied-gqa", "phi3-untied-mha"])
def test_channel_scores_by_hand(name: str) -> None:
    teacher, _ = random_checkpoint(variant_named(name))
    mlp = teacher.get_decoder().layers[1].mlp
    if name == "phi3-untied-mha":
        gate, up = mlp.gate_up_proj.weight[:256], mlp.gate_up_proj.weight[256:]
    else:
        gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
    squares = np.linspace(1, 9, 256, dtype=np.float32)
    for channel in (0, 100, 255):
        down = mlp.down_proj.weight[:, channel].square().sum().sqrt()
        expected = (gate[channel].norm() * up[channel].norm() * down).item()
        assert channel_scores(teacher, 1, None)[channel].item() == pytest.approx(expected, rel=1e-5)
        expected = (down * squares[channel] ** 0.5).item()
        assert channel_scores(teacher, 1, squares)[channel].item() == pytest.approx(expected, rel=1e-5)


def test_copy(tmp_path: Path) -> None:
    teacher = save_checkpoint(tmp_path / "teacher", variant_named("llama-tied-gqa"))
    result = init_student(str(teacher), out=tmp_path / "student")
    assert (result.how, result.layers, result.parameters) == ("copied", (0, 1), result.teacher_parameters)
    first, second = load_checkpoint(teacher), load_checkpoint(tmp_path / "student")
    np.testing.assert_array_equal(
        reference_logits(first.model, TOKENS), reference_logits(second.model, TOKENS)
    )
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert first.tokenizer.chat_template == second.tokenizer.chat_template
    lineage = json.loads((tmp_path / "student" / LINEAGE).read_text())
    assert lineage["lineage"] == first.lineage


@pytest.mark.parametrize("measure", [False, True])
def test_cut_by_the_verb(tmp_path: Path, measure: bool) -> None:
    teacher = save_checkpoint(tmp_path / "teacher", DEEP)
    out, traces = tmp_path / "student", None
    if measure:
        traces = tmp_path / "traces.jsonl"
        lines = [
            {"problem": f"What is {n} + 3?", "reasoning": f"{n} + 3", "answer": str(n + 3)} for n in range(4)
        ]
        traces.write_text("\n".join(map(json.dumps, lines)))
    result = init_student(str(teacher), out=out, layers=3, ffn=96, measure=measure, traces=traces)
    student = load_checkpoint(out)
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (3, 96)
    assert result.how == "cut"
    assert result.parameters == student.model.num_parameters() < result.teacher_parameters
    assert np.isfinite(reference_logits(student.model, TOKENS)).all()
    original = load_checkpoint(teacher).model
    assert len(result.influence) == (6 if measure else 0)
    expected = most_influential(result.influence, 3) if measure else (0, 3, 5)
    assert result.layers == expected
    for index, layer in enumerate(expected):
        kept = student.model.get_decoder().layers[index]
        source = original.get_decoder().layers[layer]
        assert torch.equal(kept.self_attn.q_proj.weight, source.self_attn.q_proj.weight)
        rows = {tuple(row) for row in source.mlp.up_proj.weight.tolist()}
        assert all(tuple(row) in rows for row in kept.mlp.up_proj.weight.tolist())
    if not measure:
        scores = channel_scores(original, 3, None)
        best = scores.argmax()
        source = original.get_decoder().layers[3].mlp.down_proj.weight[:, best]
        columns = student.model.get_decoder().layers[1].mlp.down_proj.weight
        assert (columns == source[:, None]).all(0).sum() == 1
    assert json.loads(json.dumps(result.to_dict()))["layers"] == list(expected)


@pytest.mark.parametrize("variant", ["qwen2-tied-gqa", "gemma3_text-untied-mha", "phi3-partial-longrope"])
def test_new(tmp_path: Path, variant: str) -> None:
    teacher = save_checkpoint(tmp_path / "teacher", variant_named(variant))
    results = [
        init_student(str(teacher), out=tmp_path / name, fresh=True, layers=3, hidden=64, ffn=96, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    models = [load_checkpoint(tmp_path / name) for name in "abc"]
    config = models[0].config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 64, 96)
    assert (config.num_attention_heads, config.vocab_size) == (2, 512)
    assert results[0].how == "new"
    assert models[0].tokenizer.get_vocab() == load_checkpoint(teacher).tokenizer.get_vocab()
    logits = [reference_logits(model.model, TOKENS) for model in models]
    assert logits[0].shape == (len(TOKENS), 512)
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 1e-3


def test_measured_on_built_in_problems(tmp_path: Path) -> None:
    short = replace(DEEP, config={**DEEP.config, "num_hidden_layers": 2, "max_position_embeddings": 250})
    teacher = save_checkpoint(tmp_path / "teacher", short)
    result = init_student(str(teacher), out=tmp_path / "a", layers=1, measure=True)
    assert result.layers == (int(np.argmax(result.influence)),)
    short.config["max_position_embeddings"] = 64
    teacher = save_checkpoint(tmp_path / "short", short)
    with pytest.raises(InputError) as caught:
        init_student(str(teacher), out=tmp_path / "b", layers=1, measure=True)
    assert caught.value.code == "context-too-short"


def test_heads_of_a_new_model() -> None:
    config = random_checkpoint(DEEP)[0].config  # heads of 128 / 4 = 32, 2 key-value heads of 4
    for hidden, heads in ((32, (1, 1)), (64, (2, 1)), (96, (3, 1)), (256, (8, 4))):
        smaller = smaller_config(config, [0], 64, hidden)
        assert (smaller.num_attention_heads, smaller.num_key_value_heads) == heads
        assert smaller.head_dim == 32


def test_errors(tmp_path: Path) -> None:
    teacher = str(save_checkpoint(tmp_path / "teacher", variant_named("llama-tied-gqa")))

    def code(**options: object) -> str:
        with pytest.raises(InputError) as caught:
            init_student(teacher, out=tmp_path / "out", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()
        return caught.value.code

    assert code(layers=3) == "bad-layers"
    assert code(layers=0) == "bad-layers"
    assert code(ffn=100) == "bad-ffn"
    assert code(ffn=288) == "bad-ffn"
    assert code(hidden=64) == "hidden-needs-fresh"
    assert code(hidden=80, fresh=True) == "bad-hidden"
    assert code(hidden=0, fresh=True) == "bad-hidden"
    assert code(fresh=True, measure=True) == "unused-measure"
    assert code(traces=tmp_path / "x.jsonl") == "unused-traces"
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError) as caught:
        init_student(teacher, out=tmp_path / "there")
    assert caught.value.code == "exists"
