"""Append-only JSON Lines files: killed at any point, nothing is lost and nothing stands there twice.

A record is one write of one line. What a kill can leave is a torn last line; it is cut when the file is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_distill.traces.trace import MAX_LINE, Trace, lines_of, parse_line, to_line
from edge_distill_runtime.errors import InputError, ResourceError

__all__ = ["KeyedLines", "Rejects", "TraceStore"]

_SYNC_SECONDS = 1.0  # what a power failure may cost; a kill costs nothing
_REMEDY = "free some space or choose another folder; what was written before is safe"


class KeyedLines:
    """A JSON Lines file with one writer, and the keys of the lines that it holds."""

    def __init__(self, path: Path, key_of: Callable[[bytes], str]) -> None:
        self._path = path
        self._mutex = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(path, flags, 0o666)
        except OSError as exc:
            os.close(self._lock)
            raise ResourceError("not-writable", f"{path} cannot be opened: {exc.strerror}", _REMEDY) from exc
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise InputError("not-a-file", f"{path} is not a regular file", "give a file")
            self._mend(key_of)
            self.keys = self._read_keys(key_of)
        except BaseException:
            self.close()
            raise
        self._synced = time.monotonic()

    def _mend(self, key_of: Callable[[bytes], str]) -> None:
        """Cut a torn last line; one that only lacks its end is whole, and gets it."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, MAX_LINE + 1, max(0, size - MAX_LINE - 1))
        last = tail[tail.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            key_of(last)
            os.write(self._file, b"\n")
        except InputError as exc:
            if len(last) > MAX_LINE:  # no line of ours
                raise InputError(
                    "line-too-long", f"the last line of {self._path} has more than {MAX_LINE} bytes", ""
                ) from exc
            os.ftruncate(self._file, size - len(last))

    def _read_keys(self, key_of: Callable[[bytes], str]) -> set[str]:
        keys = set()
        for number, line in lines_of(self._path):
            try:
                keys.add(key_of(line))
            except InputError as exc:
                raise InputError(
                    exc.code,
                    f"{self._path}, line {number}: {exc.what}",
                    "take the line out, or write to another file",
                    {"line": number},
                ) from exc
        return keys

    def _add(self, key: str, line: str) -> bool:
        """Append a line unless its key is there already; says whether it was written."""
        data = line.encode("utf-8") + b"\n"
        if len(data) > MAX_LINE:
            raise InputError(
                "line-too-long", f"a line of {len(data)} bytes, at most {MAX_LINE} are allowed", "shorten it"
            )
        with self._mutex:
            if self._file < 0:
                raise InputError("closed", f"{self._path} is closed", "open it again")
            if key in self.keys:
                return False
            size = os.fstat(self._file).st_size
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._file, data[written:])
            except OSError as exc:
                os.ftruncate(self._file, size)
                raise ResourceError(
                    "write-failed", f"writing {self._path} failed: {exc.strerror}", _REMEDY
                ) from exc
            self.keys.add(key)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        return True

    def close(self) -> None:
        """Everything is on the disk afterwards, and the next writer may come. May be called twice."""
        with self._mutex:
            if self._file < 0:
                return
            try:
                if stat.S_ISREG(os.fstat(self._file).st_mode):
                    os.fsync(self._file)
            finally:
                os.close(self._file)
                os.close(self._lock)
                self._file = -1

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TraceStore(KeyedLines):
    """The output of a run: `id in store` says what need not be asked again. Safe to use from many threads.

    Traces with the same `key` stand there once. Raises `ResourceError("locked")` while somebody else writes to
    `path`, `InputError` when a line is no trace.
    """

    def __init__(self, path: Path, key: Callable[[Trace], str] = lambda trace: trace.id) -> None:
        self._key = key
        super().__init__(path, lambda line: key(parse_line(line)))

    def add(self, trace: Trace) -> bool:
        """Append a trace; False when one with its key is there already."""
        return self._add(self._key(trace), to_line(trace))


class Rejects(KeyedLines):
    """`rejects.jsonl`: which lines of which input could not be used, and why; a second run adds none twice."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "rejects.jsonl", _reject_key)

    def add(self, source: str, line: int, reason: str) -> bool:
        """Append line number and reason; False when that line is there already."""
        item = {"source": source, "line": line, "reason": reason}
        return self._add(_key(item), json.dumps(item))


def _key(item: dict[str, Any]) -> str:
    return f"{item['source']}:{item['line']}"


def _reject_key(line: bytes) -> str:
    try:
        return _key(json.loads(line))
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError("bad-reject", f"is no reject: {str(exc)[:200]}", "") from exc


def _lock(path: Path) -> int:
    """An exclusive lock on a file beside `path`; the kernel lifts it when the process ends, however it ends."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as exc:
        raise ResourceError("not-writable", f"{path}.lock cannot be opened: {exc.strerror}", _REMEDY) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(lock)
        raise ResourceError(
            "locked", f"another process writes to {path}", "wait for it, or write to another file"
        ) from exc
    return lock
