"""Hostile bytes from the process of an isolated engine."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_distill_runtime import (
    BackendCrashed,
    BackendError,
    InputError,
    ParityError,
    ResourceError,
)
from edge_distill_runtime.engines.framing import (
    DONE,
    ERROR,
    Channel,
    FramingError,
    Message,
    decode_error,
    encode_error,
)
from edge_distill_runtime.engines.isolated import IsolatedBackend
from tests.runtime.isolation import LAYOUTS, is_gone, liar


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def frame(kind: int, text: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<III", kind, len(text), len(payload)) + text + payload


def test_literal_bytes(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    channel.send(Message(3, {"slot": 7}, b"\x01\x02"))
    expected = b"\x03\0\0\0" + b"\x0b\0\0\0" + b"\x02\0\0\0" + b'{"slot": 7}' + b"\x01\x02"
    assert other.recv(100) == expected
    other.sendall(expected + b"\x04\0\0\0\0\0\0\0\0\0\0\0")
    assert channel.receive(2) == Message(3, {"slot": 7}, b"\x01\x02")
    assert channel.receive(0) == Message(4)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<III", 0, 0, 101),
        struct.pack("<III", 0, 0, 0xFFFFFFFF),
        struct.pack("<III", 0, 0xFFFFFFFF, 0),
        struct.pack("<III", 0, (1 << 14) + 1, 0),
        frame(0, b"{"),
        frame(0, b"[1]"),
        frame(0, b"7"),
        frame(0, b"\xff\xfe"),
        frame(0, b"[" * (1 << 14)),
        frame(0, b"9" * (1 << 14)),
    ],
)
def test_what_is_no_message(ends: tuple[Channel, socket.socket], data: bytes) -> None:
    ends[1].sendall(data)
    with pytest.raises(FramingError):
        ends[0].receive(100, timeout=5)


@pytest.mark.parametrize("size", [0, 1, 11, 12, 20])
def test_end_in_the_middle(ends: tuple[Channel, socket.socket], size: int) -> None:
    ends[1].sendall(frame(0, b'{"a": 1}', b"x" * 9)[:size])
    ends[1].close()
    with pytest.raises(EOFError):
        ends[0].receive(100, timeout=5)


def test_one_byte_at_a_time(ends: tuple[Channel, socket.socket]) -> None:
    data = frame(1, b'{"a": 1}', b"xyz")

    def dribble() -> None:
        for index in range(len(data)):
            ends[1].sendall(data[index : index + 1])
            time.sleep(0.01)

    thread = threading.Thread(target=dribble)
    thread.start()
    start = time.monotonic()
    # the time limit is for the message, not for each byte; what has come is kept
    with pytest.raises(TimeoutError):
        ends[0].receive(3, timeout=0.1)
    assert time.monotonic() - start < 0.2
    assert ends[0].receive(3, timeout=5) == Message(1, {"a": 1}, b"xyz")
    thread.join()


@pytest.mark.parametrize("value", [True, "3", 3.0, None, [3], 0, 6, -1, 1 << 70, float("nan")])
def test_integers_are_checked(value: object) -> None:
    with pytest.raises(FramingError):
        Message(0, {"rows": value}).integer("rows", 1, 5)
    assert Message(0, {"rows": 5}).integer("rows", 1, 5) == 5


def test_typed_errors_cross_over() -> None:
    message = encode_error(InputError("bad-token", "token 9", "check"))
    error = decode_error(message)
    assert type(error) is InputError
    assert error.args == ("bad-token", "token 9", "check")
    assert type(decode_error(encode_error(BackendCrashed("a", "b", "c")))) is BackendError
    assert type(decode_error(encode_error(ParityError("a", "b", "c")))) is BackendError
    error = decode_error(encode_error(ResourceError("memory", "red \x1b[31m\n" + "x" * 5000)))
    assert error.what == "red ?[31m?" + "x" * 990


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"error": "SystemExit", "code": "", "what": "", "hint": ""},
        {"error": ["InputError"], "code": "", "what": "", "hint": ""},
        {"error": "InputError", "code": "", "what": 3, "hint": ""},
        {"error": "InputError", "code": "", "what": "x" * 1001, "hint": ""},
    ],
)
def test_errors_that_are_none(fields: dict[str, object]) -> None:
    with pytest.raises(FramingError):
        decode_error(Message(ERROR, fields))


def open_liar(monkeypatch: pytest.MonkeyPatch, code: str) -> IsolatedBackend:
    monkeypatch.setattr("edge_distill_runtime.engines.isolated.start_process", liar(code))
    return IsolatedBackend(
        Path("model"), format="gguf", context=64, threads=1, kv=LAYOUTS["gguf"], call_timeout=5
    )


@pytest.mark.parametrize(
    "code",
    [
        "opened(vocab_size=0)",
        "opened(vocab_size=1 << 40)",
        "opened(vocab_size='8')",
        "opened(max_sequences=65)",
        "opened(context_length=65)",
        "opened(cache_tokens=None)",
        "raw(0, 0, 1, tail=b'x')",
        "raw(7, 0, 0)",
        "raw(1, 2, 0, tail=b'{}')",
    ],
)
def test_lies_while_opening(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    with pytest.raises(BackendCrashed) as caught:
        open_liar(monkeypatch, code)
    assert caught.value.code == "bad-answer"


def test_exit_while_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendCrashed, match="exit status 3"):
        open_liar(monkeypatch, "sys.exit(3)")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raw(DONE, 0, 0); channel.connection.close(); sys.exit(4)", "exit status 4"),
        ("memory[:4] = struct.pack('<f', float('nan')); raw(DONE, 0, 0)", "not finite"),
        ("raw(DONE, 0, 40, tail=bytes(40))", "too large"),
        ("raw(9, 0, 0)", "unknown kind 9"),
        ("raw(DONE, 0, 0); asked(); channel.send(Message(DONE, {'rows': 3}))", "rows is 3, not 1 to 2"),
        ("raw(DONE, 0, 0); asked(); channel.send(Message(DONE, {'rows': 0}))", "rows is 0, not 1 to 2"),
    ],
)
def test_lies_about_logits(monkeypatch: pytest.MonkeyPatch, code: str, expected: str) -> None:
    backend = open_liar(monkeypatch, f"memory = mmap.mmap(opened(), 128)\nasked()\n{code}")
    with pytest.raises(BackendCrashed, match=expected):
        if "asked" in code:
            list(backend.teacher_force([1, 2]))
        else:
            backend.prefill([1, 2])
            backend.prefill([1, 2])
    assert is_gone(backend._process.pid)


def test_shared_memory_cannot_be_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a page that is no longer there would end the app with SIGBUS."""
    code = """
descriptor = opened()
memory = mmap.mmap(descriptor, 128)
asked()
for size in (0, 4096):
    try: os.ftruncate(descriptor, size)
    except PermissionError: memory[:4] = struct.pack("<f", struct.unpack("<f", memory[:4])[0] + 1)
raw(DONE, 0, 0)
"""
    backend = open_liar(monkeypatch, code)
    assert backend.prefill([1, 2]).logits[0] == 2.0  # both attempts failed
    np.testing.assert_array_equal(backend._shared.shape, (4, 8))
    backend.close()


def test_a_state_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 tokens of 512 + 64 bytes, and 65,536 bytes of headers
    code = "opened(); asked(); raw(DONE, 0, 0); asked(); raw(DONE, 0, {size}, tail=bytes({size}))"
    backend = open_liar(monkeypatch, code.format(size=1152 + 65536))
    assert len(backend.save(backend.prefill([1, 2]))) == 66688
    backend.close()
    backend = open_liar(monkeypatch, code.format(size=1152 + 65537))
    with pytest.raises(BackendCrashed, match="too large"):
        backend.save(backend.prefill([1, 2]))
    with pytest.raises(BackendCrashed):
        backend.restore(b"", 1)
    backend.close()


def test_states_that_are_too_large_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_liar(monkeypatch, "opened()")
    with pytest.raises(InputError, match="66689 bytes"):
        backend.restore(bytes(66689), 2)
    with pytest.raises(InputError):
        backend.restore(b"", 0)
    backend.close()


def test_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(BackendError, match="Python interpreter") as caught:
        IsolatedBackend("model", format="gguf", context=64, threads=1, kv=LAYOUTS["gguf"])
    assert caught.value.code == "no-process"
    assert DONE == 0
