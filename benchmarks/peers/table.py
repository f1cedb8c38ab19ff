"""The league table: medians of the rounds, who is first, and what the engines counted themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

OURS = "edge-distill"
MARKERS = "<!-- league table: begin -->", "<!-- league table: end -->"
_CLASSES = {"q4_0": "4 bits", "int4": "4 bits", "q4_k_m": "4 bits", "q8_0": "8 bits", "int8": "8 bits"}
_OTHERS = "floats"


@dataclass(frozen=True)
class Entry:
    """One engine on one model, over all rounds."""

    name: str
    engine: str
    precision: str
    speed: tuple[dict[str, Any], ...]
    """Output lines of the rounds."""
    quality: dict[str, Any] | None
    """The output line, with `kl` and `right` filled in."""
    error: str = ""

    @property
    def kind(self) -> str:
        return _CLASSES.get(self.precision, _OTHERS)

    def samples(self, key: str) -> list[float]:
        return [value for line in self.speed for value in line[key] or ()]

    def middle(self, key: str) -> float | None:
        values = self.samples(key)
        return median(values) if values else None

    @property
    def peak(self) -> float | None:
        values = [line["peak_rss"] for line in self.speed if line["peak_rss"]]
        return median(values) if values else None

    @property
    def size(self) -> float | None:
        lines = [*self.speed, *([self.quality] if self.quality else [])]
        return next((line["size_bytes"] for line in lines if line["size_bytes"]), None)

    def of_quality(self, key: str) -> float | None:
        return None if self.quality is None else self.quality.get(key)


@dataclass(frozen=True)
class Column:
    title: str
    value: Callable[[Entry], float | None]
    text: Callable[[float], str]
    is_better_high: bool


COLUMNS = (
    Column("decode tok/s", lambda entry: entry.middle("decode_tps"), "{:.0f}".format, True),
    Column("prefill tok/s", lambda entry: entry.middle("prefill_tps"), "{:,.0f}".format, True),
    Column("TTFT ms", lambda entry: entry.middle("ttft_s"), lambda value: f"{1000 * value:.0f}", False),
    Column("peak MB", lambda entry: entry.peak, lambda value: f"{value / 1e6:.0f}", False),
    Column("size MB", lambda entry: entry.size, lambda value: f"{value / 1e6:.1f}", False),
    Column("KL", lambda entry: entry.of_quality("kl"), "{:.4f}".format, False),
    Column("right", lambda entry: entry.of_quality("right"), "{:.0f}".format, True),
)


def table(entries: Sequence[Entry], items: int) -> str:
    """Markdown: one table for every class of precision, what is first in it, and what could not be run."""
    parts = []
    ran = sorted((entry for entry in entries if not entry.error), key=lambda entry: entry.kind)
    for kind, group in groupby(ran, key=lambda entry: entry.kind):
        rows = sorted(group, key=lambda entry: -(COLUMNS[0].value(entry) or 0))
        parts += [f"### {kind[0].upper()}{kind[1:]}", _rows(rows, items), "\n".join(standing(rows))]
    if agreed := agreement(entries):
        parts += ["### Against the engines' own counters", "\n".join(agreed)]
    if failed := [entry for entry in entries if entry.error]:
        errors = [f"- {entry.name}: `{entry.error.replace('`', chr(39))}`" for entry in failed]
        parts += ["### What could not be run", "\n".join(errors)]
    return "\n\n".join(parts)


def _rows(entries: Sequence[Entry], items: int) -> str:
    titles = [f"right of {items}" if column.title == "right" else column.title for column in COLUMNS]
    lines = [["engine", "precision", *titles], ["---", "---", *("---:" for _ in COLUMNS)]]
    for entry in entries:
        name = f"**{entry.name}**" if entry.engine == OURS else entry.name
        lines.append([name, entry.precision, *(_cell(column, entry) for column in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(column: Column, entry: Entry) -> str:
    value = column.value(entry)
    return "-" if value is None else column.text(value)


def standing(entries: Sequence[Entry]) -> list[str]:
    """A sentence for every column in which another engine is first, or that edge-distill leads."""
    found = []
    for column in COLUMNS:
        known = [(column.value(entry), entry) for entry in entries]
        values = [(value, entry) for value, entry in known if value is not None]
        ours = [(value, entry) for value, entry in values if entry.engine == OURS]
        if not ours or len(ours) == len(values):
            continue
        best = max if column.is_better_high else min
        first, leader = best(values, key=lambda pair: pair[0])
        own, mine = best(ours, key=lambda pair: pair[0])
        level = [(value, entry) for value, entry in values if column.text(value) == column.text(first)]
        equal = [entry.name for _, entry in level if entry.engine != OURS]
        if equal and column.text(own) == column.text(first):
            found.append(
                f"- {column.title}: {mine.name} is level with {', '.join(equal)} ({column.text(own)})."
            )
        elif own == first:
            found.append(f"- {column.title}: {mine.name} is first ({column.text(own)}).")
        else:
            text = f"{leader.name} is first ({column.text(first)}); {mine.name}: {column.text(own)}"
            found.append(f"- {column.title}: edge-distill is not first. {text}.")
    return found


def agreement(entries: Sequence[Entry]) -> list[str]:
    """What this harness measured, divided by what an engine counted in the same runs."""
    found = []
    for entry in entries:
        for key in ("decode_tps", "ttft_s"):
            pairs = [
                (median(line[key]), line["own"][key])
                for line in entry.speed
                if line[key] and (line["own"] or {}).get(key)
            ]
            if pairs:
                ratio = median(measured / counted for measured, counted in pairs)
                found.append(f"- {entry.name}, {key}: measured / own counter = {ratio:.3f}")
    return found


def place(document: str, text: str, markers: tuple[str, str] = MARKERS) -> str:
    """The document with `text` between the two markers; ValueError when it does not hold each once, in order."""
    begin, end = markers
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(end) < document.index(begin):
        raise ValueError(f"the document must hold {begin} and {end}, once each")
    before, _, rest = document.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"
