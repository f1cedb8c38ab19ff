"""Which tensors deserve 8 bits: the search over a matrix of sensitivities, and the rules that it has to beat.

Every tensor has 4 bits or 8; e is 1 for the former, and the predicted KL divergence is e' M e with the matrix of
`Sensitivity.shrunk`. 8 bits are taken as free of error: measured, they lose some hundredth of what 4 bits lose.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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

    @cached_property
    def diagonal(self) -> np.ndarray:
        """float64 [names]: of each tensor alone."""
        return self.matrix.diagonal().copy()

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
    if room < costs.spent(start):
        raise ValueError(f"the start takes {costs.spent(start) - room} bytes more than there are")
    state = _State.of(costs, room, start)
    state.fill()
    for _ in range(_ROUNDS):
        better = _swapped(state) or _exchanged(state)
        if better is None:
            break
        state = better
    return Choice(
        "search", frozenset(name for name, low in zip(costs.names, state.low, strict=True) if not low)
    )


@dataclass
class _State:
    """A choice on the way, with what changes when one tensor more is raised or lowered."""

    costs: Costs
    low: np.ndarray
    """bool [names]: which have 4 bits."""
    field: np.ndarray
    """M e, kept up to date."""
    left: int
    loss: float

    @classmethod
    def of(cls, costs: Costs, room: int, high: Collection[str]) -> _State:
        low = np.array([name not in high for name in costs.names])
        field = costs.matrix @ low
        return cls(costs, low, field, room - costs.spent(high), float(low @ field))

    def copy(self) -> _State:
        return replace(self, low=self.low.copy(), field=self.field.copy())

    def savings(self) -> np.ndarray:
        """Loss saved by raising each low tensor: e'Me - (e - u)'M(e - u) = 2 u'Me - u'Mu."""
        return 2 * self.field - self.costs.diagonal

    def losses(self) -> np.ndarray:
        """Loss added by lowering each high tensor."""
        return 2 * self.field + self.costs.diagonal

    def flip(self, index: int) -> None:
        """Raise a low tensor, lower a high one."""
        sign = -1 if self.low[index] else 1
        self.loss += float(sign * 2 * self.field[index] + self.costs.diagonal[index])
        self.field = self.field + sign * self.costs.matrix[index]
        self.left -= -sign * int(self.costs.extra[index])
        self.low[index] = sign > 0

    def fill(self) -> None:
        """Raise tensors while one fits and helps."""
        while True:
            saved = np.where(self.low & (self.costs.extra <= self.left), self.savings(), 0.0)
            if saved.max(initial=0.0) <= 0:
                return
            self.flip(int((saved / self.costs.extra).argmax()))


def _swapped(state: _State) -> _State | None:
    """One raised and one lowered, the pair that saves most, and what then fits; None where no pair saves."""
    costs = state.costs
    saved = state.savings()[:, None] - state.losses()[None, :] + 2 * costs.matrix
    fits = costs.extra[:, None] - costs.extra[None, :] <= state.left
    saved = np.where(state.low[:, None] & ~state.low[None, :] & fits, saved, 0.0)
    if saved.max(initial=0.0) <= _LEAST_GAIN * abs(state.loss):
        return None
    up, down = np.unravel_index(int(saved.argmax()), saved.shape)
    changed = state.copy()
    changed.flip(int(up))
    changed.flip(int(down))
    changed.fill()
    return changed


def _exchanged(state: _State) -> _State | None:
    """One large raised at the price of several small, or one lowered for several; None where neither saves."""
    best, least = None, state.loss - _LEAST_GAIN * abs(state.loss)
    for index in range(len(state.low)):
        changed = state.copy()
        changed.flip(index)
        while changed.left < 0:
            prices = np.where(changed.low, np.inf, changed.losses() / state.costs.extra)
            prices[index] = np.inf
            cheapest = int(prices.argmin())
            if np.isinf(prices[cheapest]):
                break
            changed.flip(cheapest)
        if changed.left < 0:
            continue
        changed.fill()
        if changed.loss < least:
            best, least = changed, changed.loss
    return best


def candidates(costs: Costs, room: int, tables: Sequence[str]) -> tuple[list[Choice], list[Choice]]:
    """What the search finds from several starts, the best predicted first, and the rules.

    `tables`, embedding and head, have 8 bits in the rules and in one result of the search as far as they fit: text
    with other words than the calibration's may need them more than predicted.
    """
    fixed: list[str] = []
    for name in tables:
        if costs.spent([*fixed, name]) <= room:
            fixed.append(name)
    by_rule = rules(costs, room, fixed)
    best = min(by_rule, key=lambda rule: costs.predicted(rule.high))
    starts = [frozenset[str](), frozenset(fixed), best.high]
    found = list(
        dict.fromkeys([*(search(costs, room, start) for start in starts), _with(costs, room, fixed)])
    )
    return sorted(found, key=lambda choice: costs.predicted(choice.high)), by_rule


def _with(costs: Costs, room: int, fixed: Collection[str]) -> Choice:
    """The search among the others, with 8 bits for `fixed`."""
    keep = [index for index, name in enumerate(costs.names) if name not in fixed]
    names = tuple(costs.names[index] for index in keep)
    others = Costs(names, costs.extra[keep], costs.matrix[np.ix_(keep, keep)])
    return Choice("search", search(others, room - costs.spent(fixed)).high | frozenset(fixed))


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
