"""Which tensors deserve 8 bits: the search over a matrix of sensitivities, and the rules that it has to beat.

Every tensor has 4 bits or 8; e is 1 for the former, and the predicted KL divergence is e' M e with the matrix of
`Sensitivity.shrunk`. 8 bits are taken as free of error: measured, they lose some hundredth of what 4 bits lose.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_distill_export.grid import BLOCK_SIZE

EXTRA_BLOCK_BYTES = 16
"""What a block takes more at 8 bits, in both formats: 34 and 18 bytes in GGUF, 36 and 20 in ONNX."""
_LAYER = re.compile(r"\.layers\.(\d+)\.(.+)\.weight$")
_ROUNDS = 1000  # of improvements; some dozens are usual
_LEAST_GAIN = 1e-9  # of the loss, against rounding errors that go round in circles


@dataclass(frozen=True)
class Choice:
    """One way to spend the bytes."""

    origin: str
    """`search`, or the rule that it follows."""
    high: frozenset[str]
    """The tensors at 8 bits; all others have 4."""


@dataclass(frozen=True)
class Costs:
    """What the search weighs: tensors in the order of computation, embedding and head last."""

    names: tuple[str, ...]
    extra: np.ndarray
    """int64 [names]: bytes more at 8 bits."""
    matrix: np.ndarray
    """float64 [names, names]: predicted KL divergence of sets of tensors at 4 bits."""

    def predicted(self, high: Collection[str]) -> float:
        """Mean KL divergence in nats a token."""
        low = np.array([name not in high for name in self.names], float)
        return max(0.0, float(low @ self.matrix @ low))

    def spent(self, high: Collection[str]) -> int:
        """Bytes more than with 4 bits everywhere."""
        return int(sum(size for name, size in zip(self.names, self.extra, strict=True) if name in high))


def extra_bytes(weights: int) -> int:
    """Bytes that 8 bits take more than 4 for a tensor of so many weights."""
    return weights // BLOCK_SIZE * EXTRA_BLOCK_BYTES


def search(costs: Costs, room: int, start: Collection[str] = ()) -> Choice:
    """Spend at most `room` bytes: greedily by loss saved per byte, then by exchanges while one helps.

    `start` has 8 bits at first; exchanges may take them away. The same input gives the same choice.
    """
    low = np.array([name not in start for name in costs.names])
    if room < costs.spent(start):
        raise ValueError(f"the start takes {costs.spent(start) - room} bytes more than there are")
    low = _filled(costs, low, room)
    for _ in range(_ROUNDS):
        better = _swapped(costs, low, room)
        if better is None:
            better = _exchanged(costs, low, room)
        if better is None:
            break
        low = better
    return Choice(
        "search", frozenset(name for name, is_low in zip(costs.names, low, strict=True) if not is_low)
    )


def _left(costs: Costs, low: np.ndarray, room: int) -> int:
    return room - int(costs.extra[~low].sum())


def _loss(costs: Costs, low: np.ndarray) -> float:
    return float(low @ costs.matrix @ low)


def _filled(costs: Costs, low: np.ndarray, room: int) -> np.ndarray:
    """Raise tensors while one fits and helps."""
    low = low.copy()
    while True:
        fits = low & (costs.extra <= _left(costs, low, room))
        saved = np.where(fits, _savings(costs, low), 0.0)
        if saved.max(initial=0.0) <= 0:
            return low
        low[int((saved / costs.extra).argmax())] = False


def _savings(costs: Costs, low: np.ndarray) -> np.ndarray:
    """Loss saved by raising each low tensor: e'Me - (e - u)'M(e - u) = 2 u'Me - u'Mu."""
    return 2 * costs.matrix @ low - costs.matrix.diagonal()


def _losses(costs: Costs, low: np.ndarray) -> np.ndarray:
    """Loss added by lowering each high tensor."""
    return 2 * costs.matrix @ low + costs.matrix.diagonal()


def _swapped(costs: Costs, low: np.ndarray, room: int) -> np.ndarray | None:
    """One raised and one lowered, the pair that saves most, and what then fits; None where no pair saves."""
    saved = _savings(costs, low)[:, None] - _losses(costs, low)[None, :] + 2 * costs.matrix
    fits = costs.extra[:, None] - costs.extra[None, :] <= _left(costs, low, room)
    saved = np.where(low[:, None] & ~low[None, :] & fits, saved, 0.0)
    if saved.max(initial=0.0) <= _LEAST_GAIN * _loss(costs, low):
        return None
    up, down = np.unravel_index(int(saved.argmax()), saved.shape)
    changed = low.copy()
    changed[up], changed[down] = False, True
    return _filled(costs, changed, room)


def _exchanged(costs: Costs, low: np.ndarray, room: int) -> np.ndarray | None:
    """One large raised at the price of several small, or one lowered for several; None where neither saves."""
    best, least = None, _loss(costs, low) * (1 - _LEAST_GAIN)
    for index in range(len(low)):
        changed = low.copy()
        changed[index] = not low[index]
        while _left(costs, changed, room) < 0:
            prices = np.where(changed, np.inf, _losses(costs, changed) / costs.extra)
            prices[index] = np.inf
            if np.isinf(prices).all():
                break
            changed[int(prices.argmin())] = True
        if _left(costs, changed, room) < 0:
            continue
        changed = _filled(costs, changed, room)
        if (loss := _loss(costs, changed)) < least:
            best, least = changed, loss
    return best


def candidates(costs: Costs, room: int, tables: Sequence[str]) -> tuple[list[Choice], list[Choice]]:
    """What the search finds from several starts, the best predicted first, and the rules.

    `tables`, embedding and head, have 8 bits in the rules as far as they fit; the search may lower them.
    """
    fixed: list[str] = []
    for name in tables:
        if costs.spent([*fixed, name]) <= room:
            fixed.append(name)
    by_rule = rules(costs, room, fixed)
    starts = [frozenset[str](), frozenset(fixed), *(rule.high for rule in by_rule)]
    found = list(dict.fromkeys(search(costs, room, start) for start in starts))
    return sorted(found, key=lambda choice: costs.predicted(choice.high)), by_rule


def cheapest(costs: Costs, kl: float) -> Choice:
    """The least bytes with which the search is predicted to reach `kl`, to 0.1 % of all bytes."""
    low, high = 0, int(costs.extra.sum())
    choice = Choice("search", frozenset(costs.names))
    while high - low > costs.extra.sum() // 1000 + 1:
        middle = (low + high) // 2
        found = search(costs, middle)
        if costs.predicted(found.high) <= kl:
            high, choice = middle, found
        else:
            low = middle
    return choice


def rules(costs: Costs, room: int, fixed: Collection[str]) -> list[Choice]:
    """What people do without measuring, within `room` bytes: first and last layers, or one role in all layers.

    `fixed` (embedding and head, as far as they fit) has 8 bits in all of them.
    """
    parts = [_LAYER.search(name) for name in costs.names]
    layers = [int(part[1]) if part else -1 for part in parts]
    roles = [part[2].split(".")[-1] if part else "" for part in parts]
    last = max(layers)
    outer = sorted(range(len(layers)), key=lambda i: (min(layers[i], last - layers[i]), layers[i]))
    orders = {"first and last layers": [i for i in outer if layers[i] >= 0]}
    for role in dict.fromkeys(filter(None, roles)):
        orders[f"all {role}"] = [i for i, own in enumerate(roles) if own == role]
    found: dict[frozenset[str], Choice] = {}
    for origin, order in orders.items():
        high, left = set(fixed), room - costs.spent(fixed)
        for index in order:
            if costs.extra[index] > left:
                break
            high.add(costs.names[index])
            left -= int(costs.extra[index])
        found.setdefault(frozenset(high), Choice(origin, frozenset(high)))
    return list(found.values())


def summary(names: Sequence[str], high: Collection[str]) -> dict[str, str]:
    """The tensors at 8 bits for people: role -> "all", or its layers such as "0-3, 29"."""
    found: dict[str, list[int]] = {}
    counts: dict[str, int] = {}
    for name in names:
        match = _LAYER.search(name)
        role, layer = (match[2].split(".")[-1], int(match[1])) if match else (name.split(".")[-2], 0)
        counts[role] = counts.get(role, 0) + 1
        if name in high:
            found.setdefault(role, []).append(layer)
    return {
        role: "all" if len(layers) == counts[role] else _ranges(sorted(layers))
        for role, layers in found.items()
    }


def high_text(choice: Mapping[str, Any]) -> str:
    """What has 8 bits, from a record of `choose`: "v_proj (all), down_proj (0-3, 29)"."""
    high = choice.get("eight_bits")
    if not isinstance(high, dict) or not high:
        return "nothing"
    return ", ".join(f"{role} ({layers})" for role, layers in high.items())


def _ranges(numbers: Sequence[int]) -> str:
    """Such as "0-3, 29" of [0, 1, 2, 3, 29]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
