"""The games: closed forms, what more servers and more load do, and coalitions that cannot carry their load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.auction.games import PooledMM1, ServingCost, SpareCapacity
from controlplane.auction.shapley import Floats, members, values
from controlplane.bids import UTILISATION_MAX, mean_in_flight


@st.composite
def farms(draw: st.DrawFn, most: int = 6) -> tuple[Floats, Floats, float]:
    """mu, k and utilisation of some servers."""
    n = draw(st.integers(1, most))
    mu = draw(st.lists(st.floats(0.5, 50), min_size=n, max_size=n))
    k = draw(st.lists(st.integers(1, 16), min_size=n, max_size=n))
    return np.array(mu), np.array(k, dtype=np.float64), draw(st.floats(0.01, 1.5))


def everything(n: int) -> np.ndarray:
    return members(np.arange(1 << n, dtype=np.uint64), n)


# --- pooled M/M/1 -----------------------------------------------------------------------------------------------------


def test_pooling_two_equal_servers_saves_half_of_what_is_in_flight() -> None:
    # ρ = 0.8: 4 in flight on each; together one server twice as fast with ρ = 0.8: 4. Saved 4, 2 each.
    game = PooledMM1(np.array([10.0, 10.0]), np.array([8.0, 8.0]))
    assert game(everything(2)) == pytest.approx([0, 0, 0, 4])
    assert values(game, 2).phi == pytest.approx([2, 2])


@given(st.integers(1, 8), st.floats(0.05, 0.95))
def test_pooling_n_equal_servers_saves_all_but_one_queue(n: int, rho: float) -> None:
    phi = values(PooledMM1(np.full(n, 3.0), np.full(n, 3.0 * rho)), n).phi
    assert phi == pytest.approx(np.full(n, (n - 1) / n * rho / (1 - rho)), abs=1e-9)


@given(farms(), st.data())
def test_pooling_never_costs_and_pools_of_pools_save_more(
    farm: tuple[Floats, Floats, float], data: st.DataObject
) -> None:
    mu, _, _ = farm
    n = len(mu)
    rho = data.draw(st.lists(st.floats(0, 1.5), min_size=n, max_size=n))
    v = PooledMM1(mu, np.array(rho) * mu)(everything(n))
    assert (v >= -1e-9).all()
    for mask in range(1 << n):
        # Superadditive: v(S) + v(T) <= v(S ∪ T) for S and T apart.
        rest = (1 << n) - 1 - mask
        assert v[mask] + v[rest] <= v[-1] + 1e-6 * max(1.0, abs(v[-1]))


def test_an_overloaded_server_has_a_finite_cost_that_grows() -> None:
    costs = PooledMM1.in_flight(np.array([0.0, 0.5, 0.97, 1.0, 1.5]))
    # Beyond 0.97 along the tangent: 0.97/0.03 + 0.03/0.03².
    assert costs == pytest.approx([0.0, 1.0, 0.97 / 0.03, 0.97 / 0.03 + 0.03 / 0.03**2, 0.97 / 0.03 + 0.53 / 0.03**2])


# --- the cost of serving all of the load ------------------------------------------------------------------------------


@settings(max_examples=60)
@given(farms(), st.floats(0.05, 0.9))
def test_for_single_workers_it_is_the_square_root_rule(farm: tuple[Floats, Floats, float], rho: float) -> None:
    mu, _, _ = farm
    lam = rho * float(mu.sum())
    # λ_i = μ_i − √μ_i (Σμ − λ)/Σ√μ over the servers for which that is positive: the slowest drop out one by one.
    use = np.argsort(-mu)
    while True:
        share = mu[use] - np.sqrt(mu[use]) * (mu[use].sum() - lam) / np.sqrt(mu[use]).sum()
        if share[-1] > 0:
            break
        use = use[:-1]
    if (share > UTILISATION_MAX * mu[use]).any():
        return  # beyond the cap it has another answer
    expected = float((share / (mu[use] - share)).sum())
    found = ServingCost(mu, np.ones(len(mu)), lam).costs(np.ones((1, len(mu)), dtype=bool))
    assert found == pytest.approx([expected], rel=0.01)


@settings(max_examples=25)
@given(farms(most=4), st.floats(0.02, 0.96))
def test_no_split_of_the_load_is_cheaper(farm: tuple[Floats, Floats, float], rho: float) -> None:
    mu, k, _ = farm
    capacity = mu * k
    lam = rho * float(capacity.sum())
    found = float(ServingCost(mu, k, lam).costs(np.ones((1, len(mu)), dtype=bool))[0])
    rng = np.random.default_rng(1)
    cheapest = np.inf
    for weight in [capacity, *(rng.dirichlet(capacity / capacity.sum() * 10, size=30))]:
        share = weight / weight.sum() * lam
        if (share < UTILISATION_MAX * capacity).all():
            cheapest = min(cheapest, float(mean_in_flight(share, mu, k).sum()))
    assert found <= cheapest * 1.01
    # And it cannot be cheaper than all flows served at once by the fastest workers.
    assert found >= lam / mu.max() * 0.99


@settings(max_examples=40)
@given(farms())
def test_a_server_more_never_makes_a_coalition_worse(farm: tuple[Floats, Floats, float]) -> None:
    mu, k, rho = farm
    n = len(mu)
    v = ServingCost(mu, k, rho * float((mu * k).sum()))(everything(n))
    assert v[0] == pytest.approx(0.0, abs=1e-6 * max(1.0, v[-1]))
    slack = 1e-3 * max(1.0, v[-1])
    for mask in range(1 << n):
        for i in range(n):
            assert v[mask] <= v[mask | 1 << i] + slack
    assert (values(ServingCost(mu, k, rho * float((mu * k).sum())), n).phi >= -slack).all()


def test_who_cannot_carry_the_load_pays_for_what_is_left() -> None:
    game = ServingCost(np.array([10.0]), np.array([1.0]), 20.0, unserved=5.0)
    # 9.7 a second are served at ρ = 0.97, which leaves 0.97/0.03 in flight; 10.3 are not, at 5 seconds each.
    assert game.costs(np.ones((1, 1), dtype=bool)) == pytest.approx([0.97 / 0.03 + 10.3 * 5.0], rel=0.01)
    assert game.costs(np.zeros((1, 1), dtype=bool)) == pytest.approx([100.0])


@settings(max_examples=30)
@given(farms(), st.randoms(use_true_random=False))
def test_the_values_along_an_order_are_those_of_its_coalitions(farm: tuple[Floats, Floats, float], random) -> None:  # type: ignore[no-untyped-def]
    mu, k, rho = farm
    n = len(mu)
    order = np.array(random.sample(range(n), n), dtype=np.intp)
    inside = np.zeros((n + 1, n), dtype=bool)
    for size in range(1, n + 1):
        inside[size] = inside[size - 1]
        inside[size, order[size - 1]] = True
    games = SpareCapacity(mu - k), PooledMM1(mu, rho * mu), ServingCost(mu, k, rho * float((mu * k).sum()))
    for game in games:
        assert game.along(order) == pytest.approx(game(inside), rel=1e-6, abs=1e-6)


def test_faster_servers_contribute_more_and_equal_ones_the_same() -> None:
    mu = np.array([1.0, 1.0, 2.0, 4.0])
    phi = values(ServingCost(mu, np.full(4, 4.0), 0.7 * 32.0), 4).phi
    assert phi[0] == pytest.approx(phi[1])
    assert phi[1] < phi[2] < phi[3]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: PooledMM1(np.array([0.0]), np.array([1.0])), "mu above 0"),
        (lambda: PooledMM1(np.array([1.0]), np.array([-1.0])), "finite lam"),
        (lambda: ServingCost(np.array([1.0]), np.array([0.5]), 1.0), "finite k"),
        (lambda: ServingCost(np.array([1.0]), np.array([1.0]), np.nan), "lam of 0 or more"),
        (lambda: SpareCapacity(np.array([np.inf])), "finite spare"),
    ],
)
def test_what_is_no_farm_is_refused(make, what: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=what):
        make()
