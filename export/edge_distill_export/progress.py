"""Progress of long stages on stderr: a bar with the time left on a terminal, otherwise plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[..., None]
"""`advance()` counts one unit of the stage's total, `advance(n)` counts n."""


@contextmanager
def stage(name: str, total: int | None = None) -> Iterator[Advance]:
    """Show one long stage while the body runs.

    `with stage("Quantizing layers", total=30) as advance:` and `advance()` after each layer. Without a total
    there is no estimate. A stage that fails says so and lets the exception pass.
    """
    show = _bar if sys.stderr.isatty() else _lines
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


@contextmanager
def _lines(name: str, total: int | None) -> Iterator[Advance]:
    started = last = monotonic()
    done = 0

    def say(text: str) -> None:
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    def advance(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = monotonic()
        if total and now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            left = (now - started) / done * (total - done)
            say(f"{done}/{total}, about {left:.0f} s left")

    say("started")
    try:
        yield advance
    except BaseException:
        say(f"stopped after {monotonic() - started:.1f} s")
        raise
    say(f"{monotonic() - started:.1f} s")
