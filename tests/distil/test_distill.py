"""Training runs on a tiny random student: the engine around the loss."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from edge_distill.distil.dataset import batches_of_epoch, load_dataset, solution_of
from edge_distill.distil.distill import distill, train
from edge_distill.distil.kinds import ANSWER, PROMPT, REASONING
from edge_distill.distil.losses import distillation_loss
from edge_distill.distil.on_policy import Writing, example_of_own
from edge_distill.distil.preferences import load_pairs
from edge_distill.distil.qat import grid_tensors, quantize_aware
from edge_distill.distil.recipe import Recipe, load_recipe, to_yaml
from edge_distill.distil.snapshots import last_complete, mark_complete
from edge_distill.distil.spans import Example, collate
from edge_distill.distil.trainer import TrainingFailed
from edge_distill.traces.trace import Trace, make_trace
from edge_distill_export import export
from edge_distill_export.artifact import prepare
from edge_distill_export.blocks import unpack_q4_0
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.export import ExportResult
from edge_distill_export.families import linear_names
from edge_distill_export.grid import quantize_rtn
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.chat import ReasoningMarkers
from tests.distil.killing import has_step, kill_when
from tests.distil.sums import pair_lines, sums, write
from tests.export.gguf_files import tensor_bytes
from tests.random_models import save_checkpoint, variant_named
from tests.random_tokenizers import random_tokenizer

STUDENT = variant_named("llama-tied-gqa")
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "student", STUDENT)
    write(tmp_path / "train.jsonl", sums(40))
    write(tmp_path / "validation.jsonl", sums(6, start=100))
    return tmp_path


def recipe_in(folder: Path, **changes: object) -> Recipe:
    training = {
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 1e-3,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
    }
    training.update(changes.pop("training", {}))  # type: ignore[call-overload]
    content = {
        "student": str(folder / "student"),
        "out": str(folder / "run"),
        "traces": [str(folder / "train.jsonl")],
        "validation": [str(folder / "validation.jsonl")],
        "context": 256,
        "training": training,
        **changes,
    }
    return Recipe.model_validate(content)


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def test_the_student_learns_and_can_be_loaded(folder: Path) -> None:
    result = train(recipe_in(folder, training={"epochs": 6, "learning_rate": 3e-3}))
    losses = [entry for entry in metrics_of(folder / "run") if "loss" in entry]
    assert len(losses) == result.steps == 30
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]
    assert {"reasoning", "answer", "grad_norm", "learning_rate", "tokens"} <= losses[0].keys()
    assert result.validation is not None
    assert result.validation["eval_loss"] == pytest.approx(
        result.validation["eval_reasoning"] + result.validation["eval_answer"]
    )
    load_checkpoint(folder / "run" / "student")
    with pytest.raises(InputError, match="is there already"):
        train(recipe_in(folder, training={"epochs": 6, "learning_rate": 3e-3}))


def test_the_first_step_is_that_of_a_plain_loop(folder: Path) -> None:
    """Accumulated over two micro-batches, against one batch and SGD's gradient by hand."""
    recipe = recipe_in(
        folder, training={"steps": 1, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0}
    )
    train(recipe)
    first = metrics_of(folder / "run")[0]

    checkpoint = load_checkpoint(folder / "student")
    style = prepare(checkpoint, 256).style
    dataset = load_dataset(recipe.traces, style, checkpoint.tokenizer, context=256)
    lengths = [len(example.tokens) for example in dataset.examples]
    rows = next(batches_of_epoch(lengths, 8, 0, 0))
    batch = collate([dataset.examples[row] for row in rows], 0)
    model = checkpoint.model
    logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}).logits
    parts = distillation_loss(recipe.loss.loss(), logits, batch["input_ids"], batch["kinds"])
    parts.total.backward()
    norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in model.parameters()))
    assert first["loss"] == pytest.approx(float(parts.total.detach()), rel=1e-5)
    assert first["reasoning"] == pytest.approx(float(parts.reasoning), rel=1e-5)
    assert first["answer"] == pytest.approx(float(parts.answer), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("accumulated", [2, 4, 8])
def test_micro_batches_do_not_change_the_losses(folder: Path, accumulated: int) -> None:
    losses = []
    for micro in (8, 8 // accumulated):
        changes = {"training": {"micro_batch_size": micro}, "out": str(folder / f"run-{micro}")}
        train(recipe_in(folder, **changes))
        losses.append([entry["loss"] for entry in metrics_of(folder / f"run-{micro}") if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # float32 sums in another order


class TestResume:
    def test_ten_kills(self, folder: Path) -> None:
        """Killed ten times, the run ends with the weights and metrics of one that was never killed."""
        settings = {"epochs": 6, "save_every": 3}
        expected = recipe_in(folder, out=str(folder / "whole"), training=settings)
        train(expected)
        recipe = recipe_in(folder, out=str(folder / "killed"), training=settings)
        path = folder / "recipe.yaml"
        path.write_text(to_yaml(recipe), "utf-8")
        metrics = folder / "killed" / "metrics.jsonl"
        for step in range(2, 32, 3):
            kill_when(path, partial(has_step, metrics, step))
        assert not (folder / "killed" / "student").exists()
        result = distill(path)
        assert result.resumed_from > 0
        assert_same(weights_of(folder / "killed"), weights_of(folder / "whole"))
        runs = [metrics_of(folder / name) for name in ("killed", "whole")]
        for entry in [*runs[0], *runs[1]]:
            entry.pop("seconds")
        assert runs[0] == runs[1]

    def test_a_damaged_checkpoint_is_not_used(self, folder: Path) -> None:
        settings = {"epochs": 4, "save_every": 4}
        train(recipe_in(folder, out=str(folder / "whole"), training=settings))
        run = folder / "run"
        train(recipe_in(folder, training=settings))
        (run / "student").rename(folder / "gone")
        newest = last_complete(run / "checkpoints")
        assert newest is not None
        assert newest.name == "checkpoint-20"
        state = newest / "optimizer.pt"
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
        result = train(recipe_in(folder, training=settings))
        assert result.resumed_from == 16
        assert_same(weights_of(run), weights_of(folder / "whole"))

    def test_another_recipe_does_not_go_on(self, folder: Path) -> None:
        train(recipe_in(folder))
        (folder / "run" / "student").rename(folder / "gone")
        with pytest.raises(InputError, match="another recipe"):
            train(recipe_in(folder, training={"learning_rate": 2e-3}))
        assert train(recipe_in(folder, training={"learning_rate": 2e-3}), restart=True).resumed_from == 0


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_two_processes_are_one(folder: Path) -> None:
    """`accelerate launch` with two CPU processes (gloo): the same losses and gradients as one process."""
    train(recipe_in(folder, out=str(folder / "one")))
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(recipe_in(folder, out=str(folder / "two"))), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"]
    subprocess.run(
        [sys.executable, "-m", *launch, "-m", "edge_distill", "distill", str(path)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    one, two = (metrics_of(folder / name) for name in ("one", "two"))
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    for name in ("loss", "reasoning", "answer", "grad_norm", "eval_loss", "tokens"):
        values = [[entry[name] for entry in run if name in entry] for run in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name


class TestNotFinite:
    def test_the_batch_is_named(self, folder: Path) -> None:
        with pytest.raises(TrainingFailed, match="not finite; its traces") as failure:
            train(recipe_in(folder, training={"learning_rate": 1e30, "warmup": 0, "schedule": "constant"}))
        known = {trace.id for trace in sums(40)}
        assert set(failure.value.data["traces"]) <= known
        assert len(failure.value.data["traces"]) in (4, 8)
        assert not (folder / "run" / "student").exists()


class TestGrid:
    def test_export_gives_the_trained_integers(self, folder: Path) -> None:
        """What is saved rounds to itself: `--method rtn` exports exactly the grid that was trained."""
        train(recipe_in(folder, quantize="int4"))
        checkpoint = load_checkpoint(folder / "run" / "student")
        parameters = dict(checkpoint.model.named_parameters())
        for name in linear_names(checkpoint.config):
            weight = parameters[name].detach()
            assert torch.equal(torch.from_numpy(quantize_rtn(weight, 4, name).dequantize()), weight)

    def test_the_exported_file_holds_the_trained_integers(self, folder: Path) -> None:
        """Every linear tensor of the GGUF file against the grid of the weights behind the last step."""
        qwen = variant_named("qwen2-tied-gqa")  # a family whose rows libllama does not permute
        long = replace(qwen, config={**qwen.config, "max_position_embeddings": 1024})
        model = load_checkpoint(save_checkpoint(folder / "qwen", long)).model
        names = linear_names(model.config)
        train(recipe_in(folder, student=str(folder / "qwen"), quantize="int4"))
        last = last_complete(folder / "run" / "checkpoints")
        assert last is not None
        quantize_aware(model, names)
        loaded = model.load_state_dict(load_file(last / "model.safetensors"), strict=False)
        assert set(loaded.missing_keys) <= {"lm_head.weight"}
        result = export(str(folder / "run" / "student"), to=["gguf:q4_0"], out=folder, method="rtn")
        assert isinstance(result, ExportResult)
        file = Path(result.bundles[0].path) / "model.gguf"
        trained = grid_tensors(model)
        assert sorted(trained) == sorted(names)
        for name, tensor in trained.items():
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            packed = tensor_bytes(file, f"blk.{layer}.{GGUF_NAMES[part]}.weight")
            integers, scales = unpack_q4_0(packed.reshape(len(tensor.integers), -1))
            np.testing.assert_array_equal(integers, tensor.integers, name)
            np.testing.assert_array_equal(np.abs(scales), np.abs(tensor.scales), name)
            assert not (np.signbit(scales) != np.signbit(tensor.scales))[tensor.scales != 0].any()

    def test_resumes(self, folder: Path) -> None:
        for out in ("whole", "run"):
            train(recipe_in(folder, quantize="int4", out=str(folder / out), training={"save_every": 2}))
        run = folder / "run"
        (run / "student").rename(folder / "gone")
        shutil.rmtree(run / "checkpoints" / "checkpoint-5")
        assert train(recipe_in(folder, quantize="int4", training={"save_every": 2})).resumed_from == 4
        assert_same(weights_of(run), weights_of(folder / "whole"))


def test_adapters_are_merged(folder: Path) -> None:
    train(recipe_in(folder, lora={"rank": 4}))
    before, after = load_file(folder / "student" / "model.safetensors"), weights_of(folder / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}


FOLLOW = {"reasoning": {"cross_entropy": 0.5, "forward_kl": 0.5, "temperature": 2.0}}


class TestTeacher:
    def test_a_whole_cache_is_the_live_teacher(self, folder: Path) -> None:
        save_checkpoint(folder / "teacher", STUDENT, seed=3)
        losses = []
        for name, cache in (("live", None), ("cached", str(folder / "cache"))):
            teacher = {"checkpoint": str(folder / "teacher"), "cache": cache, "k": 512}
            train(recipe_in(folder, loss=FOLLOW, teacher=teacher, out=str(folder / name)))
            losses.append([entry["loss"] for entry in metrics_of(folder / name) if "loss" in entry])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_another_vocabulary(self, folder: Path) -> None:
        save_checkpoint(folder / "teacher", variant_named("qwen2-tied-gqa"))
        teacher = {"checkpoint": str(folder / "teacher")}
        with pytest.raises(InputError, match="another vocabulary"):
            train(recipe_in(folder, loss=FOLLOW, teacher=teacher))


class TestOnPolicy:
    LOSS: ClassVar = {
        "reasoning": {"cross_entropy": 0, "reverse_kl": 1},
        "answer": {"cross_entropy": 0, "reverse_kl": 1},
    }

    def recipe(self, folder: Path, **changes: object) -> Recipe:
        teacher = {"checkpoint": str(folder / "teacher")}
        own = {"share": 0.5, "max_tokens": 12}
        return recipe_in(folder, loss=self.LOSS, teacher=teacher, on_policy=own, **changes)

    def test_the_student_comes_nearer_to_the_teacher(self, folder: Path) -> None:
        save_checkpoint(folder / "teacher", STUDENT, seed=3)
        train(self.recipe(folder, training={"epochs": 4}))
        validated = [entry["eval_loss"] for entry in metrics_of(folder / "run") if "eval_loss" in entry]
        assert validated[-1] < 0.9 * validated[0]

    def test_resumes(self, folder: Path) -> None:
        """What the student wrote is drawn again from the same seeds and weights."""
        save_checkpoint(folder / "teacher", STUDENT, seed=3)
        for out in ("whole", "run"):
            train(self.recipe(folder, out=str(folder / out), training={"save_every": 2}))
        (folder / "run" / "student").rename(folder / "gone")
        shutil.rmtree(folder / "run" / "checkpoints" / "checkpoint-5")
        assert train(self.recipe(folder, training={"save_every": 2})).resumed_from == 4
        assert_same(weights_of(folder / "run"), weights_of(folder / "whole"))

    def test_kinds_of_own_text(self) -> None:
        tokenizer = random_tokenizer("smollm")
        markers = ReasoningMarkers("<think>", "</think>")
        writing = Writing(1.0, 1.0, 8, (0,), tokenizer, markers)
        prompt, tail = [5, 6], tokenizer.encode("\n\n7")
        head = tokenizer.encode("<think>\n3 + 4 = 7\n</think>")
        example = example_of_own(prompt, [*head, *tail], writing)
        assert example.kinds == (PROMPT, PROMPT, *[REASONING] * len(head), *[ANSWER] * len(tail))
        assert set(example_of_own(prompt, head[:-1], writing).kinds[2:]) == {REASONING}


class TestPreferences:
    def test_chosen_answers_gain(self, folder: Path) -> None:
        (folder / "pairs.jsonl").write_text("\n".join(pair_lines(16)), "utf-8")
        preferences = {"pairs": [str(folder / "pairs.jsonl")], "beta": 0.5}
        settings = {"epochs": 10, "warmup": 0}
        recipe = recipe_in(folder, traces=[], validation=[], preferences=preferences, training=settings)
        train(recipe)
        losses = [entry for entry in metrics_of(folder / "run") if "loss" in entry]
        # before the first step the student is its own reference: -log sigmoid(0)
        assert losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert losses[-1]["loss"] < 0.5
        assert losses[-1]["accuracy"] > 0.9

    def test_the_loss_by_hand(self, folder: Path) -> None:
        """The second step's loss from the log-probabilities of the two models, text by text."""
        (folder / "pairs.jsonl").write_text("\n".join(pair_lines(8)), "utf-8")
        preferences = {"pairs": [str(folder / "pairs.jsonl")], "beta": 0.5, "cross_entropy": 0.25}
        settings = {"steps": 2, "schedule": "constant", "warmup": 0, "save_every": 1}
        recipe = recipe_in(folder, traces=[], validation=[], preferences=preferences, training=settings)
        train(recipe)
        before = load_checkpoint(folder / "student")
        after = AutoModelForCausalLM.from_pretrained(folder / "run" / "checkpoints" / "checkpoint-1").eval()
        style = prepare(before, 256).style
        pairs = load_pairs([folder / "pairs.jsonl"], style, before.tokenizer, context=256)
        losses = []
        for one, other in zip(pairs.chosen, pairs.rejected, strict=True):
            gains = [
                log_probability(after, text) - log_probability(before.model, text) for text in (one, other)
            ]
            learned = len(one.tokens) - one.first
            entropy = -log_probability(after, one) / learned
            losses.append(math.log1p(math.exp(-0.5 * (gains[0] - gains[1]))) + 0.25 * entropy)
        assert metrics_of(folder / "run")[1]["loss"] == pytest.approx(sum(losses) / 8, rel=1e-4)

    @pytest.mark.parametrize("line", ["[]", "{}", '{"prompt": [], "chosen": [], "rejected": []}', "{", "1"])
    def test_bad_lines(self, folder: Path, line: str) -> None:
        (folder / "pairs.jsonl").write_text(line, "utf-8")
        preferences = {"pairs": [str(folder / "pairs.jsonl")]}
        with pytest.raises(InputError, match=r"line 1: is no pair"):
            train(recipe_in(folder, traces=[], validation=[], preferences=preferences))


def log_probability(model: Any, example: Example) -> float:
    """Of a text's solution, from transformers' logits."""
    with torch.no_grad():
        logits = model(torch.tensor([example.tokens])).logits[0].double()
    chosen = logits[:-1].log_softmax(-1)[range(len(example.tokens) - 1), example.tokens[1:]]
    return float(chosen[example.first - 1 :].sum())


class TestRecipe:
    def test_unknown_key(self, folder: Path) -> None:
        path = folder / "recipe.yaml"
        path.write_text("student: a\nout: b\ntraces: [c]\ntraining: {learning_rat: 1}\n", "utf-8")
        with pytest.raises(InputError, match=r"training\.learning_rat.*did you mean learning_rate"):
            load_recipe(path)

    def test_overrides(self, folder: Path) -> None:
        path = folder / "recipe.yaml"
        path.write_text("student: a\nout: b\ntraces: [c]\n", "utf-8")
        overrides = ["training.learning_rate=3e-4", "loss.reasoning.temperature=2", "granularity=critical"]
        recipe = load_recipe(path, overrides)
        assert recipe.training.learning_rate == 3e-4
        assert recipe.loss.reasoning.temperature == 2
        assert recipe.granularity == "critical"
        path.write_text(to_yaml(recipe), "utf-8")
        assert load_recipe(path) == recipe

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("student: a\nout: b\ntraces: []\n", "either traces or preferences"),
            ("student: a\nout: b\ntraces: [c]\nloss: {reasoning: {forward_kl: 1}}\n", "add `teacher"),
            ("student: a\nout: b\ntraces: [c]\nteacher: {checkpoint: d}\n", "no term of the loss"),
            ("student: a\nout: b\ntraces: [c]\ntraining: {batch_size: 9}\n", "no multiple"),
            ("student: a\nout: b\ntraces: [c]\nloss: {alpha: -1}\n", "alpha"),
            (
                "student: a\nout: b\ntraces: [c]\nexpert_iteration: {problems: [d]}\nreward_model: {}\n",
                "reward_model and expert_iteration exclude",
            ),
            ("student: a\nout: b\nexpert_iteration: {problems: []}\n", "problems"),
            ("[1, 2]", "holds list"),
            ("a: &x [1]\nb: *x\n", "aliases"),
            ("a: [", "no YAML"),
            ("student: a\nout: b\ntraces: [c]\nquantize: int4\nlora: {}\n", "exclude each other"),
            ("!!python/object/apply:os.system [ls]", "no YAML"),
        ],
    )
    def test_bad_recipes(self, folder: Path, text: str, message: str) -> None:
        path = folder / "recipe.yaml"
        path.write_text(text, "utf-8")
        with pytest.raises(InputError, match=message):
            load_recipe(path)


class TestDataset:
    def test_linked_files(self, folder: Path) -> None:
        (folder / "train.jsonl").rename(folder / "elsewhere.jsonl")
        (folder / "train.jsonl").symlink_to(folder / "elsewhere.jsonl")
        train(recipe_in(folder, training={"steps": 1}))
        lineage = json.loads((folder / "run" / "student" / "distill.json").read_text("utf-8"))
        expected = hashlib.sha256((folder / "elsewhere.jsonl").read_bytes()).hexdigest()
        assert lineage["traces"][str(folder / "train.jsonl")] == expected

    def test_wrong_and_long_traces_are_counted(self, folder: Path) -> None:
        wrong = make_trace("What is 1 + 1?", "1 + 1 = 3", "3", correct=False, seed=0)
        long = make_trace("What is 1 + 1?", "one and one\n" * 200, "2", seed=1)
        cut = make_trace("What is 1 + 2?", "1 + 2 =", "", seed=2, notes={"finish_reason": "length"})
        write(folder / "train.jsonl", [*sums(8), wrong, long, cut])
        result = train(recipe_in(folder))
        assert result.left_out == {"wrong": 1, "trace-too-long": 1, "unfinished": 1}
        assert result.examples == 8

    def test_tool_turns_are_kept_and_exemplars_are_not(self) -> None:
        shots = ({"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"})
        ask = {"role": "user", "content": "What is 2 + 3?"}
        last = {"role": "assistant", "content": "5", "reasoning_content": "2 + 3 = 5"}
        plain = Trace("t", "What is 2 + 3?", (*shots, ask, last), "2 + 3 = 5", "5")
        solution = solution_of(plain, "full")
        assert solution.trace.messages == (ask,)
        assert solution.turns == ()
        call, said = {"role": "assistant", "content": "Action: add"}, {"role": "tool", "content": "5"}
        tools = {"role": "system", "content": "You may add."}
        used = Trace("t", "What is 2 + 3?", (tools, ask, call, said, last), "2 + 3 = 5", "5")
        solution = solution_of(used, "full")
        assert solution.trace.messages == (tools, ask)
        assert solution.turns == (call, {"role": "user", "content": "5"})

    def test_every_row_once_in_batches_of_like_length(self) -> None:
        lengths = [(row * 37) % 101 for row in range(64 * 8)]
        batches = list(batches_of_epoch(lengths, 8, seed=1, epoch=2))
        assert sorted(row for batch in batches for row in batch) == list(range(64 * 8))
        spread = [
            max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches
        ]
        assert max(spread) <= 10
        assert batches == list(batches_of_epoch(lengths, 8, seed=1, epoch=2))
        assert batches != list(batches_of_epoch(lengths, 8, seed=1, epoch=3))


def test_snapshots(tmp_path: Path) -> None:
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"abc")
        mark_complete(folder)
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"abd")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-5"
    (tmp_path / "checkpoint-5" / "complete.json").write_text('{"../x": [3, "00"]}', "utf-8")
    assert last_complete(tmp_path) is None
