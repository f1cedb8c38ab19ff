"""Large pages for weights: contents stay, memory hardly grows."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_distill_runtime.engines import huge_pages
from edge_distill_runtime.engines.huge_pages import _anonymous_memory, _new, in_huge_pages

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such pages")


def huge_bytes_at(address: int) -> int:
    """What the kernel says of the mapping that holds `address`."""
    held = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            held = int(match[1], 16) <= address < int(match[2], 16)
        elif held and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


@linux
def test_filled_memory_is_moved_and_keeps_its_contents() -> None:
    if not huge_pages._is_allowed():
        pytest.skip("this machine has large pages switched off")
    with in_huge_pages():
        memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        values = np.frombuffer(memory, np.uint32)
        values[: 3 << 20] = np.arange(3 << 20)  # 12 of 16 MiB
    address = values.ctypes.data
    assert (values[: 3 << 20] == np.arange(3 << 20)).all()
    # all whole stretches of 2 MiB in the filled 12, none of the untouched rest
    assert 10 << 20 <= huge_bytes_at(address) <= 12 << 20


@linux
def test_memory_from_before_is_left_alone() -> None:
    memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(memory, np.uint8)
    values[:] = 1
    with in_huge_pages():
        pass
    assert huge_bytes_at(values.ctypes.data) == 0
    assert any(start <= values.ctypes.data < end for start, end in _anonymous_memory())


def test_new_memory_by_hand() -> None:
    before = [(10, 20), (30, 40)]
    assert list(_new([(10, 20), (30, 40)], before)) == []
    assert list(_new([(5, 45)], before)) == [(5, 10), (20, 30), (40, 45)]
    assert list(_new([(10, 25), (50, 60)], before)) == [(20, 25), (50, 60)]


def test_errors_inside_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="inside"), in_huge_pages():
        raise ValueError("inside")
    monkeypatch.setattr(huge_pages, "_SETTING", Path("/nowhere"))
    with in_huge_pages():
        assert not huge_pages._is_allowed()
