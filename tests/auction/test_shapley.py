"""Shapley values: the axioms, orders counted one by one, and sampling whose error bar keeps its word."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from controlplane.auction.games import PooledMM1, ServingCost, SpareCapacity
from controlplane.auction.shapley import (
    BLOCKS_MIN,
    EXACT_MAX,
    Floats,
    blocks_for,
    exact,
    members,
    monte_carlo,
    student_95,
    values,
)

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def games(draw: st.DrawFn, most: int = 7) -> tuple[int, Floats]:
    """The values of all coalitions of some servers."""
    n = draw(st.integers(1, most))
    v = draw(hnp.arrays(np.float64, 1 << n, elements=FINITE))
    v[0] = 0.0
    return n, v


def by_orders(v: Floats, n: int) -> Floats:
    """The definition: the mean over all n! orders of what each adds when it joins."""
    phi, orders = np.zeros(n), 0
    for order in permutations(range(n)):
        mask = 0
        for i in order:
            phi[i] += v[mask | 1 << i] - v[mask]
            mask |= 1 << i
        orders += 1
    return phi / orders


@settings(max_examples=40)
@given(games(most=5))
def test_exact_values_are_the_mean_over_all_orders(game: tuple[int, Floats]) -> None:
    n, v = game
    assert exact(v, n) == pytest.approx(by_orders(v, n), rel=1e-9, abs=1e-6)


def test_the_glove_game_by_hand() -> None:
    # One left glove (0), two right ones (1, 2), a pair is worth 1. The left one's owner is pivotal in 4 of 6 orders:
    # all but those in which it comes first. φ = (2/3, 1/6, 1/6).
    v = [1.0 if mask & 1 and mask & 0b110 else 0.0 for mask in range(8)]
    assert exact(np.array(v), 3) == pytest.approx([2 / 3, 1 / 6, 1 / 6])


@given(games())
def test_the_values_add_up_to_what_all_are_worth(game: tuple[int, Floats]) -> None:
    n, v = game
    assert exact(v, n).sum() == pytest.approx(v[-1] - v[0], rel=1e-9, abs=1e-5)


@given(games(), st.data())
def test_servers_that_add_the_same_to_every_coalition_have_the_same_value(
    game: tuple[int, Floats], data: st.DataObject
) -> None:
    n, v = game
    a, b = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    masks = np.arange(1 << n)
    bit_a, bit_b = masks >> a & 1, masks >> b & 1
    swapped = masks & ~(1 << a) & ~(1 << b) | bit_a << b | bit_b << a
    phi = exact((v + v[swapped]) / 2, n)
    assert phi[a] == pytest.approx(phi[b], rel=1e-9, abs=1e-5)


@given(games(), st.floats(-1e3, 1e3))
def test_a_server_that_adds_the_same_always_has_just_that_value(game: tuple[int, Floats], adds: float) -> None:
    n, v = game
    phi = exact(np.concatenate([v, v + adds]), n + 1)
    assert phi[n] == pytest.approx(adds, rel=1e-9, abs=1e-5)


@given(games(), st.data())
def test_the_values_of_two_games_added_are_the_sums_of_their_values(
    game: tuple[int, Floats], data: st.DataObject
) -> None:
    n, v = game
    w = data.draw(hnp.arrays(np.float64, 1 << n, elements=FINITE))
    assert exact(v + w, n) == pytest.approx(exact(v, n) + exact(w, n), rel=1e-9, abs=1e-4)


@given(hnp.arrays(np.float64, st.integers(1, 10), elements=st.floats(-1e3, 1e3)))
def test_of_spare_capacities_the_value_is_the_spare_capacity(spare: Floats) -> None:
    assert values(SpareCapacity(spare), len(spare)).phi == pytest.approx(spare, rel=1e-9, abs=1e-9)


@given(games(most=6))
def test_a_game_may_be_given_as_a_function_of_bit_masks(game: tuple[int, Floats]) -> None:
    n, v = game
    assert (exact(lambda masks: v[masks.astype(np.intp)], n) == exact(v, n)).all()


def test_bit_i_of_a_mask_is_server_i() -> None:
    assert members(np.array([0, 5, 1 << 63], dtype=np.uint64), 64).sum(axis=1).tolist() == [0, 2, 1]
    assert members(np.array([5], dtype=np.uint64), 3).tolist() == [[True, False, True]]


def test_twenty_servers_are_exact_and_more_are_sampled() -> None:
    rng = np.random.default_rng(5)
    v = rng.normal(size=1 << EXACT_MAX)
    v[0] = 0.0
    assert exact(v, EXACT_MAX).sum() == pytest.approx(v[-1])
    with pytest.raises(ValueError, match="0 to 20 servers"):
        exact(np.zeros(2), EXACT_MAX + 1)
    spare = rng.uniform(0, 10, size=EXACT_MAX + 1)
    sampled = values(SpareCapacity(spare), EXACT_MAX + 1, rng, samples=100)
    assert not sampled.exact
    assert sampled.phi == pytest.approx(spare)


@pytest.mark.parametrize("wrong", [np.zeros(7), np.array([0.0, np.nan]), np.array([0.0, np.inf])])
def test_values_that_are_no_game_are_refused(wrong: Floats) -> None:
    with pytest.raises(ValueError, match="finite values"):
        exact(wrong, 1 if len(wrong) == 2 else 3)


# --- sampling ---------------------------------------------------------------------------------------------------------


def farm(n: int, seed: int) -> ServingCost:
    rng = np.random.default_rng(seed)
    mu, k = rng.uniform(1, 8, n), rng.integers(1, 6, n).astype(np.float64)
    return ServingCost(mu, k, 0.7 * float((mu * k).sum()))


class Table:
    """A game without structure: a random value for every coalition."""

    def __init__(self, n: int, seed: int) -> None:
        self.v = np.random.default_rng(seed).normal(size=1 << n)
        self.bits = 1 << np.arange(n)

    def __call__(self, coalitions: np.ndarray) -> Floats:
        return self.v[coalitions @ self.bits]


@pytest.mark.parametrize("samples", [1, 200, 4000])
def test_sampled_values_add_up_exactly(samples: int) -> None:
    game = farm(12, 1)
    everybody = float(game(np.ones((1, 12), dtype=bool))[0])
    phi, _ = monte_carlo(game, 12, samples, np.random.default_rng(2))
    assert phi.sum() == pytest.approx(everybody, rel=1e-12)


@pytest.mark.parametrize("samples", [12 * BLOCKS_MIN, 5000])  # one start a block, and all round the circle
@pytest.mark.parametrize("which", ["serving", "table"])
def test_the_error_bar_covers_the_truth_as_often_as_it_says(which: str, samples: int) -> None:
    n = 11
    game = farm(n, 3) if which == "serving" else Table(n, 3)
    truth = values(game, n).phi
    rng = np.random.default_rng(4)
    t = student_95(blocks_for(n, samples) - 1)
    covered = 0
    runs = 80
    errors = []
    for _ in range(runs):
        phi, stderr = monte_carlo(game, n, samples, rng)
        covered += int((np.abs(phi - truth) <= t * stderr).sum())
        errors.append(phi - truth)
    # 95 % of 880, of which those of one run hang together: between 91 and 98 %.
    assert 0.91 <= covered / (runs * n) <= 0.985
    # Unbiased: the mean of all runs is within four of its standard errors.
    mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1)
    assert (np.abs(mean) <= 4 * spread / np.sqrt(runs)).all()


def test_going_round_the_circle_beats_as_many_random_orders() -> None:
    n, samples = 12, 12 * 12 * 40
    game, rng = farm(n, 6), np.random.default_rng(7)
    truth = values(game, n).phi
    round_the_circle = np.mean([(monte_carlo(game, n, samples, rng)[0] - truth) ** 2 for _ in range(10)])
    plain = []
    for _ in range(10):
        phi = np.zeros(n)
        for _ in range(samples // n):
            order = rng.permutation(n)
            phi[order] += np.diff(game.along(order))
        plain.append((phi / (samples // n) - truth) ** 2)
    assert round_the_circle < 0.5 * np.mean(plain)


def test_equal_seeds_give_equal_samples() -> None:
    game = farm(24, 8)
    a, b = (monte_carlo(game, 24, 500, np.random.default_rng(9)) for _ in range(2))
    assert (a[0] == b[0]).all()
    assert (a[1] == b[1]).all()


def test_thousands_of_servers_are_sampled_in_bounded_time_and_memory() -> None:
    n = 2000
    rng = np.random.default_rng(10)
    mu = rng.uniform(1, 4, n)
    phi, _ = monte_carlo(PooledMM1(mu, 0.8 * mu), n, 512, rng)
    assert phi.sum() == pytest.approx(float(PooledMM1(mu, 0.8 * mu)(np.ones((1, n), dtype=bool))[0]))


@pytest.mark.parametrize(("freedom", "quantile"), [(7, 2.3646), (15, 2.1314), (30, 2.0423), (100, 1.9840)])
def test_students_quantile_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_95(freedom) == pytest.approx(quantile, rel=1e-3)
