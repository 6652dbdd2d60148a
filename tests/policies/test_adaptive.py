"""adaptive: learns from nothing, forgets when a server changes, and has none of learning balancers' known defects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controlplane import registry
from controlplane.learner import Learner
from controlplane.policies.adaptive import Adaptive
from dataplane.simulator import (
    BoundedPareto,
    Crash,
    Deterministic,
    Exponential,
    Poisson,
    Server,
    Simulation,
    SpeedChange,
    World,
)
from shm_layout.layout import OUTCOMES
from tests.policies.farm import Backend, Farm
from tests.policies.observations import observation

SPEEDS = (1, 1, 1, 1, 2, 2, 4, 4)


def world(
    rho: float, workers: int = 4, flows: int = 20_000, mean: float = 0.04, demand: object = None, **fields
) -> World:
    rate = rho * workers * sum(SPEEDS) / mean
    servers = [Server(speed=s, workers=workers) for s in SPEEDS]
    demand = Exponential(mean) if demand is None else demand
    return World(servers, Poisson(rate), demand, seed=1, flows=flows, **fields)


def fct(policy: str, w: World) -> np.ndarray:
    return Simulation(w).run(registry.create(policy)).fct


@pytest.mark.parametrize(
    ("rho", "workers", "demand", "at_most"),
    [
        (0.5, 4, Exponential(0.04), 0.68),
        (0.85, 4, Exponential(0.04), 0.95),
        (0.85, 1, Exponential(0.04), 0.88),
        (0.7, 4, Deterministic(0.04), 0.82),
        (0.7, 4, BoundedPareto(0.04), 0.92),
    ],
)
def test_from_a_cold_start_it_beats_least_connections_on_mean_and_tail(rho, workers, demand, at_most):
    w = world(rho, workers, demand=demand)
    learned, plain = fct("adaptive", w), fct("lsq", w)
    assert learned.mean() < at_most * plain.mean()
    assert np.percentile(learned, 99) < 1.02 * np.percentile(plain, 99)


def test_equal_servers_are_treated_as_equal():
    w = replace(world(0.85), servers=[Server(workers=4) for _ in range(8)], arrivals=Poisson(0.85 * 32 / 0.04))
    assert fct("adaptive", w).mean() < 1.03 * fct("lsq", w).mean()


def test_a_server_that_slows_down_is_found_out_within_seconds():
    w = world(0.7, flows=30_000)
    rate = w.arrivals.mean_rate
    half = 15_000 / rate
    w = replace(w, events=(SpeedChange(half, 7, 0.4),), warmup=half + 2.0)
    assert fct("adaptive", w).mean() < fct("lsq", w).mean()


class Watched(Adaptive):
    """adaptive, and what its learner believed, look by look: (time, s, configured weight distrusted)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, np.ndarray, np.ndarray]] = []

    def __deepcopy__(self, memo: object) -> Watched:
        return self  # the one balancer's

    def decide(self, o):
        directive = super().decide(o)
        assert self.learner.fit is not None
        self.seen.append((o.now, self.learner.fit.s, self.learner["changed"] > 0.0))
        return directive


def weighted(speeds, **fields) -> World:
    """Servers of one worker and weights that tell their speeds, half loaded."""
    servers = [Server(speed=s, weight=s) for s in speeds]
    return World(servers, Poisson(0.5 * sum(speeds) / 0.01), Exponential(0.01), seed=4, flows=12_000, **fields)


def test_the_weight_of_a_server_that_changed_says_nothing_of_it_any_more():
    w = weighted((4, 4, 1, 1))
    at = 6_000 / w.arrivals.rate
    policy = Watched()
    Simulation(replace(w, events=(SpeedChange(at, 0, 1.0),))).run(policy, interval=0.1)
    start = policy.seen[0][0]
    found = next(look for look in policy.seen if look[2][0])
    assert at < found[0] - start < at + 1.0
    assert not found[2][1:].any()
    # The three others' weights make 2.5 ms of the first server's time, which is 10 ms now.
    soon = next(look for look in policy.seen if look[0] > found[0] + 2.0)
    assert soon[1][0] == pytest.approx(0.01, rel=0.35)
    assert policy.seen[-1][2].tolist() == [True, False, False, False]


def test_a_weight_that_was_distrusted_for_nothing_is_believed_again():
    policy = Watched()
    policy.learner.update(observation(4, ids=np.arange(1, 5, dtype=np.uint64)))
    policy.learner["changed"][:2] = 1.0
    policy.learner.before = None
    servers = [Server(speed=s, weight=w) for s, w in ((4, 4), (1, 4), (1, 1), (1, 1))]  # the second is told wrong
    Simulation(World(servers, Poisson(450.0), Exponential(0.01), seed=4, flows=6_000)).run(policy, interval=0.1)
    assert policy.seen[0][2].tolist() == [True, True, False, False]
    assert policy.seen[-1][2].tolist() == [False, True, False, False]


