"""Text of unknown origin on its way into HTML, SVG and Markdown: it is shown, and does nothing."""

from __future__ import annotations

import html
import re

__all__ = ["attribute", "escape", "markdown", "printable", "shortened"]

_KEPT = "\n\t"
# Controls, lone surrogates, non-characters, and the marks that turn the direction of the text around them.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$@:-])")


def printable(text: str) -> str:
    """The text with a visible sign for what cannot be seen, or must not be: ␛ for escape, � for the rest."""
    return _UNSEEN.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    character = match[0]
    if character in _KEPT:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "�"


def escape(text: object) -> str:
    """For the content of an element."""
    return html.escape(printable(str(text)), quote=False)


def attribute(text: object) -> str:
    """For the value of an attribute in double quotes."""
    return html.escape(printable(str(text)), quote=True).replace("\n", "&#10;").replace("\t", "&#9;")


def markdown(text: object) -> str:
    """For one line or cell of Markdown: no markup, no link, no HTML."""
    line = " ".join(printable(str(text)).split())
    return _MARKDOWN.sub(r"\\\1", line)


def shortened(text: str, limit: int) -> str:
    """At most about `limit` characters: the beginning, what was left out, and the end, where the answer is."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n… {len(text) - limit:,} characters left out …\n{text[-tail:]}"
