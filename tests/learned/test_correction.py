"""Corrections of curves: the environments' own arithmetic, and bounds that no network can leave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.learned import correction
from controlplane.learned.correction import CAP, FLOOR
from controlplane.learned.manifest import BOUNDS
from controlplane.learned.schema import ActionSchema
from controlplane.policy import CURVE_N, Directive, PolicyError
from controlplane.weights import WeightLimits
from tests.learned.files import make
from tests.policies.observations import observation

POINTS = len(CURVE_N)


def base_curves(seed: int, servers: int = 5) -> np.ndarray:
    """Curves that never fall, some with an idle bid of 0, of very different sizes."""
    rng = np.random.default_rng(seed)
    steps = rng.gamma(0.3, size=(servers, POINTS)) * 10.0 ** rng.uniform(-4, 4, (servers, 1))
    steps[rng.random(servers) < 0.3, 0] = 0.0
    return np.cumsum(steps, axis=1).astype(np.float32)


def test_a_neutral_action_is_no_correction_to_the_bit() -> None:
    base = base_curves(1)
    logs, window = correction.logarithms(np.zeros(3 + 10, dtype=np.float32), BOUNDS)
    assert not logs.any()
    assert window == 1.0
    assert correction.correct(base, logs).tobytes() == base.tobytes()
    curves, factor = correction.bounded(base.astype(np.float64), base.astype(np.float64), np.ones((5, POINTS)), 0.25)
    assert curves.astype(np.float32).tobytes() == base.tobytes()
    assert (factor == 1.0).all()


def test_an_action_means_what_the_formula_says() -> None:
    action = np.zeros(3 + 2, dtype=np.float32)
    action[[0, 1, 3, 4]] = 0.5, -0.25, 0.75, 0.1
    base = (0.2 + 0.05 * CURVE_N).astype(np.float32)[None]
    logs, _ = correction.logarithms(action, BOUNDS)
    k, c, mu, workers = np.exp(0.5 * np.log(4)), 4**-0.25, 4**0.75, 4**0.1
    n = CURVE_N[:60]
    wanted = (0.2 + 0.05 * n * k / workers + (c - 1) * 0.2) / mu
    assert correction.correct(base, logs)[0, :60] == pytest.approx(np.maximum.accumulate(wanted), rel=1e-5)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.floats(0.01, 2.0), st.integers(1, 8))
def test_bounds_hold_from_update_to_update_whatever_is_asked(seed: int, change: float, updates: int) -> None:
    rng = np.random.default_rng(seed)
    base = base_curves(seed).astype(np.float64)
    factor = np.ones_like(base)
    for _ in range(updates):
        before = factor
        asked = correction.correct(base.astype(np.float32), rng.uniform(-20, 20, 2 + 2 * len(base)))
        curves, factor = correction.bounded(base, asked.astype(np.float64), before, change)
        some = base > 0
        assert np.isfinite(curves).all()
        assert (np.diff(curves, axis=1) >= 0).all()
        assert (curves[some] >= base[some] * FLOOR * (1 - 1e-12)).all()
        assert (curves[some] <= base[some] * CAP * (1 + 1e-12)).all()
        ratio = curves[some] / np.maximum.accumulate(base * before, axis=1)[some]
        assert (ratio <= (1 + change) * (1 + 1e-12)).all()
        assert (ratio >= (1 - 1e-12) / (1 + change)).all()


def test_what_a_correction_asks_is_reached_in_some_updates() -> None:
    base = base_curves(3).astype(np.float64)
    logs = np.zeros(2 + 10)
    logs[2] = np.log(4.0)
    asked = correction.correct(base.astype(np.float32), logs).astype(np.float64)
    factor = np.ones_like(base)
    for _ in range(7):  # 1.25^7 > 4
        curves, factor = correction.bounded(base, asked, factor, 0.25)
    assert curves == pytest.approx(asked)


def test_a_base_policy_that_samples_or_draws_cannot_be_corrected() -> None:
    for name in ("p2c", "wcmp"):
        with pytest.raises(PolicyError, match=f"base policy {name}: only rules in which all servers bid"):
            correction.decide_base(make(name), observation(3))


def test_the_window_acts_on_what_the_base_policy_remembers_while_it_decides() -> None:
    seen: list[float] = []

    class Learner:
        window = 2000.0

    class Base:
        name = "spy"
        learner = Learner()

        def decide(self, o: object) -> Directive:
            seen.append(self.learner.window)
            if len(seen) == 2:
                raise RuntimeError("once")
            return Directive("bids", curves=np.ones((2, POINTS)))

    base = Base()
    correction.decide_base(base, observation(2), 0.5)
    with pytest.raises(RuntimeError):
        correction.decide_base(base, observation(2), 4.0)
    assert seen == [1000.0, 8000.0]
    assert base.learner.window == 2000.0


def test_weights_mean_what_the_environments_make_of_them() -> None:
    active = np.array([True, True, False, True])
    discrete = ActionSchema("discrete", levels=(1.0, 1.5, 2.0))
    found = correction.weights_of(discrete, np.array([0, 1, 2, 2.0]), active, WeightLimits(), np.ones(4), 1.0)
    assert found == pytest.approx(np.array([1, 1.5, 0, 2]) / 1.5)
    weights = ActionSchema("weights", levels=(-1.0, 1.0))
    found = correction.weights_of(weights, np.array([-1, 1, 0, 0.0]), active, WeightLimits(), np.ones(4), 1.0)
    assert found == pytest.approx(np.array([0.25, 4, 0, 1]) * 3 / 5.25)


def test_weights_fade_to_those_of_the_base_policy() -> None:
    schema = ActionSchema("weights", levels=(-1.0, 1.0))
    active, base = np.ones(2, dtype=bool), np.array([0.5, 1.5])
    ratios = []
    for blend in (0.0, 0.5, 1.0):
        w = correction.weights_of(schema, np.array([1.0, -1.0]), active, WeightLimits(), base, blend)
        ratios.append(w[0] / w[1])
    assert ratios == pytest.approx([1 / 3, np.sqrt(16 / 3), 16])


def test_directives_of_weights_follow_their_rule() -> None:
    w = np.array([1.0, 2.0, 0.0])
    sed, gsed = correction.by_weights(w, "sed", {}), correction.by_weights(w, "gsed", {})
    assert sed.curves is not None
    assert gsed.curves is not None
    assert sed.curves[1, :3] == pytest.approx([0.5, 1.0, 1.5])
    assert gsed.curves[1, :3] == pytest.approx([0.25, 0.75, 1.25])
    assert (sed.curves[2] == 1e30).all()
    assert correction.by_weights(w, "alias", {}).rule == "alias"
