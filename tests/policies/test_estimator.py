"""The fit recovers s and k whatever the service distribution, saturated or not, and says what it does not know."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from controlplane.estimator import fit, shrink
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import CURVE_N
from dataplane.simulator import (
    BoundedPareto,
    Deterministic,
    Exponential,
    Lognormal,
    Poisson,
    Server,
    Simulation,
    World,
)
from dataplane.simulator.world import Demand
from tests.policies.observations import profile


class Kept(Adaptive):
    """adaptive that can be looked at after a simulation, which copies the policy it is given."""

    def __deepcopy__(self, memo: object) -> Kept:
        return self


def test_copies_are_what_the_simulator_makes():
    kept = Kept()
    assert copy.deepcopy(kept) is kept


@pytest.mark.parametrize("demand", [Exponential(0.02), Deterministic(0.02), Lognormal(0.02, 1.5)])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("rho", [0.7, 0.95])
def test_rates_and_workers_are_recovered(demand, workers, rho):
    speeds = np.array([1.0, 1.0, 2.0, 4.0])
    rate = rho * workers * speeds.sum() / demand.mean
    servers = [Server(speed=s, workers=workers) for s in speeds]
    fits = []
    for seed in range(2, 5):
        policy = Kept()
        Simulation(World(servers, Poisson(rate), demand, seed=seed, flows=40_000)).run(policy)
        fits.append(policy.learner.fit)
    # One server in twenty may pass for k + 1 workers that are slower by as much.
    assert np.median([f.s for f in fits], axis=0) * speeds == pytest.approx(np.full(4, demand.mean), rel=0.15)
    # A server that is seldom full tells little of its limit: there one run in some may be wrong about it.
    full = rho > 0.9
    found = [f.capacity for f in fits] if full else [np.median([f.capacity for f in fits], axis=0)]
    for capacity in found:
        expected = np.full(4, workers / demand.mean)
        assert capacity / speeds == pytest.approx(expected, rel=0.15 if full else 0.3)


@pytest.mark.parametrize("demand", [Exponential(0.02), Deterministic(0.02), BoundedPareto(0.02)])
def test_flows_that_share_cores_are_not_taken_for_more_workers(demand):
    """One core is one worker, four are four, though whoever shares takes longer from the first on."""
    cores = np.array([1, 1, 1, 4, 4])
    servers = [Server(speed=2.0 if c == 1 else 1.0, workers=int(c), service="sharing") for c in cores]
    rate = 0.85 * (3 * 2.0 + 2 * 4.0) / 0.02
    fits = []
    for seed in range(2, 6):
        policy = Kept()
        Simulation(World(servers, Poisson(rate), demand, seed=seed, flows=40_000)).run(policy)
        fits.append(policy.learner.fit.k)
    # Heavy tails mislead one run in five about some server.
    for kind in (1, 4):
        assert np.median(np.array(fits)[:, cores == kind]) == pytest.approx(kind, rel=0.3)


def k_error(servers: list[Server], demand: Demand, rho: float, seconds: float, seed: int) -> float:
    """Return the mean of |log(k found / k true)| at the end of a run from nothing."""
    capacity = sum(server.capacity for server in servers)
    rate = rho * capacity / demand.mean
    policy = Kept()
    Simulation(World(servers, Poisson(rate), demand, seed=seed, flows=int(rate * seconds))).run(policy)
    true = np.array([server.workers for server in servers])
    return float(np.abs(np.log(policy.learner.fit.k / true)).mean())


def test_unequal_worker_counts_are_told_apart_within_ten_seconds():
    servers = [Server(workers=k) for k in (1, 1, 2, 2, 4, 4, 8, 8)]
    errors = [k_error(servers, Exponential(0.03), 0.8, 10.0, seed) for seed in range(1, 7)]
    assert np.mean(errors) < 0.09


def test_few_samples_do_not_make_a_large_server_small():
    # M/M/8 at load 0.8, 300 flows: the first q at which it might be full is often 5 or 6.
    k, load, flows, top = 8, 0.8, 300, 40
    n = np.arange(top)
    busy = np.minimum(n, k)
    pi = np.cumprod(np.concatenate([[1.0], load * k / busy[1:]]))
    pi /= pi.sum()
    rng = np.random.default_rng(1)
    found_k, were_full = [], 0
    for _ in range(200):
        time, done, found, spent = (np.zeros((1, len(CURVE_N))) for _ in range(4))
        time[0, :top] = pi * flows / (load * k)
        done[0, :top] = rng.poisson(busy * time[0, :top])
        found[0, :top] = rng.poisson(load * k * time[0, :top])
        waits = np.maximum(n - k + 1, 0)
        spent[0, :top] = rng.gamma(np.maximum(found[0, :top], 1e-9)) + rng.gamma(found[0, :top] * waits + 1e-9) / k
        f = fit(profile(1, time=time, completions=done, arrivals=found, found_fct=spent), np.zeros(1), np.ones(1))
        if f.full[0]:
            were_full += 1
            found_k.append(f.k[0])
    assert were_full > 100
    assert np.median(found_k) == pytest.approx(k, rel=0.1)


def test_one_worker_of_deterministic_service_is_not_taken_for_two():
    # With two in flight an arrival has just come while the first is half done: the likelihood alone says two.
    servers = [Server(speed=s) for s in (1.0, 2.0, 4.0)]
    assert k_error(servers, Deterministic(0.02), 0.7, 60.0, 1) < 0.06


def test_processor_sharing_has_the_capacity_of_its_cores():
    servers = [Server(speed=s, workers=2, service="sharing") for s in (1.0, 2.0)]
    policy = Kept()
    Simulation(World(servers, Poisson(0.85 * 6 / 0.02), Exponential(0.02), seed=2, flows=40_000)).run(policy)
    assert policy.learner.fit.capacity == pytest.approx([100.0, 200.0], rel=0.15)


def test_a_link_s_delay_is_not_taken_for_slowness_of_the_workers():
    servers = [Server(speed=s, workers=4, delay=0.0005) for s in (1.0, 4.0)]
    policy = Kept()
    Simulation(World(servers, Poisson(0.85 * 20 / 0.04), Exponential(0.04), seed=2, flows=40_000)).run(policy)
    assert policy.learner.fit.capacity == pytest.approx([100.0, 400.0], rel=0.12)


def test_a_server_that_never_filled_is_not_called_full():
    # In flight: 0 and 1, hardly 2: k may be anything from 1 up.
    time, done, found, spent = (np.zeros((1, len(CURVE_N))) for _ in range(4))
    time[0, :3] = [90.0, 9.5, 0.5]
    done[0, 1:3] = [950.0, 100.0]
    found[0, :2] = [950.0, 100.0]
    spent[0, :2] = [9.5, 1.0]
    f = fit(profile(1, time=time, completions=done, arrivals=found, found_fct=spent), np.zeros(1), np.ones(1))
    assert not f.full[0]
    assert f.k[0] >= 2
    assert f.s[0] == pytest.approx(0.01, rel=0.05)


def test_one_worker_that_the_first_test_passed_over_is_not_taken_for_two():
    """A real start of one worker of 33/s. cap·s = 30.4 · 39 ms = 1.19 passes 1 + 1/√samples = 1.15, and of those who
    found none or one s is 50 ms. But with two in flight it ends 32/s, with one 28/s: e^4.5 to 1 against k = 1.65."""
    time, done, found, spent = (np.zeros((1, len(CURVE_N))) for _ in range(4))
    time[0, :5] = [1.36, 2.10, 1.97, 0.90, 0.37]
    done[0, 1:5] = [58.4, 63.3, 31.6, 9.1]
    found[0, :5] = [57.7, 62.6, 30.9, 11.2, 3.2]
    spent[0, :5] = found[0, :5] * [0.0390, 0.0595, 0.0839, 0.1639, 0.1729]
    f = fit(profile(1, time=time, completions=done, arrivals=found, found_fct=spent), np.zeros(1), np.ones(1))
    assert f.full[0]
    assert f.k[0] == pytest.approx(1.0)
    assert 1.0 / f.s[0] == pytest.approx((58.4 + 63.3 + 31.6 + 9.1) / (2.10 + 1.97 + 0.90 + 0.37))  # what it ends


def test_nothing_seen_means_the_weights():
    f = fit(profile(2), np.zeros(2), np.array([1.0, 4.0]))
    assert f.s[0] / f.s[1] == pytest.approx(4.0)
    assert (f.samples == 0).all()


def test_an_unseen_server_is_expected_to_be_like_the_others():
    time, done, found, spent = (np.zeros((3, len(CURVE_N))) for _ in range(4))
    time[:2, 1] = 10.0
    done[:2, 1] = 1000.0
    found[:2, 0] = 1000.0
    spent[:2, 0] = 10.0
    f = fit(profile(3, time=time, completions=done, arrivals=found, found_fct=spent), np.zeros(3), np.ones(3))
    assert f.s[2] == pytest.approx(0.01, rel=0.01)


def test_open_flows_count_with_their_age():
    # Ten answers of 10 ms, and four flows that wait for a second already: not a fast server.
    time, done, found, spent = (np.zeros((1, len(CURVE_N))) for _ in range(4))
    time[0, 1], done[0, 1], found[0, 0], spent[0, 0] = 0.1, 10.0, 10.0, 0.1
    p = profile(1, time=time, completions=done, arrivals=found, found_fct=spent)
    assert fit(p, np.array([4.0]), np.ones(1)).s[0] == pytest.approx(0.41, rel=0.01)


def test_shrinking_pools_the_alike_and_leaves_the_unlike():
    alike = shrink(np.array([1.0, 1.2, 0.9]), np.full(3, 0.1), np.ones(3, dtype=bool))
    assert np.ptp(alike) < 1e-12
    unlike = shrink(np.array([0.0, 5.0]), np.full(2, 0.01), np.ones(2, dtype=bool))
    assert unlike == pytest.approx([0.0, 5.0], abs=0.02)
    assert shrink(np.array([3.0, 99.0]), np.ones(2), np.array([True, False])) == pytest.approx([3.0, 3.0])
