"""What a budget of mixed precision will buy, from shapes and, where an export left them, sensitivities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_distill_export.artifact import Source
from edge_distill_export.automatic import costs_of, smallest_bytes
from edge_distill_export.families import EMBEDDING, HEAD
from edge_distill_export.mixed import Costs, candidates, cheapest, extra_bytes, summary
from edge_distill_export.sensitivity_file import read_sensitivity
from edge_distill_export.sizes import quantizable
from edge_distill_export.targets import Budget, Target
from edge_distill_runtime.errors import InputError


@dataclass(frozen=True)
class PlannedChoice:
    """The tensors at 8 bits; without sensitivities as many as fit, which tells the size alone."""

    high: frozenset[str]
    problem: str | None = None
    """Why the budget is impossible."""
    eight_bits: dict[str, str] | None = None
    predicted_kl: float | None = None


def planned_choices(
    source: Source, targets: Sequence[Target], sensitivity: Path | None
) -> dict[Target, PlannedChoice]:
    """The choice of every target with mixed precision; raises `InputError` for sensitivities of another model."""
    automatic = [target for target in targets if target.budget]
    if not automatic:
        return {}
    smallest = smallest_bytes(source, automatic)
    costs = _costs(source, sensitivity) if sensitivity else None
    return {target: _planned(source, target.budget, smallest, costs) for target in automatic if target.budget}


def _costs(source: Source, path: Path) -> Costs:
    found = read_sensitivity(path)
    if set(found.names) != set(quantizable(source)):
        raise InputError(
            "other-checkpoint", f"{path} is of another model", "give the file of this checkpoint"
        )
    return costs_of(found, source)


def _planned(source: Source, budget: Budget, smallest: int, costs: Costs | None) -> PlannedChoice:
    if budget.bytes is not None and budget.bytes < smallest:
        problem = f"with 4 bits everywhere it takes {smallest / 1e6:.1f} MB, the budget is {budget}"
        return PlannedChoice(frozenset(), problem)
    room = None if budget.bytes is None else budget.bytes - smallest
    if costs is None:
        return PlannedChoice(_as_many_as_fit(source, room))
    if room is None:
        assert budget.kl is not None
        chosen = cheapest(costs, budget.kl)
    else:
        tables = [name for name in (EMBEDDING, HEAD) if name in costs.names]
        chosen = candidates(costs, room, tables)[0][0]
    return PlannedChoice(
        chosen.high,
        eight_bits=summary(costs.names, chosen.high),
        predicted_kl=costs.predicted(chosen.high),
    )


def _as_many_as_fit(source: Source, room: int | None) -> frozenset[str]:
    names = quantizable(source)
    parameters = dict(source.checkpoint.model.named_parameters())
    left = room if room is not None else sum(extra_bytes(parameters[name].numel()) for name in names)
    high = set()
    for name in reversed(names):  # embedding and head first
        if (size := extra_bytes(parameters[name].numel())) <= left:
            high.add(name)
            left -= size
    return frozenset(high)
