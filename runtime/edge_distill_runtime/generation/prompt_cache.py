"""Remembered prompts: the keys and values of a long beginning are computed once, and lie in memory or on disk.

A file is named by a keyed hash of model, engine and tokens, and its content is authenticated with the same key
(HMAC-SHA256; RFC 2104), which only this user can read: engines trust the states that they are given, and states
from elsewhere overrun libllama's buffers (CVE-2026-43629).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib.metadata
import json
import os
import re
import secrets
import stat
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Literal

import numpy as np

import edge_distill_runtime
from edge_distill_runtime.errors import ResourceError
from edge_distill_runtime.generation.private_files import (
    TEMPORARY,
    create_private,
    is_private_directory,
    make_private_directory,
    open_private,
    user_cache_directory,
    write_private,
)

__all__ = ["PromptCache", "default_directory"]

_MAGIC = b"EDPROMPT"
_FORMAT = 1
_HEADER = struct.Struct("<8sQ32s")  # magic, bytes of the state, its SHA-256; the tag follows
_TAG = 32
_NAME = re.compile(r"([0-9a-f]{16})-([1-9][0-9]{0,9})-([0-9a-f]{32})\.kv")
_KEY_NAME = "prompts.key"
_KEY_BYTES = 32
_STALE_SECONDS = 3600  # what is still unfinished then, nobody is writing
_PACKAGES = {"gguf": "llama-cpp-python", "onnx": "onnxruntime"}


def default_directory() -> Path:
    """Where the states lie by default."""
    return user_cache_directory() / "prompts"


class PromptCache:
    """The states of one model's prompts, by their tokens; the ones used longest ago go first. Thread-safe."""

    def __init__(
        self,
        model_hash: str,
        *,
        format: Literal["gguf", "onnx"],
        memory_bytes: int = 256 << 20,
        directory: Path | None = None,
        disk_bytes: int = 1 << 30,
        precision: str = "",
    ) -> None:
        """`model_hash` is the model file's SHA-256; without a directory nothing is written to disk.

        `precision` is that of the keys and values: states of another one are not found.
        """
        self._limit = memory_bytes
        self._held = 0
        self._states: OrderedDict[bytes, bytes] = OrderedDict()  # by token ids, the last used one last
        self._lock = threading.Lock()
        self._disk = (
            None if directory is None else _Disk(directory, model_hash, format, disk_bytes, precision)
        )

    def lookup(self, tokens: SequenceOf[int]) -> tuple[int, bytes] | None:
        """The longest beginning of `tokens` that is remembered, perhaps all of it: its length and state.

        A restored sequence has no logits: rewind it by one when nothing else follows.
        """
        ids = _bytes_of(tokens)
        with self._lock:
            # an entry's length in bytes; memory is asked first, a file only for a longer beginning
            found = max((len(key) for key in self._states if ids.startswith(key)), default=0)
            if self._disk is not None and found < len(ids):
                for length, state in self._disk.find(ids, found // 4 + 1):
                    self._keep(ids[: 4 * length], state)
                    return length, state
            if not found:
                return None
            self._states.move_to_end(ids[:found])
            return found // 4, self._states[ids[:found]]

    def store(self, tokens: SequenceOf[int], state: bytes, *, disk: bool) -> None:
        """Remember a state in memory, and on disk too.

        `ResourceError` when it is larger than the limit, or the disk is full or cannot be used; what could be
        done is done then.
        """
        ids = _bytes_of(tokens)
        with self._lock:
            kept = self._keep(ids, state)
            if disk:
                if self._disk is None:
                    raise ResourceError(
                        "no-cache-directory", "the prompt cache has no directory", "give it one"
                    )
                self._disk.store(ids, state)
        if not kept:
            raise ResourceError(
                "prompt-too-large",
                f"the state of {len(ids) // 4} tokens takes {len(state)} bytes, "
                f"the prompt cache holds {self._limit}",
                "give it more memory_bytes",
            )

    def _keep(self, ids: bytes, state: bytes) -> bool:
        if not ids or len(state) > self._limit:
            return False
        self._held += len(state) - len(self._states.pop(ids, b""))
        self._states[ids] = state
        while self._held > self._limit:
            _, oldest = self._states.popitem(last=False)
            self._held -= len(oldest)
        return True


class _Disk:
    """One model's states in a directory that all models share."""

    def __init__(self, directory: Path, model_hash: str, format: str, limit: int, precision: str) -> None:
        self._directory = directory
        self._model = model_hash
        self._format = format
        self._limit = limit
        self._precision = precision
        self._made: hmac.HMAC | None = None

    def find(self, ids: bytes, shortest: int) -> Iterator[tuple[int, bytes]]:
        """Sound states of beginnings of `ids` with at least `shortest` tokens, the longest first."""
        if not is_private_directory(self._directory):
            return
        try:
            names = os.listdir(self._directory)
            prefix = self._model_mac()
        except (OSError, ResourceError):
            return  # what cannot be read is not there; writing says why
        model = prefix.hexdigest()[:16]
        matches = [match for name in names if (match := _NAME.fullmatch(name)) and match[1] == model]
        lengths = {int(match[2]) for match in matches if shortest <= int(match[2]) <= len(ids) // 4}
        present = {match[0] for match in matches}
        for length, identity in reversed(list(_identities(prefix, ids, lengths))):
            name = _file_name(model, length, identity)
            if name in present and (state := self._read(self._directory / name, identity)) is not None:
                yield length, state

    def _read(self, path: Path, identity: bytes) -> bytes | None:
        """A state that this user's runtime wrote under this identity; None when it is anything else."""
        file = open_private(path)
        if file is None:
            return None
        with file:
            try:
                header, tag = file.read(_HEADER.size), file.read(_TAG)
                if not hmac.compare_digest(tag, self._tag(identity, header)):
                    return None
                _, size, digest = _HEADER.unpack(header)
                # the size is authentic now: a huge file in this place is not read
                if os.fstat(file.fileno()).st_size != _HEADER.size + _TAG + size:
                    return None
                state = file.read(size)
                if hashlib.sha256(state).digest() != digest:
                    return None
                os.utime(path)
            except OSError:
                return None
        return state

    def store(self, ids: bytes, state: bytes) -> None:
        make_private_directory(self._directory)
        prefix = self._model_mac()
        length = len(ids) // 4
        ((_, identity),) = _identities(prefix, ids, {length})
        header = _HEADER.pack(_MAGIC, len(state), hashlib.sha256(state).digest())
        path = self._directory / _file_name(prefix.hexdigest()[:16], length, identity)
        size = _HEADER.size + _TAG + len(state)
        if size > self._limit:
            raise ResourceError(
                "prompt-too-large",
                f"the state of {length} tokens takes {size} bytes, the directory may hold {self._limit}",
                "give it more disk_bytes",
            )
        try:
            self._make_room(size, path.name)
            write_private(path, (header, self._tag(identity, header), state))
        except OSError as exc:
            raise ResourceError(
                "cache-write",
                f"{path} cannot be written: {exc.strerror}",
                "make room or choose another directory",
            ) from exc

    def _make_room(self, size: int, name: str) -> None:
        """Delete the states used longest ago until `size` bytes more fit; what is no state of ours goes first."""
        entries = []
        for entry in os.scandir(self._directory):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # another process makes room as well
                continue
            stale = entry.name.startswith(TEMPORARY) and status.st_mtime < time.time() - _STALE_SECONDS
            if stale or (_NAME.fullmatch(entry.name) and entry.name != name):
                sound = stat.S_ISREG(status.st_mode) and status.st_size <= self._limit and not stale
                entries.append((sound, status.st_mtime_ns, status.st_size, entry.path))
        held = sum(size for sound, _, size, _ in entries if sound)
        for sound, _, entry_size, path in sorted(entries):
            if sound and held + size <= self._limit:
                break
            if not os.path.isdir(path) or os.path.islink(path):
                Path(path).unlink(missing_ok=True)
            held -= entry_size if sound else 0

    def _tag(self, identity: bytes, header: bytes) -> bytes:
        mac = self._model_mac()
        mac.update(b"content" + identity + header)
        return mac.digest()

    def _model_mac(self) -> hmac.HMAC:
        """A copy of the HMAC over what the tokens' meaning depends on."""
        if self._made is None:
            try:
                engine = importlib.metadata.version(_PACKAGES[self._format])
            except importlib.metadata.PackageNotFoundError as exc:
                raise ResourceError(
                    "unknown-engine",
                    f"the version of {_PACKAGES[self._format]} is unknown",
                    "install it with pip",
                ) from exc
            runtime = edge_distill_runtime.__version__
            about = json.dumps([_FORMAT, runtime, self._format, engine, self._model, self._precision])
            self._made = hmac.new(_user_key(), hashlib.sha256(about.encode()).digest(), "sha256")
        return self._made.copy()


def _user_key() -> bytes:
    """This user's secret, made when there is none; a key that others could read or write is replaced."""
    directory = user_cache_directory()
    path = directory / _KEY_NAME
    make_private_directory(directory)
    try:
        key = _make_key(path)
        if key is None:  # somebody else's, or damaged
            path.unlink()
            key = _make_key(path)
    except OSError as exc:
        raise ResourceError(
            "cache-key", f"{path} cannot be written: {exc.strerror}", "make room in your cache directory"
        ) from exc
    if key is None:
        raise ResourceError("cache-key", f"{path} is not a file of your own", "delete it")
    return key


def _make_key(path: Path) -> bytes | None:
    """The key in a file, which is made when it is not there."""
    with contextlib.suppress(FileExistsError):
        create_private(path, secrets.token_bytes(_KEY_BYTES))
    return _read_key(path)


def _read_key(path: Path) -> bytes | None:
    for _ in range(20):
        file = open_private(path)
        if file is None:
            return None
        with file:
            key = file.read(_KEY_BYTES + 1)
        if len(key) == _KEY_BYTES:
            return key
        time.sleep(0.01)  # another process may be writing it now
    return None


def _bytes_of(tokens: SequenceOf[int]) -> bytes:
    """Token ids as int32, four bytes each."""
    return np.asarray(tokens, dtype="<i4").tobytes()


def _identities(prefix: hmac.HMAC, ids: bytes, lengths: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """HMACs of the beginnings with these lengths, the shortest first; every token is hashed once."""
    mac, at = prefix.copy(), 0
    mac.update(b"name")
    for length in sorted(lengths):
        mac.update(ids[at : 4 * length])
        at = 4 * length
        yield length, mac.copy().digest()


def _file_name(model: str, length: int, identity: bytes) -> str:
    return f"{model}-{length}-{identity.hex()[:32]}.kv"
