"""Divergence from a bounded cache: by hand, against exact KL, killed, damaged, of another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_distill_bench.fidelity import bucketed_kl, main, measure_fidelity
from edge_distill_bench.fidelity_cache import read_reference, top_k, write_reference
from edge_distill_bench.fidelity_texts import ForcedText, _sign, render_text, texts_of
from edge_distill_bench.problem import Problem
from edge_distill_bench.results import FidelityPart
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_runtime import InputError, Model, load
from edge_distill_runtime.errors import BundleError, EdgeDistillError
from edge_distill_runtime.text.chat import ReasoningMarkers
from tests.bench.answers import row
from tests.export.bundle_files import reseal, source_of, write_bundle
from tests.numerics import kl_divergence
from tests.random_models import save_checkpoint, variant_named
from tests.runtime.bundles import CHAT, write_manifest, write_model

PROBLEMS = [
    Problem(
        f"p{i}", "sums", f"Anna has {i} apples and buys {i + 2}.", str(2 * i + 2), {}, f"{i} + {i + 2} = ?"
    )
    for i in range(6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One random checkpoint as onnx:fp32, gguf:q8_0 and gguf:q4_0, and another one."""
    folder = tmp_path_factory.mktemp("fidelity")
    saved = save_checkpoint(folder / "student", variant_named("llama-tied-gqa"))
    source = source_of(load_checkpoint(saved))
    for target in ("onnx:fp32", "gguf:q8_0", "gguf:q4_0"):
        directory = folder / target.partition(":")[2]
        write_bundle(source, target, directory)
        reseal(directory, chat=CHAT, reasoning=ReasoningMarkers("<think>", "</think>"))
    other = load_checkpoint(save_checkpoint(folder / "other-student", variant_named("llama-biases")))
    write_model(folder / "other", other, "onnx")
    write_manifest(folder / "other", "onnx")
    return folder


