"""What an answer must look like, checked before a model is asked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from edge_distill_runtime.errors import InputError

__all__ = ["GRAMMAR_LIMITS", "AnswerFormat"]

# llguidance bounds its own work, but not everywhere. These limits keep the worst input that was found (a wide,
# case-insensitive character class; patterns that must all hold; remainders) below two seconds.
_MAX_CHARACTERS = 16_384  # of all choices, or of a schema
_MAX_PATTERN = 4096  # characters of a regular expression, or of all of those in a schema
_MAX_CASELESS_PATTERN = 100
_MAX_PATTERNS = 12  # in a schema: several at one place take time 2^n
_MAX_REMAINDER = 10_000  # states to count a multipleOf with
GRAMMAR_LIMITS = {"initial_lexer_fuel": 200_000, "step_lexer_fuel": 50_000, "verbose_errors": False}
# One way to write every value, as json.dumps does: small models know it best, and no run of spaces can fill the
# answer's tokens. `overrides` outrank what a schema asks for.
_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
_CASELESS = re.compile(r"\(\?[a-zA-Z]*[ix]")  # behind x, white space may hide an i
_TOO_COMPLEX = re.compile(r"too (many|big|large)|precomputation|Current row|TooComplex|recursion limit")


@dataclass(frozen=True)
class AnswerFormat:
    """What the answer must look like; made by `choices`, `regex` or `json_schema`.

    Refused with `InputError` at once: what is too large, no JSON, or (with llguidance installed) no valid grammar.
    """

    kind: Literal["choices", "regex", "json_schema"]
    texts: tuple[str, ...]
    """The choices; or the pattern; or the schema as JSON."""

    @classmethod
    def choices(cls, *choices: str) -> AnswerFormat:
        """The answer is one of these texts."""
        return cls("choices", choices)

    @classmethod
    def regex(cls, pattern: str) -> AnswerFormat:
        r"""The whole answer matches the pattern, as with `re.fullmatch`.

        The syntax is that of the Rust crate `regex`: `\p{L}` works; look-around, back-references and `\b` do not.
        """
        return cls("regex", (pattern,))

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> AnswerFormat:
        """The answer is JSON that is valid under the schema, on one line, spaced as `json.dumps` does.

        Properties come in the schema's order. Keywords that llguidance does not know are refused, not ignored.
        """
        return cls("json_schema", (_schema_text(schema),))

    def __post_init__(self) -> None:
        if not self.texts or not all(isinstance(text, str) and text for text in self.texts):
            raise _bad(
                f"the {self.kind} are {self.texts!r:.80}", "give at least one text, none of them empty"
            )
        if any("\ud800" <= character <= "\udfff" for text in self.texts for character in text):
            raise _bad("the answer format holds lone surrogates, which are no characters", "clean it")
        size = sum(map(len, self.texts))
        if size > _MAX_CHARACTERS:
            raise _too_large(f"{size:,} characters", f"{_MAX_CHARACTERS:,}")
        if self.kind == "regex":
            caseless = _CASELESS.search(self.texts[0])
            _check_patterns(self.texts, _MAX_CASELESS_PATTERN if caseless else _MAX_PATTERN)
        elif self.kind == "json_schema":
            _check_schema(json.loads(self.texts[0]))
        try:
            import llguidance
        except ImportError:  # then compiling says so
            return
        message = _guarded(
            lambda: llguidance.LLMatcher.validate_grammar(
                self.grammar(llguidance), limits=llguidance.LLParserLimits(**GRAMMAR_LIMITS)
            )
        )
        if message:
            raise self.refused(message)

    def grammar(self, llguidance: Any) -> str:
        """The grammar for llguidance, the module."""
        matcher = llguidance.LLMatcher
        grammar: str
        if self.kind == "json_schema":
            grammar = matcher.grammar_from_json_schema(self.texts[0], overrides=_JSON_OPTIONS)
        elif self.kind == "regex":
            grammar = matcher.grammar_from_regex(self.texts[0])
        else:
            grammar = matcher.grammar_from_regex("|".join(map(_escape, self.texts)))
        return grammar

    def refused(self, message: str) -> InputError:
        """llguidance's message as one of ours: the reason and the position, without its advice on its options."""
        if _TOO_COMPLEX.search(message):
            return _too_large("too complex", "what compiles within two seconds", _reason(message))
        if "NoExtension" in message:
            return _bad("no text that these tokens can write has the answer format", "give a wider one")
        what = f"the {self.kind} {self.texts[0]!r:.60} cannot be used: {_reason(message)}"
        # below the pattern stands a mark
        if mark := re.search(r"^    (.*)\n    ( *)\^", message, re.M):
            own = mark[1] in self.texts  # otherwise escaped, or inside a schema: then the place says nothing
            place = f"at character {len(mark[2])}" if own else f"in the pattern {mark[1]!r:.60}"
            return _bad(f"{what} {place}", "correct the pattern")
        return _bad(what, "correct it, or leave that part out; write anyOf for oneOf")


