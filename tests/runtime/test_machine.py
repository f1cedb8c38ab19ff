"""CPUs and memory, in made-up cgroups and for real."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from edge_distill_runtime.engines.machine import memory_limit, usable_cpus

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", CPUS),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("6400000 100000", CPUS),
        ("nonsense", CPUS),
    ],
)
def test_cpu_quota_version_2(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", CPUS), ("50000", 1), ("9900000", CPUS)])
def test_cpu_quota_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == expected


def test_memory_of_a_cgroup(tmp_path: Path) -> None:
    unlimited = memory_limit(tmp_path)
    assert unlimited is not None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == unlimited
    (tmp_path / "memory.max").write_text("12345678\n")
    assert memory_limit(tmp_path) == 12345678
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2345678\n")
    assert memory_limit(tmp_path) == 2345678
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(
        "9223372036854771712\n"
    )  # version 1's "unlimited"
    assert memory_limit(tmp_path) == 12345678


def run(code: str, **options: object) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, **options
    )  # type: ignore[call-overload]
    return str(done.stdout).strip()


def test_affinity_is_obeyed() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from edge_distill_runtime.engines.machine import usable_cpus; print(usable_cpus())"
    assert run(code) == "1"


def test_rlimit_is_obeyed() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    code = "from edge_distill_runtime.engines.machine import memory_limit; print(memory_limit())"
    assert int(run(code, preexec_fn=limit)) <= 3 << 30
