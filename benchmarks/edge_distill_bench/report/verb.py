"""`edge-distill report`: results.json and its rows as one page, as Markdown and as a table."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_bench.report.csv_file import render_csv
from edge_distill_bench.report.entries import entries_of, verdict_of
from edge_distill_bench.report.flips import flips_of
from edge_distill_bench.report.markdown_page import render_markdown
from edge_distill_bench.report.page import render_page
from edge_distill_bench.results import RESULTS_NAME, read_results
from edge_distill_runtime.errors import InputError, ResourceError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """Where the files are, and the verdict on each model."""

    html: str
    markdown: str
    csv: str
    verdicts: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        for name, text in self.verdicts.items():
            console.print(f"{name}: {text}")
        console.print(f"\n{self.html}\n{self.markdown}\n{self.csv}")


def report(folder: Annotated[Path, "What `bench --out` wrote: results.json and rows/"]) -> Report:
    """Write report.html, report.md and results.csv beside results.json.

    The page is one file: no script, no network. `python -m edge_distill_bench.report FOLDER` does the same on a
    device. Raises `InputError` for results that are none, `ResourceError` when the folder cannot be written.
    """
    results = read_results(folder)
    folder = folder if folder.is_dir() else folder.parent
    entries = entries_of(results)
    if not entries:
        raise InputError("no-results", f"{folder / RESULTS_NAME} holds no model", "run bench first")
    flips = flips_of(folder, entries)
    contents = {
        "report.html": render_page(results, entries, flips),
        "report.md": render_markdown(results, entries),
        "results.csv": render_csv(entries),
    }
    for name, content in contents.items():
        _write(folder / name, content)
    verdicts = {entry.name: verdict_of(entry, entries).text for entry in entries}
    html, page, table = (str(folder / name) for name in contents)
    return Report(html, page, table, verdicts)


def _write(path: Path, content: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise ResourceError(
            "unwritable", f"{path} cannot be written: {exc.strerror}", "check the folder"
        ) from exc
