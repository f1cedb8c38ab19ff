"""Memory of processes that take a known amount."""

from __future__ import annotations

import sys
from statistics import median

import pytest

from edge_distill_bench.processes import proportional_bytes, run_module, watch
from edge_distill_runtime import BackendError

KNOWN = 96_000_000


def taking(size: int) -> list[str]:
    """Touches every page, gives half of it back, and says its own peak."""
    code = (
        "import sys, time\n"
        "from edge_distill_bench.memory_process import resident_bytes\n"
        f"data = bytearray({size})\n"
        f"for index in range(0, {size}, 4096): data[index] = 1\n"
        "time.sleep(0.15)\n"
        f"del data[{size // 2}:]\n"
        "print(resident_bytes('VmHWM'))\n"
    )
    return [sys.executable, "-c", code]


def test_a_known_amount_is_found() -> None:
    pairs = [(watch(taking(0)), watch(taking(KNOWN))) for _ in range(5)]
    residents = [int(large.output) - int(small.output) for small, large in pairs]
    shares = [(large.peak_pss or 0) - (small.peak_pss or 0) for small, large in pairs]
    # 1 MB: what two starts of the interpreter differ by, and the page tables' grain; the median, because a share
    # grows whenever another process that maps the same libraries ends in between
    assert median(residents) == pytest.approx(KNOWN, abs=1_000_000), residents
    assert median(shares) == pytest.approx(KNOWN, abs=1_000_000), shares


def test_what_is_shared_counts_by_share() -> None:
    small = [watch(taking(0)) for _ in range(3)]
    assert all(one.peak_pss is not None for one in small)
    # the interpreter's code is mapped by this process too
    assert median(one.peak_pss or 0 for one in small) < median(int(one.output) for one in small)


def test_without_samples_nothing_is_looked_at() -> None:
    watched = watch([sys.executable, "-c", "print('done')"], samples=False)
    assert watched.peak_pss is None
    assert watched.output == "done\n"


def test_failures_are_told() -> None:
    with pytest.raises(BackendError, match="no such model"):
        watch([sys.executable, "-c", "raise SystemExit('no such model')"])
    assert proportional_bytes(1 << 30) is None
    assert run_module("json.tool", 7) == [sys.executable, "-m", "json.tool", "7"]
