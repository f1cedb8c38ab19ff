"""Checkpoints, bundles and GGUF files as teachers, against transformers' own generate and the runtime's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edge_distill.traces.teachers import hf
from edge_distill.traces.teachers.opening import open_teacher
from edge_distill.traces.teachers.runtime import RuntimeTeacher
from edge_distill.traces.teachers.teacher import Request, Sampling, Teacher, Written
from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import load
from edge_distill_runtime.errors import BackendError, EdgeDistillError, InputError
from edge_distill_runtime.text.chat import render
from tests.random_models import CONTEXT_LENGTH, random_checkpoint, save_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model
from tests.traces.teachers.conftest import LEARNED, Taught, question

GREEDY = Sampling(temperature=0.0, max_tokens=60)


@pytest.fixture(scope="module", params=["hf", "bundle", "gguf"])
def teacher(request: pytest.FixtureRequest, taught: Taught) -> Iterator[Teacher]:
    """Each kind in turn, two requests at once."""
    path = {"hf": taught.folder, "bundle": taught.bundle, "gguf": taught.gguf}[request.param]
    with closing(open_teacher(f"{request.param}:{path}", at_once=2)) as opened:
        yield opened


def answers(teacher: Teacher, requests: list[Request], sampling: Sampling) -> list[Written]:
    found = list(teacher.write(requests, sampling))
    assert sorted(index for index, _ in found) == list(range(len(requests)))
    return [dict(found)[index] for index in range(len(requests))]


def test_reasoning_and_answer_are_told_apart(teacher: Teacher) -> None:
    found = answers(teacher, [question(text) for text in LEARNED], GREEDY)
    assert [(written.reasoning, written.text) for written in found] == list(LEARNED.values())
    assert all(written.is_usable for written in found)
    assert [written.tokens for written in found] == [27, 21, 37]


def test_a_begun_reasoning_is_continued(teacher: Teacher) -> None:
    assert teacher.can_continue
    begun = [question("3 + 4?", 0, "3 + "), question("6 / 2?", 0, "6 / 2 = 3\n"), question("2 + 2?")]
    assert [(written.reasoning, written.text) for written in answers(teacher, begun, GREEDY)] == [
        ("4 = 7\n", r"\boxed{7}"),
        ("so three\nthat is all\n", r"\boxed{3}"),
        ("2 + 2 = 4\nso four", r"\boxed{4}"),
    ]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("\n",), ("6 / 2 = 3", "")),  # not the one behind the marker
        (("that", "three"), ("6 / 2 = 3\nso ", "")),
        (("{",), ("6 / 2 = 3\nso three\nthat is all", "\\boxed")),
        (("nowhere",), LEARNED["6 / 2?"]),
    ],
)
def test_stop_strings(teacher: Teacher, stop: tuple[str, ...], expected: tuple[str, str]) -> None:
    (written,) = answers(teacher, [question("6 / 2?")], Sampling(0.0, 1.0, 60, stop))
    assert (written.reasoning, written.text, written.finish_reason) == (*expected, "stop")


def test_what_is_cut_off_is_not_usable(teacher: Teacher) -> None:
    found = answers(teacher, [question(text) for text in LEARNED], Sampling(temperature=0.0, max_tokens=26))
    assert [written.finish_reason for written in found] == ["length", "stop", "length"]
    assert [written.is_usable for written in found] == [False, True, False]
    assert found[0].tokens == found[2].tokens == 26


def test_a_prompt_that_does_not_fit_is_its_own_trouble_only(teacher: Teacher) -> None:
    long = question("word " * CONTEXT_LENGTH)
    odd = Request(
        ({"role": "user", "content": "q"}, {"role": "system", "content": "late"}, *long.messages), 0
    )
    found = answers(teacher, [long, question("3 + 4?"), odd, question("2 + 2?")], GREEDY)
    assert [written.finish_reason for written in found] == ["error", "stop", "error", "stop"]
    assert "context" in found[0].error
    assert "system" in found[2].error
    assert found[1].text == r"\boxed{7}"


def test_a_context_that_fills_up_cuts_one_answer_off_and_no_other(teacher: Teacher) -> None:
    words = next(n for n in range(CONTEXT_LENGTH, 0, -1) if _fits(teacher, question("a " * n)))
    found = answers(teacher, [question("a " * words), question("2 + 2?")], GREEDY)
    assert found[0].finish_reason in ("length", "stop")
    assert found[0].tokens < 27
    assert (found[1].reasoning, found[1].text) == LEARNED["2 + 2?"]


def _fits(teacher: Teacher, request: Request) -> bool:
    (written,) = answers(teacher, [request], Sampling(temperature=0.0, max_tokens=1))
    return not written.error


WARM = Sampling(temperature=2.5, top_p=0.98, max_tokens=12)


def same_text_whatever_runs_beside(teacher: Teacher) -> None:
    requests = [question(text, seed) for seed in range(3) for text in LEARNED]
    together = answers(teacher, requests, WARM)
    assert together == [answers(teacher, [request], WARM)[0] for request in requests]
    assert together == answers(teacher, requests[::-1], WARM)[::-1]
    assert len({written.reasoning + written.text for written in together}) > 6
    assert together != answers(
        teacher, [question(text, seed) for seed in range(7, 10) for text in LEARNED], WARM
    )


def test_seeds_decide_the_text_of_a_checkpoint(taught: Taught) -> None:
    with closing(open_teacher(f"hf:{taught.folder}", at_once=4)) as teacher:
        same_text_whatever_runs_beside(teacher)


def test_seeds_decide_the_text_of_a_bundle(taught: Taught, tmp_path: Path) -> None:
    """In ONNX; libllama keeps values in 16 bits and rounds sums of them by what else lies in its cache."""
    write_model(tmp_path / "b", taught.source.checkpoint, "onnx")
    write_manifest(tmp_path / "b", "onnx", stop_ids=taught.source.stop_ids)
    with closing(open_teacher(f"bundle:{tmp_path / 'b'}", at_once=4)) as teacher:
        same_text_whatever_runs_beside(teacher)


def test_seeds_decide_the_text_of_a_gguf_file_alone(taught: Taught) -> None:
    with closing(open_teacher(f"gguf:{taught.gguf}", at_once=1)) as teacher:
        same_text_whatever_runs_beside(teacher)


def test_closed_is_closed(taught: Taught) -> None:
    for spec in (f"hf:{taught.folder}", f"bundle:{taught.bundle}"):
        closed = open_teacher(spec)
        closed.close()
        closed.close()
        with pytest.raises(BackendError):
            list(closed.write([question("2 + 2?")], GREEDY))


def test_leaving_early_ends_the_work(taught: Taught) -> None:
    with closing(RuntimeTeacher("bundle", str(taught.bundle), at_once=2)) as teacher:
        results = teacher.write([question(text, seed) for seed in range(50) for text in LEARNED], GREEDY)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert teacher._model.engine.load == (0, 0)
        assert answers(teacher, [question("3 + 4?")], GREEDY)[0].text == r"\boxed{7}"


def test_names_tell_models_apart_and_say_no_path(taught: Taught, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "folder", variant_named("llama-tied-gqa"))
    specs = [
        f"hf:{taught.folder}",
        f"hf:{tmp_path / 'folder'}",
        f"bundle:{taught.bundle}",
        f"gguf:{taught.gguf}",
    ]
    names = []
    for spec in [*specs, specs[0], specs[2]]:
        with closing(open_teacher(spec)) as teacher:
            names.append(teacher.name)
    assert names[4:] == [names[0], names[2]]
    assert [name.partition("@")[0] for name in names[:4]] == [
        "hf:folder",
        "hf:folder",
        "bundle:taught",
        "gguf:taught",
    ]
    assert len(set(names)) == 4
    assert not any("/" in name for name in names)


# -- transformers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: text without an end, tokens that lie close together."""
    return save_checkpoint(tmp_path_factory.mktemp("untaught"), variant_named("llama-tied-gqa"))


