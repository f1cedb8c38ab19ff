"""RAPL's counters in a folder that looks like /sys/class/powercap."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_distill_bench.energy import open_meter


def package(
    root: Path, name: str, energy: int, *, called: str = "package-0", limit: int = 262_143_328_850
) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{called}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_packages_are_added_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", 1_000_000)
    second = package(tmp_path, "intel-rapl:1", 7_000_000, called="package-1")
    package(tmp_path, "intel-rapl:0:0", 5, called="core")  # inside package-0
    package(tmp_path, "intel-rapl:2", 5, called="psys")  # all of the board, the packages included
    meter = open_meter(tmp_path)
    assert meter.reason == "RAPL: package-0, package-1"
    before = meter.read()
    (first / "energy_uj").write_text("3500000\n")
    (second / "energy_uj").write_text("7250000\n")
    assert meter.joules(before, meter.read()) == 2.75


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    folder = package(tmp_path, "intel-rapl:0", 262_143_000_000, limit=262_143_999_999)
    meter = open_meter(tmp_path)
    before = meter.read()
    (folder / "energy_uj").write_text("500000\n")
    # one joule to the end of the counter, half a joule behind it
    assert meter.joules(before, meter.read()) == 1.5


def test_reasons(tmp_path: Path) -> None:
    missing = open_meter(tmp_path / "none")
    assert missing.reason == f"not measured: {tmp_path / 'none'} does not exist"
    assert missing.joules(missing.read(), missing.read()) is None
    assert "shows no package" in open_meter(tmp_path).reason

    folder = package(tmp_path, "intel-rapl:0", 1)
    (folder / "energy_uj").write_text("not a number")
    assert "RAPL cannot be read" in open_meter(tmp_path).reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_counters_for_root_alone(tmp_path: Path) -> None:
    folder = package(tmp_path, "intel-rapl:0", 1)
    (folder / "energy_uj").chmod(0)
    assert open_meter(tmp_path).reason.endswith("energy_uj may be read by root alone")
