"""Energy of the processor packages, by the counters of RAPL that Linux shows below /sys/class/powercap.

https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "open_meter"]

_ROOT = Path("/sys/class/powercap")
# A package's own folder; core and memory lie inside it as intel-rapl:0:1 and are counted with it.
_PACKAGE = re.compile(r"intel-rapl:\d+")


@dataclass(frozen=True)
class Meter:
    """The counters of all packages, or the reason why there are none."""

    domains: Mapping[Path, int]
    """Folder of a package, and the microjoules at which its counter starts again from 0."""
    reason: str
    """What is read, or why nothing can be."""

    def read(self) -> tuple[int, ...]:
        """Microjoules of every package since its counter last started; nothing without counters."""
        return tuple(_number(folder / "energy_uj") for folder in self.domains)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float | None:
        """Between two readings, at most one wrap-around apart (minutes at full power); None without counters."""
        if not self.domains:
            return None
        spans = (
            (end - start) % (limit + 1)
            for start, end, limit in zip(before, after, self.domains.values(), strict=True)
        )
        return sum(spans) / 1e6


def open_meter(root: Path = _ROOT) -> Meter:
    """Find the packages and read each once, for what cannot be read to be known at the start."""
    found: dict[Path, int] = {}
    names = []
    try:
        for folder in sorted(folder for folder in root.iterdir() if _PACKAGE.fullmatch(folder.name)):
            name = (folder / "name").read_text(encoding="ascii").strip()
            if name.startswith("package"):  # "psys" counts the packages once more
                _number(folder / "energy_uj")
                found[folder] = _number(folder / "max_energy_range_uj")
                names.append(name)
    except FileNotFoundError as exc:
        return Meter({}, f"not measured: {exc.filename} does not exist")
    except PermissionError as exc:
        return Meter({}, f"not measured: {exc.filename} may be read by root alone")
    except (OSError, ValueError) as exc:
        return Meter({}, f"not measured: RAPL cannot be read: {exc}")
    if not found:
        return Meter({}, f"not measured: {root} shows no package of RAPL")
    return Meter(found, f"RAPL: {', '.join(names)}")


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
