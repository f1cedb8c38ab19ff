"""load, generate and stream over both engines."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import BundleError, Event, InputError, Model, ResourceError, load
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, KVLayout, SamplingDefaults
from edge_distill_runtime.text.chat import ReasoningMarkers
from tests.random_models import CONTEXT_LENGTH
from tests.runtime.bundles import CHAT, write_manifest

QUESTION = "Anna has 7 apples. How many are left?"


def with_manifest(model: Model, **changes: Any) -> Model:
    """The same loaded model under a changed manifest."""
    return Model(replace(model.manifest, **changes), model.backend, model.tokenizer, model.detokenizer)


def greedy_reference(checkpoint: Checkpoint, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(checkpoint.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_equals_transformers(model: Model, checkpoint: Checkpoint) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    prompt = checkpoint.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert model.encode(QUESTION) == model.encode(messages) == prompt
    result = model.generate(QUESTION, max_tokens=24)
    assert list(result.tokens) == greedy_reference(checkpoint, prompt, 24)
    assert result.finish_reason == "length"
    assert result.prompt_tokens == len(prompt)
    assert result.tokens_per_second > 0


@pytest.mark.parametrize(
    ("text", "options", "rest", "kind"),
    [
        ("<think>\n1 + 1 = 2\n", {}, "", "reasoning"),
        ("<think>\n1 + 1 = 2", {"thinking": False}, "\n</think>\n\n", "answer"),
        ("<think>\n1 + 1 = 2", {"thinking": True}, "", "reasoning"),
        ("<think>\n1 + 1 = 2\n</think>\n\n", {}, "", "answer"),
        ("Is <think></think> a marker?", {}, "", "answer"),
        ("No marker", {"thinking": False}, "<think>\n\n</think>\n\n", "answer"),
    ],
)
def test_raw_prompts_may_begin_the_reasoning(
    model: Model, text: str, options: dict[str, Any], rest: str, kind: str
) -> None:
    tokens, (decoding,) = model.prepare(text, 1, {"raw": True, **options})  # type: ignore[typeddict-item]
    assert tokens == model.encode(text + rest, raw=True)
    assert decoding.reader.kind == kind


def test_raw_prompt(model: Model, checkpoint: Checkpoint) -> None:
    prompt = checkpoint.tokenizer.encode(QUESTION, add_special_tokens=False)
    assert model.encode(QUESTION, raw=True) == prompt
    result = model.generate(QUESTION, max_tokens=8, raw=True)
    assert list(result.tokens) == greedy_reference(checkpoint, prompt, 8)
    # the beginning-of-sequence token comes first, and only once
    with_bos = with_manifest(model, bos_id=0)
    assert with_bos.encode(QUESTION, raw=True) == [0, *prompt]
    assert with_bos.encode("<|endoftext|>" + QUESTION, raw=True) == [0, *prompt]
    assert with_manifest(model, chat=None).encode(QUESTION) == prompt


def test_stream_equals_generate(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "temperature": 1.5, "seed": 3}
    whole = model.generate(QUESTION, **options)
    events = list(model.stream(QUESTION, **options))
    assert whole.tokens == model.generate(QUESTION, **options).tokens
    for kind, text in (("reasoning", whole.reasoning), ("answer", whole.answer)):
        assert "".join(event.text for event in events if event.kind == kind) == text
    assert events[-1].finish_reason == whole.finish_reason == "length"
    assert events[-1].tokens == len(whole.tokens) == 60
    assert all(event.finish_reason is None for event in events[:-1])
    assert [event.tokens for event in events] == sorted(event.tokens for event in events)
    assert model.generate(QUESTION, **(options | {"seed": 4})).tokens != whole.tokens


def test_stops_before_a_stop_token(model: Model) -> None:
    plain = model.generate(QUESTION, max_tokens=24)
    stop = plain.tokens[5]
    stopping = with_manifest(model, stop_ids=(stop,))
    result = stopping.generate(QUESTION, max_tokens=24)
    assert result.tokens == plain.tokens[: plain.tokens.index(stop)]
    assert result.finish_reason == "stop"
    events = list(stopping.stream(QUESTION, max_tokens=24))
    assert events[-1] == Event(events[-1].kind, "", len(result.tokens), events[-1].seconds, "stop")
    # at once
    assert with_manifest(model, stop_ids=(plain.tokens[0],)).generate(QUESTION).tokens == ()


def test_context_end(model: Model) -> None:
    prompt = model.encode(QUESTION)
    result = model.generate(QUESTION, max_tokens=10_000)
    assert result.finish_reason == "context"
    # the last token needs no place in the cache: nothing is computed behind it
    assert len(prompt) + len(result.tokens) == CONTEXT_LENGTH + 1


def test_prompt_that_does_not_fit(model: Model) -> None:
    words = "apples " * 500
    length = len(model.encode(words)) + 1
    with pytest.raises(InputError, match=f"{length} tokens do not fit the context of {CONTEXT_LENGTH}"):
        model.generate(words)
    with pytest.raises(InputError, match="do not fit"):
        model.stream(words)  # checked before the first event is asked for


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {"raw": True}, "the prompt is empty"),
        ("\ud800", {}, "lone surrogates"),
        ([], {}, "no messages"),
        ([{"role": "user", "content": "x"}], {"raw": True}, "no chat form"),
        ("x", {"max_tokens": 0}, "max_tokens is 0"),
        ("x", {"temperature": -1.0}, "temperature is -1"),
        ("x", {"temperature": float("nan")}, "temperature is nan"),
        ("x", {"top_p": 0.0}, "top_p is 0"),
        ("x", {"seed": -1}, "seed is -1"),
    ],
)
def test_bad_requests(model: Model, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(prompt, **options)


def test_reasoning_and_answer_are_told_apart(model: Model) -> None:
    """Markers are chosen from what the random model says anyway."""
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 1}
    plain = with_manifest(model, reasoning=None).generate(QUESTION, **options)
    assert plain.reasoning == ""
    assert plain.answer == plain.text
    opening, closing = plain.text[8:11], plain.text[30:33]
    marked = with_manifest(model, reasoning=ReasoningMarkers(opening, closing))
    result = marked.generate(QUESTION, **options)
    before, _, rest = plain.text.partition(opening)
    reasoning, _, after = rest.partition(closing)
    assert result.text == plain.text
    assert result.reasoning.startswith(reasoning)
    assert result.answer.startswith(before)
    kinds = [event.kind for event in marked.stream(QUESTION, **options)]
    assert kinds[0] == "answer"
    assert "reasoning" in kinds
    assert after  # the test says something about both sides


def test_prompt_that_opens_the_reasoning(model: Model) -> None:
    chat = replace(CHAT, generation_prompt=CHAT.generation_prompt + "<think>\n")
    result = with_manifest(model, chat=chat).generate(QUESTION, max_tokens=12)
    assert result.reasoning == result.text
    assert result.answer == ""


def test_special_tokens_are_skipped_but_not_markers(model: Model) -> None:
    ids = model.tokenizer.encode("<|im_start|>a<think>b</think>c<|im_end|>", add_special_tokens=False).ids
    assert model.detokenizer.decode(ids) == "a<think>b</think>c"


def test_dropped_stream_leaves_the_model_usable(model: Model) -> None:
    expected = model.generate(QUESTION, max_tokens=10)
    for _ in range(100):  # more often than there are sequences
        stream = model.stream(QUESTION, max_tokens=10)
        next(stream)
        del stream
    assert model.generate(QUESTION, max_tokens=10).tokens == expected.tokens


def test_sampling_defaults_come_from_the_manifest(model: Model) -> None:
    sampled = with_manifest(model, sampling=SamplingDefaults(temperature=2.0))
    one = sampled.generate(QUESTION, max_tokens=16, seed=5)
    assert one.tokens == model.generate(QUESTION, max_tokens=16, temperature=2.0, seed=5).tokens
    greedy = sampled.generate(QUESTION, max_tokens=16, temperature=0.0)
    assert greedy.tokens == model.generate(QUESTION, max_tokens=16).tokens != one.tokens


@pytest.fixture
def copy(model: Model, bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle that a test may damage, in both formats."""
    return Path(shutil.copytree(bundles[model.manifest.format], tmp_path / "bundle"))


