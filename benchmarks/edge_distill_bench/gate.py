"""Limits that a build must keep: `retention>=0.99,kl<=0.05,ttft_p95<=0.5,rss<=300MB`.

The rule: a line fails when its 95 % interval lies wholly beyond the limit. So a model that is exactly at the limit
fails a line in at most one run of 40, a better one more rarely, however few items there are; and a line that passes
with the limit inside its interval says "not proven", for more items to decide. Where there is no interval (sizes,
memory, too few rounds) the value decides. What was asked for but not measured fails: no gate passes by silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from edge_distill_bench.gate_metrics import METRICS, Found, shown
from edge_distill_bench.results import ArtifactResult, BenchResults, GateLine
from edge_distill_runtime.errors import GateError, InputError

__all__ = ["Limit", "check_gate", "check_limits", "evaluate_gate", "parse_gate"]

_LIMIT = re.compile(r"\s*([A-Za-z]\w*)\s*(>=|<=)\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*")
_UNITS: dict[str, dict[str, float]] = {
    "bytes": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "seconds": {"": 1, "s": 1, "ms": 1e-3},
    "share": {"": 1, "%": 1e-2},
    "": {"": 1},
}


@dataclass(frozen=True)
class Limit:
    """One line of a gate."""

    text: str
    """As it was given."""
    metric: str
    """A key of `METRICS`."""
    value: float
    """In bytes, seconds, shares, nats, tokens per second or bits."""

    @property
    def is_floor(self) -> bool:
        """Whether the metric must be at least the value."""
        return METRICS[self.metric].higher_is_better


def parse_gate(text: str) -> tuple[Limit, ...]:
    """The limits of a gate, separated by commas.

    Sizes need a unit (B, KB, MB, GB, KiB, MiB, GiB), times may have one (s, ms), shares may be in %. Raises
    `InputError` for an unknown name, naming the known ones, a wrong unit, a number that is none, and a sign that
    points to the wrong side.
    """
    limits = tuple(_parse(part) for part in text.split(","))
    names = [limit.metric for limit in limits]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("bad-gate", f"the gate limits {twice} twice", "give each limit once")
    return limits


def _parse(text: str) -> Limit:
    match = _LIMIT.fullmatch(text)
    if not match:
        raise InputError(
            "bad-gate", f"{text[:80]!r} is no limit", "write it like retention>=0.99 or rss<=300MB"
        )
    name, sign, number, unit = match.groups()
    metric = METRICS.get(name)
    if metric is None:
        close = get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(
            "bad-gate", f"the gate knows no {name[:40]!r}", f"{hint}it knows {', '.join(METRICS)}"
        )
    if sign != (">=" if metric.higher_is_better else "<="):
        better = "more" if metric.higher_is_better else "less"
        raise InputError(
            "bad-gate", f"{text.strip()!r} sets no limit: {better} {name} is better", "turn the sign round"
        )
    units = _UNITS[metric.unit]
    if unit not in units:
        known = ", ".join(filter(None, units)) or "none"
        what = f"has the unit {unit!r}" if unit else "has no unit"
        raise InputError("bad-gate", f"{text.strip()!r} {what}", f"{name} takes: {known}")
    try:
        value = float(number) * units[unit]
    except ValueError as exc:
        raise InputError("bad-gate", f"{number!r} is no number", "write it like 0.99") from exc
    return Limit(text.strip(), name, value)


def check_limits(results: BenchResults, limits: Sequence[Limit]) -> None:
    """Raise `InputError` for a limit that this run is not going to measure, before it takes its time."""
    for limit in limits:
        metric = METRICS[limit.metric]
        if all(metric.of(one) is not None for one in results.artifacts if one.role == "artifact"):
            continue  # known from an earlier run
        if metric.part and metric.part not in results.settings.parts:
            raise InputError(
                "bad-gate", f"{limit.text} takes the part {metric.part}", f"add {metric.part} to --parts"
            )
        if metric.takes_reference and not (results.teacher or results.reference):
            raise InputError(
                "bad-gate", f"{limit.text} takes a model to compare with", "give --teacher or --student"
            )


def evaluate_gate(results: BenchResults, limits: Sequence[Limit]) -> tuple[GateLine, ...]:
    """One line for every limit and artifact; teacher and student are not judged.

    Raises `InputError` when there is no artifact to judge.
    """
    judged = [artifact for artifact in results.artifacts if artifact.role == "artifact"]
    if not judged:
        raise InputError("bad-gate", "the results hold no artifact to judge", "bench at least one bundle")
    return tuple(_judge(artifact, limit) for artifact in judged for limit in limits)


def check_gate(lines: Sequence[GateLine]) -> None:
    """Raise `GateError` with the lines that failed; exit code 8."""
    failed = [line for line in lines if not line.passed]
    if failed:
        rest = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise GateError(
            "gate",
            f"{failed[0].artifact}: {failed[0].text}{rest}",
            "the report shows where it is lost",
            {"failed": [[line.artifact, line.limit, line.value] for line in failed]},
        )


def _judge(artifact: ArtifactResult, limit: Limit) -> GateLine:
    found = METRICS[limit.metric].of(artifact)
    if found is None:
        text = f"{limit.metric} has no value, so {limit.text} cannot be judged: it fails"
        return GateLine(limit.text, artifact.name, None, False, text)
    low, high = found.interval or (None, None)
    # the end that must be on the right side for a proof, and the one that must be on the wrong side to fail
    proof, doubt = (low, high) if limit.is_floor else (high, low)
    fails = _is_beyond(limit, found.value if doubt is None else doubt)
    proven = not _is_beyond(limit, found.value if proof is None and doubt is None else proof)
    text = _sentence(limit, found, "fails" if fails else "passes" if proven else "passes, but is not proven")
    return GateLine(limit.text, artifact.name, found.value, not fails, text, found.interval)


def _is_beyond(limit: Limit, value: float | None) -> bool:
    """Whether a value is on the wrong side; an unknown end is."""
    return value is None or (value < limit.value if limit.is_floor else value > limit.value)


def _sentence(limit: Limit, found: Found, verdict: str) -> str:
    unit = METRICS[limit.metric].unit
    interval = ""
    if found.interval:
        interval = " [" + ", ".join("?" if end is None else shown(end, unit) for end in found.interval) + "]"
    return f"{limit.metric} is {shown(found.value, unit)}{interval} ({found.note}): {limit.text} {verdict}"
