"""The fit recovers what servers can do, and truthful bids are what value iteration finds: against simulated truth.

The fit gets profiles that stand for 2,000 completions, as the controller keeps them, of servers with Poisson arrivals.
Errors are stated where they are asserted. What `adaptive` makes of it all is in tests/policies.
"""

import numpy as np
import pytest

from controlplane.bids import split, truthful
from controlplane.estimator import Fit, fit
from controlplane.observation import Observer
from controlplane.policy import CURVE_N, Profile
from dataplane.simulator import Deterministic, Exponential, Lognormal, Poisson, Server, Simulation, World
from dataplane.simulator.references import optimum

MEAN = 0.02
WINDOW = 2000
SPEEDS = np.array([1.0, 2.0])


def fitted(demand, workers: int, rho: float, service="fifo") -> Fit:
    """Fit two servers of speeds 1 and 2 that get their fair shares at random, each a queue of its own."""
    servers = [Server(speed=s, workers=workers, service=service, weight=int(s)) for s in SPEEDS]
    rate = rho * workers * SPEEDS.sum() / MEAN
    simulation = Simulation(World(servers, Poisson(rate), demand, seed=4, flows=80_000, fallback="alias"))
    simulation.run()
    seen = Observer(simulation.segments[0]).read(simulation.now_ns).profile
    share = WINDOW * len(servers) / seen.completions.sum()
    return fit(Profile(*(getattr(seen, name) * share for name in Profile.__slots__)), np.zeros(2), np.ones(2))


@pytest.mark.parametrize("demand", [Exponential(MEAN), Lognormal(MEAN, 1.5)], ids=["exponential", "lognormal"])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("rho", [0.3, 0.6, 0.9])
def test_speed_and_workers_are_found_within_six_per_cent(demand, workers, rho):
    found = fitted(demand, workers, rho)
    assert found.s * SPEEDS / MEAN == pytest.approx([1.0, 1.0], abs=0.06)
    assert found.k / workers == pytest.approx([1.0, 1.0], abs=0.06)
    assert found.full.all()


@pytest.mark.parametrize(("workers", "rho"), [(1, 0.3), (1, 0.6), (1, 0.9), (2, 0.9), (4, 0.9)])
def test_equal_demands_are_found_within_four_per_cent_where_the_server_fills(workers, rho):
    found = fitted(Deterministic(MEAN), workers, rho)
    assert found.s * SPEEDS / MEAN == pytest.approx([1.0, 1.0], abs=0.02)
    assert found.k / workers == pytest.approx([1.0, 1.0], abs=0.04)


@pytest.mark.parametrize(("workers", "rho"), [(2, 0.3), (2, 0.6), (4, 0.3), (4, 0.6)])
def test_equal_demands_on_a_server_seldom_full_may_look_like_more_workers_but_never_like_fewer(workers, rho):
    """Completions of equal demands come faster than kμ while n >= k, as such periods begin with flows half done."""
    found = fitted(Deterministic(MEAN), workers, rho)
    assert found.s * SPEEDS / MEAN == pytest.approx([1.0, 1.0], abs=0.12)
    assert (found.k > 0.98 * workers).all()
    assert (found.k < 3.0 * workers).all()


@pytest.mark.parametrize("demand", [Exponential(MEAN), Deterministic(MEAN), Lognormal(MEAN, 1.5)])
@pytest.mark.parametrize(("workers", "rho"), [(1, 0.6), (1, 0.9), (4, 0.9)])
def test_shared_cores_have_their_capacity_within_eight_per_cent(demand, workers, rho):
    """A flow that found a core free shares it with later ones: s and k come out larger, by the same factor."""
    found = fitted(demand, workers, rho, service="sharing")
    assert found.capacity * MEAN / SPEEDS / workers == pytest.approx([1.0, 1.0], abs=0.08)
    assert (found.k > 0.95 * workers).all()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_bids_are_the_marginal_costs_that_value_iteration_finds(workers, rho):
    """On one server there is nothing to choose: both say what one more flow costs, by different computations."""
    rate = rho * workers / MEAN
    exact = optimum(rate, MEAN, [Server(workers=workers)], most=120, tolerance=1e-9)
    (curve,) = truthful(np.array([rate]), np.array([1 / MEAN]), np.array([float(workers)]))
    for n in range(12):
        assert CURVE_N[n] == n
        assert curve[n] == pytest.approx(exact.bids((n,))[0], rel=1e-3)


@pytest.mark.parametrize(
    ("servers", "rho"),
    [
        ([Server(), Server()], 0.8),
        ([Server(speed=4.0), Server()], 0.5),
        ([Server(speed=4.0), Server()], 0.85),
        ([Server(speed=2.0, workers=2), Server(workers=3)], 0.8),
        ([Server(speed=5.0), Server(speed=2.0), Server()], 0.7),
    ],
    ids=["equal", "4:1", "4:1 busy", "workers", "three"],
)
def test_truthful_bids_are_within_three_per_cent_of_the_optimum(servers, rho):
    rate = rho * sum(server.capacity for server in servers) / MEAN
    best = optimum(rate, MEAN, servers, most=25 if len(servers) > 2 else 60, tolerance=1e-5)
    mu = np.array([server.speed for server in servers]) / MEAN
    k = np.array([float(server.workers) for server in servers])
    world = World(servers, Poisson(rate), Exponential(MEAN), seed=6, flows=400_000, warmup=10.0)
    simulation = Simulation(world)
    simulation.publish_bids(truthful(split(rate, mu, k), mu, k))
    found = simulation.run().summary()
    assert best.mean_fct - found.mean_error < found.mean < 1.03 * best.mean_fct + found.mean_error
