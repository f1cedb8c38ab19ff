"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from edge_distill_runtime.engines.allocator import give_back_freed_memory

_BLOCK, _COUNT = 64 << 10, 2000  # 125 MiB in blocks that glibc takes from its heap


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_blocks_below_one_in_use_are_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    give_back_freed_memory()
    start = resident()
    blocks = [libc.malloc(_BLOCK) for _ in range(_COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK)
    *freed, last = blocks  # the last one stands in the way of shrinking the heap from its end
    for block in freed:
        libc.free(block)
    kept = resident() - start
    give_back_freed_memory()
    left = resident() - start
    libc.free(last)
    assert kept > 100 << 20, "the heap shrank by itself: the test shows nothing"
    assert left < 10 << 20