@pytest.fixture(scope="module")
def student(folder: Path) -> Iterator[Model]:
    with load(folder / "fp32", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def q4(folder: Path) -> Iterator[Model]:
    with load(folder / "q4_0", threads=1) as model:
        yield model


def exact_logits(model: Model, text: ForcedText) -> np.ndarray:
    chunks = model.backend.teacher_force(text.tokens[:-1], text.prompt - 1)
    return np.concatenate([chunk.copy() for chunk in chunks])


# -- by hand ---------------------------------------------------------------------------------------------------


def logits(*weights: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array([weights], np.float32)) + 3  # a shift changes no distribution


def test_top_k_by_hand() -> None:
    found = top_k(logits(2, 8, 4, 2), 2)
    assert found.ids.tolist() == [[1, 2]]
    np.testing.assert_allclose(np.exp(found.log_p), [[0.5, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.log_rest), [0.25], rtol=1e-6)
    assert top_k(logits(1, 1, 1, 1), 3).ids.tolist() in ([[0, 1, 2]], [[0, 1, 3]], [[0, 2, 3]], [[1, 2, 3]])
    whole = top_k(logits(2, 8, 4, 2), 4)
    assert whole.ids.tolist() == [[1, 2, 0, 3]]
    assert whole.log_rest.tolist() == [-np.inf]


def test_kl_by_hand() -> None:
    # P = 1/2, 1/4 | 1/8 + 1/8; Q = 1/4, 1/4 | 3/8 + 1/8
    # 1/2 ln 2 + 0 + 1/4 ln(1/2) = ln(2) / 4; exactly, 1/8 ln(1/3) + 1/8 ln 1 replaces the last: more by 0.0360
    p, q = logits(4, 2, 1, 1), logits(2, 2, 3, 1)
    assert bucketed_kl(top_k(p, 2), q)[0] == pytest.approx(np.log(2) / 4, abs=1e-6)
    exact = kl_divergence(p, q)[0]
    assert exact == pytest.approx(np.log(2) / 2 - np.log(3) / 8, abs=1e-6)
    assert bucketed_kl(top_k(p, 4), q)[0] == pytest.approx(exact, abs=1e-6)


def test_it_is_a_lower_bound_that_grows_with_k() -> None:
    rng = np.random.default_rng(0)
    p = (3 * rng.standard_normal((200, 300))).astype(np.float32)
    q = (p + rng.standard_normal((200, 300))).astype(np.float32)
    exact = kl_divergence(p, q)
    before = np.zeros(200)
    for k in (1, 2, 8, 64, 200, 299, 300):
        bound = bucketed_kl(top_k(p, k), q)
        assert (bound <= exact + 1e-5).all()  # float32
        assert (bound >= before - 1e-5).all()
        before = bound
    np.testing.assert_allclose(before, exact, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "token", "sign"),
    [
        ("is 12 apples", " 12", "n"),
        ("costs $1,234.5", "1,234.5", "n"),
        ("20%", "20%", "n"),
        ("the 3rd", "3rd", "."),
        ("a, b", ",", "."),
        ("3 + 4", " +", "o"),
        ("3+4", "+", "o"),
        ("3 = x", "=", "o"),
        ("3 - 4", " -", "o"),
        ("x-4", "-", "o"),
        ("well-known", "-", "."),
        ("and/or", "/", "."),
        ("6 x $14", " x", "o"),
        ("6 x 14", "x", "o"),
        ("let x be", " x", "."),
        ("2x + 1", "x", "."),
        ("5 × 3", "×", "o"),
        ("a <= b", "<=", "o"),
        ("   ", " ", "."),
        ("word", "word", "."),
    ],
)
def test_signs_by_hand(text: str, token: str, sign: str) -> None:
    start = text.index(token)
    assert _sign(text, start, start + len(token)) == sign


# -- texts -----------------------------------------------------------------------------------------------------


def test_texts_are_what_the_model_would_have_written(student: Model) -> None:
    text = texts_of(student, PROBLEMS[2:3])[0]
    prompt = student.encode(PROBLEMS[2].problem)
    assert list(text.tokens[: text.prompt]) == prompt
    said = student.detokenizer.decode(text.tokens[text.prompt :])
    assert said == "<think>\n2 + 4 = ?\n</think>\n\n\\boxed{6}"  # what ends the turn has no text
    assert set(text.parts) == {"r", "a"}
    assert text.rows == len(text.parts) == len(text.signs)
    answer = text.tokens[text.prompt + text.parts.index("a") :]
    assert student.detokenizer.decode(answer).strip() == "\\boxed{6}"
    signed = [
        (sign, student.detokenizer.decode([t]).strip())
        for sign, t in zip(text.signs, text.tokens[text.prompt :], strict=True)
    ]
    assert [said for sign, said in signed if sign == "n"] == ["2", "4", "6"]
    assert [said for sign, said in signed if sign == "o"] == ["+", "="]


@pytest.mark.parametrize(
    ("budget", "said", "reasoning", "answer"),
    [
        (8, "2 and 4\n</think>\n\nSix.", "2 and 4", "Six."),
        (0, "Six.", "", "Six."),
        (None, "<think>\n2 and 4\n</think>\n\nSix.", "2 and 4", "Six."),
    ],
)
def test_a_models_own_answers_are_texts(
    student: Model, budget: int | None, said: str, reasoning: str, answer: str
) -> None:
    problem = replace(PROBLEMS[0], solution=None)
    rows = [row("p0", "6", budget=budget, text=said)]
    assert texts_of(student, [problem], rows) == [
        render_text(student, [{"role": "user", "content": problem.problem}], reasoning, answer)
    ]


def test_the_longest_single_answer_is_taken(student: Model) -> None:
    problem = replace(PROBLEMS[0], solution=None)
    rows = [
        row("p0", "1", budget=64, samples=1),
        row("p0", "2", budget=8, samples=1),
        row("p0", "3", budget=64, samples=2),
        row("p0", "...", budget=256, samples=1),
    ]
    rows = [replace(each, text=f"x\n</think>\n\n{each.answer}") for each in rows]
    messages = [{"role": "user", "content": problem.problem}]
    assert texts_of(student, [problem], rows) == [render_text(student, messages, "x", "1")]


def test_texts_that_cannot_be_used(student: Model) -> None:
    bare = [replace(problem, solution=None) for problem in PROBLEMS]
    long = replace(PROBLEMS[0], solution="1 + " * 400)
    assert len(texts_of(student, [long, *PROBLEMS])) == 6
    assert len(texts_of(student, PROBLEMS, most=2)) == 2
    for problems, rows in ((bare, []), ([long], []), (bare, [row("p0", "...", text="1 + 1")])):
        with pytest.raises(InputError, match="has a solution or an answer"):
            texts_of(student, problems, rows)


def test_plain_models_have_texts_too(student: Model) -> None:
    plain = Model(
        replace(student.manifest, chat=None, reasoning=None, bos_id=1),
        student.backend,
        student.tokenizer,
        student.detokenizer,
    )
    text = texts_of(plain, PROBLEMS[:1])[0]
    assert text.tokens[0] == 1
    assert list(text.tokens[: text.prompt]) == plain.encode(PROBLEMS[0].problem + "\n", raw=True)
    assert plain.detokenizer.decode(text.tokens[text.prompt :]) == "0 + 2 = ?\n\\boxed{2}"


# -- a model against its reference -----------------------------------------------------------------------------


def test_the_reference_is_no_distance_from_itself(student: Model, tmp_path: Path) -> None:
    texts = texts_of(student, PROBLEMS)
    found = measure_fidelity(student, write_reference(student, texts, tmp_path / "r", name="fp32"))
    assert (found.against, found.k, found.texts) == ("fp32", 128, 6)
    assert set(found.parts) == {"all", "reasoning", "answer", "numbers", "operators"}
    for part in found.parts.values():
        assert part.mean_kl < 1e-6
        assert (part.top1, part.first_divergence) == (1.0, None)
    counts = {name: part.tokens for name, part in found.parts.items()}
    assert counts["all"] == counts["reasoning"] + counts["answer"] == sum(text.rows for text in texts)
    assert counts["numbers"] >= 18
    assert counts["operators"] == 12


def test_parts_equal_an_independent_count(student: Model, q4: Model, tmp_path: Path) -> None:
    """Every number again from whole logits of both, k being the vocabulary."""
    texts = texts_of(student, PROBLEMS)
    found = measure_fidelity(q4, write_reference(student, texts, tmp_path / "r", name="fp32", k=512))
    expected, measured = ([exact_logits(model, text) for text in texts] for model in (student, q4))
    kls = [kl_divergence(a, b) for a, b in zip(expected, measured, strict=True)]
    agrees = [a.argmax(-1) == b.argmax(-1) for a, b in zip(expected, measured, strict=True)]
    for name, field, letter in (("answer", "parts", "a"), ("numbers", "signs", "n")):
        masks = [np.array([each == letter for each in getattr(text, field)]) for text in texts]
        kl = np.concatenate([kl[mask] for kl, mask in zip(kls, masks, strict=True)])
        same = [each[mask] for each, mask in zip(agrees, masks, strict=True)]
        first = [list(each).index(False) if False in each else len(each) for each in same]
        part = found.parts[name]
        assert part.tokens == len(kl)
        # batches of other sizes sum in another order, and libllama rounds the cache to float16
        assert part.mean_kl == pytest.approx(kl.mean(), rel=0.02, abs=1e-4)
        assert part.p99_kl == pytest.approx(np.quantile(kl, 0.99), rel=0.05, abs=1e-3)
        assert part.top1 == pytest.approx(np.concatenate(same).mean(), abs=0.05)
        assert part.first_divergence == pytest.approx(np.median(first), abs=1)
    whole = found.parts["all"]
    assert whole.mean_kl > 0.001
    assert whole.mean_kl_interval is not None
    assert whole.mean_kl_interval[0] < whole.mean_kl < whole.mean_kl_interval[1]


@pytest.mark.parametrize(("k", "kept"), [(128, 0.95), (64, 0.9), (16, 0.6), (1, 0.05)])
def test_how_much_the_bucket_loses(student: Model, q4: Model, tmp_path: Path, k: int, kept: float) -> None:
    """On a random model, whose distributions are flatter than any trained one's, and a vocabulary of 512."""
    texts = texts_of(student, PROBLEMS)
    bound = measure_fidelity(q4, write_reference(student, texts, tmp_path / "k", name="r", k=k))
    exact = measure_fidelity(q4, write_reference(student, texts, tmp_path / "all", name="r", k=512))
    share = bound.parts["all"].mean_kl / exact.parts["all"].mean_kl
    assert kept < share <= 1
    assert 0 == exact.tail < bound.tail < 1
    assert bound.parts["all"].top1 == exact.parts["all"].top1


def test_the_other_format_is_compared_alike(student: Model, folder: Path, tmp_path: Path) -> None:
    """GGUF as the reference, ONNX as the model."""
    with load(folder / "q8_0", threads=1) as q8:
        reference = write_reference(q8, texts_of(q8, PROBLEMS), tmp_path / "r", name="q8")
        found = measure_fidelity(student, reference).parts["all"]
    assert 0 < found.mean_kl < 0.05
    assert found.top1 > 0.8


# -- files -----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def stop_at(count: int) -> Any:
    def progress(done: int) -> None:
        if done == count:
            raise Interrupted

    return progress


def test_a_killed_reference_goes_on(student: Model, tmp_path: Path) -> None:
    texts = texts_of(student, PROBLEMS)
    whole = write_reference(student, texts, tmp_path / "whole", name="r")
    folder = tmp_path / "killed"
    for count in (2, 4):
        with pytest.raises(Interrupted):
            write_reference(student, texts, folder, name="r", progress=stop_at(count))
        with (folder / "reference.bin").open("ab") as file:  # rows without their line
            file.write(b"x" * 100)
        with (folder / "reference.jsonl").open("ab") as file:
            file.write(b'{"text": {"tok')
    done: list[int] = []
    again = write_reference(student, texts, folder, name="r", progress=done.append)
    assert done == [4, 5, 6]
    for text in texts:
        for one, two in zip(whole.rows(text), again.rows(text), strict=True):
            # one engine, but other prompts before it: the order of sums may differ
            np.testing.assert_allclose(one, two, atol=1e-4)
    assert (folder / "reference.bin").stat().st_size == sum(text.rows for text in texts) * (128 * 8 + 4)
    assert read_reference(folder).texts == texts
    done.clear()
    write_reference(student, texts[:2], folder, name="r", progress=done.append)
    assert done == [2]


def test_a_killed_comparison_goes_on(student: Model, q4: Model, tmp_path: Path) -> None:
    reference = write_reference(student, texts_of(student, PROBLEMS), tmp_path / "r", name="r")
    path = tmp_path / "rows.jsonl"
    with pytest.raises(Interrupted):
        measure_fidelity(q4, reference, rows=path, progress=stop_at(3))
    with path.open("ab") as file:
        file.write(b'{"key": "torn')
    done: list[int] = []
    found = measure_fidelity(q4, reference, rows=path, progress=done.append)
    assert done == [3, 4, 5, 6]
    assert len(path.read_text().splitlines()) == 6
    done.clear()
    assert measure_fidelity(q4, reference, rows=path, progress=done.append) == found
    assert done == [6]
    done.clear()
    measure_fidelity(student, reference, rows=path, progress=done.append)  # another model
    assert done[0] == 0
    for line in ('{"key": "x"}', '{"key": 1, "kl": [], "agrees": []}', "[]"):
        path.write_text(line + "\n")
        with pytest.raises(InputError, match="line 1 of"):
            measure_fidelity(q4, reference, rows=path)


def test_other_models(student: Model, q4: Model, folder: Path, tmp_path: Path) -> None:
    texts = texts_of(student, PROBLEMS)
    reference = write_reference(student, texts, tmp_path / "r", name="r")
    with load(folder / "other", threads=1) as other, pytest.raises(InputError, match="another vocabulary"):
        measure_fidelity(other, reference)
    with pytest.raises(InputError, match="holds the cache of r"):
        write_reference(q4, texts, tmp_path / "r", name="q4")
    with pytest.raises(InputError, match="holds the cache of r"):
        write_reference(student, texts, tmp_path / "r", name="r", k=8)
    for k in (0, 513):
        with pytest.raises(InputError, match=f"k is {k}"):
            write_reference(student, texts, tmp_path / "k", name="r", k=k)


@pytest.fixture(scope="module")
def cache(student: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "r"
    write_reference(student, texts_of(student, PROBLEMS[:2]), folder, name="r", k=4)
    return folder


def test_damaged_data_is_told(cache: Path, q4: Model, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(cache, folder)
    data = bytearray((folder / "reference.bin").read_bytes())
    data[len(data) // 2] ^= 1
    for damage in (bytes(data), bytes(data[:-1]), b""):
        (folder / "reference.bin").write_bytes(damage)
        with pytest.raises(BundleError, match="not what its index says"):
            measure_fidelity(q4, read_reference(folder))


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (0, {"schema_version": 2}),
        (0, {"k": 0}),
        (0, {"k": 513}),
        (0, {"k": 1 << 60}),
        (0, {"vocabulary": "512"}),
        (0, {"more": 1}),
        (1, {"start": -1}),
        (1, {"text": {"tokens": [1], "prompt": 1, "parts": "", "signs": ""}}),
        (1, {"text": {"tokens": [1, 2], "prompt": 0, "parts": "rr", "signs": ".."}}),
        (1, {"text": {"tokens": [1, 2], "prompt": 1, "parts": "", "signs": "."}}),
        (1, {"text": {"tokens": [1, 2], "prompt": 1, "parts": "x", "signs": "."}}),
        (1, {"text": {"tokens": [1, 512], "prompt": 1, "parts": "r", "signs": "."}}),
        (1, {"text": {"tokens": [1, -2], "prompt": 1, "parts": "r", "signs": "."}}),
        (1, {"text": None}),
        (1, {"sha256": "00"}),
        (1, {"start": 1 << 62}),
        (0, {"k": 1 << 60, "vocabulary": 1 << 60}),
        (0, {"vocabulary": 513}),
    ],
)
def test_hostile_indexes(cache: Path, q4: Model, tmp_path: Path, line: int, change: dict[str, Any]) -> None:
    folder = tmp_path / "r"
    shutil.copytree(cache, folder)
    lines = (folder / "reference.jsonl").read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | change)
    (folder / "reference.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(EdgeDistillError):
        measure_fidelity(q4, read_reference(folder))


def test_no_reference_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_reference(tmp_path)
    (tmp_path / "reference.jsonl").write_text("")
    with pytest.raises(BundleError, match="lacks the key"):
        read_reference(tmp_path)


def test_a_single_text_has_no_interval(student: Model, q4: Model, tmp_path: Path) -> None:
    reference = write_reference(student, texts_of(student, PROBLEMS, most=1), tmp_path / "r", name="r")
    part = measure_fidelity(q4, reference).parts["all"]
    assert isinstance(part, FidelityPart)
    assert part.mean_kl_interval is None


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sums.jsonl"
    # a file's problems are split by their hash: take enough for the test split
    more = [{"problem": f"Number {i}?", "answer": str(i), "solution": f"{i} = {i}"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, more)) + "\n")
    call = [str(folder / "fp32"), str(folder / "q4_0"), "--task", str(path), "--items", "2", "--k", "8"]
    assert main(call) == 0
    table, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert "q4_0 against fp32, k 8" in table
    found = json.loads(last)["q4_0"]
    assert found["parts"]["all"]["mean_kl"] > 0
    assert found["texts"] == 2
    assert main([*call[:2], "--task", str(path), "--items", "2", "--k", "0"]) == 2
    assert "k is 0" in capsys.readouterr().err
