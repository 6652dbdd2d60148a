"""The reward functions against their equations, worked by hand, and against properties that define them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controlplane.env import rewards

LOADS = arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e3))
approx = pytest.approx


def test_jain_follows_the_formula():
    # (1 + 2 + 3)² / (3 · (1 + 4 + 9)) = 36/42
    assert rewards.jain([1, 2, 3]) == approx(36 / 42)


def test_jain_is_one_for_equal_loads_and_one_nth_when_one_has_all():
    assert rewards.jain([0.3] * 7) == approx(1)
    assert rewards.jain([5, 0, 0, 0]) == approx(1 / 4)


def test_jain_gradient_follows_the_formula():
    # x = (1, 3): Σx = 4, Σx² = 10: (2/2)(4/10 − 16·1/100) = 0.24, (4/10 − 16·3/100) = −0.08
    assert rewards.jain_gradient([1, 3]) == approx([0.24, -0.08])


def test_jain_gradient_is_the_derivative():
    x, h = np.array([0.5, 2.0, 3.5, 1.0]), 1e-6
    numeric = [(rewards.jain(x + h * e) - rewards.jain(x - h * e)) / (2 * h) for e in np.eye(4)]
    assert rewards.jain_gradient(x) == approx(numeric, rel=1e-6)


def test_variance_and_its_relatives_follow_the_formulae():
    # μ = 5, Σ(x − μ)²/8 = 32/8 = 4, σ = 2, σ/μ = 0.4
    x = [2, 4, 4, 4, 5, 5, 7, 9]
    assert rewards.variance(x) == approx(-4)
    assert rewards.standard_deviation(x) == approx(-2)
    assert rewards.coefficient_of_variation(x) == approx(-0.4)


def test_max_min_and_its_dual_follow_the_formulae():
    assert rewards.max_min([3, 1, 2]) == 1
    assert rewards.min_max([3, 1, 2]) == -3


def test_product_follows_the_formula():
    # Π(x + ε) = 2.5 · 4.5, and its logarithm
    assert rewards.product([2, 4], epsilon=0.5) == approx(11.25)
    assert rewards.log_product([2, 4], epsilon=0.5) == approx(np.log(11.25))


def test_product_of_a_zero_is_not_minus_infinity():
    assert np.isfinite(rewards.log_product([0, 1]))


def test_shaping_follows_the_formula():
    # γΦ(s') − Φ(s) = 0.9 · 0.8 − 0.5
    assert rewards.shaping(0.5, 0.8, 0.9) == approx(0.22)
    assert rewards.shaping(0.5, 0.8, 0.9, terminated=True) == approx(-0.5)


def test_shaping_adds_up_to_what_does_not_depend_on_the_way():
    """Ng 1999: Σ γ^t F(s_t, s_t+1) = γ^T Φ(s_T) − Φ(s_0)."""
    phi, gamma = np.random.default_rng(1).uniform(size=30), 0.97
    total = sum(gamma**t * rewards.shaping(phi[t], phi[t + 1], gamma) for t in range(29))
    assert total == approx(gamma**29 * phi[29] - phi[0])


def test_violation_counts_only_what_lies_above_the_limit():
    # max(0, 0.95 − 0.8)
    assert rewards.violation([0.2, 0.95, 0.5], 0.8) == approx(0.15)
    assert rewards.violation([0.2, 0.7], 0.8) == 0


@given(LOADS)
def test_jain_lies_between_one_nth_and_one(x):
    assert 1 / len(x) - 1e-9 <= rewards.jain(x) <= 1 + 1e-9


@given(LOADS, st.floats(1e-3, 1e3))
def test_jain_and_cv_do_not_depend_on_the_unit(x, factor):
    # Loads so small that their squares are no normal numbers have lost digits.
    x = np.where(x < 1e-6, 0.0, x)
    assert rewards.jain(x * factor) == approx(float(rewards.jain(x)))
    assert rewards.coefficient_of_variation(x * factor) == approx(float(rewards.coefficient_of_variation(x)), abs=1e-6)


@given(LOADS, st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", rewards.FAIRNESS)
def test_no_reward_depends_on_the_order_of_servers(name, x, random):
    order = list(range(len(x)))
    random.shuffle(order)
    assert rewards.FAIRNESS[name](x[order], None) == approx(float(rewards.FAIRNESS[name](x, None)), rel=1e-9, abs=1e-9)


@given(LOADS, st.floats(0, 1e3))
@pytest.mark.parametrize("name", rewards.FAIRNESS)
def test_a_server_that_is_not_active_counts_for_nothing(name, x, junk):
    reward = rewards.FAIRNESS[name]
    active = np.append(np.ones(len(x), dtype=bool), False)
    assert reward(np.append(x, junk), active) == approx(float(reward(x, None)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", rewards.FAIRNESS)
def test_rewards_reduce_the_last_axis(name):
    x = np.random.default_rng(2).uniform(size=(3, 2, 5))
    active = np.random.default_rng(3).uniform(size=(3, 2, 5)) < 0.7
    whole = rewards.FAIRNESS[name](x, active)
    assert whole.shape == (3, 2)
    assert whole[2, 1] == approx(float(rewards.FAIRNESS[name](x[2, 1], active[2, 1])))


@pytest.mark.parametrize("name", rewards.FAIRNESS)
def test_rewards_of_no_server_are_finite(name):
    nobody = rewards.FAIRNESS[name](np.zeros((2, 3)), np.zeros((2, 3), dtype=bool))
    assert np.isfinite(nobody).all()
