"""What all measurements share: rounds in turn, a table for people, and one JSON line with machine and versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edge_distill_bench.results import BUSY, Machine
from edge_distill_runtime import EdgeDistillError, InputError, Model
from edge_distill_runtime.engines.machine import memory_limit, usable_cpus

__all__ = [
    "Result",
    "check_counts",
    "command_line",
    "endless",
    "in_turn",
    "median_ratio",
    "print_table",
    "report",
    "text_of",
    "this_machine",
]

T = TypeVar("T")

_PACKAGES = ("edge-distill-runtime", "llama-cpp-python", "numpy", "onnxruntime", "onnxruntime-genai")


class Result(Protocol):
    """A frozen dataclass with what was measured; the JSON line holds its fields and its summary."""

    @property
    def summary(self) -> dict[str, Any]:
        """What follows from the fields: medians, ratios."""


def in_turn(runs: Sequence[Callable[[], T]], rounds: int) -> list[list[T]]:
    """Every run once in each round, every other round backwards; the results of each run.

    A machine that grows slower while it is measured slows all of them alike.
    """
    results: list[list[T]] = [[] for _ in runs]
    for number in range(rounds):
        for index in range(len(runs)) if number % 2 == 0 else reversed(range(len(runs))):
            results[index].append(runs[index]())
    return results


def median_ratio(numbers: Sequence[float], others: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(numbers, others, strict=True))


def endless(model: Model) -> Model:
    """The same model without stop tokens and without a prompt cache, for every run to have one length."""
    return Model(replace(model.manifest, stop_ids=()), model.backend, model.tokenizer, model.detokenizer)


def text_of(model: Model, text: str, tokens: int) -> str:
    """A text of about so many tokens: `text` again and again, and the beginning of it."""
    ids = model.encode(text, raw=True)
    count = -(-tokens // len(ids))
    ids = (ids * count)[:tokens]
    return model.detokenizer.decode(ids)


def check_counts(**counts: int) -> None:
    """`InputError` unless all of them are at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"bad-{name.replace('_', '-')}", f"{name} is {count}", "it must be at least 1")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> None:
    """The first column to the left, numbers with three or four digits to the right."""
    print(title)
    lines = [list(header), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]))


def _shown(cell: str | int | float) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.3f}"


def command_line(name: str, description: str | None, *, rounds: int | None) -> argparse.ArgumentParser:
    """The arguments that all have: bundles, --rounds, --threads, --json."""
    summary = (description or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m edge_distill_bench.{name}", description=summary)
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", type=Path)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"everything in each ({rounds})")
    parser.add_argument(
        "--threads", type=int, default=usable_cpus(), help="by default the CPUs that the process may use"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    return parser


def report(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[], Sequence[T]],
    show: Callable[[T], None],
) -> int:
    """Measure, print the tables and the JSON line; the exit code."""
    load_average = os.getloadavg()[0]
    try:
        results = measure()
    except EdgeDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not options.json:
        for result in results:
            show(result)
            print()
        if load_average > BUSY:
            print(f"the machine was busy (load {load_average:.1f}): do not trust these numbers")
    print(json.dumps(document(name, results, load_average, options.threads)))
    return 0


def document(name: str, results: Sequence[Any], load_average: float, threads: int) -> dict[str, Any]:
    """The JSON line: the results, the machine and the versions."""
    return {
        "schema_version": 2,
        "benchmark": name,
        "threads": threads,
        "results": [asdict(result) | result.summary for result in results],
        # of the last minute before the start; above 0.5 something else was running
        "load_average": load_average,
        "machine": {"cpu": _cpu_name(), "usable_cpus": usable_cpus(), "system": platform.platform()},
        "versions": _versions(),
    }


def this_machine() -> Machine:
    """The same for results.json, as it is now."""
    return Machine(
        cpu=_cpu_name(),
        cpus=usable_cpus(),
        memory=memory_limit(),
        system=platform.platform(),
        versions=_versions(),
        load=os.getloadavg()[0],
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
