"""Weights are brought within their limits, whichever way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from controlplane.weights import WeightLimits, project

WEIGHTS = arrays(np.float64, (2, 5), elements=st.floats(-3, 20))
ACTIVE = arrays(np.bool_, (2, 5))


def test_normalising_gives_the_capacity_sum():
    limits = WeightLimits(low=0.5, high=2.0, total=8.0, method="normalise")
    weights = limits.apply(np.array([1.0, 1.5, 2.0, 9.0]), np.ones(4, dtype=bool))
    # clipped to 1, 1.5, 2, 2 and multiplied by 8/6.5
    assert weights == pytest.approx(np.array([1.0, 1.5, 2.0, 2.0]) * 8 / 6.5)


def test_clipping_leaves_the_sum():
    limits = WeightLimits(low=0.5, high=2.0, method="clip")
    assert limits.apply(np.array([0.1, 1.0, 7.0]), np.ones(3, dtype=bool)).tolist() == [0.5, 1.0, 2.0]


def test_a_weight_of_zero_drains_its_server():
    weights = WeightLimits().apply(np.array([1.0, 0.0, 1.0]), np.ones(3, dtype=bool))
    assert weights.tolist() == [1.0, 0.0, 1.0]


def test_not_all_servers_can_be_drained():
    weights = WeightLimits().apply(np.array([0.0, 0.0, 1.0]), np.array([True, True, False]))
    assert weights.tolist() == [1.0, 1.0, 0.0]


def test_projection_finds_the_nearest_point():
    """Against a general solver."""
    generator = np.random.default_rng(4)
    used = np.ones(6, dtype=bool)
    for _ in range(20):
        w = generator.uniform(-1, 6, 6)
        found = project(w, used, 0.25, 4.0, np.asarray(6.0))
        best = minimize(
            lambda x, w=w: np.square(x - w).sum(),
            np.ones(6),
            bounds=[(0.25, 4.0)] * 6,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 6},
        )
        assert found == pytest.approx(best.x, abs=1e-3)


@given(WEIGHTS, ACTIVE)
def test_projected_weights_keep_both_constraints(weights, active):
    limits = WeightLimits(method="project")
    w = limits.apply(weights, active)
    used = w > 0
    assert ((w[used] >= 0.25 - 1e-9) & (w[used] <= 4 + 1e-9)).all()
    assert w.sum(axis=1) == pytest.approx(used.sum(axis=1))
    assert not used[~active].any()


@given(WEIGHTS, ACTIVE, st.sampled_from(["clip", "normalise", "project"]))
def test_an_active_server_always_remains(weights, active, method):
    w = WeightLimits(method=method).apply(weights, active)
    assert ((w > 0).any(axis=1) == active.any(axis=1)).all()


@given(WEIGHTS)
def test_normalised_weights_keep_their_ratio(weights):
    w = WeightLimits().apply(weights, np.ones((2, 5), dtype=bool))
    for row in w:
        assert row.max() <= 16 * row[row > 0].min() * (1 + 1e-12)


@pytest.mark.parametrize("wrong", [{"low": 0}, {"low": 5}, {"total": -1}, {"method": "round"}, {"high": np.inf}])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="weight limits"):
        WeightLimits(**wrong)
