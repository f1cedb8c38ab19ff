"""Keys and values of many sequences for ONNX Runtime: pages that cost memory once a token is written to them."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edge_distill_runtime.errors import ResourceError

__all__ = ["KeyValueCache"]

_LARGE_PAGES_UP_TO = 128 << 20  # bytes of the whole cache

Array = np.ndarray[Any, np.dtype[Any]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class KeyValueCache:
    """Arrays [slots, kv_heads, context, head_dim], one for the keys and one for the values of every layer.

    A slot has room for a whole context, so past and present can be the same memory. A small cache, of one sequence
    mostly, lies in pages of 2 MiB, which are a tenth faster to decode with. Of a larger one only addresses are
    reserved: resident memory follows the tokens that are really there.
    """

    def __init__(self, arrays: int, shape: tuple[int, int, int], dtype: type[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.slots = 0
        self._count = arrays
        self._maps: list[mmap.mmap] = []
        self.arrays: list[Array] = []

    @property
    def bytes_per_token(self) -> int:
        heads, _, head_dim = self.shape
        return self._count * heads * head_dim * np.dtype(self.dtype).itemsize

    @property
    def _slot_bytes(self) -> int:
        """Of one array."""
        return self.bytes_per_token // self._count * self.shape[1]

    def reserve(self, slots: int, lengths: Mapping[int, int]) -> None:
        """Make it `slots` wide, array by array; `lengths` are the tokens of each slot in use, which are kept."""
        large = self._count * slots * self._slot_bytes <= _LARGE_PAGES_UP_TO
        for index in range(self._count):
            memory = _pages(slots * self._slot_bytes, large)
            new = np.frombuffer(memory, self.dtype).reshape(slots, *self.shape)
            if index < len(self.arrays):
                for slot, length in lengths.items():
                    new[slot, :, :length] = self.arrays[index][slot, :, :length]
                self.arrays[index], self._maps[index] = new, memory
            else:
                self.arrays.append(new)
                self._maps.append(memory)
        self.slots = slots

    def copy(self, slot: int, length: int, targets: Iterable[int]) -> None:
        """Copy the first `length` tokens of a slot to others."""
        targets = tuple(targets)
        for array in self.arrays:
            past = array[slot, :, :length]
            for target in targets:
                array[target, :, :length] = past

    def read(self, slot: int, length: int) -> list[bytes]:
        """The first `length` tokens of a slot, array by array."""
        return [array[slot, :, :length].tobytes() for array in self.arrays]

    def write(self, slot: int, length: int, payload: Bytes) -> None:
        """What `read` gave, joined; its size must be right."""
        heads, _, head_dim = self.shape
        values = payload.view(self.dtype).reshape(self._count, heads, length, head_dim)
        for array, value in zip(self.arrays, values, strict=True):
            array[slot, :, :length] = value

    def give_back(self, slot: int) -> None:
        """Return a slot's pages to the system, where it can be told so; its contents are lost."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        page = mmap.PAGESIZE
        start = -(-slot * self._slot_bytes // page) * page
        size = (slot + 1) * self._slot_bytes // page * page - start
        if size > 0:
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED, start, size)

    def close(self) -> None:
        """Free everything."""
        self.arrays, self._maps, self.slots = [], [], 0


def _pages(size: int, large: bool) -> mmap.mmap:
    """Zeros that are not touched yet, in large pages where the system has them."""
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            return mmap.mmap(-1, size)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as exc:
        raise ResourceError(
            "memory", f"a cache of {size >> 20} MiB for each layer cannot be had", "use a smaller context"
        ) from exc
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # a page of 2 MiB holds the rooms of several heads, and the first token touches all of it
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE if large else mmap.MADV_NOHUGEPAGE)
    return memory