def test_a_weight_that_is_told_anew_is_believed():
    learner = Learner()
    weight = np.array([4.0, 2.0, 1.0])
    learner.update(observation(3, weight=weight))
    learner["changed"][:] = 1.0
    np.testing.assert_allclose(learner.weights(observation(3, weight=weight)), 7.0 / 3.0)
    assert learner.fit is not None
    np.testing.assert_allclose(learner.fit.s * weight, learner.fit.s[2])
    again = learner.update(observation(3, now=100.5, weight=weight))
    np.testing.assert_allclose(again.s, again.s[0])  # nothing is known of them but that the weights are wrong
    told = np.array([4.0, 1.0, 1.0])
    learner.update(observation(3, now=101.0, weight=told))
    assert learner["changed"].tolist() == [1.0, 0.0, 1.0]
    assert learner.weights(observation(3, weight=told)).tolist() == [2.0, 1.0, 2.0]


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_server_that_was_slow_once_is_not_starved(seed):
    # Traefik #12306: one of five equal servers is slow for a while and never recovers its share. Here what was seen of
    # it while it was slow, flows that piled up and waited, would pass for the limit of the server that it is again.
    backends = [Backend() for _ in range(5)]
    with Farm(backends, 400.0) as farm:
        farm.rng = np.random.default_rng(seed)
        farm.run(5)
        backends[0].mean = 1.0
        assert farm.run(10)[0] < 0.08
        backends[0].mean = 0.02
        farm.run(100)
        # Where all have free workers, a server that looks 2 % slower than it is gets little, and that costs nothing.
        farm.rate = 850.0
        assert farm.run(20)[0] == pytest.approx(0.2, abs=0.04)


def test_a_server_that_fails_fast_attracts_nothing():
    backends = [Backend() for _ in range(4)]
    with Farm(backends, 300.0) as farm:
        farm.run(5)
        backends[2].fails = 1.0
        farm.run(5)
        assert farm.run(10)[2] < 0.05
        backends[2].fails = 0.0
        farm.run(140)
        assert farm.run(10)[2] > 0.1  # and comes back


def test_dead_servers_under_high_load_are_dear_at_once():
    """Two of ten refuse, and the rest work at 93 %: idle and quick to fail, they must not be the cheapest."""
    events = [Crash(20.0, 8), Crash(20.0, 9)]
    world = World([Server()] * 10, Poisson(740.0), Exponential(0.01), seed=1, flows=16_000, events=events, detect=1.0)
    summary = Simulation(world).run(Adaptive()).summary()
    assert summary.failed < 0.2 * 740  # of the second until they are detected


def test_errors_of_all_servers_alike_change_nothing():
    with Farm([Backend(fails=0.3) for _ in range(4)], 300.0) as farm:
        farm.run(10)
        assert farm.run(10) == pytest.approx(np.full(4, 0.25), abs=0.06)


def test_a_server_that_hangs_gets_no_more():
    backends = [Backend() for _ in range(4)]
    with Farm(backends, 300.0) as farm:
        farm.run(5)
        backends[1].hangs = True
        farm.run(5)
        assert farm.run(20)[1] < 0.02


def test_a_server_that_joins_is_not_flooded():
    backends = [Backend() for _ in range(4)]
    with Farm(backends, 500.0) as farm:
        farm.servers[3].state = "maint"
        farm.publish()
        farm.run(5)
        farm.servers[3].state = "ready"
        farm.publish()
        most = 0.0

        def watch() -> None:
            nonlocal most
            most = max(most, farm.balancer.in_flight(3))

        share = farm.run(3, watch)
        assert 0.1 < share[3] < 0.4
        assert most < 15


def test_a_new_controller_learns_from_what_the_segment_remembers():
    with Farm([Backend(0.08), Backend(0.02), Backend(0.02)], 250.0) as farm:
        farm.run(20)
        observed = farm.loop.observer.read(int(farm.now * 1e9))
        fresh = Adaptive()
        mu = fresh.decide(observed).fitted["mu"]
        assert mu == pytest.approx([12.5, 50.0, 50.0], rel=0.25)


def test_an_idle_server_bids_less_the_longer_it_is_not_seen():
    policy, bids = Adaptive(), []
    for step in range(7):
        flows = np.array([500.0 * step, 0.0])
        o = observation(2, now=100.0 + 10 * step, flows=flows, outcomes=np.outer(flows, np.eye(7)[0]))
        curves = policy.decide(o).curves
        bids.append(curves[1, 0] / curves[1, 1])
    assert (np.diff(bids) < 0).all()
    assert bids[-1] == pytest.approx(0.0, abs=0.01)  # after a minute it gets one


def test_the_tail_objective_evens_utilisation():
    w = world(0.7)
    mean, tail = (Simulation(replace(w, warmup=2.0)).run(Objective(o)).fct for o in ("mean", "tail"))
    assert np.percentile(tail, 99) < np.percentile(mean, 99)


class Objective(Adaptive):
    """adaptive with an objective that the simulator's observer does not know of."""

    def __init__(self, objective: str) -> None:
        super().__init__()
        self.objective = objective

    def decide(self, observation):
        return super().decide(replace(observation, objective=self.objective))


def test_a_server_that_the_checks_brought_back_has_its_failures_forgiven():
    learner, failures = Learner(), np.zeros((3, len(OUTCOMES)))
    failures[:, 0] = 50.0
    up, down = np.array([True, True, True]), np.array([True, False, True])
    learner.update(observation(3, outcomes=np.zeros_like(failures)))
    failures[1, 2] = 20.0  # connect failed
    learner.update(observation(3, now=100.2, outcomes=failures))
    assert learner.failing()[1] > 0.1
    learner.update(observation(3, now=100.4, outcomes=failures, active=down))
    assert learner.failing()[1] > 0.1
    learner.update(observation(3, now=100.6, outcomes=failures, active=up))
    assert learner.failing()[1] == 0.0
