"""Training checkpoints that are known to be complete: each holds the sizes and hashes of its files, written last.

transformers resumes from the newest folder by number, even from a damaged one; here a run goes on from the newest
folder whose files are what its list says.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from edge_distill_runtime.bundles.files import read_bounded, sha256_of
from edge_distill_runtime.errors import EdgeDistillError

__all__ = ["last_complete", "mark_complete"]

_LIST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_MAX_LIST = 1 << 20


def mark_complete(folder: Path) -> None:
    """Sync every file of a checkpoint to the disk, then write the list of them."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _LIST:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(folder))] = list(sha256_of(path))
    partial = folder / f".{_LIST}.partial"
    with partial.open("w", encoding="utf-8") as target:
        json.dump(files, target, indent=1)
        target.flush()
        os.fsync(target.fileno())
    os.replace(partial, folder / _LIST)


def last_complete(run: Path) -> Path | None:
    """The newest checkpoint in a folder of them whose files are all there and as they were written."""
    found = [
        (int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    ]
    return next((path for _, path in sorted(found, reverse=True) if _is_complete(path)), None)


def _is_complete(folder: Path) -> bool:
    try:
        files = json.loads(read_bounded(folder / _LIST, _MAX_LIST))
        return bool(files) and all(
            not Path(name).is_absolute()
            and ".." not in Path(name).parts
            and sha256_of(folder / name) == (size, digest)
            for name, (size, digest) in files.items()
        )
    except (OSError, ValueError, TypeError, AttributeError, EdgeDistillError):
        return False
