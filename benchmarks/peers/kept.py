"""What was measured, one JSON line each: a later call goes on where an earlier one ended."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import edge_distill_runtime
from edge_distill_bench.lines import append_lines, cut_torn_line, read_lines


@dataclass(frozen=True)
class Measured:
    """An output line of a script, and when and on how quiet a machine it was measured."""

    line: dict[str, Any]
    date: str
    noise: float = 0.0
    """Seconds of the fixed computation before it."""
    load: float = 0.0
    """Of the machine, in the minute before the call."""


class Kept:
    """A file of what was measured, found again by what it was measured of."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, key: str) -> list[Measured]:
        """In the order in which it was measured."""
        if not self._path.exists():
            return []
        cut_torn_line(self._path)
        rows = [row for _, row in read_lines(self._path) if row.get("key") == key]
        return [Measured(**row["measured"]) for row in rows]

    def add(self, key: str, measured: Measured) -> None:
        """On the disk before the next measurement begins."""
        append_lines(self._path, [{"key": key, "measured": asdict(measured)}])


def key_of(about: Sequence[str], script: Path, model: Path, *, in_project: bool) -> str:
    """Changes with the script, its pins, the model's file and, where it runs that, with our own runtime."""
    files = sorted(model.glob("*.onnx*"), reverse=True) if model.is_dir() else []
    stat = (files or [model])[0].stat()
    code = [script]
    if in_project:
        code += sorted(Path(edge_distill_runtime.__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(b"\n".join(path.read_bytes() for path in code)).hexdigest()
    return json.dumps([*about, digest[:16], f"{model.name} {stat.st_size} {stat.st_mtime_ns}"])


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