def test_every_flipped_file_is_found(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        if path.name == MANIFEST_NAME:
            continue
        data = path.read_bytes()
        for at in np.random.default_rng(7).integers(0, len(data), 5):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(BundleError, match=f"{path.name} does not match its SHA-256"):
                load(copy)
        path.write_bytes(data[:-1])
        with pytest.raises(
            BundleError, match=f"{path.name} has {len(data) - 1} bytes, its manifest says {len(data)}"
        ):
            load(copy)
        path.write_bytes(data)
    load(copy, threads=1).close()


def test_bad_load_options(copy: Path) -> None:
    with pytest.raises(
        InputError, match=f"context {CONTEXT_LENGTH + 1} was asked for, tiny was made for {CONTEXT_LENGTH}"
    ):
        load(copy, context=CONTEXT_LENGTH + 1)
    with pytest.raises(InputError, match="context 0"):
        load(copy, context=0)
    with pytest.raises(InputError, match="0 threads"):
        load(copy, threads=0)
    with pytest.raises(InputError, match="is no bundle directory"):
        load(copy / "none")


def test_memory_that_does_not_suffice(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_distill_runtime.bundles.opening.memory_limit", lambda: 30 << 20)
    with pytest.raises(ResourceError, match=r"needs [5-9]\d MiB, this process may have 30 MiB"):
        load(copy)


def test_wrong_manifest_about_the_model(copy: Path, model: Model) -> None:
    kind = model.manifest.format
    (copy / MANIFEST_NAME).unlink()
    write_manifest(copy, kind, vocab_size=1000)
    with pytest.raises(BundleError, match="computes 512 logits, the manifest says 1000"):
        load(copy, threads=1)
    write_manifest(copy, kind, kv=KVLayout(2, 2, 48, 4))
    with pytest.raises(BundleError, match="48"):
        load(copy, threads=1)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"model": 1}', b"[" * 100_000])
def test_damaged_tokenizer(copy: Path, model: Model, content: bytes) -> None:
    (copy / "tokenizer.json").write_bytes(content)
    write_manifest(copy, model.manifest.format)
    with pytest.raises(BundleError, match="is no tokenizer"):
        load(copy, threads=1)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"\x08\x07" * 40, b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_damaged_model_file(copy: Path, model: Model, content: bytes) -> None:
    (copy / model.manifest.model_file).write_bytes(content)
    write_manifest(copy, model.manifest.format)
    with pytest.raises(BundleError):
        load(copy, threads=1)
