"""report.html: one file without scripts, without a network, readable on a phone, in light and dark.

Everything that came from a model or a file is escaped, and the content security policy allows nothing but the one
style sheet, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_distill_bench.report import charts, numbers, tables
from edge_distill_bench.report.entries import Entry, Status, verdict_of
from edge_distill_bench.report.escape import escape, shortened
from edge_distill_bench.report.facts import facts_of, tiles_of, when_of
from edge_distill_bench.report.flips import Flip, marked
from edge_distill_bench.report.svg import element, marker
from edge_distill_bench.report.tables import Table
from edge_distill_bench.results import BenchResults

__all__ = ["BADGES", "render_page"]

BADGES: dict[Status, tuple[str, str]] = {
    "equivalent": ("good", "✓ equivalent"),
    "worse": ("bad", "✗ worse"),
    "unclear": ("unsure", "? not decided"),
    "not measured": ("", "not compared"),
    "reference": ("", "reference"),
}
"""Class and words of a verdict."""

_DIRECTIONS = {"right to wrong": "bad", "wrong to right": "good", "wrong to other": ""}


def render_page(results: BenchResults, entries: Sequence[Entry], flips: Mapping[str, Sequence[Flip]]) -> str:
    """The whole document; `flips` by the model's name."""
    style = (Path(__file__).parent / "style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sections = _sections(results, entries, flips)
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections if key != "summary")
    body = "".join(
        f'<section id="{key}"><h2>{escape(title)}</h2>{content}</section>' for key, title, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(_title(entries))}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(_title(entries))}</h1>{_lead(results, entries)}<nav>{links}</nav></header>"
        f"<main>{_tiles(results, entries)}{body}</main>"
        "<footer>Written by edge-distill report. The numbers are in results.csv and results.json beside this file."
        "</footer></body></html>\n"
    )


def _title(entries: Sequence[Entry]) -> str:
    reference = next((entry.name for entry in entries if entry.artifact.role == "student"), None)
    return f"Benchmark of {reference}" if reference else "Benchmark"


def _lead(results: BenchResults, entries: Sequence[Entry]) -> str:
    settings, machine = results.settings, results.machine
    asked = (
        f"{settings.items} items of {len(settings.tasks)} {'task' if len(settings.tasks) == 1 else 'tasks'}"
    )
    line = f"{len(entries)} models, {asked}, {machine.cpu}, {settings.threads} threads, {when_of(results)}"
    return f'<p class="lead">{escape(line)}</p>'


def _tiles(results: BenchResults, entries: Sequence[Entry]) -> str:
    tiles = tiles_of(results, entries)
    content = "".join(
        f'<div class="card tile"><b>{escape(value)}</b><span>{escape(said)}</span></div>'
        for value, said in tiles
    )
    return f'<div class="tiles">{content}</div>' if tiles else ""


def _sections(
    results: BenchResults, entries: Sequence[Entry], flips: Mapping[str, Sequence[Flip]]
) -> list[tuple[str, str, str]]:
    """Key, heading, content; those without content are left out."""
    legend = _legend(entries)
    accuracy = _charts(charts.interval_charts(entries), "grid")
    curves = _charts(charts.curve_charts(entries), "grid")
    speeds = _charts(charts.speed_charts(entries), "grid three")
    found = [
        ("summary", "Summary", _verdicts(entries)),
        ("fronts", "Pareto fronts", _fronts(entries)),
        ("numbers", "All models", _table(tables.overview_table(entries))),
        ("gate", "Gate", _table(tables.gate_table(results))),
        ("accuracy", "Accuracy", accuracy + _comparisons(entries)),
        ("curves", "Curves", curves and legend + curves + _cells(entries)),
        ("fidelity", "Fidelity", _fidelity(entries)),
        ("speed", "Speed", _speed(results, entries, legend, speeds)),
        ("memory", "Memory", _memory(entries)),
        ("flips", "Flips", _flips(entries, flips)),
        ("machine", "Machine and command", _facts(results)),
    ]
    return [section for section in found if section[2]]


