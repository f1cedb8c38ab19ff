"""Finding the final answer in what a model wrote."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edge_distill_runtime.reasoning.answer_forms import (
    UNPARSED,
    Answer,
    AnswerKind,
    normalize_answer,
    same_answer,
)
from edge_distill_runtime.reasoning.latex import MAX_ANSWER
from edge_distill_runtime.reasoning.quantities import NUMBER_IN_TEXT

__all__ = [
    "UNPARSED",
    "Answer",
    "AnswerKind",
    "Extracted",
    "extract_answer",
    "normalize_answer",
    "parse_answer",
    "same_answer",
]

AnswerSource = Literal["boxed", "hashes", "phrase", "last-line", "last-number"]

# Only the end of a text is searched: the answer stands there, and hostile text costs no time.
MAX_TEXT = 20_000
MAX_HEADINGS = 20  # that are tried as numbers

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S[^\n]*)", re.MULTILINE)
# "the answer to this is: **X", "Answer:\n X", "Answer - X", and a heading "## Answer" over X
_PHRASE = re.compile(
    r"""(?:
        \banswers?\b
        (?:\s{1,5}(?:to|for|of)\b[^.:!?\n]{0,100}?)??
        [*_\s]{0,20}(?:\s(?:is|are|was|be|equals)\b(?!\s(?:in)?correct\b|\swrong\b)|[:：=]|[-–—](?=\s))
      | ^[ \t*_#]*(?:the[ ])?(?:final[ ])?answers?[ \t*_]*$
    )
    (?:\s(?:therefore|thus|hence|then|simply|indeed|clearly)\b,?)?
    (?:\s|[*_`:：]|(?:\\\[|\\\(|\$\$?)(?=[ \t]*\n)|\\(?:boxed|fbox)\s*\{)*""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
# A sentence ends at .!? before white space or a closing mark, not at a decimal point nor after an abbreviation;
# a reason may follow the answer in the same sentence.
_PHRASE_END = re.compile(
    r"""\n | (?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bapprox)(?<!\bsq)(?<!\bNo)
    [.!?](?=\s|$|[*_"'”’$]|\\[\])]|(?<=\d\.)[A-Z])
    | ,?\s(?:because|since)\b | ,\s(?:so|which|as|but|where|for|not|i\.e)\b""",
    re.VERBOSE,
)
_BULLET = re.compile(r"^\s*(?:[-*•>]\s+|\#{1,6}\s+)?")


@dataclass(frozen=True)
class Extracted:
    """A raw answer and where it stood."""

    raw: str
    source: AnswerSource


def extract_answer(text: str) -> Extracted | None:
    r"""The final answer in the text of an answer (without its reasoning), or None; never raises.

    In this order of trust, the last of its kind:
    - boxed: a complete `\boxed{...}` or `\fbox{...}` that is not empty;
    - hashes: `#### 20`. Four hashes are a heading as well, so before the last line only a number counts;
    - phrase: `the answer is X`, `Answer: X`, `Answer - X`, to the end of its sentence or line;
    - last-line: the last line, when as a whole it is something else than text: `B) 12`, `(1, 2)`, `Yes.`, `20 rolls`;
    - last-number: the last number.

    Only the last 20,000 characters are searched.
    """
    text = text[-MAX_TEXT:]
    finders: tuple[tuple[AnswerSource, Iterator[str]], ...] = (
        ("boxed", _boxed(text)),
        ("hashes", _hashes(text)),
        ("phrase", _phrases(text)),
        ("last-line", _last_line(text)),
        ("last-number", _numbers(text)),
    )
    for source, found in finders:
        if raw := next(found, None):
            return Extracted(raw, source)
    return None


def parse_answer(text: str) -> Answer:
    """The final answer in a text, normalized; UNPARSED when there is none."""
    extracted = extract_answer(text)
    return normalize_answer(extracted.raw) if extracted else UNPARSED


def _boxed(text: str) -> Iterator[str]:
    """The contents of complete boxes, the last one first; of nested boxes the outer one first."""
    if "box" not in text:
        return
    open_braces: list[int | None] = []  # where the content of a box starts, None for other braces
    boxes: list[str] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "}":
            start = open_braces.pop() if open_braces else None
            # a long box is no answer, and copying nested long ones would take quadratic time
            if start is not None and match.start() - start <= MAX_ANSWER:
                boxes.append(text[start : match.start()].strip())
        elif token == "{":
            open_braces.append(None)
        elif token.endswith("{") and len(token) > 2:
            open_braces.append(match.end())
    yield from filter(None, reversed(boxes))


def _hashes(text: str) -> Iterator[str]:
    end = len(text.rstrip())
    for match in reversed(deque(_HASHES.finditer(text), maxlen=MAX_HEADINGS)):
        raw = match[1].strip()
        if match.end() >= end or (len(raw) <= MAX_ANSWER and normalize_answer(raw).kind == "number"):
            yield raw


def _phrases(text: str) -> Iterator[str]:
    for match in reversed(list(_PHRASE.finditer(text))):
        window = text[match.end() : match.end() + MAX_ANSWER]
        end = _PHRASE_END.search(window)
        raw = window[: end.start()] if end else window
        if any(map(str.isalnum, raw)):
            yield raw.strip(" \t\r*_`")


def _last_line(text: str) -> Iterator[str]:
    line = _BULLET.sub("", text.rstrip().rpartition("\n")[2]).strip()
    if len(line) <= MAX_ANSWER and normalize_answer(line).kind not in ("text", "unparsed"):
        yield line


def _numbers(text: str) -> Iterator[str]:
    for match in deque(NUMBER_IN_TEXT.finditer(text), maxlen=1):
        yield match[0]