QUESTIONS = [
    "Hi",
    "What is 17 + 25?",
    "A longer question about three apples and two pears, how many is that?",
    "2?",
    "x",
]


def test_greedy_is_what_transformers_generates_alone(untaught: Path, taught: Taught) -> None:
    reference = AutoModelForCausalLM.from_pretrained(untaught)
    tokenizer = taught.source.checkpoint.tokenizer
    expected = []
    for text in QUESTIONS:
        ids = tokenizer(_chat(taught, text), add_special_tokens=False, return_tensors="pt")
        output = reference.generate(**ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        expected.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    with closing(open_teacher(f"hf:{untaught}", at_once=3)) as teacher:
        found = answers(teacher, [question(text) for text in QUESTIONS], Sampling(0.0, 1.0, 20))
    assert [written.text for written in found] == [text.lstrip("\n") for text in expected]


def test_the_checkpoints_own_settings_do_not_steer(untaught: Path, tmp_path: Path) -> None:
    """A repetition penalty in generation_config.json would be in no trace."""
    for path in untaught.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    odd = {"repetition_penalty": 5.0, "do_sample": True, "top_k": 1, "max_new_tokens": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings | odd))
    found = []
    for path in (untaught, tmp_path):
        with closing(open_teacher(f"hf:{path}")) as teacher:
            found.append(answers(teacher, [question("Hi", 5)], Sampling(0.9, 0.9, 20)))
    assert found[0] == found[1]


def _chat(taught: Taught, text: str) -> str:
    assert taught.source.style.chat is not None
    return render(taught.source.style.chat, [{"role": "user", "content": text}])


