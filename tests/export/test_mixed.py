"""The search for tensors that deserve 8 bits: against all subsets, and against the rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_distill_export.blocks import pack_q4_0, pack_q8_0
from edge_distill_export.mixed import Costs, extra_bytes, rules, search, summary
from edge_distill_export.onnx_packing import block_bytes

ROLES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def names_of(layers: int) -> tuple[str, ...]:
    linears = [f"model.layers.{layer}.{role}.weight" for layer in range(layers) for role in ROLES]
    return (*linears, "model.embed_tokens.weight")


def random_costs(seed: int, layers: int = 3, correlation: float = 0.3) -> Costs:
    generator = np.random.default_rng(seed)
    names = names_of(layers)
    vectors = generator.normal(size=(len(names), 40)) + correlation * generator.normal(size=40)
    vectors *= generator.lognormal(-4, 1.0, (len(names), 1))
    extra = np.array([*([64, 16, 192] * layers), 1000]) * 16
    return Costs(names, extra, vectors @ vectors.T)


def best_of_all(costs: Costs, room: int) -> float:
    sets = itertools.product((False, True), repeat=len(costs.names))
    chosen = (frozenset(itertools.compress(costs.names, mask)) for mask in sets)
    return min(costs.predicted(high) for high in chosen if costs.spent(high) <= room)


@pytest.mark.parametrize("seed", range(6))
def test_close_to_the_best_of_all_subsets(seed: int) -> None:
    costs = random_costs(seed)
    for share in (0.02, 0.2, 0.7):
        room = int(costs.extra.sum() * share)
        found = search(costs, room)
        assert costs.spent(found.high) <= room
        # local search: a knapsack of unequal sizes may keep it from the optimum
        assert costs.predicted(found.high) <= 1.15 * best_of_all(costs, room), share


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_the_prediction_is_never_worse_than_by_rule(seed: int, share: float, correlation: float) -> None:
    costs = random_costs(seed, layers=4, correlation=correlation)
    room = int(costs.extra.sum() * share)
    fixed = [costs.names[-1]] if costs.extra[-1] <= room else []
    for rule in rules(costs, room, fixed):
        assert costs.spent(rule.high) <= room
        # started from a rule the search can only improve it
        assert costs.predicted(search(costs, room, rule.high).high) <= costs.predicted(rule.high) * (1 + 1e-9)


def test_the_same_input_gives_the_same_choice() -> None:
    assert search(random_costs(1), 5000) == search(random_costs(1), 5000)


def test_a_planted_tensor_comes_first() -> None:
    costs = random_costs(2)
    planted = costs.matrix.copy()
    planted[4, 4] += 100.0
    assert costs.names[4] in search(Costs(costs.names, costs.extra, planted), int(costs.extra[4])).high


def test_errors_that_cancel_stay_together() -> None:
    # two errors that undo each other cost nothing while both are there: the third is raised
    matrix = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    costs = Costs(("a", "b", "c"), np.array([16, 16, 16]), matrix)
    assert search(costs, 16).high == {"c"}
    assert costs.predicted({"c"}) == pytest.approx(0.0)
    assert costs.predicted({"a"}) == pytest.approx(1.1)


def test_rules_by_hand() -> None:
    costs = random_costs(0, layers=4)
    room = (64 + 16 + 192) * 16 * 2 + 100
    found = {rule.origin: rule.high for rule in rules(costs, room, [])}
    assert list(found) == ["first and last layers", "all q_proj", "all v_proj", "all down_proj"]
    assert found["first and last layers"] == {n for n in costs.names if ".0." in n or ".3." in n}
    assert found["all v_proj"] == {n for n in costs.names if "v_proj" in n}
    assert found["all down_proj"] == {n for n in costs.names if "down_proj" in n and ".3." not in n} - {
        "model.layers.2.mlp.down_proj.weight"
    }


def test_no_room_is_no_choice_and_too_large_a_start_is_an_error() -> None:
    costs = random_costs(0)
    assert search(costs, 0).high == frozenset()
    assert search(costs, int(costs.extra.sum())).high == set(costs.names)
    with pytest.raises(ValueError, match="more than there are"):
        search(costs, 10, costs.names)


def test_extra_bytes_are_those_of_both_formats() -> None:
    integers, scales = np.zeros((4, 64), np.int8), np.zeros((4, 2), np.float16)
    assert extra_bytes(256) == pack_q8_0(integers, scales).size - pack_q4_0(integers, scales).size
    assert extra_bytes(32) == block_bytes(8) - block_bytes(4)


def test_a_summary_names_layers() -> None:
    names = names_of(6)
    high = {n for n in names if "v_proj" in n} | {
        f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1, 2, 5)
    }
    assert summary(names, high) == {"v_proj": "all", "down_proj": "0-2, 5"}
    assert summary(names, {names[-1]}) == {"embed_tokens": "all"}
