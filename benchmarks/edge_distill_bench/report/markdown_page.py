"""report.md: the same verdicts and tables for a pull request or a model card."""

from __future__ import annotations

from collections.abc import Sequence

from edge_distill_bench.report import tables
from edge_distill_bench.report.entries import Entry, verdict_of
from edge_distill_bench.report.escape import markdown, printable
from edge_distill_bench.report.facts import facts_of
from edge_distill_bench.report.tables import Table
from edge_distill_bench.results import BenchResults

__all__ = ["render_markdown"]


def render_markdown(results: BenchResults, entries: Sequence[Entry]) -> str:
    """GitHub's Markdown; nothing that came from a file is markup."""
    verdicts = [
        f"- **{markdown(entry.name)}** {markdown(verdict_of(entry, entries).text)}" for entry in entries
    ]
    sections = [
        ("Summary", "\n".join(verdicts)),
        ("Overview", _table(tables.overview_table(entries))),
        ("Gate", _table(tables.gate_table(results))),
        ("Paired comparisons", _table(tables.comparison_table(entries))),
        ("Accuracy", _table(tables.accuracy_table(entries))),
        ("Fidelity", _table(tables.fidelity_table(entries))),
        ("Speed", _table(tables.latency_table(entries))),
        ("Measured in turn", _table(tables.ratio_table(results))),
        ("Memory, MB", _table(tables.memory_table(entries))),
        ("Machine", "\n".join(f"- {name}: {markdown(value)}" for name, value in facts_of(results))),
        ("Command", "\n".join(f"    {line}" for line in printable(results.command).splitlines())),
    ]
    return "# Benchmark\n\n" + "\n".join(f"## {title}\n\n{text}\n" for title, text in sections if text)


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    marks = [
        "---" if not index or name in table.text_columns else "--:" for index, name in enumerate(table.header)
    ]
    rows = [table.header, marks, *table.rows]
    return "\n".join(
        "| " + " | ".join(cell if row is marks else markdown(cell) for cell in row) + " |" for row in rows
    )
