"""Messages between an app and the process that runs its engine: a header, JSON for a few values, raw bytes.

Neither side trusts the other's sizes. There is no pickle: who has taken over the engine's process can send
nothing but bytes and plain JSON values.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Final

from edge_distill_runtime.errors import (
    BackendError,
    BundleError,
    EdgeDistillError,
    InputError,
    MissingExtra,
    ResourceError,
)

__all__ = [
    "DONE",
    "ERROR",
    "OPERATIONS",
    "Channel",
    "FramingError",
    "Message",
    "decode_error",
    "encode_error",
]

OPERATIONS: Final = (
    "open", "prefill", "extend", "fork", "step", "verify", "rewind", "release", "save", "restore",
    "force", "next", "drop",
)  # fmt: skip
"""What the app asks for; a request's kind is the index. `force`, `next` and `drop` are teacher forcing."""
DONE, ERROR = 0, 1  # the kinds of an answer

_HEADER = struct.Struct("<III")  # kind, bytes of JSON, bytes of payload
_MOST_JSON = 1 << 14
_LONGEST_TEXT = 1000
_SHORT, _LONG = 1 << 12, 1 << 20  # bytes read at a time
_ERRORS = {
    kind.__name__: kind for kind in (BackendError, BundleError, InputError, MissingExtra, ResourceError)
}


class FramingError(Exception):
    """The other side sent what is no message, or more than it may."""


@dataclass(frozen=True)
class Message:
    """One request or answer."""

    kind: int
    fields: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    def integer(self, name: str, low: int, high: int) -> int:
        """The field `name`; `FramingError` unless it is an integer in [low, high]."""
        value = self.fields.get(name)
        if type(value) is not int or not low <= value <= high:
            raise FramingError(f"{name} is {str(value)[:40]}, not {low} to {high}")
        return value


class Channel:
    """One end of a socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._inbox = bytearray()

    def send(self, message: Message, timeout: float | None = None) -> None:
        text = json.dumps(message.fields).encode() if message.fields else b""
        header = _HEADER.pack(message.kind, len(text), len(message.payload))
        self.connection.settimeout(timeout)
        self.connection.sendall(b"".join((header, text, message.payload)))

    def receive(self, most_payload: int, timeout: float | None = None) -> Message:
        """The next message, its payload of at most `most_payload` bytes, within `timeout` seconds.

        Raises `FramingError`, `EOFError` when the other side is gone, or `TimeoutError`. After any other
        exception, such as KeyboardInterrupt, it may be called again for the same message.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._fill(_HEADER.size, deadline)
        kind, text_size, payload_size = _HEADER.unpack_from(self._inbox)
        if text_size > _MOST_JSON or payload_size > most_payload:
            raise FramingError(f"a message of {text_size} and {payload_size} bytes is too large")
        start = _HEADER.size + text_size
        end = start + payload_size
        self._fill(end, deadline)
        text, payload = bytes(self._inbox[_HEADER.size : start]), bytes(self._inbox[start:end])
        del self._inbox[:end]
        return Message(kind, _parse(text), payload)

    def _fill(self, size: int, deadline: float | None) -> None:
        """Read until the inbox holds `size` bytes or more."""
        while (missing := size - len(self._inbox)) > 0:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self.connection.settimeout(left)
            data = self.connection.recv(max(_SHORT, min(missing, _LONG)))
            if not data:
                raise EOFError
            self._inbox += data


def _parse(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text) if text else {}
    except (ValueError, RecursionError) as exc:
        raise FramingError("a message is no JSON") from exc
    if not isinstance(fields, dict):
        raise FramingError("a message is no JSON object")
    return fields


def encode_error(error: EdgeDistillError) -> Message:
    """A typed error as an answer; what is no allowed class becomes its nearest base that is."""
    name = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), "BackendError")
    texts = {"code": error.code, "what": error.what, "hint": error.hint}
    return Message(ERROR, {"error": name} | {key: text[:_LONGEST_TEXT] for key, text in texts.items()})


def decode_error(message: Message) -> EdgeDistillError:
    """The error in an answer, its texts without control characters; `FramingError` when it is none."""
    values = [message.fields.get(key) for key in ("error", "code", "what", "hint")]
    if not all(isinstance(value, str) and len(value) <= _LONGEST_TEXT for value in values):
        raise FramingError("an error lacks a text")
    name, code, what, hint = ("".join(c if c.isprintable() else "?" for c in str(value)) for value in values)
    if name not in _ERRORS:
        raise FramingError(f"an error of the unknown class {name[:40]!r}")
    return _ERRORS[name](code, what, hint)
