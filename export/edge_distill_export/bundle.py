"""A bundle is a directory that is complete or absent: staged beside its place, synced, then renamed.

A killed export leaves at most a hidden staging directory, which the next export into the same place removes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edge_distill_runtime.bundles.files import sha256_of
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, FileEntry, Manifest, manifest_to_json
from edge_distill_runtime.errors import InputError, ResourceError

_STAGING = ".staging-"
_RENAME_EXCHANGE = 2  # linux/fs.h: swap two paths in one step
_AT_FDCWD = -100
_FULL = 1 << 20  # bytes: less is a full disk


def check_destination(directory: Path, force: bool) -> None:
    """Raise before any work when the bundle could not be put into place later."""
    if directory.exists() and not force:
        raise InputError(
            "exists", f"{directory} exists already", "choose another --out, or replace it with --force"
        )
    if force and directory.exists() and not (directory / MANIFEST_NAME).exists():
        raise InputError(
            "not-a-bundle", f"{directory} is no bundle, --force does not replace it", "choose another --out"
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory.parent):
            pass
    except OSError as exc:
        raise _translated(exc, directory.parent) from exc


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A private directory beside `directory` for its files; removed unless `publish` renames it.

    It stays locked while this process lives, so that no other export takes it for a dead one's.
    """
    _remove_dead_stages(directory)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}{_STAGING}", dir=directory.parent))
    except OSError as exc:
        raise _translated(exc, directory.parent) from exc
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield staging
    except OSError as exc:
        raise _translated(exc, directory.parent) from exc
    except Exception as exc:
        # libllama and tokenizers report a full disk in words of their own.
        if shutil.disk_usage(directory.parent).free < _FULL:
            raise _translated(OSError(errno.ENOSPC, ""), directory.parent) from exc
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def seal(staging: Path, manifest: Manifest) -> Manifest:
    """Hash every file, then write the manifest that lists them."""
    paths = sorted(path for path in staging.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    entries = tuple(FileEntry(path.relative_to(staging).as_posix(), *sha256_of(path)) for path in paths)
    sealed = replace(manifest, files=entries)
    (staging / MANIFEST_NAME).write_bytes(manifest_to_json(sealed))
    return sealed


def publish(staging: Path, directory: Path) -> None:
    """Sync a complete staging directory and rename it to its place, in one step also where one stands already."""
    for written in (*staging.rglob("*"), staging):
        _sync(written)
    staging.chmod(0o755)  # mkdtemp makes it private
    try:
        os.rename(staging, directory)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise _translated(exc, directory.parent) from exc
        _exchange(
            staging, directory
        )  # the old bundle now lies in the staging directory, which `staged` removes
    _sync(directory.parent)


def _exchange(first: Path, second: Path) -> None:
    """Swap two directories by renameat2(2); elsewhere by two renames, with an instant in between."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        if renameat2(*arguments) == 0:
            return
    aside = first.with_name(first.name + "-old")
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def _remove_dead_stages(directory: Path) -> None:
    """Remove staging directories whose lock nobody holds: their process was killed."""
    for path in directory.parent.glob(f".{directory.name}{_STAGING}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone already, or not ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # another export is at work
        finally:
            os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(exc: OSError, directory: Path) -> ResourceError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(directory).free >> 20 if directory.exists() else 0
        return ResourceError(
            "disk-full",
            f"the disk of {directory} is full ({free} MiB free)",
            "free space, or choose another --out",
        )
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError("not-writable", f"{directory} cannot be written", "choose another --out")
    return ResourceError("os-error", f"{directory}: {exc.strerror or exc}", "choose another --out")
