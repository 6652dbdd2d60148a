"""The simulator against queueing theory, at large size: simulated means beside the formulae, ρ = 0.3 … 0.95.

    python benchmarks/theory.py [--quick] [--json]

Each row is one system: M/M/1, M/M/k (first come first served and shared cores), M/D/1, M/G/1 with lognormal demand
(Pollaczek and Khinchine), M/G/1 under processor sharing (only the mean demand matters), a random split over unequal
servers, and two equal servers with the shorter queue joined, whose exact mean comes from value iteration. z is the
distance in standard errors of the mean over twelve seeds: beyond ±4 is called wrong, and the exit status is 1. All rows
use the same seeds, so that neighbours err to the same side. tests/sim/test_theory.py checks the same at small size.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.simulation.pool import cores
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
from dataplane.simulator.engine import curve_from
from dataplane.simulator.references import optimum

MEAN = 0.01
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
SEEDS = 12


@dataclass(frozen=True)
class Case:
    name: str
    rho: float
    world: World
    expected: float
    shortest: bool = False  # join the shorter queue; else the fallback of the world dispatches


def erlang_c(k: int, load: float) -> float:
    """Return the probability that a flow of M/M/k waits; load = λ/μ."""
    blocking = 1.0
    for n in range(1, k + 1):
        blocking = load * blocking / (n + load * blocking)
    return blocking / (1 - load / k * (1 - blocking))


def world(servers: list[Server], demand: object, rho: float, fallback: str = "lsq") -> World:
    rate = rho * sum(server.capacity for server in servers) / MEAN
    return World(servers, Poisson(rate), demand, flows=1, fallback=fallback)  # type: ignore[arg-type]


def cases(loads: tuple[float, ...]) -> list[Case]:
    found = []
    for rho in loads:
        one, exponential = [Server()], Exponential(MEAN)
        found.append(Case("M/M/1", rho, world(one, exponential, rho), MEAN / (1 - rho)))
        for k in (4, 16):
            expected = MEAN + erlang_c(k, rho * k) * MEAN / (k * (1 - rho))
            found.append(Case(f"M/M/{k}", rho, world([Server(workers=k)], exponential, rho), expected))
        expected = MEAN + erlang_c(4, rho * 4) * MEAN / (4 * (1 - rho))
        shared = [Server(workers=4, service="sharing")]
        found.append(Case("M/M/4, cores shared", rho, world(shared, exponential, rho), expected))
        for name, demand in (("M/D/1", Deterministic(MEAN)), ("M/G/1, lognormal, cv 1.5", Lognormal(MEAN, 1.5))):
            expected = MEAN + rho / MEAN * demand.second_moment / (2 * (1 - rho))
            found.append(Case(name, rho, world(one, demand, rho), expected))
        for name, demand in (("exponential", exponential), ("bounded Pareto", BoundedPareto(MEAN, 1.5, 100.0))):
            sharing = world([Server(service="sharing")], demand, rho)
            found.append(Case(f"M/G/1-PS, {name}", rho, sharing, MEAN / (1 - rho)))
        # Shares in proportion to the weights: every server has the load rho.
        farm = [Server(speed=s, weight=int(s)) for s in (1.0, 1.0, 2.0, 4.0)]
        expected = MEAN / (1 - rho) * len(farm) / sum(server.speed for server in farm)
        found.append(Case("random split, weighted", rho, world(farm, exponential, rho, "alias"), expected))
        two = [Server(), Server()]
        most = 40 if rho < 0.75 else 80 if rho < 0.92 else 160
        expected = optimum(2 * rho / MEAN, MEAN, two, most=most, tolerance=1e-6).mean_fct
        found.append(Case("JSQ of two", rho, world(two, exponential, rho), expected, shortest=True))
    return found


def simulated(case: Case, flows: int, seed: int) -> float:
    """Return the mean completion time in one run."""
    warmup = 0.05 * flows / case.world.arrivals.mean_rate
    simulation = Simulation(replace(case.world, seed=seed, flows=flows, warmup=warmup))
    if case.shortest:
        simulation.publish_bids(curve_from(lambda n: n))
    return simulation.run().summary().mean


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three loads, a tenth of the flows")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--flows", type=int, default=0, help="a run (default 2,000,000)")
    args = parser.parse_args()
    flows = args.flows or (200_000 if args.quick else 2_000_000)
    rows, wrong = [], 0
    every = cases((0.3, 0.7, 0.95) if args.quick else LOADS)
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
        futures = [[pool.submit(simulated, case, flows, seed) for seed in range(1, SEEDS + 1)] for case in every]
        if not args.json:
            print(f"{'system':28}{'load':>6}{'theory, ms':>13}{'simulated, ms':>15}{'difference':>12}{'z':>7}")
        for case, futures_of_case in zip(every, futures, strict=True):
            means = np.array([future.result() for future in futures_of_case])
            error = float(means.std(ddof=1)) / math.sqrt(len(means))
            z = (float(means.mean()) - case.expected) / error
            wrong += abs(z) > 4
            difference = float(means.mean()) / case.expected - 1
            rows.append({"system": case.name, "load": case.rho, "theory": case.expected, "mean": means.mean(), "z": z})
            if not args.json:
                values = f"{case.expected * 1e3:13.4f}{means.mean() * 1e3:15.4f}{difference:+12.2%}{z:7.1f}"
                print(f"{case.name:28}{case.rho:6.2f}{values}", flush=True)
    if args.json:
        print(json.dumps({"flows": flows, "seeds": SEEDS, "rows": rows}, indent=2))
    else:
        within = sum(abs(row["z"]) < 2.2 for row in rows)
        print(f"{within} of {len(rows)} within the 95 % interval, {wrong} beyond 4 standard errors")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
