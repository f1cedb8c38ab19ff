"""Weights in pages of 2 MiB: decoding reads all of them for every token, and finding pages of 4 KiB took a sixth of it.

Linux only, where the engines' allocators do not ask for large pages themselves.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["in_huge_pages"]

_HUGE = 1 << 21
_MOSTLY = 0.9  # of a stretch must be in memory already: the rest of it is taken then
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # madvise(2); to collapse at once needs Linux 6.1
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Span = tuple[int, int]


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """Move what is allocated inside, and filled, to pages of 2 MiB; where that is impossible, nothing happens."""
    if not _is_allowed():
        yield
        return
    before = _anonymous_memory()
    yield
    with suppress(OSError):
        library = _library()
        for start, end in _new(_anonymous_memory(), before):
            first = -(-start // _HUGE) * _HUGE
            for address in range(first, end - _HUGE + 1, _HUGE):
                if _resident(library, address) >= _MOSTLY:
                    library.madvise(address, _HUGE, _MADV_HUGEPAGE)
                    library.madvise(address, _HUGE, _MADV_COLLAPSE)


def _is_allowed() -> bool:
    if sys.platform != "linux":
        return False
    with suppress(OSError):
        return "[never]" not in _SETTING.read_text(encoding="ascii")
    return False


def _library() -> Any:
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    return library


def _resident(library: Any, address: int) -> float:
    """Share of the 2 MiB from `address` on that lies in memory."""
    pages = _HUGE // mmap.PAGESIZE
    vector = ctypes.create_string_buffer(pages)
    if library.mincore(address, _HUGE, vector):
        return 0.0
    return sum(byte & 1 for byte in vector.raw) / pages


def _anonymous_memory() -> list[Span]:
    """Start and end of every private mapping of this process that can be written and is no file."""
    spans = []
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        fields = line.split(maxsplit=5)  # span, rights, offset, device, inode, path
        if fields[1] == b"rw-p" and (len(fields) < 6 or fields[5] == b"[heap]"):
            start, _, end = fields[0].partition(b"-")
            spans.append((int(start, 16), int(end, 16)))
    return spans


def _new(spans: list[Span], before: list[Span]) -> Iterator[Span]:
    """What of `spans` lies in none of `before`; both are sorted and do not overlap."""
    for start, end in spans:
        for old_start, old_end in before:
            if old_end <= start or old_start >= end:
                continue
            if old_start > start:
                yield start, old_start
            start = max(start, old_end)
        if start < end:
            yield start, end
