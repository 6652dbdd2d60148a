"""The simulator agrees with queueing theory: what is known exactly lies in its means' confidence intervals.

Seeds are fixed, so a test passes always or never.
"""

import math

import numpy as np
import pytest

from dataplane.simulator import (
    BoundedPareto,
    Deterministic,
    Exponential,
    Hyperexponential,
    Lognormal,
    Poisson,
    Result,
    Server,
    Simulation,
    World,
)
from dataplane.simulator.engine import curve_from, gsed_curves
from dataplane.simulator.references import optimum

MEAN = 0.01


def simulate(world: World, curves=None) -> Result:
    simulation = Simulation(world)
    if curves is not None:
        simulation.publish_bids(curves)
    return simulation.run()


def assert_agrees(result: Result, expected: float) -> None:
    """The 95 % interval is widened by a half: some twenty tests share it."""
    summary = result.summary()
    assert abs(summary.mean - expected) < 1.5 * summary.mean_error
    assert summary.mean_error < 0.12 * expected
    assert summary.open == summary.rejected == summary.failed == 0


def one_server(rho: float, demand, flows: int = 400_000, **server) -> World:
    servers = [Server(**server)]
    rate = rho * servers[0].capacity / demand.mean
    return World(servers, Poisson(rate), demand, seed=7, flows=flows, warmup=0.02 * flows / rate)


def erlang_c(k: int, load: float) -> float:
    """Return the probability that a flow of M/M/k waits; load = λ/μ."""
    blocking = 1.0
    for n in range(1, k + 1):
        blocking = load * blocking / (n + load * blocking)
    return blocking / (1 - load / k * (1 - blocking))


@pytest.mark.parametrize("rho", [0.3, 0.7, 0.95])
def test_one_worker_with_exponential_demand_is_m_m_1(rho):
    assert_agrees(simulate(one_server(rho, Exponential(MEAN), flows=800_000)), MEAN / (1 - rho))


@pytest.mark.parametrize(("rho", "k"), [(0.5, 2), (0.9, 4), (0.8, 16)])
@pytest.mark.parametrize("service", ["fifo", "sharing"])
def test_k_workers_or_cores_with_exponential_demand_are_m_m_k(rho, k, service):
    expected = MEAN + erlang_c(k, rho * k) * MEAN / (k * (1 - rho))
    assert_agrees(simulate(one_server(rho, Exponential(MEAN), workers=k, service=service)), expected)


@pytest.mark.parametrize("rho", [0.3, 0.9])
@pytest.mark.parametrize(
    "demand",
    [Deterministic(MEAN), Lognormal(MEAN, 1.5), Hyperexponential.balanced(MEAN, 2.0), BoundedPareto(MEAN, 2.1, 100.0)],
    ids=["deterministic", "lognormal", "hyperexponential", "bounded Pareto"],
)
def test_fifo_follows_pollaczek_and_khinchine(demand, rho):
    expected = MEAN + rho / MEAN * demand.second_moment / (2 * (1 - rho))
    assert_agrees(simulate(one_server(rho, demand)), expected)


@pytest.mark.parametrize(
    "demand",
    [Deterministic(MEAN), Exponential(MEAN), BoundedPareto(MEAN, 1.5, 100.0)],
    ids=["deterministic", "exponential", "bounded Pareto"],
)
def test_processor_sharing_depends_on_the_mean_demand_alone(demand):
    assert_agrees(simulate(one_server(0.8, demand, service="sharing")), MEAN / (1 - 0.8))


def test_speed_divides_all_times():
    assert_agrees(simulate(one_server(0.7, Exponential(MEAN), speed=4.0)), MEAN / 4 / (1 - 0.7))


def test_a_random_split_makes_independent_queues():
    speeds = [1.0, 1.0, 2.0]
    world = World(
        [Server(speed=s) for s in speeds],
        Poisson(150.0),
        Exponential(MEAN),
        seed=3,
        flows=400_000,
        warmup=20.0,
        fallback="alias",
    )
    assert_agrees(simulate(world), float(np.mean([MEAN / (s - 50.0 * MEAN) for s in speeds])))


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_joining_the_shorter_of_two_queues_is_the_optimum_of_equal_servers(rho):
    # Two independent computations; Winston 1977 proves them equal.
    servers = [Server(), Server()]
    rate = 2 * rho / MEAN
    exact = optimum(rate, MEAN, servers, most=40 if rho < 0.8 else 80, tolerance=1e-5).mean_fct
    world = World(servers, Poisson(rate), Exponential(MEAN), seed=5, flows=600_000, warmup=20.0)
    assert_agrees(simulate(world, curve_from(lambda n: n)), exact)


def test_nobody_beats_the_value_iteration_of_two_unequal_servers():
    servers = [Server(speed=4.0), Server()]
    rate = 0.8 * 5 / MEAN
    best = optimum(rate, MEAN, servers, most=60, tolerance=1e-5)
    world = World(servers, Poisson(rate), Exponential(MEAN), seed=5, flows=600_000, warmup=10.0)
    found = {c: simulate(world, gsed_curves([4.0, 1.0], c)).summary() for c in (0.3, 1.0)}
    assert all(s.mean > best.mean_fct - s.mean_error for s in found.values())
    assert found[0.3].mean < 1.03 * best.mean_fct < found[1.0].mean


def test_the_classic_comparison_comes_out():
    # n = 16, every fourth server 4x faster, rho = 0.9; times in mean service times of an average server.
    speeds = [4.0 if i % 4 == 0 else 1.0 for i in range(16)]
    capacity = sum(speeds)
    servers = [Server(speed=s * 16 / capacity) for s in speeds]
    world = World(servers, Poisson(0.9 * 16 / MEAN), Exponential(MEAN), seed=1, flows=600_000, warmup=20.0)

    def mean(curves) -> float:
        return simulate(world, curves).summary().mean / MEAN

    assert 1.45 < mean(gsed_curves(speeds, 0.5)) < 1.65
    assert 1.8 < mean(gsed_curves(speeds, 1.0)) < 2.1
    assert 1.8 < mean(curve_from(lambda n: n)) < 2.0
    assert math.isclose(world.load, 0.9)
