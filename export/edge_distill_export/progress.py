"""Progress of long stages on stderr: a bar with the time left on a terminal, otherwise plain lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edge_distill_runtime.progress import Advance, lines

__all__ = ["Advance", "stage"]


@contextmanager
def stage(name: str, total: int | None = None) -> Iterator[Advance]:
    """Show one long stage while the body runs.

    `with stage("Quantizing layers", total=30) as advance:` and `advance()` after each layer. Without a total
    there is no estimate. A stage that fails says so and lets the exception pass.
    """
    show = _bar if sys.stderr.isatty() else lines
    with show(name, total) as advance:
        yield advance


@contextmanager
def _bar(name: str, total: int | None) -> Iterator[Advance]:
    import os

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto")
    columns = [SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False)]
    if total is not None:
        columns += [BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn()]
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(name, total=total)
        yield lambda count=1: progress.advance(task, count)
        progress.update(task, total=total or 1, completed=total or 1)
