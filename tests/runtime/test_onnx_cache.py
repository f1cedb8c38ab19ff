"""The ONNX engine's keys and values: what is kept when slots are added, and what memory it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edge_distill_runtime import ResourceError
from edge_distill_runtime.engines.memory import tokens_that_fit
from edge_distill_runtime.engines.onnx_cache import KeyValueCache

MIB = 1 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_contents_survive_more_slots() -> None:
    cache = KeyValueCache(3, (2, 10, 4), np.float32)
    assert cache.bytes_per_token == 3 * 2 * 4 * 4
    cache.reserve(2, {})
    for index, array in enumerate(cache.arrays):
        assert array.shape == (2, 2, 10, 4)
        array[1, :, :7] = np.arange(56, dtype=np.float32).reshape(2, 7, 4) + 100 * index
    state = b"".join(cache.read(1, 7))
    assert len(state) == 7 * cache.bytes_per_token
    # array, head, token, value: 56 numbers, then the next array's
    np.testing.assert_array_equal(
        np.frombuffer(state, np.float32), np.concatenate([np.arange(56) + 100 * index for index in range(3)])
    )
    cache.reserve(5, {1: 7})
    assert cache.slots == 5
    assert b"".join(cache.read(1, 7)) == state
    cache.copy(1, 5, [0, 4])
    shorter = cache.read(4, 5)
    np.testing.assert_array_equal(cache.arrays[2][4, :, :5], cache.arrays[2][1, :, :5])
    assert not cache.arrays[2][4, :, 5:].any()
    cache.write(2, 7, np.frombuffer(state, np.uint8))
    assert b"".join(cache.read(2, 7)) == state
    assert cache.read(0, 5) == shorter


@pytest.mark.skipif(sys.platform != "linux", reason="measured with /proc and madvise")
def test_memory_follows_the_tokens() -> None:
    """16 slots with room for 512 MiB; 100 tokens are 100 x 4 arrays x 4 heads x 256 bytes = 0.4 MiB."""
    cache = KeyValueCache(4, (4, 8192, 64), np.float32)
    before = resident()
    cache.reserve(8, {})
    lengths = dict.fromkeys(range(8), 100)
    for slot in lengths:
        for array in cache.arrays:
            array[slot, :, :100] = slot + 1
    cache.reserve(16, lengths)
    assert resident() - before < 8 * 0.4 * MIB + 4 * MIB
    assert cache.arrays[3][7, 3, 99, 63] == 8
    for array in cache.arrays:
        array[5] = 1
    full = resident()
    cache.give_back(5)
    assert full - resident() > 30 * MIB  # of the 32 of a full slot
    assert not cache.arrays[0][5].any()
    assert cache.arrays[0][4, 0, 99, 0] == 5
    assert cache.arrays[0][6, 0, 0, 0] == 7
    cache.close()
    assert resident() - before < 4 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="madvise")
def test_pages_of_neighbours_are_kept() -> None:
    """A slot of 1,280 bytes ends inside a page: only whole pages go back."""
    cache = KeyValueCache(1, (1, 10, 32), np.float32)
    cache.reserve(20, {})
    cache.arrays[0][:] = 1
    for slot in (0, 3, 7, 19):
        cache.give_back(slot)
        others = [other for other in range(20) if other != slot]
        assert cache.arrays[0][others].all()
        cache.arrays[0][slot] = 1


def test_too_many_slots_are_a_typed_error() -> None:
    cache = KeyValueCache(1, (1 << 20, 1 << 20, 128), np.float32)
    with pytest.raises(ResourceError, match="MiB for each layer cannot be had"):
        cache.reserve(1 << 16, {})


@pytest.mark.skipif(sys.platform != "linux", reason="measured with /proc")
def test_tokens_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    held = resident()
    monkeypatch.setattr("edge_distill_runtime.engines.memory.memory_limit", lambda: held + 100 * MIB)
    assert tokens_that_fit(MIB) == pytest.approx(100, abs=5)
    monkeypatch.setattr("edge_distill_runtime.engines.memory.memory_limit", lambda: 1 * MIB)
    assert tokens_that_fit(MIB) == 0
    monkeypatch.setattr("edge_distill_runtime.engines.memory.memory_limit", lambda: None)
    assert tokens_that_fit(MIB) is None
