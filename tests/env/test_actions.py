"""What actions do to bid curves and weights."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controlplane.env.actions import KINDS, Bounds, make_action
from controlplane.env.orders import Orders
from controlplane.policy import CURVE_N
from controlplane.weights import WeightLimits
from dataplane._dataplane import ffi, lib
from shm_layout.layout import CURVE_POINTS

SERVERS = 4
ROWS = np.array([0, 1])
ACTIVE = np.ones((2, SERVERS), dtype=bool)


def kind(name, **options):
    given = {
        "bounds": Bounds(),
        "limits": WeightLimits(),
        "rule": "sed",
        "levels": (1.0, 1.5, 2.0),
        "step": 0.25,
        "drain": False,
    }
    return make_action(name, SERVERS, 2, **(given | options))


def order(made, action):
    """Orders of two rows that act alike."""
    orders = Orders.empty(2, SERVERS)
    made.order(np.tile(action, (2, 1)), ROWS, ACTIVE, orders)
    return orders


def correct(base, correction):
    out = np.empty_like(base, dtype=np.float32)
    data = np.ascontiguousarray(base, dtype=np.float32)
    c = np.ascontiguousarray(correction, dtype=np.float64)
    n = len(data)
    lib.curves_correct(
        ffi.from_buffer("float[]", data), ffi.from_buffer("double[]", c), n, ffi.from_buffer("float[]", out)
    )
    return out


def corrected_reference(base, correction):
    """The formula in ten lines of numpy."""
    s, c, rest = correction[0], correction[1], np.reshape(correction[2:], (-1, 2))
    out = np.empty_like(base)
    for i, (m, k) in enumerate(rest):
        n = CURVE_N * np.exp(s - k)
        within = np.interp(n, CURVE_N, base[i])
        slope = (base[i, -1] - base[i, -2]) / (CURVE_N[-1] - CURVE_N[-2])
        beyond = base[i, -1] + (np.minimum(n, 65535.0) - CURVE_N[-1]) * slope
        out[i] = np.exp(-m) * (np.where(n > CURVE_N[-1], beyond, within) + (np.exp(c) - 1) * base[i, 0])
    return out


CURVES = np.cumsum(np.random.default_rng(0).uniform(0, 1, (SERVERS, CURVE_POINTS)), axis=1)
CORRECTIONS = arrays(np.float64, 2 + 2 * SERVERS, elements=st.floats(-3, 3))


def test_zero_changes_no_bit():
    assert (correct(CURVES, np.zeros(2 + 2 * SERVERS)) == CURVES.astype(np.float32)).all()


@given(CORRECTIONS)
def test_a_correction_follows_the_formula(correction):
    assert correct(CURVES, correction) == pytest.approx(corrected_reference(CURVES, correction), rel=1e-5)


@given(CORRECTIONS)
def test_corrected_curves_never_fall(correction):
    assert (np.diff(correct(CURVES, correction), axis=1) >= 0).all()


def test_a_correction_of_gsed_is_gsed_with_other_parameters():
    # (K·n + c)/w with K = 3, c = 0.5 · 1.6 and w twice as fast on server 1
    base = np.tile((CURVE_N + 0.5) / 10.0, (2, 1))
    found = correct(base, [math.log(3), math.log(1.6), 0, 0, math.log(2), 0])
    exact = CURVE_N[:20]
    assert found[0, :20] == pytest.approx((3 * exact + 0.8) / 10, rel=1e-6)
    assert found[1, :20] == pytest.approx((3 * exact + 0.8) / 20, rel=1e-6)


def test_actions_beyond_their_box_are_clipped():
    made = kind("curves")
    wild, edge = np.full(3 + 2 * SERVERS, 50.0), np.ones(3 + 2 * SERVERS)
    assert (order(made, wild).correction == order(made, edge).correction).all()


def test_bounds_bind_what_they_name():
    made = kind("curves", bounds=Bounds(mu=1, k=2, balancers=3, scale=4, window=5))
    orders = order(made, np.ones(3 + 2 * SERVERS))
    assert orders.correction[0].tolist() == [3, 4, *([1, 2] * SERVERS)]
    assert orders.window[0] == pytest.approx(math.exp(5))


def test_discrete_levels_are_shared_out_to_the_capacity_sum():
    orders = order(kind("discrete"), np.array([0, 1, 2, 2]))
    assert orders.weights[0] == pytest.approx(np.array([1, 1.5, 2, 2]) * 4 / 6.5)
    assert orders.mode[0] == lib.VECTOR_BIDS


def test_zero_weights_action_gives_equal_weights():
    assert order(kind("weights"), np.zeros(SERVERS)).weights[0] == pytest.approx(np.ones(SERVERS))


def test_weights_span_the_whole_ratio():
    weights = order(kind("weights"), np.array([1.0, -1.0, 0.0, 0.0])).weights[0]
    assert weights[0] / weights[1] == pytest.approx(16)


def test_the_lowest_weight_drains_when_it_may():
    assert order(kind("weights", drain=True), np.array([-1.0, 0, 0, 0])).weights[0, 0] == 0
    assert order(kind("weights"), np.array([-1.0, 0, 0, 0])).weights[0, 0] > 0


def test_adjustments_add_up():
    made = kind("adjustments", limits=WeightLimits(method="project"))
    made.reset(ROWS, ACTIVE)
    order(made, np.array([1.0, -1.0, 0, 0]))
    orders = order(made, np.array([1.0, -1.0, 0, 0]))
    assert orders.weights[0] == pytest.approx([1.5, 0.5, 1, 1])


def test_adjustments_begin_anew_with_an_episode():
    made = kind("adjustments")
    order(made, np.ones(SERVERS) * [1, -1, 1, -1])
    made.reset(ROWS, ACTIVE)
    assert order(made, np.zeros(SERVERS)).weights[0] == pytest.approx(np.ones(SERVERS))


@pytest.mark.parametrize("name", KINDS)
def test_every_sampled_action_gives_a_valid_order(name):
    made = kind(name)
    space = made.space(SERVERS)
    space.seed(1)
    for _ in range(50):
        orders = order(made, space.sample())
        assert np.isfinite(orders.correction).all()
        assert np.isfinite(orders.weights).all()
        assert (orders.weights >= 0).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("weights", {"rule": "fifo"}), ("discrete", {"levels": (1.0,)}), ("adjustments", {"step": 0.0}), ("moves", {})],
)
def test_options_that_make_no_sense_are_refused(name, wrong):
    with pytest.raises(ValueError, match=r"rule|levels|step|action"):
        kind(name, **wrong)