def _bad(what: str, hint: str) -> InputError:
    return InputError("bad-answer-format", what, hint)


def _too_large(value: str, limit: str, detail: str = "") -> InputError:
    what = f"the answer format is {value}, the limit is {limit}" + (f": {detail}" if detail else "")
    return InputError("answer-format-too-large", what, "make it simpler")


def _reason(message: str) -> str:
    """The reason in a message of llguidance: one line, without the dump of a grammar behind it."""
    if reason := re.search(r"^error: (.*)", message, re.M):
        return reason[1]
    first = re.sub(r"^at .*\(in regex\): ", "", message.splitlines()[0])
    return re.split(r"; |\. Enable|:? +\((?:And|Or|Not|Regex|SearchRegex)", first)[0][:200]


def _guarded(check: Callable[[], str]) -> str:
    """The message of a check in llguidance, also when it raises."""
    try:
        return check()
    except ValueError as exc:
        return str(exc) or "ValueError"
    except BaseException as exc:  # a panic in the Rust library is no Exception
        if type(exc).__name__ != "PanicException":
            raise
        return f"llguidance failed on it: {exc}"


def _escape(text: str) -> str:
    """A regular expression for this text alone; `re.escape` writes newlines that llguidance reads otherwise."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _schema_text(schema: Mapping[str, Any] | str) -> str:
    """A schema as compact JSON; it must be an object."""
    try:
        if isinstance(schema, str):
            if len(schema) > 2 * _MAX_CHARACTERS:  # before white space is dropped
                raise _too_large(f"{len(schema):,} characters", f"{_MAX_CHARACTERS:,}")
            schema = json.loads(schema)
        if not isinstance(schema, Mapping):
            raise _bad(f"the JSON schema is {type(schema).__name__}, not an object", "give a JSON object")
        return json.dumps(dict(schema), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError as exc:
        raise _too_large("nested too deep", "about 120 levels") from exc
    except (TypeError, ValueError) as exc:
        raise _bad(f"the JSON schema is no JSON: {exc}", "correct it") from exc


def _check_schema(schema: Any) -> None:
    """Refuse what llguidance would take too long for."""
    patterns: list[str] = []
    multiples: list[Fraction] = []
    nodes = [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node
        elif isinstance(node, dict):
            nodes += node.values()
            if "x-guidance" in node:
                raise _bad("the JSON schema holds x-guidance, options of the grammar engine", "leave it out")
            if isinstance(pattern := node.get("pattern"), str):
                patterns.append(pattern)
            if isinstance(by_name := node.get("patternProperties"), dict):
                patterns += by_name
            step = node.get("multipleOf")
            if isinstance(step, int | float) and not isinstance(step, bool) and step > 0:
                multiples.append(Fraction(str(step)))
    if any(map(_CASELESS.search, patterns)):
        # JSON Schema's dialect has no flags; here references could repeat what they cost
        raise _bad("a pattern in the JSON schema sets a flag", "write [aA] for (?i)a")
    _check_patterns(patterns, _MAX_PATTERN)
    # one automaton state for each remainder; those of 2 and 5 can be read off the last digits
    scale = math.lcm(*(step.denominator for step in multiples))
    states = [_without_2_and_5(int(step * scale)) for step in multiples]
    if max(sum(states), math.lcm(*states)) > _MAX_REMAINDER:
        raise _too_large("a schema of multipleOf with too many remainders", f"{_MAX_REMAINDER:,} together")


def _check_patterns(patterns: SequenceOf[str], limit: int) -> None:
    if (size := sum(map(len, patterns))) > limit:
        kind = "case-insensitive patterns" if limit < _MAX_PATTERN else "patterns"
        raise _too_large(f"{size:,} characters of {kind}", f"{limit:,}")
    if len(patterns) > _MAX_PATTERNS:
        raise _too_large(f"{len(patterns)} patterns in a schema", str(_MAX_PATTERNS))


def _without_2_and_5(number: int) -> int:
    for prime in (2, 5):
        while number % prime == 0:
            number //= prime
    return number
