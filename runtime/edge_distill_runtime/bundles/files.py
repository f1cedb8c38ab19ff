"""Reading files that nobody vouches for: bounded, never through a link, never from a pipe."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from edge_distill_runtime.errors import BundleError, InputError

__all__ = ["check_relative_path", "list_files", "open_regular", "read_bounded", "sha256_of", "strict_json"]

_CHUNK = 1 << 20
_MAX_PATH = 255
_MAX_FILES = 1000


def check_relative_path(path: str) -> str:
    """Return `path` when it names a file below a folder in plain POSIX form, else raise `BundleError`."""
    parts = path.split("/")
    unsafe = (
        not path
        or len(path) > _MAX_PATH
        or not path.isprintable()
        or any(character in path for character in '\\:*?"<>|')
        or any(part in ("", ".", "..") or part != part.strip(" ") for part in parts)
    )
    if unsafe:
        raise BundleError(
            "unsafe-path",
            f"path {path[:80]!r} is not a plain relative path",
            "paths stay inside the bundle: no '..', no leading '/', no backslash, no ':'",
        )
    return path


def open_regular(path: Path, *, allow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading; refuses FIFOs, devices, folders and, by default, links.

    `allow_links` admits symlinks and hard links, for a file that the user names on the command line.
    Raises `InputError` when the file is missing or unreadable, `BundleError` when it is no regular file.
    """
    # O_NONBLOCK: opening a FIFO would wait for a writer for ever.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    if not allow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        if not allow_links and path.is_symlink():
            raise BundleError("link", f"{path} is a symbolic link", "replace it by a copy of the file")
        descriptor = os.open(path, flags)
    except FileNotFoundError as exc:
        raise InputError("missing-file", f"{path} does not exist", "check the path") from exc
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise InputError(
            "unreadable-file", f"{path} cannot be opened: {reason}", "check its permissions"
        ) from exc
    try:
        _check_regular(path, os.fstat(descriptor), allow_links)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check_regular(path: Path, status: os.stat_result, allow_links: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(
            "not-a-file", f"{path} is not a regular file", "give a file, not a folder, pipe or device"
        )
    if not allow_links and status.st_nlink > 1:
        raise BundleError(
            "link",
            f"{path} has {status.st_nlink} hard links",
            "replace it by a copy: cp FILE COPY && mv COPY FILE",
        )


def read_bounded(path: Path, limit: int, *, allow_links: bool = False) -> bytes:
    """Read a whole regular file of at most `limit` bytes."""
    parts, size = [], 0
    with open_regular(path, allow_links=allow_links) as file:
        # in pieces: read(n) takes memory for n bytes, however few there are
        while size <= limit and (part := file.read(min(_CHUNK, limit + 1 - size))):
            parts.append(part)
            size += len(part)
    if size > limit:
        raise BundleError(
            "file-too-large", f"{path} is larger than {limit} bytes", "it is not what it says it is"
        )
    return b"".join(parts)


def sha256_of(path: Path) -> tuple[int, str]:
    """Size in bytes and lower-case hexadecimal SHA-256 of a regular file."""
    digest = hashlib.sha256()
    size = 0
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with open_regular(path) as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(view[:count])
            size += count
    return size, digest.hexdigest()


def list_files(directory: Path) -> Iterator[str]:
    """Relative POSIX paths of all that is no folder below `directory`; links are not followed."""
    seen = 0
    stack = [(directory, "")]
    while stack:
        folder, prefix = stack.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                seen += 1
                if seen > _MAX_FILES:
                    raise BundleError("too-many-files", f"{directory} holds more than {_MAX_FILES} files", "")
                if entry.is_dir(follow_symlinks=False):
                    stack.append((Path(entry.path), f"{prefix}{entry.name}/"))
                else:
                    yield prefix + entry.name


def strict_json(data: bytes) -> Any:
    """The value of UTF-8 JSON without NaN and without a key that stands twice; `ValueError` says what is wrong."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
