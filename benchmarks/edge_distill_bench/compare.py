"""`edge-distill compare`: two benchmarks of the same models, and limits to what may have become worse.

The rule is the gate's: a line fails when its 95 % interval lies wholly beyond the limit, so that noise alone fails
it rarely. Single values (memory, size, KL) have no interval: there the value decides. What has a limit but was not
measured in both fails.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_bench.changes import HIGHER_IS_BETTER, Change, Run, changes_of
from edge_distill_bench.measure import print_table
from edge_distill_bench.results import BenchResults, read_results
from edge_distill_runtime.errors import EdgeDistillError, GateError, InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Compared", "Line", "compare", "main"]

_LIMIT = re.compile(r"([a-z]\w*):([+-])(\d+(?:\.\d+)?)%")
_TITLES = ("model", "metric", "before", "after", "change", "from")
_FAIL_IF = "A limit such as decode:-5%, ttft:+10%, accuracy:-1% (points) or kl:+10%; may be repeated"


@dataclass(frozen=True)
class Line:
    """One limit and one change."""

    limit: str
    artifact: str
    condition: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Compared:
    """All changes, the limits' lines, and what makes the two runs hard to compare."""

    before: str
    after: str
    changes: tuple[Change, ...]
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        for warning in self.warnings:
            console.print(f"careful: {warning}")
        table = Table(box=None, pad_edge=False)
        for title in _TITLES:
            table.add_column(title, justify="right" if title in ("before", "after", "change") else "left")
        for change in self.changes:
            table.add_row(*_cells(change))
        console.print(table)
        for line in sorted(self.lines, key=lambda line: not line.passed):
            console.print(line.text)


def compare(
    before: Annotated[Path, "results.json of the first run, or its folder"],
    after: Annotated[Path, "results.json of the second run, or its folder"],
    *,
    fail_if: Annotated[list[str] | None, _FAIL_IF] = None,
    console: Console | None = None,
) -> Compared:
    """Compare two benchmarks of the same models: median ratios of timings, paired differences of accuracies.

    Timings are paired round by round, answers item by item where rows/ and problems.jsonl lie beside both results.
    Raises `GateError` (exit code 8) when a limit of `fail_if` is broken; its data holds the whole comparison.
    """
    limits = [_parse(part) for text in fail_if or () for part in text.split(",")]
    runs = [Run(read_results(path), path if path.is_dir() else path.parent) for path in (before, after)]
    names = [[artifact.name for artifact in run.results.artifacts] for run in runs]
    common = [name for name in names[0] if name in names[1]]
    if not common:
        raise InputError(
            "nothing-in-common",
            f"{before} and {after} share no model: {', '.join(names[0])} and {', '.join(names[1])}",
            "compare two runs of the same models",
        )
    changes = tuple(change for name in common for change in changes_of(runs[0], runs[1], name))
    judged = [name for name in common if runs[1].results.artifact(name).role == "artifact"] or common
    lines = tuple(line for limit in limits for name in judged for line in _lines(limit, name, changes))
    warnings = _warnings(runs[0].results, runs[1].results)
    result = Compared(str(before), str(after), changes, lines, tuple(warnings))
    failed = [line for line in lines if not line.passed]
    if failed:
        if console is not None:
            result.render(console)
        rest = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        hint = warnings[0] if warnings else "the changes above say what else moved"
        raise GateError("regression", failed[0].text + rest, hint, result.to_dict())
    return result


# -- limits --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limit:
    text: str
    metric: str
    change: float
    """The furthest change in the bad direction: -0.05 for decode:-5%."""


