"""One canonical key for every way to write the same answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from edge_distill_runtime.reasoning.latex import MAX_ANSWER, plain
from edge_distill_runtime.reasoning.quantities import read_quantity

__all__ = ["UNPARSED", "Answer", "AnswerKind", "normalize_answer", "same_answer"]

AnswerKind = Literal["number", "time", "choice", "boolean", "list", "set", "text", "unparsed"]

MAX_DEPTH = 4  # of lists in lists; deeper ones are text

_OPENING, _CLOSING = "([{", ")]}"
_TIME = re.compile(
    r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?\s*([ap])\.?m\b\.?|(\d{1,2}):([0-5]\d)(?::([0-5]\d))?", re.I
)
# Right behind "no." stands a number: No. 5 is no refusal.
_BOOLEAN = re.compile(r"(yes|no|true|false)(?:\s*[,;:!].*|\.(?!\s*\d).*)?", re.I | re.DOTALL)
# the choice's own text; with a second letter in it ("a) 5 b) 6") it is an answer in parts
_REST = r"(?:(?![\s,;]\(?[A-J]\)).)*"
_CHOICE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|letter|answer)\s*:?\s*)?(?:"
    # behind a bracketed letter an operator would make it algebra, "and" half of a list
    rf"([A-J])|\(([A-J])\)(?:[.:]{_REST}|[.:]?(?=\s)(?!\s[-+*/^=<>]\s|\sand\b|\sor\b){_REST})?"
    rf"|([A-J])(?:\)|[.:](?=\s)){_REST}|((?-i:[A-J]))\s\(.*)",
    re.I | re.DOTALL,
)
_NAMED_CHOICE = re.compile(
    rf"(?:the\s+)?(?:correct\s+)?(?:option|choice)\s+\(?([A-J])\b{_REST}", re.I | re.DOTALL
)
_LABEL = re.compile(
    r"(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|option|choice)\s*(?:\bis\b\s*:?|[:=])\s*(?=\S)", re.I
)
# the left side is one name, f(2) or Total cost, or arithmetic without names; 2x + 3 = 7 stays an equation
_EQUATION = re.compile(r"(?:[^\W\d][^=≈<>!+*/^,;-]*|[-\d\s.+*/()^]+)[=≈]\s*([^=≈<>!]+)")
_BRACKET_OR_COMMA = re.compile(r"[([{)\]},;]")
_SEPARATOR = re.compile(r"[([{)\]}]|\s*[,;]\s*(?:(?:and|or)\s)?|\s(?:and|or)\s", re.I)


@dataclass(frozen=True)
class Answer:
    """An answer; two are equal, and hash alike, when their keys are, however they were written."""

    kind: AnswerKind = field(compare=False)
    key: Hashable  # (kind, value): a Fraction, a letter, a bool, keys of items, or normalized text
    # as written, on one line, without LaTeX; equal displays have equal keys
    display: str = field(compare=False)
    unit: str = field(default="", compare=False)  # of a number: "rolls", "%", "$"; never compared


# Nothing could be extracted; same_answer calls it equal to nothing.
UNPARSED = Answer("unparsed", ("unparsed",), "")

_Read = tuple[AnswerKind, Hashable, str]


def normalize_answer(raw: str) -> Answer:
    r"""What a raw answer says (`extract_answer` finds it in a text), read by these rules; never raises.

    - number: exact Fractions; separators for thousands (`1,234`, `1 234`, `1_234`), decimals, `1.2e3`, `3/4`,
      `1 1/2`, `\frac{1}{2}`, `0.\overline{3}`, roots of squares. Units are not compared, so that `20` is `20 rolls`
      and votes can be counted; `12%` is 12 (see `quantities`). `1,5` is no number but the list 1, 5.
    - time: `3:30 pm` is `15:30`; without am or pm the clock has 24 hours.
    - choice: one letter A to J, any case, or such a letter before its text: `(B)`, `B) 12`, `option b`.
    - boolean: yes and true are the same, no and false too; what follows a comma or full stop is explanation.
    - list: `(1, 2)`, `1, 2` and `1 and 2` are the same; order counts. Two items in `[ ]` or mixed brackets are an
      interval, and its brackets count; around other lists brackets do not, and around one thing they are dropped.
    - set: in braces, order and repetition do not count.
    - `x = 5` and `12 + 8 = 20` are their right side.
    - text: all else, such as `2\pi`, `5 ft 3 in`, `2x + 3 = 7`; compared without case, a leading article, and white
      space around operators. Over 1,000 characters all is text.
    - unparsed: empty, or punctuation only.

    Quotes, Markdown and punctuation around the answer do not count; so a closing `!` is never a factorial.
    """
    raw = " ".join(raw.split())
    if len(raw) > MAX_ANSWER:
        raw = raw.encode("utf-8", "replace").decode()  # lone surrogates could not be printed
        return Answer("text", ("text", raw.casefold()), raw)
    display = plain(raw)
    if all(unicodedata.category(c)[0] in "PZC" for c in display) and display.replace(" ", "") != "{}":
        return UNPARSED
    kind, key, unit = _read(display, 0)
    return Answer(kind, key, display, unit)


def same_answer(a: str, b: str) -> bool:
    """Whether two raw answers, such as an extracted one and the gold one, say the same; unparsed ones never do."""
    first, second = normalize_answer(a), normalize_answer(b)
    return first.kind != "unparsed" and first == second


def _read(text: str, depth: int) -> _Read:
    text = _without_brackets(text)
    if quantity := read_quantity(text):
        return "number", ("number", quantity.value), quantity.unit
    if (match := _TIME.fullmatch(text)) and (seconds := _seconds(match)) is not None:
        return "time", ("time", seconds), ""
    if match := _BOOLEAN.fullmatch(text):
        return "boolean", ("boolean", match[1].lower() in ("yes", "true")), ""
    # labels first: x = 1,234 is one number
    if depth < MAX_DEPTH and (read := _read_labelled(text, depth) or _read_list(text, depth)):
        return read
    if match := _CHOICE.fullmatch(text) or _NAMED_CHOICE.fullmatch(text):
        return "choice", ("choice", "".join(filter(None, match.groups())).upper()), ""
    return "text", ("text", _text_key(text)), ""


def _seconds(match: re.Match[str]) -> int | None:
    """Seconds after midnight, None when the clock has no such hour."""
    hours, minutes, seconds = (int(match[group] or match[group + 4] or 0) for group in (1, 2, 3))
    if not match[4]:
        return hours * 3600 + minutes * 60 + seconds if hours < 24 else None
    if not 1 <= hours <= 12:
        return None
    return (hours % 12 + 12 * (match[4] in "pP")) * 3600 + minutes * 60 + seconds


def _read_labelled(text: str, depth: int) -> _Read | None:
    """`the answer is 5`, `x = 5`: what stands on the right, unless that is only text."""
    match = _LABEL.match(text)
    right = text[match.end() :] if match else None
    if right is None and (equation := _EQUATION.fullmatch(text)):
        right = equation[1]
    if right is None:
        return None
    read = _read(right.strip(), depth + 1)
    return read if match or read[0] != "text" else None


def _read_list(text: str, depth: int) -> _Read | None:
    if text.replace(" ", "") == "{}":
        return "set", ("set", frozenset()), ""
    enclosed = _encloses(text)
    items = _split(text[1:-1], _BRACKET_OR_COMMA) if enclosed else _split(text, _SEPARATOR)
    if items is None or len(items) < 2 or not all(items):
        return None
    read = [_read(item, depth + 1) for item in items]
    # without brackets commas are punctuation as well: only numbers, letters and the like make a list
    if not enclosed and any(kind in ("text", "boolean") for kind, _, _ in read):
        return None
    keys = tuple(key for _, key, _ in read)
    if enclosed and text[0] == "{":
        return "set", ("set", frozenset(keys)), ""
    brackets = text[0] + text[-1] if enclosed and len(keys) == 2 else "()"
    return "list", ("list", brackets, keys), ""


def _without_brackets(text: str) -> str:
    """Without the brackets around one single thing."""
    while (
        _encloses(text)
        and (items := _split(text[1:-1], _BRACKET_OR_COMMA)) is not None
        and len(items) == 1
        and items[0]
    ):
        text = items[0]
    return text


def _encloses(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    if len(text) < 2 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return False
    depth = 0
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return index == len(text) - 1
    return False


def _split(text: str, separators: re.Pattern[str]) -> list[str] | None:
    """The items between separators; brackets hold together, None when they do not match."""
    items, start, depth = [], 0, 0
    for match in separators.finditer(text):
        depth += (match[0] in _OPENING) - (match[0] in _CLOSING)
        if depth < 0:
            return None
        if depth == 0 and match[0] not in _CLOSING:
            items.append(text[start : match.start()].strip())
            start = match.end()
    return [*items, text[start:].strip()] if depth == 0 else None


def _text_key(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.casefold())
    text = re.sub(r"^(?:the|an?)\s+(?=\w\w)", "", text)
    text = re.sub(r"\s*([-+*/^=<>!≈∈∪∩(){}\[\],;:|])\s*", r"\1", text)
    # 2 pi, 2*pi and 2pi
    return re.sub(r"(?<=\d)[\s*]+(?=[a-z(])", "", text)
