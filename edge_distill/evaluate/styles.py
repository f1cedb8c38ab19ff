r"""Changed prompt styles: the same problem in other words, with the same answer.

A student that has learnt to reason solves a problem however it is worded; one that has learnt the look of its
training text does not. Every style is a pure function of the problem's text; where it could change the answer, or
would change nothing, it does not apply, and the item is left out of that style (and of what it is compared with).

- terse: only the task itself; instructions and lead-ins are gone
- verbose: a long-winded preface and ending
- reordered: what commutes stands in another order: terms of a sum, factors, the sides of an equation, items of a
  list, facts of a word problem that refer to nothing before them; where none do, its question stands before them
- numbers: small whole numbers as words, separators of thousands in large ones
- distractor: a sentence with numbers that have nothing to do with the problem
- instruction: the instructions, "step by step" among them, are replaced by another one
- lowercase: no capital letters
- polite: between a greeting and thanks

What a text may be rewritten to depends on its kind: for reasoning-gym's families that are not listed in `KINDS`,
whose answer may hang on a letter or a line, only the frames (verbose, instruction, polite) apply. Problems of a file
or a data set are taken for word problems.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Literal

from edge_distill.traces.steps import split_steps

__all__ = ["KINDS", "STYLES", "Kind", "kind_of"]

Kind = Literal["prose", "list", "expression", "equation", "other"]

KINDS: dict[str, Kind] = {
    "basic_arithmetic": "expression",
    "chain_sum": "expression",
    "decimal_chain_sum": "expression",
    "gcd": "list",
    "gsm_symbolic": "prose",
    "lcm": "list",
    "leg_counting": "list",
    "products": "expression",
    "simple_equations": "equation",
}

_INSTRUCTION = re.compile(
    r"(?:(?:Give|Do not|State|Ensure|Return|Answer|Reply|Respond|Provide|Show|Think|Explain|Your task is|Let's think)\b"
    r"|Please (?:give|answer|reply|respond|think|show|solve|reason)\b|.*\bstep[ -]by[ -]step\b)",
    re.IGNORECASE,
)
_EXPRESSION = re.compile(r"(?:^|[A-Za-z:]\s+)([-(\d][-+*/().\d\s]*?)\s*(?:=\s*\??|[.?])?\s*$")
_EQUATION = re.compile(r"^(.*: )([^=:]+?) = ([^=:]+?)\s*$", re.DOTALL)
_DIGIT = re.compile(r"\d")
_LETTER = re.compile(r"[A-Za-z]")
_ITEMS = re.compile(r"(these numbers: |if you have )(\w[^.?:]*?)(?=[.?]|\s*$)")
_SUM = re.compile(r"\d+(?:\.\d+)?(?: [-+] \d+(?:\.\d+)?)+")
_PRODUCT = re.compile(r"\d+(?: \* \d+)+")
_NUMBER = re.compile(r"(?<![\w$£€¥.,:/*^+=×°#(-])\d+(?! ?[%°]|[\w:/*^)-]|[.,]\d)")
_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
# What points to another sentence, or to an order of events.
_BOUND = re.compile(
    r"\b(?:he|she|it|they|him|his|her|hers|its|them|their|theirs|this|that|these|those|then|after|afterwards|before|"
    r"next|later|finally|first|second|last|also|too|another|others?|remaining|rest|left|both|each|every|all|same|now|"
    r"again|more|less|fewer|half|twice|total|still|instead|here|there|who|which|so|but|however|if|when|while)\b",
    re.IGNORECASE,
)
_NAMED = re.compile(r"[A-Z][a-z]+ (?:[a-z]|and [A-Z])")
_ARTICLES = (
    "A ",
    "An ",
    "The ",
    "In ",
    "On ",
    "At ",
    "For ",
    "To ",
    "Of ",
    "By ",
    "As ",
    "From ",
    "With ",
    "How ",
)
_DISTRACTORS = (
    ("bench", "The park behind the station has {0} benches and {1} lamps."),
    ("librar", "The library around the corner opened {0} years ago and has {1} windows."),
    ("bridge", "An old bridge nearby is {0} metres long and {1} metres wide."),
)


def kind_of(task: str, *, generated: bool) -> Kind:
    """What a problem of `task` is made of; `generated` says that the task is a family of reasoning-gym."""
    return KINDS.get(task, "other") if generated else "prose"


def _terse(text: str, kind: Kind) -> str | None:
    if kind == "prose":
        return _same_words(text, " ".join(_without_instructions(text)))
    if kind == "expression":
        expression = _expression_in(text)
        return f"{expression} = ?" if expression else None
    if kind == "equation":
        equation = _EQUATION.match(text)
        if not equation:
            return None
        sides = f"{equation[2]} = {equation[3]}"
        letter = _LETTER.search(sides)
        return f"{sides}, {letter[0]} = ?" if letter else None
    if kind == "list" and (items := _ITEMS.search(text)):
        short = {"GCD": "GCD of ", "LCM": "LCM of "}
        what = next((lead for name, lead in short.items() if name in text), "Legs of ")
        return f"{what}{items[2].strip()}?"
    return None


def _verbose(text: str, kind: Kind) -> str | None:
    return (
        "Below you will find a problem. Please read it attentively from its beginning to its end, since all that "
        f"is needed to solve it is written there.\n\n{text.strip()}\n\nTake the time that you need, consider what is "
        "given and what is asked for, and then let me know which result you have arrived at."
    )


def _reordered(text: str, kind: Kind) -> str | None:
    if kind == "equation":
        return _same_words(text, _EQUATION.sub(r"\1\3 = \2", text))
    if kind == "list":
        return _same_words(text, _ITEMS.sub(lambda found: found[1] + _reversed(found[2], ", "), text))
    if kind == "expression":
        return _reordered_expression(text)
    return (_reordered_facts(text) or _question_first(text)) if kind == "prose" else None


def _reordered_expression(text: str) -> str | None:
    """The terms of a sum whose first one is positive, or the factors of a product, the other way round."""
    whole = _expression_in(text)
    if _PRODUCT.fullmatch(whole):
        turned = _reversed(whole, " * ")
    elif _SUM.fullmatch(whole):
        terms = re.findall(r"([-+]) (\S+)", f"+ {whole}")
        first = max(i for i, (sign, _) in enumerate(terms) if sign == "+")
        order = [terms[first], *reversed(terms[:first] + terms[first + 1 :])]
        turned = order[0][1] + "".join(f" {sign} {number}" for sign, number in order[1:])
    else:
        return None
    return _same_words(text, text.replace(whole, turned, 1))


def _expression_in(text: str) -> str:
    """The expression that the text ends in, instructions left out; empty without one."""
    found = _EXPRESSION.search(" ".join(_without_instructions(text)))
    return found[1].strip() if found else ""


def _reordered_facts(text: str) -> str | None:
    """The longest run of neighbouring sentences that stand for themselves, the other way round."""
    sentences = split_steps(text)
    free = [_stands_alone(sentence) for sentence in sentences]
    best = (0, 0)
    start = 0
    for at in range(len(free) + 1):
        if at == len(free) or not free[at]:
            best = max(best, (at - start, -start))
            start = at + 1
    length, start = best[0], -best[1]
    if length < 2:
        return None
    sentences[start : start + length] = reversed(sentences[start : start + length])
    return _same_words(text, " ".join(sentences))


def _stands_alone(sentence: str) -> bool:
    """A fact about somebody who is named, with a number, which points nowhere."""
    return (
        sentence.endswith(".")
        and bool(_DIGIT.search(sentence))
        and bool(_NAMED.match(sentence))
        and not sentence.startswith(_ARTICLES)
        and not _BOUND.search(sentence)
    )


def _question_first(text: str) -> str | None:
    sentences = split_steps(text)
    questions = [sentence for sentence in sentences if sentence.endswith("?")]
    if len(questions) != 1 or sentences[0] == questions[0]:
        return None
    sentences.remove(questions[0])
    return " ".join([questions[0], *sentences])


def _numbers(text: str, kind: Kind) -> str | None:
    if kind == "other":
        return None

    def written(match: re.Match[str]) -> str:
        digits, value = match[0], int(match[0])
        if len(digits) > 1 and digits.startswith("0"):
            return digits
        if value < len(_WORDS):
            word = _WORDS[value]
            at_start = match.start() == 0 or text[: match.start()].rstrip(" ")[-1:] in ("", ".", "?", "\n")
            return word.capitalize() if at_start and kind == "prose" else word
        is_year = kind == "prose" and 1900 <= value < 2100
        # in a list the commas stand between the numbers
        return f"{value:,}" if value >= 1000 and not is_year and kind != "list" else digits

    return _same_words(text, _NUMBER.sub(written, text))


def _distractor(text: str, kind: Kind) -> str | None:
    if kind == "other":
        return None
    sentence = next((line for word, line in _DISTRACTORS if word not in text.lower()), None)
    if sentence is None:
        return None
    seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    fact = sentence.format(21 + seed % 60, 3 + seed // 60 % 17)
    if kind != "prose":
        return f"{fact} {text}"
    sentences = split_steps(text)
    question = next((i for i, line in enumerate(sentences) if line.endswith("?")), 0)
    return " ".join([*sentences[:question], fact, *sentences[question:]])


def _instruction(text: str, kind: Kind) -> str | None:
    kept = text.strip() if kind == "other" else " ".join(_without_instructions(text))
    return f"{kept}\nWrite down how you get to the result."


def _lowercase(text: str, kind: Kind) -> str | None:
    return None if kind == "other" else _same_words(text, text.lower())


def _polite(text: str, kind: Kind) -> str | None:
    return f"Hello! Would you please be so kind as to help me with this?\n\n{text.strip()}\n\nThank you very much!"


def _without_instructions(text: str) -> list[str]:
    """The sentences that tell or ask something: an instruction has no number in it."""
    return [line for line in split_steps(text) if _DIGIT.search(line) or not _INSTRUCTION.match(line)]


def _reversed(text: str, separator: str) -> str:
    return separator.join(reversed(text.split(separator)))


def _same_words(before: str, after: str) -> str | None:
    """None for a text that has not changed, or of which nothing is left."""
    return after if after.strip() and after.split() != before.split() else None


STYLES: dict[str, Callable[[str, Kind], str | None]] = {
    "terse": _terse,
    "verbose": _verbose,
    "reordered": _reordered,
    "numbers": _numbers,
    "distractor": _distractor,
    "instruction": _instruction,
    "lowercase": _lowercase,
    "polite": _polite,
}
"""From a problem's text and kind to the text in that style; None where the style does not apply."""