def _verdicts(entries: Sequence[Entry]) -> str:
    items = []
    for entry in entries:
        verdict = verdict_of(entry, entries)
        class_, words = BADGES[verdict.status]
        words = entry.artifact.role if verdict.status == "reference" else words
        items.append(
            f'<li><span class="name">{_key(entry)} {escape(entry.name)}</span>'
            f'<span><span class="badge {class_}">{escape(words)}</span></span>'
            f"<p>{escape(verdict.text)}</p></li>"
        )
    return f'<ul class="card verdicts">{"".join(items)}</ul>'


def _key(entry: Entry) -> str:
    shape = marker(entry.marker, 7.0, 7.0, class_=entry.colour)
    return element("svg", shape, class_="key", viewBox="0 0 14 14", aria_hidden="true")


def _legend(entries: Sequence[Entry]) -> str:
    items = "".join(f"<li>{_key(entry)} {escape(entry.name)}</li>" for entry in entries)
    return f'<ul class="legend">{items}</ul>'


def _charts(drawn: Sequence[charts.Chart], grid: str) -> str:
    cards = "".join(
        f'<div class="card"><h3>{escape(one.title)}</h3>{one.wide}{one.narrow}'
        f'<p class="note">{escape(one.note)}</p></div>'
        for one in drawn
    )
    return f'<div class="{grid}">{cards}</div>' if cards else ""


