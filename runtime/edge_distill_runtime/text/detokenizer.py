"""Token ids to text: bytes of every token, decoded incrementally, so that no character is split or lost."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edge_distill_runtime.bundles.files import read_bounded
from edge_distill_runtime.errors import BundleError, InputError

__all__ = ["Detokenizer", "TextStream", "encode", "load_tokenizer"]

_MAX_TOKENIZER = 1 << 26
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: Latin-1's visible characters, the others from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    alphabet = {chr(byte): byte for byte in visible}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


def load_tokenizer(path: Path, keep: Iterable[str] = ()) -> tuple[Any, Detokenizer]:
    """The `tokenizers.Tokenizer` in a tokenizer.json, and the way back from its ids to text.

    Special tokens have no text, but for those in `keep` (reasoning markers).
    """
    from tokenizers import Tokenizer

    data = read_bounded(path, _MAX_TOKENIZER)
    try:
        text = data.decode("utf-8")
        description = json.loads(text)
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer, Detokenizer(tokenizer, description, keep)
    except BundleError:
        raise
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as exc:  # a panic in the Rust library is no Exception
        raise BundleError(
            "bad-tokenizer", f"{path} is no tokenizer: {exc}", "export the bundle again"
        ) from exc


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which special tokens are already written out."""
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except (UnicodeError, TypeError) as exc:
        at = next((at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff"), -1)
        raise InputError(
            "bad-text",
            f"the text holds lone surrogates, which are no characters, the first at position {at}",
            "clean it",
        ) from exc
    return ids


class Detokenizer:
    """Bytes and text of token ids, for byte-level BPE and for SentencePiece vocabularies with byte tokens."""

    def __init__(self, tokenizer: Any, description: dict[str, Any], keep: Iterable[str] = ()) -> None:
        decoders = _decoders(description.get("decoder"))
        kinds = {decoder.get("type") for decoder in decoders}
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and not kinds & {"Metaspace", "ByteFallback"}:
            found = ", ".join(sorted(map(str, kinds))) or "none"
            raise BundleError(
                "unknown-decoder",
                f"the tokenizer's decoder is {found}, known are ByteLevel, Metaspace and ByteFallback",
                "this tokenizer cannot be used",
            )
        self._strips_space = any(
            (decoder.get("type") == "Strip" and decoder.get("start") == 1)
            or (decoder.get("type") == "Metaspace" and decoder.get("prepend_scheme", "always") != "never")
            for decoder in decoders
        )
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        kept = set(keep)
        for token, added in tokenizer.get_added_tokens_decoder().items():
            visible = not added.special or added.content in kept
            # in SentencePiece vocabularies runs of spaces may be added tokens
            content = added.content if self._byte_level else added.content.replace("\u2581", " ")
            self._known[token] = content.encode("utf-8") if visible else b""

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none for special tokens and ids outside the vocabulary."""
        known = self._known.get(token)
        if known is None:
            text = self._tokenizer.id_to_token(token)
            known = b"" if text is None else self._bytes(text)
            self._known[token] = known
        return known

    def _bytes(self, text: str) -> bytes:
        if self._byte_level:
            try:
                return bytes([_ALPHABET[character] for character in text])
            except KeyError:  # not written in the alphabet: stands for itself
                return text.encode("utf-8")
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace("\u2581", " ").encode("utf-8")

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; invalid UTF-8 becomes U+FFFD."""
        stream = self.stream()
        return "".join([*(stream.feed(token) for token in tokens), stream.finish()])

    def stream(self) -> TextStream:
        """A decoder for tokens that come one at a time."""
        return TextStream(self, self._strips_space)


class TextStream:
    """Text of a growing list of tokens: complete characters only, each one once."""

    def __init__(self, detokenizer: Detokenizer, strips_space: bool) -> None:
        self._bytes_of = detokenizer.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips_space = strips_space

    def feed(self, token: int) -> str:
        """The characters that `token` completes."""
        data = self._bytes_of(token)
        if self._strips_space and data:
            # SentencePiece puts a space before the first word
            self._strips_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", True)


def _decoders(decoder: Any) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json's decoder."""
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _decoders(inner)]
    return [decoder]