def _parse(text: str) -> _Limit:
    match = _LIMIT.fullmatch(text.strip())
    if not match:
        raise InputError("bad-limit", f"{text[:80]!r} is no limit", "write it like decode:-5% or ttft:+10%")
    metric, sign, number = match.groups()
    if metric not in HIGHER_IS_BETTER:
        close = get_close_matches(metric, HIGHER_IS_BETTER, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(
            "bad-limit", f"there is no metric {metric[:40]!r}", f"{hint}known: {', '.join(HIGHER_IS_BETTER)}"
        )
    if (sign == "-") != HIGHER_IS_BETTER[metric]:
        better = "more" if HIGHER_IS_BETTER[metric] else "less"
        raise InputError(
            "bad-limit", f"{text.strip()!r} sets no limit: {better} {metric} is better", "turn the sign round"
        )
    return _Limit(text.strip(), metric, float(f"{sign}{number}") / 100)


def _lines(limit: _Limit, name: str, changes: Sequence[Change]) -> list[Line]:
    fitting = [change for change in changes if (change.artifact, change.metric) == (name, limit.metric)]
    if not fitting:
        text = f"{name}: {limit.metric} was not measured in both runs, so {limit.text} fails"
        return [Line(limit.text, name, "", False, text)]
    return [_judge(limit, change) for change in fitting]


def _judge(limit: _Limit, change: Change) -> Line:
    low, high = change.interval or (change.change, change.change)
    falls = HIGHER_IS_BETTER[limit.metric]
    fails = high < limit.change if falls else low > limit.change
    proven = low >= limit.change if falls else high <= limit.change
    verdict = "fails" if fails else "passes" if proven else "passes, but is not proven"
    where = f" {change.condition}" if change.condition else ""
    text = (
        f"{change.artifact}: {change.metric}{where} changed by {_changed(change)} ({change.note}): "
        f"{limit.text} {verdict}"
    )
    return Line(limit.text, change.artifact, change.condition, not fails, text)


def _changed(change: Change) -> str:
    unit = " %" if change.unit == "percent" else " points"
    interval = ""
    if change.interval:
        interval = f" [{100 * change.interval[0]:+.1f}, {100 * change.interval[1]:+.1f}]"
    return f"{100 * change.change:+.1f}{unit}{interval}"


# -- for people ----------------------------------------------------------------------------------------------


def _cells(change: Change) -> tuple[str, ...]:
    def shown(value: float) -> str:
        if change.metric in ("rss", "pss", "size"):
            return f"{value / 1e6:.1f} MB"
        return f"{100 * value:.1f} %" if change.unit == "points" else f"{value:.4g}"

    metric = f"{change.metric} {change.condition}".strip()
    return change.artifact, metric, shown(change.before), shown(change.after), _changed(change), change.note


def _warnings(before: BenchResults, after: BenchResults) -> list[str]:
    """Why a change may not be the models'."""
    found = []
    for name in ("cpu", "cpus", "memory", "system"):
        one, two = getattr(before.machine, name), getattr(after.machine, name)
        if one != two:
            found.append(f"another machine: {name} is {one} and {two}; timings do not compare")
    for name in ("threads", "tasks", "items", "seed", "budgets", "samples", "max_tokens"):
        one, two = getattr(before.settings, name), getattr(after.settings, name)
        if one != two:
            found.append(f"other settings: {name} is {one} and {two}")
    for name in sorted(before.machine.versions.keys() | after.machine.versions.keys()):
        versions = [results.machine.versions.get(name, "missing") for results in (before, after)]
        if versions[0] != versions[1]:
            found.append(f"other versions: {name} {versions[0]} and {versions[1]}")
    for results, which in ((before, "first"), (after, "second")):
        if results.machine.is_busy:
            found.append(f"the machine was busy in the {which} run: load {results.machine.load:.1f}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.compare`, where the command line is not installed."""
    parser = argparse.ArgumentParser(prog="python -m edge_distill_bench.compare", description=compare.__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--fail-if", action="append", help=_FAIL_IF.replace("%", "%%"))
    options = parser.parse_args(arguments)
    try:
        result = compare(options.before, options.after, fail_if=options.fail_if)
    except EdgeDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for warning in result.warnings:
        print(f"careful: {warning}")
    print_table("", _TITLES, [_cells(change) for change in result.changes])
    print(*(line.text for line in result.lines), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