def _fronts(entries: Sequence[Entry]) -> str:
    drawn = _charts(charts.front_charts(entries), "grid")
    note = (
        "The line joins the models that no other beats on both axes; whiskers are 95 % intervals. "
        "Where intervals overlap, the order may be chance."
    )
    return drawn and f'<p class="note">{note}</p>{drawn}'


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f"<th{_cell_class(name, table)}>{escape(name)}</th>" for name in table.header)
    rows = []
    for row in table.rows:
        cells = [f"<th{_cell_class(table.header[0], table)}>{escape(row[0])}</th>"]
        cells += [
            f"<td{_cell_class(name, table)}>{_cell(cell)}</td>"
            for name, cell in zip(table.header[1:], row[1:], strict=True)
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="card scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell_class(name: str, table: Table) -> str:
    if name not in table.text_columns:
        return ""
    return ' class="long"' if name == "found" else ' class="text"'


def _cell(cell: str) -> str:
    """An interval stands back behind its value."""
    if cell in ("passed", "FAILED"):
        return f'<span class="badge {"good" if cell == "passed" else "bad"}">{cell}</span>'
    value, bracket, rest = cell.partition(" [")
    return (
        f"{escape(value)} <small>{escape('[' + rest)}</small>"
        if bracket and cell.endswith("]")
        else escape(cell)
    )


def _more(title: str, content: str) -> str:
    return content and f"<details><summary>{escape(title)}</summary>{content}</details>"


def _comparisons(entries: Sequence[Entry]) -> str:
    table = _table(tables.comparison_table(entries))
    note = (
        "Retention with a paired bootstrap interval, the difference with Tango's interval, the exact McNemar test, "
        "and two one-sided tests for equivalence, all on the same items."
    )
    return table and _more("All paired comparisons", f'<p class="note">{note}</p>{table}')


def _cells(entries: Sequence[Entry]) -> str:
    return _more("All counts: tasks, budgets, samples", _table(tables.accuracy_table(entries)))


def _fidelity(entries: Sequence[Entry]) -> str:
    measured = [entry.artifact.fidelity for entry in entries if entry.artifact.fidelity]
    if not measured:
        return ""
    one = measured[0]
    note = (
        f"Teacher-forced against {one.against}, over its {one.k} likeliest tokens and the rest as one: "
        f"KL divergence in nats, a lower bound. {numbers.percent(one.tail)} of the probability lay beyond."
    )
    drawn = _charts(charts.fidelity_charts(entries), "grid")
    kinds = _more("By kind of token", _table(tables.kinds_table(entries)))
    return f'<p class="note">{escape(note)}</p>{_table(tables.fidelity_table(entries))}{drawn}{kinds}'


def _speed(results: BenchResults, entries: Sequence[Entry], legend: str, drawn: str) -> str:
    table = _table(tables.latency_table(entries))
    if not table:
        return ""
    included = next(entry.artifact.latency.included for entry in entries if entry.artifact.latency)
    noise = (
        f"The machine's own noise: {numbers.percent(results.noise.deviation)} "
        f"({results.noise.what}, {len(results.noise.seconds)} times through the run)."
    )
    note = f'<p class="note">{escape(included)} {escape(noise)} Prefill and decode in tokens per second.</p>'
    ratios = _more("Speeds measured in turn, pair by pair", _table(tables.ratio_table(results)))
    return note + table + (drawn and legend + drawn) + ratios


def _memory(entries: Sequence[Entry]) -> str:
    table = _table(tables.memory_table(entries))
    note = "Megabytes of 1,000,000 bytes, the largest of fresh processes that load the model and fill the context."
    return table and f'<p class="note">{note}</p>{table}'


# -- flips ---------------------------------------------------------------------------------------------------


def _flips(entries: Sequence[Entry], flips: Mapping[str, Sequence[Flip]]) -> str:
    parts: list[str] = []
    for entry in entries:
        found = flips.get(entry.name, ())
        if found and entry.comparison:
            counts = entry.comparison.flips
            total = counts.right_to_wrong + counts.wrong_to_right
            shown = f"{len(found)} of {total}" if total > len(found) else f"{total}"
            heading = f"{entry.name} against {entry.comparison.against}: {shown}"
            items = "".join(
                _flip(flip, entry, entry.comparison.against, is_open=not parts and not index)
                for index, flip in enumerate(found)
            )
            parts.append(f'<div class="card flips"><h3>{_key(entry)} {escape(heading)}</h3>{items}</div>')
    note = "Items that only one of the two got right, with all that both said. What differs is marked."
    return f'<p class="note">{note}</p>{"".join(parts)}' if parts else ""


def _flip(flip: Flip, entry: Entry, other: str, *, is_open: bool) -> str:
    before, after = marked(flip.before.text, flip.after.text)
    gold = f" (right: {flip.gold})" if flip.gold else ""
    answers = f"{_answer(flip.before.answer)} → {_answer(flip.after.answer)}"
    problem = f'<p class="problem">{escape(shortened(flip.problem, 2000))}</p>' if flip.problem else ""
    columns = "".join(
        f"<div><h4>{escape(name)}: {escape(row.verdict)}, {row.tokens:,} tokens</h4>"
        f'<div class="said" tabindex="0">{_spans(spans, kind)}</div></div>'
        for name, row, spans, kind in (
            (other, flip.before, before, ""),
            (entry.name, flip.after, after, ' class="new"'),
        )
    )
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(answers)}{escape(shortened(gold, 80))}"
        f'<span class="badge {_DIRECTIONS[flip.direction]}">{flip.direction}</span> '
        f'<small class="note">{escape(shortened(flip.id, 60))}</small></summary>'
        f'{problem}<div class="pair">{columns}</div></details>'
    )


def _answer(answer: str) -> str:
    return shortened(answer, 60).replace("\n", " ") if answer else "no answer"


def _spans(spans: Sequence[tuple[bool, str]], class_: str) -> str:
    """Marks begin with a word, not with the space before it."""
    parts = []
    for differs, words in spans:
        bare = words.lstrip()
        space = words[: len(words) - len(bare)]
        parts.append(f"{escape(space)}<mark{class_}>{escape(bare)}</mark>" if differs else escape(words))
    return "".join(parts)


def _facts(results: BenchResults) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts_of(results))
    return (
        f'<div class="card"><dl>{rows}<dt>Command</dt><dd><pre class="command">{escape(results.command)}</pre></dd>'
        "</dl></div>"
    )
