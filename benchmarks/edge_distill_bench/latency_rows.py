"""The rounds of an unfinished measurement of latency, for the next call to go on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_distill_bench.latency import Plan, Round
from edge_distill_bench.lines import append_lines, bad_line, cut_torn_line, read_lines
from edge_distill_runtime.bundles.typed_json import typed

__all__ = ["LatencyRows"]


@dataclass(frozen=True)
class _Row:
    key: str
    name: str
    measured: Round


class LatencyRows:
    """A JSON lines file; rounds of other models, settings or plans in it are passed over."""

    def __init__(self, path: Path, hashes: Mapping[str, str], plan: Plan, settings: Any) -> None:
        """`hashes` of the models by their names; `settings` in JSON's types."""
        self._path, self._names = path, tuple(hashes)
        parts = json.dumps([dict(hashes), asdict(plan), settings], sort_keys=True)
        self._key = hashlib.sha256(parts.encode()).hexdigest()

    def append(self, name: str, measured: Round) -> None:
        """Keep one more round of a model."""
        append_lines(self._path, [asdict(_Row(self._key, name, measured))])

    def complete(self) -> Sequence[Sequence[Round]]:
        """The rounds of each model that all of them have had, in the order of the names."""
        found: dict[str, list[Round]] = {name: [] for name in self._names}
        if self._path.exists():
            cut_torn_line(self._path)
            for number, values in read_lines(self._path):
                try:
                    row = typed(_Row, values, "row")
                except ValueError as exc:
                    raise bad_line(self._path, number) from exc
                if row.key == self._key:
                    found[row.name].append(row.measured)
        rounds = min(map(len, found.values()))
        return [column[:rounds] for column in found.values()]

    def remove(self) -> None:
        """Forget them: the results hold them now."""
        self._path.unlink(missing_ok=True)
