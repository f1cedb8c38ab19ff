"""Verbs that exist only for the tests of the command line."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from edge_distill_runtime import errors

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Sample:
    values: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.values

    def render(self, console: Console) -> None:
        console.print(f"values [bold]{sorted(self.values)}[/bold]", style="red")


def sample(
    checkpoint: Annotated[Path, "The checkpoint directory"],
    *,
    to: Annotated[list[str], "Target, may be repeated"],
    method: Annotated[Literal["rtn", "gptq"], "How the integers are chosen"] = "rtn",
    limit_kl: Annotated[float | None, "Fail above this mean KL"] = None,
    dry_run: Annotated[bool, "Only say what would be done"] = False,
    on_layer: Any = None,
    console: Console | None = None,
) -> Sample:
    """Show every kind of parameter.

    The second paragraph.
    """
    print("a library prints")
    if console is not None:
        console.print("streamed")
    return Sample(
        {
            "checkpoint": str(checkpoint),
            "to": to,
            "method": method,
            "limit_kl": limit_kl,
            "dry_run": dry_run,
            "on_layer": on_layer,
            "infinite": [float("inf"), float("nan"), 0.5],
        }
    )


def fail(kind: Annotated[str, "Name of the error"]) -> Sample:
    """Raise one kind of error."""
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "module":
        import package_that_nobody_installs  # type: ignore[import-not-found]  # noqa: F401
    if kind == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "model.gguf")
    if kind == "bug":
        raise ZeroDivisionError("division by zero")
    if kind == "numbers":
        raise errors.ParityError("too-far", "0.3 is too much", data={"mean_kl": 0.3, "p99": float("inf")})
    raise getattr(errors, kind)("some-code", "4096 tokens\nand \x1b[2J more", "at most 2048")


def wait() -> Sample:
    """Sleep until interrupted."""
    print("waiting", flush=True)
    time.sleep(60)
    return Sample({})