def test_draws_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log().repeat(6, 1)
    numbers = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 0.9999999])
    assert hf.draw(logits, numbers, Sampling(1.0, 1.0)).tolist() == [1, 1, 2, 2, 0, 3]
    # 0.5 and 0.3 reach 0.7; of what is left the first has 5 parts in 8
    assert hf.draw(logits, numbers, Sampling(1.0, 0.7)).tolist() == [1, 1, 1, 2, 2, 2]
    assert hf.draw(logits, numbers, Sampling(1.0, 0.4)).tolist() == [1] * 6
    assert hf.draw(logits, numbers, Sampling(0.0, 1.0)).tolist() == [1] * 6
    # temperature 1/2 squares the shares: 25, 9, 1, 1 of 36
    assert hf.draw(logits, numbers, Sampling(0.5, 1.0)).tolist() == [1, 1, 1, 2, 2, 3]
    masked = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]]).repeat(6, 1)
    assert hf.draw(masked, numbers, Sampling(1.0, 1.0)).tolist() == [0] * 6


def test_draws_have_the_distribution() -> None:
    shares = torch.tensor([0.45, 0.3, 0.15, 0.1])
    numbers = torch.rand(20_000, generator=torch.Generator().manual_seed(3))
    drawn = hf.draw(shares.log().repeat(20_000, 1), numbers, Sampling(1.0, 1.0))
    # three standard deviations of a share of 20,000 are 0.0106
    assert (drawn.bincount(minlength=4) / 20_000 - shares).abs().max() < 0.0106


def test_nan_is_an_error_and_no_text(untaught: Path) -> None:
    with closing(hf.HuggingFaceTeacher(str(untaught))) as teacher:
        with torch.no_grad():
            teacher._model.model.norm.weight.fill_(torch.nan)
        with pytest.raises(BackendError, match="NaN"):
            list(teacher.write([question("Hi")], GREEDY))


# -- the runtime ---------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_runtime(taught: Taught) -> None:
    with load(taught.bundle) as model, closing(open_teacher(f"bundle:{taught.bundle}")) as teacher:
        expected = model.sample("6 / 2?", 4, temperature=1.2, top_p=0.9, max_tokens=30, seed=11)
        requests = [question("6 / 2?", 11 + i) for i in range(4)]
        found = answers(teacher, requests, Sampling(1.2, 0.9, 30))
    assert [(written.reasoning, written.text) for written in found] == [
        (generation.reasoning.strip("\n"), generation.answer.lstrip("\n")) for generation in expected
    ]


def test_a_budget_and_defaults_of_the_manifest_do_not_steer(taught: Taught, tmp_path: Path) -> None:
    from edge_distill_runtime.bundles.manifest import ReasoningLengths, SamplingDefaults

    write_model(tmp_path / "b", taught.source.checkpoint, "gguf")
    write_manifest(
        tmp_path / "b",
        "gguf",
        stop_ids=taught.source.stop_ids,
        reasoning_lengths=ReasoningLengths(2, 3, 4),
        sampling=SamplingDefaults(0.9, top_k=1, repetition_penalty=5.0),
    )
    with closing(open_teacher(f"bundle:{tmp_path / 'b'}")) as teacher:
        found = answers(teacher, [question(text) for text in LEARNED], GREEDY)
    assert [(written.reasoning, written.text) for written in found] == list(LEARNED.values())


def test_a_model_without_chat_and_markers_writes_all_into_the_text(tmp_path: Path) -> None:
    model, tokenizer = random_checkpoint(variant_named("llama-tied-gqa"))
    write_model(tmp_path / "b", Checkpoint(model, tokenizer, "tiny", {}), "gguf")
    write_manifest(tmp_path / "b", "gguf", chat=None, reasoning=None)
    with closing(open_teacher(f"bundle:{tmp_path / 'b'}")) as teacher:
        plain, begun = answers(
            teacher, [question("1 + 1"), question("1 + 1", 0, "so ")], Sampling(0.0, 1.0, 8)
        )
        assert (plain.reasoning, begun.reasoning) == ("", "")
    with load(tmp_path / "b") as reference:
        assert plain.text == reference.generate("1 + 1\n", temperature=0.0, max_tokens=8).text.lstrip("\n")
        assert begun.text == reference.generate("1 + 1\nso ", temperature=0.0, max_tokens=8).text.lstrip("\n")


# -- what is no teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["", "hf", "hf:", "bundle:", "gguf:", "openai:", "solver", "solver:gcd", "vllm:here", ":", "hf:/nowhere/at/all",
     "bundle:/nowhere", "gguf:/nowhere.gguf"],
)  # fmt: skip
def test_bad_specifications(spec: str) -> None:
    with pytest.raises(EdgeDistillError):
        open_teacher(spec)


def test_bad_numbers() -> None:
    with pytest.raises(InputError, match="at least 1"):
        open_teacher("solver:", at_once=0)
    bad: list[dict[str, Any]] = [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0},
        {"stop": ("",)},
    ]  # fmt: skip
    for values in bad:
        with pytest.raises(InputError):
            Sampling(**values)


@pytest.mark.parametrize(
    "messages",
    [(), ({"role": "assistant", "content": "a"},), ({"role": "robot", "content": "a"},), ({"role": "user"},)],
)
def test_bad_requests_are_refused_before_anything_is_asked(teacher: Teacher, messages: Any) -> None:
    with pytest.raises(InputError):
        teacher.write([question("2 + 2?"), Request(messages, 0)], GREEDY)
