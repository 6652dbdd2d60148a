"""Coalitions: who helps, in what shares, who is drained first; and that the compiled auctions do the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.auction.coalitions import drain_order, partners, shares, split_equal, split_shapley
from controlplane.auction.games import ServingCost
from controlplane.auction.mechanism import load_ratio
from controlplane.auction.shapley import values
from tests.auction.test_rounds import auctioneer, farm_of, tasks_of

RATIO = np.array([0.7, 0.4, 0.1, 0.3, 0.5, 0.2])
ONE = np.ones(6, dtype=np.uint32)


def test_the_least_busy_of_the_coalition_help_an_overloaded_winner() -> None:
    assert partners(0, RATIO, ONE).tolist() == [2, 5, 3, 1]  # 0.5 is not below 0.5
    assert partners(0, RATIO, ONE, most=1).tolist() == [2]
    assert partners(0, RATIO, np.array([1, 1, 2, 1, 1, 2])).tolist() == [3, 1]


def test_a_winner_at_the_threshold_is_not_overloaded() -> None:
    assert partners(0, np.array([0.6, 0.1]), ONE[:2]).size == 0
    assert partners(0, np.array([0.61, 0.1]), ONE[:2]).tolist() == [1]
    assert partners(0, np.array([0.3, 0.1]), ONE[:2], above=0.2, below=0.1).size == 0


def test_shares_are_in_the_ratio_of_the_values() -> None:
    assert shares(np.array([30.0, 60.0])) == pytest.approx([1 / 3, 2 / 3])
    assert shares(np.array([-5.0, 1.0, 3.0])) == pytest.approx([0, 0.25, 0.75])
    assert shares(np.zeros(4)) == pytest.approx([0.25] * 4)
    assert shares(np.array([1e308, 1e308])) == pytest.approx([0.5, 0.5])
    assert split_equal(9.0, 3).tolist() == [3, 3, 3]
    assert split_shapley(9.0, np.array([30.0, 60.0])) == pytest.approx([3, 6])


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8), st.floats(0, 1e6))
def test_a_split_hands_out_the_whole_task(phi: list[float], load: float) -> None:
    for parts in (split_shapley(load, np.array(phi)), split_equal(load, len(phi))):
        assert (parts >= 0).all()
        assert parts.sum() == pytest.approx(load)


# The first draw may take long on a busy machine.
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 100), min_size=2, max_size=8), st.integers(0, 7), st.booleans())
def test_the_compiled_auction_shares_with_the_same_servers_in_the_same_parts(
    load: list[int], most: int, by_value: bool
) -> None:
    load = [70, *load]
    # Server 0 wins: everybody else is far too sensitive.
    farm = farm_of({"sensitivity": 0.01, "risk_aversion": 0}, *({"sensitivity": 100} for _ in load[1:]))
    made = auctioneer(farm, load=load, partners=min(most, 7), split="shapley" if by_value else "equal")
    (award,), _ = made.hold(tasks_of({}), reserve=0.0)
    winner = int(award["server"])
    carried = np.array(load, dtype=np.float64)
    helpers = partners(winner, load_ratio(carried, farm.capacity), farm.coalition, most=most)
    assert award["partner"][: award["partners"]].tolist() == helpers.tolist()
    group = [winner, *helpers]
    spare = np.maximum(farm.capacity - carried, 0.0)[group]
    expected = split_shapley(1.0, spare) if by_value else split_equal(1.0, len(group))
    assert award["share"][: len(group)] == pytest.approx(expected)


# --- draining ---------------------------------------------------------------------------------------------------------


def test_the_least_valuable_is_drained_first_as_long_as_the_others_carry_the_load() -> None:
    # 70 a second on 100. Without the first 90 are left, without the second 70: too few at 97 %.
    plan = drain_order(np.array([2.0, 1.0, 3.0]), np.array([20.0, 10.0, 70.0]), 70.0)
    assert plan.order == (1, 0, 2)
    assert plan.spared == 1
    assert plan.utilisation == pytest.approx((70 / 90, 1.0, np.inf))


def test_a_server_that_is_needed_is_passed_over() -> None:
    plan = drain_order(np.array([1.0, 2.0, 3.0]), np.array([60.0, 20.0, 40.0]), 70.0)
    assert plan.order[0] == 1
    assert plan.spared == 1


def test_nobody_can_be_spared_under_full_load() -> None:
    assert drain_order(np.array([1.0, 2.0]), np.array([10.0, 10.0]), 19.0).spared == 0


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_draining_by_the_value_of_serving_leaves_a_coalition_near_the_best_of_its_size(rho: float) -> None:
    """Against all subsets, for servers that differ in speed alone, where the slowest is the right one."""
    mu, k = np.array([1.0, 1.5, 2.0, 3.0, 4.0, 6.0]), np.full(6, 2.0)
    capacity = mu * k
    game = ServingCost(mu, k, rho * float(capacity.sum()))
    plan = drain_order(values(game, 6).phi, capacity, game.lam)
    assert plan.order[0] == 0
    inside = np.ones(6, dtype=bool)
    for gone in plan.order[: plan.spared]:
        inside[gone] = False
        every = np.array([[bool(mask >> i & 1) for i in range(6)] for mask in range(64)])
        same_size = every[every.sum(axis=1) == inside.sum()]
        assert game.costs(inside[None, :])[0] == pytest.approx(game.costs(same_size).min(), rel=0.01)
