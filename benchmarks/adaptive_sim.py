"""adaptive in the simulator, told nothing, against least connections, rules that know the speeds, and a central queue.

    python benchmarks/adaptive_sim.py                       # the table of docs/adaptive.md, some minutes
    python benchmarks/adaptive_sim.py --quick
    python benchmarks/adaptive_sim.py --cold --scale 10     # short runs from nothing: what learning costs
    python benchmarks/adaptive_sim.py --swap                # a server slows to a quarter: the next 200 service times

Eight servers of speeds 1, 1, 1, 1, 2, 2, 4, 4; all policies meet the same arrivals and demands. Columns are mean /
p99 FCT in milliseconds; "true" is adaptive's bid with the true rates and arrivals instead of learned ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane import registry
from controlplane.bids import split, truthful
from controlplane.policy import CURVE_N
from dataplane.simulator import (
    BoundedPareto,
    Deterministic,
    Exponential,
    Lognormal,
    Poisson,
    Server,
    Simulation,
    SpeedChange,
    World,
)
from dataplane.simulator.references import central_queue

SPEEDS = (1, 1, 1, 1, 2, 2, 4, 4)
DEMANDS = {"exponential": Exponential, "deterministic": Deterministic, "pareto": BoundedPareto}
POLICIES = ("central", "lsq", "sed", "gsed", "true", "adaptive")


@dataclass(frozen=True)
class Case:
    service: str
    workers: int
    demand: str
    rho: float
    mean: float = 0.02  # seconds at speed 1
    delay: float = 0.0  # of the link, each way

    def world(self, flows: int, seed: int, *, warmup: float = 0.0, events: tuple[SpeedChange, ...] = ()) -> World:
        servers = [
            Server(speed=s, workers=self.workers, service=self.service, weight=s, delay=self.delay) for s in SPEEDS
        ]
        demand = Lognormal(self.mean, 2.0) if self.demand == "lognormal" else DEMANDS[self.demand](self.mean)
        rate = self.rho * self.workers * sum(SPEEDS) / self.mean
        return World(
            servers, Poisson(rate), demand, seed=seed, flows=flows, warmup=warmup * flows / rate, events=events
        )


def fct(case: Case, policy: str, world: World, interval: float) -> np.ndarray:
    """Return completion times after the warm-up, seconds, in order of arrival."""
    simulation = Simulation(world)
    if policy == "central":
        # Arrivals and works do not depend on who balances.
        simulation.publish_bids(CURVE_N)
        records = simulation.run().records
        found = central_queue(
            records["arrival_ns"],
            records["work_ns"] * 1e-9,
            [s.speed for s in world.servers],
            [case.workers] * len(SPEEDS),
        )
        first = np.searchsorted(records["arrival_ns"], np.uint64(round(world.warmup * 1e9)))
        return found[first:] + 2 * case.delay
    if policy == "true":
        mu = np.array(SPEEDS) / case.mean
        k = np.full(len(SPEEDS), float(case.workers))
        simulation.publish_bids(truthful(split(world.arrivals.mean_rate, mu, k), mu, k))
        return simulation.run().fct
    # adaptive is told no speeds: weights are 1 in its eyes.
    if policy == "adaptive":
        world = World(**{**world.__dict__, "servers": [Server(**{**fields(s), "weight": 1}) for s in world.servers]})
        simulation = Simulation(world)
    return simulation.run(registry.create(policy), interval=interval).fct


def fields(server: Server) -> dict[str, object]:
    return {name: getattr(server, name) for name in Server.__slots__}


def cases(quick: bool) -> Iterator[Case]:
    for service, workers, demand in (
        ("fifo", 4, "exponential"),
        ("fifo", 4, "deterministic"),
        ("fifo", 4, "pareto"),
        ("fifo", 1, "exponential"),
        ("fifo", 1, "deterministic"),
        ("sharing", 4, "exponential"),
        ("sharing", 4, "pareto"),
        ("sharing", 1, "exponential"),
        ("sharing", 1, "pareto"),
        ("sharing", 1, "deterministic"),
    ):
        for rho in (0.7, 0.95) if quick else (0.5, 0.7, 0.85, 0.95):
            yield Case(service, workers, demand, rho)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two loads and 30,000 flows")
    parser.add_argument("--flows", type=int, default=0, help="a run (default 200,000)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="6,000 flows a run, from nothing, 8 seeds")
    parser.add_argument("--swap", action="store_true", help="a server of speed 4 slows to 1 in mid-run")
    parser.add_argument("--scale", type=float, default=1.0, help="times the mean work of 20 ms at speed 1")
    parser.add_argument("--delay", type=float, default=0.0, help="of the link, each way, seconds")
    parser.add_argument("--interval", type=float, default=0.2)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args()
    flows = args.flows or (6_000 if args.cold else 30_000 if args.quick else 200_000)
    seeds = 8 if args.cold else args.seeds
    policies = args.policies.split(",")
    print(f"{'service, workers, demand, load':38}" + "".join(f"{p:>16}" for p in policies))
    ratios: dict[str, list[float]] = {p: [] for p in policies}
    for case in cases(args.quick):
        case = Case(case.service, case.workers, case.demand, case.rho, 0.02 * args.scale, args.delay)
        name = f"{case.service} {case.workers} {case.demand} {case.rho}"
        if args.only not in name:
            continue
        found = {p: np.zeros(2) for p in policies}
        for seed in range(seeds):
            rate = case.rho * case.workers * sum(SPEEDS) / case.mean
            events = (SpeedChange(flows / rate / 2, 7, 1.0),) if args.swap else ()
            world = case.world(flows, seed + 1, warmup=0.5 if args.swap else 0.0, events=events)
            for p in policies:
                times = fct(case, p, world, args.interval)
                if args.swap:
                    times = times[: int(rate * 200 * case.mean / 2)]
                found[p] += np.array([times.mean(), np.percentile(times, 99)]) * 1e3 / seeds
        for p in policies:
            ratios[p].append(found[p][0] / found[policies[-1]][0])
        print(f"{name:38}" + "".join(f"{found[p][0]:9.1f} /{found[p][1]:5.0f}" for p in policies), flush=True)
    print(
        f"{'mean, over the last column':38}" + "".join(f"{np.exp(np.mean(np.log(ratios[p]))):16.3f}" for p in policies)
    )


if __name__ == "__main__":
    main()
