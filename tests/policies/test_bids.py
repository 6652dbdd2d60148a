"""Truthful bids: closed forms, digits against exact arithmetic, and what must hold for any parameters."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.bids import UTILISATION_MAX, mean_in_flight, split, truthful
from controlplane.policy import CURVE_N


def one(lam: float, mu: float, k: float) -> np.ndarray:
    return truthful(np.array([lam]), np.array([mu]), np.array([k]))[0]


def exact(lam: Fraction, mu: Fraction, k: Fraction, points: int) -> list[float]:
    """Δ(n) = Σ_{m>n} π(m)(m − g)/(λ π(n)) in rationals; the tail from k on is geometric and summed in closed form."""
    top = int(k) + points + 2
    weights = [Fraction(1)]
    for n in range(1, top + 1):
        weights.append(weights[-1] * lam / (min(Fraction(n), k) * mu))
    rho = lam / (k * mu)
    # Beyond top: Σ_{j≥1} ρ^j and Σ_{j≥1} j ρ^j.
    tail0, tail1 = rho / (1 - rho), rho / (1 - rho) ** 2
    total = sum(weights) + weights[-1] * tail0
    mean = sum(n * w for n, w in enumerate(weights)) + weights[-1] * (top * tail0 + tail1)
    g = mean / total
    above = weights[-1] * ((top - g) * tail0 + tail1)
    found = [Fraction(0)] * (top + 1)
    for n in range(top, -1, -1):
        found[n] = above / (lam * weights[n])
        above += weights[n] * (n - g)
    return [float(x) for x in found[:points]]


def test_one_worker_bids_n_plus_one_over_what_it_has_to_spare():
    assert one(3.0, 5.0, 1.0) == pytest.approx((CURVE_N + 1) / (5.0 - 3.0), rel=1e-14)


def test_without_arrivals_a_server_bids_the_flow_s_own_delay():
    # k = 4, μ = 10: 0.1 s up to four in flight, then (n + 1)/40.
    assert one(0.0, 10.0, 4.0)[:8] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.125, 0.15, 0.175, 0.2], rel=1e-14)


def test_from_k_minus_one_on_the_slope_is_one_over_spare_capacity():
    slopes = np.diff(one(30.0, 10.0, 4.0)) / np.diff(CURVE_N)
    assert slopes[3:] == pytest.approx(np.full(len(slopes) - 3, 1 / (40.0 - 30.0)), rel=1e-12)
    assert (slopes[:3] < 0.1).all()


@pytest.mark.parametrize(
    ("lam", "mu", "k"),
    [
        (3.8, 1, 4),
        (0.001, 1, 4),
        (3.7, 1, "3.9"),
        (20, 1, 40),
        (58, 1, "60.5"),
        (2, 1, 60),
        (100, 1, 150),
        (97, 1, 100),
    ],
)
def test_no_digit_is_lost(lam, mu, k):
    points = 200
    expected = np.array(exact(Fraction(str(lam)), Fraction(mu), Fraction(str(k)), points))
    at = CURVE_N[points > CURVE_N].astype(int)
    assert one(float(lam), float(mu), float(k))[: len(at)] == pytest.approx(expected[at], rel=1e-11)


def test_mean_in_flight_is_m_m_k_s():
    # M/M/2, ρ = 0.5: L = 2ρ/(1 − ρ²) = 4/3; M/M/1, ρ = 0.8: 4.
    found = mean_in_flight(np.array([1.0, 0.8]), np.array([1.0, 1.0]), np.array([2.0, 1.0]))
    assert found == pytest.approx([4 / 3, 4.0], rel=1e-14)


def test_the_split_follows_the_square_root_rule_for_single_workers():
    # λ_i = μ_i − √μ_i (Σμ − λ)/Σ√μ, anchors of the literature.
    mu = np.array([1.0, 1.0, 4.0, 4.0])
    expected = mu - np.sqrt(mu) * (mu.sum() - 8.0) / np.sqrt(mu).sum()
    assert split(8.0, mu, np.ones(4)) == pytest.approx(expected, rel=2e-3)


def test_slow_servers_get_nothing_while_fast_ones_are_nearly_idle():
    lam = split(0.5, np.array([1.0, 10.0]), np.array([1.0, 1.0]))
    assert lam[0] == 0.0
    assert lam[1] == pytest.approx(0.5)


def test_in_a_flood_all_queues_take_equally_long():
    # Servers of 4 and 16 flows a second; bids alike at n and 4n mean that both queues are done at the same time.
    mu, k = np.array([1.0, 4.0]), np.array([4.0, 4.0])
    curves = truthful(split(1.05 * 20.0, mu, k), mu, k)
    assert curves[1, 40] == pytest.approx(curves[0, 10], rel=0.1)
    # Without a flood the fast one is spared: its long queue is the dearer. Half of the way there it is less so.
    calm, half = (truthful(split(load * 20.0, mu, k), mu, k) for load in (0.9, 1.025))
    assert calm[1, 40] / calm[0, 10] > half[1, 40] / half[0, 10] > 1.2


def test_overload_is_cut_below_capacity():
    mu, k = np.array([1.0, 2.0]), np.array([4.0, 1.0])
    lam = split(1e9, mu, k)
    assert lam.sum() == pytest.approx(UTILISATION_MAX * 6.0, rel=1e-6)
    assert (lam < mu * k).all()


positive = st.floats(1e-6, 1e6)
rows = st.lists(st.tuples(st.floats(0.0, 0.99), positive, st.floats(1.0, 3000.0)), min_size=1, max_size=12)


@settings(max_examples=200)
@given(rows)
def test_bids_are_finite_not_negative_and_never_fall(servers):
    rho, mu, k = (np.array(column) for column in zip(*servers, strict=True))
    curves = truthful(rho * mu * k, mu, k)
    assert np.isfinite(curves).all()
    assert (curves >= 0).all()
    assert (np.diff(curves, axis=1) >= 0).all()


@settings(max_examples=200)
@given(rows, st.floats(0.0, 3.0))
def test_the_split_adds_up_and_fits(servers, load):
    _, mu, k = (np.array(column) for column in zip(*servers, strict=True))
    capacity = float((mu * k).sum())
    lam = split(load * capacity, mu, k)
    assert (lam >= 0).all()
    assert (lam < mu * k).all()
    assert lam.sum() == pytest.approx(min(load, UTILISATION_MAX) * capacity, rel=0.02, abs=1e-300)
