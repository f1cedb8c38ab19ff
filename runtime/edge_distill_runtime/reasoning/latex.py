"""From LaTeX, Markdown and Unicode to one plain spelling of an answer."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["MAX_ANSWER", "plain"]

# Characters of an answer that are read; more is prose. It also bounds what is quadratic here and in Unicode's NFKC.
MAX_ANSWER = 1000

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_CHARACTERS = str.maketrans(
    # every dash that is typed for a minus, the fraction slash of ½, signs that have a LaTeX or ASCII twin
    dict.fromkeys("‐‑‒–—−", "-")
    | {"⁄": "/", "÷": "/", "×": "*", "·": "*", "⋅": "*", "∙": "*", "≤": "<=", "≥": ">=", "≠": "!=", "∼": "≈"}
    | {"π": "pi", "∞": "infinity", "∅": "{}", "“": '"', "”": '"', "‘": "'", "’": "'"}
)
# Braces and dollars that were escaped are signs, the bare ones are markup: keep them apart under private characters.
_ESCAPED = {r"\{": "\ue000", r"\}": "\ue001", r"\$": "\ue002", r"\%": "%", r"\#": "#", r"\&": "&", r"\_": "_"}
_SIGNS = str.maketrans({"\ue000": "{", "\ue001": "}", "\ue002": "$"})
_SYMBOLS = {
    **dict.fromkeys(["times", "cdot", "ast"], "*"),
    **dict.fromkeys(["le", "leq", "leqslant"], "<="),
    **dict.fromkeys(["ge", "geq", "geqslant"], ">="),
    **dict.fromkeys(["ne", "neq"], "!="),
    **dict.fromkeys(["approx", "sim", "simeq"], "≈"),
    **dict.fromkeys(["degree", "degrees", "circ"], "°"),
    **dict.fromkeys(["emptyset", "varnothing"], "\ue000\ue001"),
    **dict.fromkeys(["lbrace"], "\ue000"),
    **dict.fromkeys(["rbrace"], "\ue001"),
    **dict.fromkeys(["infty"], "infinity"),
    **dict.fromkeys(["div"], "/"),
    **dict.fromkeys(["pm"], "±"),
    **dict.fromkeys(["cup"], "∪"),
    **dict.fromkeys(["cap"], "∩"),
    **dict.fromkeys(["in"], "∈"),
    **dict.fromkeys(["left", "right", "big", "Big", "bigl", "bigr", "displaystyle", "textstyle"], ""),
}
# their argument is the answer itself, written in another font
_FONTS = re.compile(
    "text(bf|it|rm|tt|sf|normal)?|math(rm|bf|it|sf|tt|bb|cal)|[mhf]box|boxed|boldsymbol|bm|operatorname|emph|underline"
)
_ARGUMENT = r"\s*(?:\{([^{}]*)\}|(\d))"
_FRACTION = re.compile(r"(\d?)\s*\\[dtc]?frac" + _ARGUMENT + _ARGUMENT)
_ROOT = re.compile(r"\\sqrt\s*(?:\[([^\[\]{}]*)\])?" + _ARGUMENT)
_POWER = re.compile(r"\^\s*\{([^{}]*)\}")
_INDEX = re.compile(r"_\{([^{}]*)\}")
_MACRO = re.compile(r"\\(?![dtc]?frac|sqrt)([A-Za-z]+)\*?\s*\{([^{}]*)\}")
_SYMBOL = re.compile(r"\\([A-Za-z]+)")
_SPACING = re.compile(r"\\[,;:> ]|\\\\|(?<!\\)~|\\[()\[\]]|\$\$")
_ATOM = re.compile(r"[A-Za-z]|[\d.,]+")
# what surrounds an answer and says nothing; a leading "." belongs to ".5"
_BEFORE = " \t*_`\"'“”‘’:,;!?"
_AFTER = " \t*_`\"'“”‘’:,;!?."


def plain(raw: str) -> str:
    r"""One line without LaTeX: `\dfrac{1}{2}` is `1/2`, `3\frac12` is `3 1/2`, `1{,}234` is `1234`, `x²` is `x^2`.

    Decimal digits of any script become ASCII, a minus of any kind `-`, white space one space; punctuation, quotes
    and Markdown around the answer go. `$` stays where it is a currency: escaped, or alone before a digit.
    """
    text = _plain_characters(raw[:MAX_ANSWER])
    text = _plain_macros(text)
    text = _plain_dollars(text).translate(_SIGNS)
    text = re.sub(r"\s*\^\s*", "^", " ".join(text.split()))
    return text.lstrip(_BEFORE).rstrip(_AFTER)


def _plain_characters(text: str) -> str:
    # before NFKC, which would read 1½ as 11/2 and 10² as 102
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞↉])", " ", text).replace("º", "°")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    # cut again: one character becomes up to 18
    text = unicodedata.normalize("NFKC", text)[:MAX_ANSWER].translate(_CHARACTERS)
    return "".join(_plain_character(character) for character in text)


def _plain_character(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character.isprintable():
        return character
    # joiners and direction marks vanish; controls, private characters and lone surrogates are blanks
    return "" if unicodedata.category(character) == "Cf" else " "


def _plain_macros(text: str) -> str:
    text = text.replace("{,}", "").replace(r",\!", "").replace(r"\!", "")  # LaTeX's thousands separators
    text = re.sub(r"\\[{}$%#&_]", lambda match: _ESCAPED[match[0]], text)
    text = re.sub(r"√\s*(\d+)", r"sqrt(\1)", _SPACING.sub(" ", text)).replace("√", "sqrt")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    for _ in range(10):  # the innermost braces first; nothing sane nests deeper
        before = text
        text = _FRACTION.sub(_fraction, text)
        text = _ROOT.sub(
            lambda match: f"{'root' + match[1] if match[1] else 'sqrt'}({match[2] or match[3]})", text
        )
        text = _POWER.sub(lambda match: "^" + _atom(match[1]), text)
        text = _INDEX.sub(r"_\1", text)
        text = _MACRO.sub(_macro, text)
        if text == before:
            break
    text = _SYMBOL.sub(lambda match: _SYMBOLS.get(match[1], f" {match[1]} "), text)
    return text.replace("\\", "")


def _fraction(match: re.Match[str]) -> str:
    above, below = _atom(match[2] or match[3] or ""), _atom(match[4] or match[5] or "")
    # a digit before it makes a mixed number
    return f"{match[1]} {above}/{below}" if match[1] else f"{above}/{below}"


def _macro(match: re.Match[str]) -> str:
    name, argument = match.groups()
    if _FONTS.fullmatch(name):
        return f" {argument} "
    return f"({argument})" if name in ("overline", "bar") else f" {name}({argument})"


def _atom(text: str) -> str:
    """The text in parentheses, unless it is a number or one letter."""
    text = text.strip()
    return text if _ATOM.fullmatch(text) else f"({text})"


def _plain_dollars(text: str) -> str:
    """Dollars in pairs delimit mathematics, one alone before a digit is money."""
    if text.count("$") == 1:
        return re.sub(r"\$(?!\s*[-+]?\.?\d)", "", text)
    return text.replace("$", "")
