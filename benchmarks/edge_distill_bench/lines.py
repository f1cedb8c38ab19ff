"""JSON lines that a killed run leaves readable: whole lines are appended, the torn one at the end is cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_distill_runtime.bundles.files import open_regular
from edge_distill_runtime.errors import InputError, ResourceError

__all__ = ["append_lines", "cut_torn_line", "read_lines"]

_MAX_LINE = 1 << 24  # bytes


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and the objects in them; `InputError` names a line that is none."""
    with open_regular(path, allow_links=True) as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError
            except (ValueError, RecursionError) as exc:
                raise bad_line(path, number) from exc
            yield number, value


def bad_line(path: Path, number: int) -> InputError:
    """What to raise for a line that holds something else."""
    return InputError(
        "bad-rows", f"line {number} of {path} is no row", "give another file, or remove the line"
    )


def cut_torn_line(path: Path) -> None:
    """Remove the end of a write that was killed."""
    with open_regular(path, allow_links=True) as file:
        size = whole = file.seek(0, os.SEEK_END)
        while whole:
            start = max(0, whole - 65536)
            file.seek(start)
            at = file.read(whole - start).rfind(b"\n")
            whole = start + at + 1 if at >= 0 else start
            if at >= 0:
                break
    if whole < size:
        os.truncate(path, whole)


def append_lines(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Write objects behind what is there, at once; `ResourceError` when that cannot be."""
    data = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    try:
        with path.open("ab") as file:
            file.write(data.encode("utf-8", "replace"))
    except OSError as exc:
        raise ResourceError(
            "unwritable", f"{path} cannot be written: {exc.strerror}", "choose another file"
        ) from exc
