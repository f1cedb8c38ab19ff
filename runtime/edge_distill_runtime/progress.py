"""Progress of long stages as plain lines on stderr, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

__all__ = ["SECONDS_BETWEEN_LINES", "Advance", "lines"]

SECONDS_BETWEEN_LINES = 10.0
_AT_ONCE = (
    1.0  # what is there within a second was done by an earlier run, and says nothing about the time left
)

Advance = Callable[..., None]
"""`advance()` counts one unit of the stage's total, `advance(n)` counts n."""


@contextmanager
def lines(name: str, total: int | None = None) -> Iterator[Advance]:
    """Tell when the body starts and ends, and every ten seconds how long it will take; without a total it does not.

    A body that fails is said to have stopped, and its exception passes.
    """
    started = last = monotonic()
    done = known = 0

    def say(text: str) -> None:
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    def advance(count: int = 1) -> None:
        nonlocal done, known, last
        done += count
        now = monotonic()
        if now - started < _AT_ONCE:
            known = done
        elif total and now - last >= SECONDS_BETWEEN_LINES and known < done < total:
            last = now
            left = (now - started) / (done - known) * (total - done)
            say(f"{done}/{total}, about {left:.0f} s left")

    say("started")
    try:
        yield advance
    except BaseException:
        say(f"stopped after {monotonic() - started:.1f} s")
        raise
    say(f"{monotonic() - started:.1f} s")
