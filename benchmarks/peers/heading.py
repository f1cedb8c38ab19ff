"""What stands above the league table."""

from __future__ import annotations

import platform
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from kept import Measured, today

from edge_distill_bench.measure import this_machine
from edge_distill_bench.results import mean_and_deviation


def heading(options: Namespace, measured: Sequence[Measured], speeds: Sequence[Measured]) -> str:
    """Command, machine, versions and date of all that was measured; `speeds` are the rounds of speed in it."""
    machine = this_machine()
    versions: dict[str, str] = {}
    for one in measured:
        versions |= one.line["versions"]
    dates = sorted({one.date for one in measured} or {today()})
    said = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    return "\n".join(
        [
            f"Measured on {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}: {machine.cpu}, {machine.cpus} CPUs, "
            f"{platform.system()}, Python {platform.python_version()}. {timing(options, speeds)}",
            "",
            f"Versions: {said}.",
            "",
            "```",
            f"python benchmarks/peers/run.py {shown(options)}",
            "```",
        ]
    )


def timing(options: Namespace, speeds: Sequence[Measured]) -> str:
    """How speed was measured, and how quiet the machine was."""
    if not speeds:
        return "Speed has not been measured yet."
    mean, deviation = mean_and_deviation([one.noise for one in speeds])
    return (
        f"Speed: {options.threads} threads, {options.rounds} rounds in turn, a load of at most "
        f"{max(one.load for one in speeds):.1f} before a call; a fixed computation before each varied by "
        f"{deviation / mean:.1%}."
    )


def shown(options: Namespace) -> str:
    """The command without the machine's paths."""
    parts = [Path(options.checkpoint).name.upper()]
    parts += [Path(bundle).name for bundle in options.bundles]
    parts += ["--folder FOLDER", "--envs ENVS", "--programs PROGRAMS"]
    parts += [f"--rounds {options.rounds}", f"--threads {options.threads}", f"--items {options.items}"]
    parts += [f"--only {shlex.quote(name)}" for name in options.only]
    return " ".join(parts)
