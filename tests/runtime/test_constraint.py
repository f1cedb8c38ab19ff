"""Constrained answers: whatever the model wants, the text has the form that was asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from edge_distill_runtime import InputError
from edge_distill_runtime.generation.constraint import AnswerFormat, Constraint, ConstraintCompiler
from edge_distill_runtime.text.detokenizer import Detokenizer, encode
from tests.random_tokenizers import random_tokenizer

KINDS = ["smollm", "llama3", "llama2", "gemma"]  # byte-level BPE and SentencePiece with byte tokens
VOCABULARY = 512  # a few columns more than the tokenizers have tokens

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["été", "x", 'say "hi"']}, "maxItems": 3},
        "score": {"type": ["number", "null"], "multipleOf": 0.25, "minimum": 0, "maximum": 1},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@cache
def parts(kind: str) -> tuple[Any, Detokenizer, int, ConstraintCompiler]:
    tokenizer = random_tokenizer(kind).backend_tokenizer
    keep = ("<think>", "</think>")
    detokenizer = Detokenizer(tokenizer, json.loads(tokenizer.to_str()), keep)
    stop = tokenizer.token_to_id("<|im_end|>")
    compiler = ConstraintCompiler(
        detokenizer.bytes_of,
        lambda text: encode(tokenizer, text),
        vocab_size=VOCABULARY,
        stop_ids=[stop],
        special_ids=[tokenizer.token_to_id(marker) for marker in keep if tokenizer.token_to_id(marker)],
    )
    return tokenizer, detokenizer, stop, compiler


def written(kind: str, constraint: Constraint, seed: int, *, force: bool = False, limit: int = 400) -> str:
    """What a model of random logits writes under the constraint; decoded strictly, from bytes alone."""
    tokenizer, detokenizer, stop, _ = parts(kind)
    generator = np.random.default_rng(seed)
    data = b""
    for _ in range(limit):
        if constraint.is_finished:
            break
        forced = constraint.forced_tokens() if force else []
        for token in forced:
            constraint.accept(token)
            data += detokenizer.bytes_of(token)
        if forced:
            continue
        logits = generator.normal(0, 4, VOCABULARY).astype(np.float32)
        token = int(constraint.mask(logits).argmax())
        assert token < tokenizer.get_vocab_size(), "a column without a token"
        complete = constraint.is_complete
        constraint.accept(token)
        if token == stop:
            assert complete
            assert constraint.is_finished
            break
        assert detokenizer.bytes_of(token), "a special token inside the answer"
        data += detokenizer.bytes_of(token)
    else:
        pytest.fail(f"no end after {limit} tokens: {data!r}")
    return data.decode("utf-8")  # raises when a character is broken


def allowed_tokens(constraint: Constraint) -> list[int]:
    masked = constraint.mask(np.zeros(VOCABULARY, np.float32))
    return [int(token) for token in np.flatnonzero(np.isfinite(masked))]


def is_person(text: str) -> None:
    """PERSON, checked by hand."""
    value = json.loads(text)
    assert isinstance(value, dict)
    assert {"name", "age", "tags"} <= set(value) <= {"name", "age", "tags", "score"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 130
    assert isinstance(value["tags"], list)
    assert len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"été", "x", 'say "hi"'}
    assert value.get("score") is None or 0 <= value["score"] <= 1
    assert not text.startswith((" ", "\n"))
    assert "\n" not in text


def matches(pattern: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    return check


NUMBER = r"-?[0-9]{1,3}(\.[0-9]{2})?"
WORDS = "[A-Zé世🙂]{2,5}(, [a-z]{1,4}){0,2}[.!?/]\n"
CASES: dict[str, tuple[AnswerFormat, Callable[[str], None]]] = {
    "number": (AnswerFormat.regex(NUMBER), matches(NUMBER)),
    "words": (AnswerFormat.regex(WORDS), matches(WORDS)),
    "anchored": (AnswerFormat.regex("^(a|bb)$"), matches("a|bb")),
    "person": (AnswerFormat.json_schema(PERSON), is_person),
    "choices": (AnswerFormat.choices("A", "B", "A or B"), matches("A|B|A or B")),
    "unicode": (
        AnswerFormat.choices("größer", "世界", "🙂", "👩‍👧", "ja/nein (1.5*)", "a\nb", '"'),
        matches('größer|世界|🙂|👩‍👧|ja/nein \\(1\\.5\\*\\)|a\nb|"'),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_random_models_answer_in_form(kind: str, case: str) -> None:
    answer_format, check = CASES[case]
    template = parts(kind)[3].compile(answer_format)
    texts = [written(kind, template.copy(), seed, force=seed % 2 == 1) for seed in range(50)]
    for text in texts:
        check(text)
    assert len(set(texts)) > 1, "the constraint leaves a choice"


def test_every_choice_can_be_made_even_a_prefix() -> None:
    _, detokenizer, stop, compiler = parts("smollm")
    template = compiler.compile(AnswerFormat.choices("Yes", "Yes, really", "No"))
    texts = {written("smollm", template.copy(), seed) for seed in range(200)}
    assert texts == {"Yes", "Yes, really", "No"}
    constraint = template.copy()
    assert not constraint.is_complete
    rest = b"Yes"
    while rest:
        token = next(t for t in allowed_tokens(constraint) if rest.startswith(detokenizer.bytes_of(t)))
        constraint.accept(token)
        rest = rest.removeprefix(detokenizer.bytes_of(token))
    assert constraint.is_complete
    assert not constraint.is_finished
    allowed = allowed_tokens(constraint)
    assert stop in allowed
    assert {detokenizer.bytes_of(token)[:1] for token in allowed} == {b"", b","}
    assert not template.is_complete, "the copy left its original alone"


@pytest.mark.parametrize("kind", KINDS)
def test_mask_allows_exactly_what_continues_the_answer(kind: str) -> None:
    """Every token against the set of texts, spelled out; where only one byte may follow, one token is enough."""
    _, detokenizer, stop, compiler = parts(kind)
    constraint = compiler.compile(AnswerFormat.choices("12", "125", "126", "14", "é", "ê"))
    whole = [b"12", b"125", b"126", b"14", b"\xc3\xa9", b"\xc3\xaa"]
    logits = np.linspace(-3, 3, VOCABULARY, dtype=np.float32)
    logits.flags.writeable = False
    for text in (b"125", b"\xc3\xaa"):
        place = constraint.copy()
        for length in range(len(text) + 1):
            data = text[:length]
            masked = place.mask(logits)
            assert masked.dtype == np.float32
            for token in range(VOCABULARY):
                piece = detokenizer.bytes_of(token)
                expected = bool(piece) and any(end.startswith(data + piece) for end in whole)
                expected |= token == stop and data in whole
                assert masked[token] == (logits[token] if expected else -np.inf), (data, token)
            assert place.is_complete == (data in whole)
            assert place.is_finished == (length == len(text))
            if length < len(text):
                place.accept(byte_token(detokenizer, text[length]))


def byte_token(detokenizer: Detokenizer, byte: int) -> int:
    return next(token for token in range(VOCABULARY) if detokenizer.bytes_of(token) == bytes([byte]))


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_a_special_token(kind: str) -> None:
    """Written in pieces: the special token itself would end the answer, or open the reasoning."""
    compiler = parts(kind)[3]
    for text in ("<|im_end|>", "a</think>b", "<think>", "<s>", "e\u0301", " two  spaces", "\x00"):
        for force in (False, True):
            assert written(kind, compiler.compile(AnswerFormat.choices(text)), 0, force=force) == text
            texts = [
                written(kind, compiler.compile(AnswerFormat.choices(text, "x")), seed) for seed in range(9)
            ]
            assert set(texts) <= {text, "x"}


def test_reasoning_markers_stay_out_of_free_text() -> None:
    tokenizer, _, _, compiler = parts("smollm")
    constraint = compiler.compile(AnswerFormat.regex(".*"))
    masked = constraint.mask(np.zeros(VOCABULARY, np.float32))
    for name in ("<think>", "</think>", "<|im_start|>", "<|endoftext|>"):
        assert masked[tokenizer.token_to_id(name)] == -np.inf
    assert np.isfinite(masked[tokenizer.token_to_id("<|im_end|>")])


@pytest.mark.parametrize("kind", KINDS)
def test_forced_tokens_are_the_tokenizers_own(kind: str) -> None:
    tokenizer, detokenizer, _, compiler = parts(kind)
    constraint = compiler.compile(AnswerFormat.json_schema(PERSON))
    forced = constraint.forced_tokens()
    data = b"".join(map(detokenizer.bytes_of, forced))
    assert b'{"name": "'.startswith(data)
    # llama2 encodes every text with a space before it
    expected = encode(tokenizer, '\n{"name": "')[2:] if kind == "llama2" else encode(tokenizer, '{"name": "')
    assert forced == expected[: len(forced)]
    assert forced
    for token in forced:
        constraint.accept(token)
    single = compiler.compile(AnswerFormat.choices("only"))
    assert not single.is_finished
    assert written(kind, single, 0, force=True) == "only"
    assert single.is_finished
    assert single.forced_tokens() == []


def test_several_stop_ids_and_none() -> None:
    tokenizer, detokenizer, stop, _ = parts("smollm")
    other = tokenizer.token_to_id("<|endoftext|>")

    def end(stop_ids: list[int]) -> Constraint:
        compiler = ConstraintCompiler(
            detokenizer.bytes_of,
            lambda text: encode(tokenizer, text),
            vocab_size=VOCABULARY,
            stop_ids=stop_ids,
        )
        constraint = compiler.compile(AnswerFormat.choices("7"))
        constraint.accept(tokenizer.token_to_id("7"))
        return constraint

    both = end([stop, other, 100_000])
    assert both.is_finished
    assert set(allowed_tokens(both)) == {stop, other}
    both.accept(other)
    assert both.is_finished
    assert end([]).is_finished


def test_misuse() -> None:
    _, _, stop, compiler = parts("smollm")
    constraint = compiler.compile(AnswerFormat.choices("A", "B"))
    for token in (stop, -1, VOCABULARY, 100_000):
        with pytest.raises(InputError, match=f"token {token} cannot come here"):
            constraint.accept(token)
    with pytest.raises(InputError, match=r"\(1, 512\)"):
        constraint.mask(np.zeros((1, VOCABULARY), np.float32))
    assert written("smollm", constraint, 1) in ("A", "B"), "a refused token changes nothing"


def test_text_that_the_vocabulary_cannot_write() -> None:
    letters = {1: b"a", 2: b"b"}
    compiler = ConstraintCompiler(
        lambda token: letters.get(token, b""), lambda text: [], vocab_size=4, stop_ids=[0]
    )
    assert compiler.compile(AnswerFormat.regex("[ax]")).mask(np.zeros(4, np.float32)).tolist() == [
        -np.inf,
        0,
        -np.inf,
        -np.inf,
    ]
    with pytest.raises(InputError, match="no text that these tokens can write"):
        compiler.compile(AnswerFormat.choices("x"))
    constraint = compiler.compile(AnswerFormat.choices("ax", "b"))
    constraint.accept(1)
    assert constraint.forced_tokens() == []
    with pytest.raises(InputError, match="no text that these tokens can write"):
        constraint.mask(np.zeros(4, np.float32))


def nested(depth: int) -> Any:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


PATTERNS = [f".*{letter}.*" for letter in "abcdefghijklmnopqrst"]
REFUSED: dict[str, tuple[Callable[[], AnswerFormat], str]] = {
    "no choices": (lambda: AnswerFormat.choices(), "at least one"),
    "empty choice": (lambda: AnswerFormat.choices("A", ""), "none of them empty"),
    "a list": (lambda: AnswerFormat.choices(["A", "B"]), "at least one text"),  # type: ignore[arg-type]
    "surrogate": (lambda: AnswerFormat.choices("\ud800"), "lone surrogates"),
    "no pattern": (lambda: AnswerFormat.regex(""), "at least one"),
    "open group": (lambda: AnswerFormat.regex("ab(c"), "unclosed group at character 2"),
    "open class": (lambda: AnswerFormat.regex("x/[0-9"), "unclosed character class"),
    "look-ahead": (lambda: AnswerFormat.regex("a(?=b)"), "look-around.*not supported at character 1"),
    "word boundary": (lambda: AnswerFormat.regex(r"\ba"), "lookarounds not supported"),
    "1 MB pattern": (
        lambda: AnswerFormat.regex("a" * (1 << 20)),
        "1,048,576 characters, the limit is 16,384",
    ),
    "5 kB pattern": (lambda: AnswerFormat.regex("a" * 5000), "5,000 characters of patterns.*4,096"),
    "deep groups": (lambda: AnswerFormat.regex("(" * 2000 + "a" + ")" * 2000), "nest"),
    "wide caseless": (lambda: AnswerFormat.regex("(?i)" + "[\x01-\U0010ffff]" * 800), "case-insensitive"),
    "hidden caseless": (lambda: AnswerFormat.regex("(?x)( ?i)" + "[^a]" * 99), "case-insensitive"),
    "flag in a schema": (
        lambda: AnswerFormat.json_schema({"type": "string", "pattern": "(?i)yes"}),
        "sets a flag",
    ),
    "no JSON": (lambda: AnswerFormat.json_schema('{"type":'), "no JSON: Expecting value.*char 8"),
    "NaN": (lambda: AnswerFormat.json_schema({"minimum": float("nan")}), "no JSON"),
    "not an object": (lambda: AnswerFormat.json_schema("[]"), "is list, not an object"),
    "unknown type": (lambda: AnswerFormat.json_schema({"type": "strin"}), "Invalid type: strin"),
    "unknown keyword": (lambda: AnswerFormat.json_schema({"not": {}}), 'Unimplemented keys: \\["not"\\]'),
    "unsatisfiable": (
        lambda: AnswerFormat.json_schema({"type": "integer", "minimum": 5, "maximum": 4}),
        r"minimum \(5\) is greater than maximum|Unsatisfiable",
    ),
    "bad pattern": (
        lambda: AnswerFormat.json_schema({"type": "string", "pattern": "x("}),
        r"unclosed group in the pattern 'x\('|unclosed group at character 1",
    ),
    "remote": (lambda: AnswerFormat.json_schema({"$ref": "https://example.org/s"}), "does not fetch"),
    "grammar options": (lambda: AnswerFormat.json_schema({"x-guidance": {"lenient": True}}), "x-guidance"),
    "deep dictionary": (lambda: AnswerFormat.json_schema(nested(10_000)), "nested too deep"),
    "deep text": (
        lambda: AnswerFormat.json_schema('{"items":' * 3000 + "{}" + "}" * 3000),
        "nested too deep|too complex|characters",
    ),
    "120 levels too deep": (lambda: AnswerFormat.json_schema(nested(200)), "too complex"),
    "1 MB schema": (lambda: AnswerFormat.json_schema({"title": "a" * (1 << 20)}), "the limit is 16,384"),
    "remainders": (
        lambda: AnswerFormat.json_schema({"type": "integer", "multipleOf": 999_983}),
        "multipleOf",
    ),
    "patterns together": (
        lambda: AnswerFormat.json_schema({"allOf": [{"type": "string", "pattern": p} for p in PATTERNS]}),
        "20 patterns in a schema, the limit is 12",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_once(case: str) -> None:
    make, message = REFUSED[case]
    started = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert time.process_time() - started < 2
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


HARD: dict[str, Callable[[], AnswerFormat]] = {
    "million": lambda: AnswerFormat.regex("(a{1000}){1000}"),
    "billion": lambda: AnswerFormat.regex("((a{1000}){1000}){1000}"),
    "long repetition": lambda: AnswerFormat.regex("a{100000000}"),
    "blow-up": lambda: AnswerFormat.regex("(.*a.{30}){3}"),
    "stars": lambda: AnswerFormat.regex("(a*)*" * 800),
    "letters": lambda: AnswerFormat.regex(r"(\pL+\d*)" * 400),
    "caseless": lambda: AnswerFormat.regex("(?i)" + "[\x01-\U0010ffff]" * 19),
    "2,000 choices": lambda: AnswerFormat.choices(*(f"{n * 7919:08}" for n in range(2000))),
    "remainders": lambda: AnswerFormat.json_schema({"type": "integer", "multipleOf": 9973}),
    "properties": lambda: AnswerFormat.json_schema({"properties": {str(n): {} for n in range(1700)}}),
    "pattern": lambda: AnswerFormat.json_schema({"type": "string", "pattern": "(.*a.{30}){3}"}),
    "patterns": lambda: AnswerFormat.json_schema({"allOf": [{"pattern": p} for p in PATTERNS[:12]]}),
    "itself": lambda: AnswerFormat.json_schema({"$ref": "#"}),
    "long array": lambda: AnswerFormat.json_schema({"type": "array", "minItems": 10**9}),
    "references": lambda: AnswerFormat.json_schema(
        {
            "$defs": {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(30)}
            | {"a30": {"type": "integer"}},
            "$ref": "#/$defs/a0",
        }
    ),
}


@pytest.mark.parametrize("case", HARD)
def test_hard_formats_work_or_are_refused(case: str) -> None:
    """Each stage below two seconds of CPU: construction, the first mask, each token; never another error."""
    compiler = parts("smollm")[3]
    compiler.compile(AnswerFormat.choices("A"))
    refusal = ""
    generator = np.random.default_rng(0)
    slowest, started = 0.0, time.process_time()

    def lap() -> None:
        nonlocal slowest, started
        slowest = max(slowest, time.process_time() - started)
        started = time.process_time()

    try:
        answer_format = HARD[case]()
        lap()
        constraint = compiler.compile(answer_format)
        lap()
        for _ in range(40):
            if constraint.is_finished:
                break
            constraint.accept(
                int(constraint.mask(generator.normal(size=VOCABULARY).astype(np.float32)).argmax())
            )
            lap()
    except InputError as error:
        refusal = str(error)
    lap()
    assert slowest < 2
    assert len(refusal) < 400
    assert "\n" not in refusal


def test_formats_are_values() -> None:
    assert AnswerFormat.choices("A", "B") == AnswerFormat.choices("A", "B")
    assert AnswerFormat.json_schema({"type": "null"}) == AnswerFormat.json_schema(' {"type" : "null"}\n')
    assert hash(AnswerFormat.regex("a")) != hash(AnswerFormat.choices("a"))


def test_without_llguidance() -> None:
    """Formats can be described, and compiling says what to install."""
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from edge_distill_runtime import MissingExtra\n"
        "from edge_distill_runtime.generation.constraint import AnswerFormat, ConstraintCompiler\n"
        "compiler = ConstraintCompiler(lambda t: b'a', lambda t: [], vocab_size=4, stop_ids=[0])\n"
        "try: compiler.compile(AnswerFormat.json_schema({'type': 'null'}))\n"
        "except MissingExtra as error: print(error.hint)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'pip install "edge-distill-runtime[constrain]"'


def test_the_vocabulary_is_read_once_and_late() -> None:
    calls: list[int] = []

    def bytes_of(token: int) -> bytes:
        calls.append(token)
        return bytes([97 + token])

    compiler = ConstraintCompiler(bytes_of, lambda text: [], vocab_size=4, stop_ids=[3])
    assert calls == []
    for _ in range(2):
        compiler.compile(AnswerFormat.choices("ab"))
    assert calls == [0, 1, 2]
