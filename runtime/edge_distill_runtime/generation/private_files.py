"""Files that only this user wrote and may read; anything else under their names is ignored."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from edge_distill_runtime.errors import ResourceError

__all__ = [
    "TEMPORARY",
    "create_private",
    "is_private_directory",
    "make_private_directory",
    "open_private",
    "user_cache_directory",
    "write_private",
]

TEMPORARY = ".unfinished-"
"""How the names of files begin that are being written."""


def user_cache_directory() -> Path:
    """Where this user's caches lie: XDG_CACHE_HOME or ~/.cache, LOCALAPPDATA on Windows."""
    name = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    base = Path(os.environ.get(name, ""))
    if not base.is_absolute():  # the XDG specification: relative paths are to be ignored
        try:
            base = Path.home() / ".cache"
        except RuntimeError as exc:
            raise ResourceError(
                "no-home", "this user has no home directory", f"set {name} to a directory"
            ) from exc
    return base / "edge-distill"


def make_private_directory(path: Path) -> None:
    """A directory that is open to this user only; `ResourceError` when it cannot be had or is somebody else's."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(path)
        mine = stat.S_ISDIR(status.st_mode) and _is_mine(status)
        if mine and _is_open(status):
            os.chmod(path, 0o700)
    except OSError as exc:
        raise ResourceError(
            "cache-directory", f"{path} cannot be used: {exc.strerror}", "choose another directory"
        ) from exc
    if not mine:
        raise ResourceError(
            "cache-directory",
            f"{path} is a link or belongs to somebody else",
            "choose a directory of your own",
        )


def is_private_directory(path: Path) -> bool:
    """Whether it is a directory of this user, closed to all others, and no link to one."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and _is_mine(status) and not _is_open(status)


def open_private(path: Path) -> BinaryIO | None:
    """Open a regular file that is this user's and closed to all others; None for anything else."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # a pipe must not block
        flags |= getattr(os, name, 0)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        descriptor = os.open(path, flags)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and _is_mine(status) and not _is_open(status):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def write_private(path: Path, data: Iterable[bytes]) -> None:
    """Write or replace a file in one piece; `OSError` leaves what was there."""
    temporary = path.with_name(TEMPORARY + secrets.token_hex(8))
    _write(temporary, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_private(path: Path, data: bytes) -> None:
    """Write a small file; `FileExistsError` when there is one: of several processes, one wins."""
    _write(path, [data])


def _write(path: Path, data: Iterable[bytes]) -> None:
    """A new file; deleted again when it cannot be finished."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    for name in ("O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in data:
                file.write(part)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _is_mine(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _is_open(status: os.stat_result) -> bool:
    """To others than the owner; Windows has other means, which a user's own folder inherits."""
    return sys.platform != "win32" and bool(status.st_mode & 0o077)
