"""Fresh processes, watched from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from edge_distill_runtime.errors import BackendError

__all__ = ["Watched", "proportional_bytes", "run_module", "watch"]

_SECONDS_BETWEEN_SAMPLES = 0.02


@dataclass(frozen=True)
class Watched:
    """What a process said, and what it took."""

    output: str
    peak_pss: int | None
    """Highest proportional set size that was seen, bytes; None where the system does not say."""


def run_module(name: str, *arguments: object) -> list[str]:
    """The command of a module in a new interpreter of this kind."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def watch(command: Sequence[str], *, samples: bool = True) -> Watched:
    """Run a command to its end and sample its memory all the while, or leave it alone; `BackendError` when it fails."""
    with TemporaryFile() as output, TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            peak = _highest_pss(process) if samples else None
            process.wait()
        finally:
            process.kill()  # of no effect when it has ended
            process.wait()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            said = errors.read().decode(errors="replace").strip()[-300:]
            raise BackendError("measure-failed", f"the measured process failed: {said}")
        return Watched(output.read().decode(), peak)


def _highest_pss(process: subprocess.Popen[bytes]) -> int | None:
    peak: int | None = None
    while process.poll() is None:
        found = proportional_bytes(process.pid)
        if found is not None:
            peak = max(peak or 0, found)
        time.sleep(_SECONDS_BETWEEN_SAMPLES)
    return peak


def proportional_bytes(process: int) -> int | None:
    """Its memory, pages shared with others counted by share; None when it has ended or the system does not say."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    values = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(values[0]) * 1024 if values else None
