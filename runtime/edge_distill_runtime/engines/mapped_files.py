"""Memory of this process that is a file: made its own, as a file cut short later kills whoever maps it (SIGBUS)."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_distill_runtime.errors import ResourceError

__all__ = ["own_mapped_files"]

_MAYMOVE, _FIXED = 1, 2  # flags of mremap(2)
_FAILED = ctypes.c_void_p(-1).value


def own_mapped_files(folder: Path) -> None:
    """Put a private copy in place of every mapping of a file below `folder`, at the same address.

    One after the other, so that no more memory is needed than the largest mapping takes. Nobody may write to them
    meanwhile. Linux only: Windows does not let a mapped file be cut. Raises `ResourceError`.
    """
    if sys.platform != "linux":
        return
    library = _library()
    for address, size in list(_mappings(os.fsencode(folder.resolve()) + b"/")):
        copy = library.mmap(
            None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
        )
        if copy != _FAILED:
            ctypes.memmove(copy, address, size)
        if copy == _FAILED or library.mremap(copy, size, size, _MAYMOVE | _FIXED, address) != address:
            raise ResourceError(
                "memory",
                f"no memory for {size} bytes of the model: {os.strerror(ctypes.get_errno())}",
                "load with a smaller context, or free some memory",
            )


def _library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = library.mremap.restype = pointer
    library.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_long)
    library.mremap.argtypes = (pointer, size, size, number, pointer)
    return library


def _mappings(folder: bytes) -> Iterator[tuple[int, int]]:
    """Address and size of every mapping of a file whose path begins with `folder`."""
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        fields = line.split(maxsplit=5)  # span, rights, offset, device, inode, path
        if len(fields) == 6 and fields[5].startswith(folder):
            start, _, end = fields[0].partition(b"-")
            yield int(start, 16), int(end, 16) - int(start, 16)
