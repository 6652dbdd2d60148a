"""Forms of the truthful bid are tried in the simulator; which holds depends on the farm and its load."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.bids import split, truthful
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import CURVE_N
from controlplane.rehearsal import FLOWS, FORMS, Rehearsal, _Trial, bids
from dataplane.simulator import Exponential, Poisson, Server, Simulation, World
from tests.policies.observations import observation

INTERVAL = 0.2


def rehearse(rehearsal, speeds, workers, load, seconds=10.0, begin=0.0, objective="mean"):
    """Decide for so long on one farm; return the forms that held, in order."""
    mu, k = np.asarray(speeds, dtype=float) * 50.0, np.asarray(workers, dtype=float)
    lam = split(load * float(mu @ k), mu, k)
    held = []
    for now in np.arange(begin, begin + seconds, INTERVAL):
        o = replace(observation(len(mu)), now=float(now), objective=objective)
        held.append(rehearsal.form(o, lam, mu, k))
    return held


def test_one_worker_and_a_form_make_a_straight_line():
    mu, k, lam = np.array([4.0, 1.0]), np.ones(2), np.array([3.0, 0.4])
    for theta, c in FORMS:
        expected = (CURVE_N + c) / (mu - theta * lam)[:, None]
        np.testing.assert_allclose(bids((theta, c), lam, mu, k), expected, rtol=1e-9)


def test_the_first_form_is_the_truthful_bid():
    mu, k, lam = np.array([4.0, 1.0, 2.0]), np.array([1.0, 3.0, 40.0]), np.array([3.0, 2.0, 70.0])
    np.testing.assert_array_equal(bids(FORMS[0], lam, mu, k), truthful(lam, mu, k))


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.floats(1, 300), st.floats(0, 0.97)), min_size=1, max_size=6),
    st.sampled_from(FORMS),
)
def test_bids_are_above_zero_and_never_fall(servers, form):
    mu, k, load = (np.array(column) for column in zip(*servers, strict=True))
    curves = bids(form, load * mu * k, mu, k)
    assert (curves[:, 0] > 0).all()
    assert (np.diff(curves, axis=1) >= 0).all()
    assert np.isfinite(curves).all()


def test_a_large_farm_of_two_speeds_gets_another_form_than_the_truthful_one():
    rehearsal = Rehearsal()
    held = rehearse(rehearsal, [4] * 16 + [1] * 48, [1] * 64, 0.7)
    assert held[0] == FORMS[0]  # nothing is known yet
    assert held[-1][1] < 1.0  # idle slow servers are left idle for less


def test_where_all_forms_dispatch_alike_the_first_stays():
    assert set(rehearse(Rehearsal(), [1] * 8, [1] * 8, 0.9)) == {FORMS[0]}


@pytest.mark.parametrize(("servers", "load"), [(1, 0.8), (8, 0.1), (8, 0.99)])
def test_nothing_is_tried_where_there_is_nothing_to_choose(servers, load):
    rehearsal = Rehearsal()
    rehearse(rehearsal, [4.0] + [1.0] * (servers - 1), [1] * servers, load)
    assert rehearsal.rounds == 0


def test_trials_become_rare_and_one_decision_has_one_at_most(monkeypatch):
    trials = []
    step = _Trial.step
    monkeypatch.setattr(_Trial, "step", lambda self, tail: trials.append(1) or step(self, tail))
    rehearsal, counts = Rehearsal(), []
    for second in range(60):
        before = len(trials)
        held = rehearse(rehearsal, [4, 1, 1], [1] * 3, 0.8, seconds=1.0, begin=float(second))
        counts.append(len(trials) - before)
        assert counts[-1] <= len(held)
    assert sum(counts[:15]) >= 4 * 2
    assert sum(counts[30:]) <= 3 * len(FORMS)


@pytest.mark.parametrize(
    ("mu", "k"),
    [
        ([1e-6, 1e-6], [1, 1]),
        ([1e6, 1e-6], [1, 1]),
        ([1e6, 1e6, 5], [1, 16384, 1]),
        ([50, 200] * 200, [16384, 3] * 200),
    ],
)
def test_any_farm_that_can_be_fitted_can_be_tried(mu, k):
    """Rates at the ends of what the estimator gives: neither errors nor a trial that lasts."""
    rehearsal, begun = Rehearsal(), time.monotonic()
    rehearse(rehearsal, np.array(mu) / 50.0, k, 0.8, seconds=5.0)
    assert rehearsal.rounds >= 4
    assert time.monotonic() - begun < 30


def test_a_load_between_two_steps_is_found_out_about_too():
    """0.724 and 0.726 lie on both sides of one."""
    rehearsal, held = Rehearsal(), []
    for turn in range(100):
        load = (0.724, 0.726)[turn % 2]
        held += rehearse(rehearsal, [4] * 16 + [1] * 48, [1] * 64, load, seconds=INTERVAL, begin=turn * INTERVAL)
    assert held[-1] == held[-2] != FORMS[0]
    assert rehearsal.rounds < 20


def test_after_many_rounds_forms_are_still_compared():
    """The rounds in which all forms were tried have gone by then."""
    rehearsal = Rehearsal()
    rehearse(rehearsal, [4] * 4 + [1] * 12, [1] * 16, 0.7, seconds=4.0)
    for round_ in range(30):
        held = rehearse(rehearsal, [4] * 4 + [1] * 12, [1] * 16, 0.7, seconds=2.0, begin=100.0 + 20.0 * round_)
    assert rehearsal.rounds > 30
    assert held[-1] != FORMS[1]
    (evidence,) = rehearsal._evidence.values()
    assert np.isfinite(evidence).all()
    assert np.ptp(evidence, axis=0).min() > 0  # every form has figures of its own rounds, or of these


def test_what_was_found_on_another_farm_is_found_anew():
    rehearsal = Rehearsal()
    rehearse(rehearsal, [4] * 4 + [1] * 12, [1] * 16, 0.7)
    rounds = rehearsal.rounds
    rehearse(rehearsal, [4] * 4 + [1] * 12, [1] * 16, 0.7, seconds=4.0, begin=11.0)
    calm = rehearsal.rounds - rounds
    rehearse(rehearsal, [1] * 12 + [4] * 4, [1] * 16, 0.7, seconds=4.0, begin=16.0)
    assert rehearsal.rounds - rounds - calm >= 2 > calm


def test_the_same_observations_give_the_same_forms():
    farm = ([4] * 4 + [1] * 12, [1] * 16, 0.9)
    assert rehearse(Rehearsal(), *farm) == rehearse(Rehearsal(), *farm)


def test_a_farm_of_thousands_is_tried_on_some_of_its_servers(monkeypatch):
    sizes = []
    run = Simulation.run

    def noted(self, *given, **named):
        sizes.append(len(self.world.servers))
        assert self.world.flows == FLOWS
        return run(self, *given, **named)

    monkeypatch.setattr(Simulation, "run", noted)
    rehearse(Rehearsal(), [4] * 1024 + [1] * 3072, [1] * 4096, 0.7, seconds=1.0)
    assert set(sizes) == {64}


def test_told_nothing_it_is_better_than_the_truthful_form_alone(monkeypatch):
    """Sixty-four servers, every fourth four times as fast, at 0.7: the figure of docs/adaptive.md is 0.92."""
    speeds = [4] * 16 + [1] * 48
    rate = 0.7 * sum(speeds) / 0.02
    means = []
    for learned in (True, False):
        if not learned:
            monkeypatch.setattr(Rehearsal, "form", lambda *_: FORMS[0])
        world = World(
            [Server(speed=s) for s in speeds], Poisson(rate), Exponential(0.02), seed=5, flows=120_000, warmup=10.0
        )
        means.append(Simulation(world).run(Adaptive()).fct.mean())
    assert means[0] < 0.96 * means[1]


def test_what_late_binding_decides_is_not_rehearsed():
    rounds = {}

    class Kept(Adaptive):
        def decide(self, o):
            directive = super().decide(o)
            rounds[o.reserve] = self.rehearsal.rounds
            return directive

    servers = [Server(speed=s) for s in (1, 1, 2, 4)]
    for reserve in ("learned", "off"):
        world = World(servers, Poisson(320.0), Exponential(0.02), seed=3, flows=9_000, rings=True)
        Simulation(world, ring_slots=8192).run(Kept(), reserve=reserve)
    assert rounds["learned"] < rounds["off"]
