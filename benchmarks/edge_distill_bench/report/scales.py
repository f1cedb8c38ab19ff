"""From values to places on a drawing: linear and logarithmic scales, and the numbers that stand at an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Axis", "Scale", "scale_for"]


@dataclass(frozen=True)
class Axis:
    """What an axis says."""

    title: str
    better: Literal["low", "high"]
    format: Callable[[float], str] = field(default=lambda value: f"{value:g}")
    log: bool | None = None
    """None: logarithmic when the values differ by more than four times."""
    floor: float = -math.inf
    ceiling: float = math.inf
    """Limits that the axis does not go beyond, such as 0 and 1 for a share."""


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on places from `start` to `end`, which may run backwards."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        share = (self._map(value) - self._map(self.low)) / (self._map(self.high) - self._map(self.low))
        return self.start + share * (self.end - self.start)

    def _map(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, about: int) -> list[float]:
        """Round numbers within the scale, roughly so many."""
        return _log_ticks(self.low, self.high, about) if self.log else _ticks(self.low, self.high, about)


def scale_for(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    """A scale that holds all values, with some air around them."""
    low, high = min(values), max(values)
    log = low > 0 and (high / low > 4 if axis.log is None else axis.log)
    if log:
        air = max((high / low) ** 0.08, 1.06)
        return Scale(
            max(low / air, axis.floor if axis.floor > 0 else 0),
            min(high * air, axis.ceiling),
            start,
            end,
            True,
        )
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Scale(max(low - air, axis.floor), min(high + air, axis.ceiling), start, end)


def _ticks(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    ):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if found and len(ticks) > about * 1.4:
            break
        found = ticks
        if len(found) >= about * 0.7:
            break
    return found if len(found) > 1 else _ticks(low, high, about)
