"""gsed on estimated rates: finds the speeds, whatever the interval, and follows them when they change."""

import numpy as np
import pytest

from controlplane import registry
from controlplane.policies.gsed_estimated import GeneralisedShortestExpectedDelayEstimated
from controlplane.policy import Profile
from dataplane.simulator import Exponential, Poisson, Server, Simulation, SpeedChange, World
from tests.policies.observations import observation

SPEEDS = (4.0, 2.0, 1.0, 1.0)


def rates_after(interval: float, events=()) -> np.ndarray:
    servers = [Server(speed=speed) for speed in SPEEDS]  # every weight is 1: it is told nothing
    world = World(servers, Poisson(1.0), Exponential(0.01), seed=5, flows=30_000, events=events).at_load(0.85)
    policy = GeneralisedShortestExpectedDelayEstimated(decay=0.998)
    kept = []
    policy.decide, decide = lambda o: kept.append(decide(o)) or kept[-1], policy.decide
    policy.__class__ = type("Kept", (policy.__class__,), {"__deepcopy__": lambda self, memo: self})
    Simulation(world).run(policy, interval=interval)
    return kept[-1].fitted["rate"]


@pytest.mark.parametrize("interval", [0.02, 0.5])
def test_it_finds_the_rates_whatever_the_interval(interval):
    assert rates_after(interval) == pytest.approx(np.array(SPEEDS) * 100, rel=0.2)


def test_it_follows_a_change():
    changed = rates_after(0.1, [SpeedChange(15.0, 0, 1.0), SpeedChange(15.0, 2, 4.0)])
    assert changed == pytest.approx([100, 200, 400, 100], rel=0.25)


def test_the_estimate_by_hand():
    """Two completions in 0.4 busy seconds, then one in 0.5, then none in a whole one; each halves the past."""

    def seen(completions: float, busy: float, now: float):
        zero = np.zeros((1, len(observation(1).profile.time[0])))
        done, time = zero.copy(), zero.copy()
        done[0, 1], time[0, 1], time[0, 0] = completions, busy, now - busy
        flows = np.array([completions + 1.0])
        return observation(1, now=now, profile=Profile(time, done, zero, zero), flows=flows)

    policy = GeneralisedShortestExpectedDelayEstimated(decay=0.5)
    policy.decide(seen(0, 0.0, 100.0))
    # Two completions, the first aged by the second: 1 + ½ of them, over ¾ of the time
    first = policy.decide(seen(2, 0.4, 101.0)).fitted["rate"]
    assert first == pytest.approx([1.5 / (0.75 * 0.4)])
    second = policy.decide(seen(3, 0.9, 102.0)).fitted["rate"]
    assert second == pytest.approx([(0.5 * 1.5 + 1) / (0.5 * 0.3 + 0.5)])
    # No completion, but busy: the rate falls
    third = policy.decide(seen(3, 1.9, 103.0)).fitted["rate"]
    assert third < second


@pytest.mark.parametrize("options", [{"decay": 0}, {"decay": 1}, {"c": -1}, {"k": 0}, {"decay": float("nan")}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        registry.create({"name": "gsed_estimated", **options})
