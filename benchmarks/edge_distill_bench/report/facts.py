"""The few numbers on top of the report, and what a published number needs to say about its run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from edge_distill_bench.report import numbers
from edge_distill_bench.report.entries import Entry, verdict_of
from edge_distill_bench.results import BenchResults

__all__ = ["facts_of", "tiles_of", "when_of"]


def tiles_of(results: BenchResults, entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Value and what it is: of the artifacts, the best in accuracy, size, speed and time to answer."""
    artifacts = [entry for entry in entries if entry.artifact.role == "artifact"]
    tiles = []
    compared = [entry for entry in artifacts if entry.comparison and entry.comparison.retention]
    if compared:
        kept = max(compared, key=lambda entry: entry.comparison.retention.value)  # type: ignore[union-attr]
        retention = kept.comparison.retention  # type: ignore[union-attr]
        other = "fp32 student" if kept.comparison.role == "student" else "teacher"  # type: ignore[union-attr]
        tiles.append((numbers.percent(retention.value), f"of the {other}'s accuracy kept by {kept.name}"))  # type: ignore[union-attr]
    if artifacts:
        smallest = min(artifacts, key=lambda entry: entry.artifact.size_bytes)
        tiles.append((f"{numbers.megabytes(smallest.artifact.size_bytes)} MB", f"smallest: {smallest.name}"))
    timed = [entry for entry in artifacts if entry.artifact.latency and entry.artifact.latency.decode]
    if timed:
        speed, name = max((_decode(entry), entry.name) for entry in timed)
        tiles.append((f"{numbers.speed(speed)} tokens/s", f"fastest decoding: {name}"))
    waited = [(time.value, entry.name) for entry in artifacts if (time := entry.time_to_answer)]
    if waited:
        seconds, name = min(waited)
        tiles.append((numbers.seconds(seconds), f"shortest time to answer: {name}"))
    if results.gate:
        failed = sum(not line.passed for line in results.gate)
        tiles.append((f"{failed} failed" if failed else "passed", f"the gate's {len(results.gate)} lines"))
    elif compared:
        shown = sum(verdict_of(entry, entries).status == "equivalent" for entry in compared)
        tiles.append((f"{shown} of {len(compared)}", "shown to be equivalent"))
    return tiles


def _decode(entry: Entry) -> float:
    decode = entry.artifact.latency.decode if entry.artifact.latency else {}
    return numbers.median(decode[min(decode, key=int)]).value


def when_of(results: BenchResults) -> str:
    """2026-11-24 11:40 UTC; as it stands there when it is no time."""
    try:
        return datetime.fromisoformat(results.created).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return results.created


def facts_of(results: BenchResults) -> list[tuple[str, str]]:
    """Machine, settings and versions; the command is the caller's to show."""
    machine, settings = results.machine, results.settings
    memory = f"{machine.memory / 1e9:.1f} GB" if machine.memory else "unknown"
    load = f"{machine.load:.2f} in the minute before the start"
    if machine.is_busy:
        load += ": the machine was busy, do not trust the timings"
    energy = next((one.energy.reason for one in results.artifacts if one.energy), "")
    facts = [
        ("Measured", when_of(results)),
        ("CPU", f"{machine.cpu}, {machine.cpus} usable, {settings.threads} threads used"),
        ("Memory", memory),
        ("System", machine.system),
        ("Load", load),
        ("Noise", f"{numbers.percent(results.noise.deviation)} deviation of {results.noise.what}"),
        ("Energy", energy),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))),
        ("Tasks", ", ".join(settings.tasks)),
        (
            "Settings",
            f"{settings.items} items, budgets {_list(settings.budgets)}, samples {_list(settings.samples)}, "
            f"seed {settings.seed}, at most {settings.max_tokens:,} tokens, {settings.rounds} rounds",
        ),
        ("Model hashes", ", ".join(f"{one.name} {one.hash[:12]}" for one in results.artifacts)),
    ]
    return [(name, value) for name, value in facts if value]


def _list(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)
