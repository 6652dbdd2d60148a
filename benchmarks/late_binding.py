"""Late binding in the simulator, told nothing, from a cold start, against the central queue on the same flows.

    python benchmarks/late_binding.py                     # the table of docs/auction.md, some minutes
    python benchmarks/late_binding.py --seeds 2 --flows 30000
    python benchmarks/late_binding.py --only sharing      # servers that share their cores
    python benchmarks/late_binding.py --classes           # gold, silver and bronze, and factors on their reserve
    python benchmarks/late_binding.py --suite --seeds 3   # the scenarios of vickrey eval: with holding over without
    python benchmarks/late_binding.py --start             # the first seconds, also with servers of unequal workers
    python benchmarks/late_binding.py --correlated        # times that rise and fall for all servers at once
    python benchmarks/late_binding.py --way               # how long the queue for a flow beyond the limit, by the way

Eight servers of speeds 1, 1, 1, 1, 2, 2, 4, 4. Columns are mean / p99 FCT in milliseconds, then the mean with the
reserve over that of the central queue and over that without, by paired seeds, with 95 % confidence intervals.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane import reserve
from controlplane.evaluation.suite import DEFAULT, Entry, load
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import Directive, Floats, Observation
from controlplane.simulation.intervals import relative
from controlplane.simulation.runs import Job, execute
from controlplane.simulation.scenario import Policy
from dataplane.simulator import BoundedPareto, Deterministic, Exponential, Poisson, Server, Simulation, Works, World
from dataplane.simulator.references import central_queue

SPEEDS = (1, 1, 1, 1, 2, 2, 4, 4)
MEAN = 0.02  # seconds at speed 1
DEMANDS = {"exponential": Exponential, "pareto": BoundedPareto, "deterministic": Deterministic}
LOADS = (0.5, 0.7, 0.85, 0.95)
FARMS = {"eight": (SPEEDS, (1,) * 8), "mixed": ((1, 1, 2, 2, 4, 4), (8, 8, 2, 2, 1, 1))}
START_MEAN = 2 * MEAN  # that of benchmarks/balance.py
WINDOWS = ((0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 28.0), (28.0, 60.0))  # seconds
CORRELATED = {  # speeds, workers of each, load, demands: kind, length in flows, size, noise (None: exponential)
    "in turn 1 : 5, 200 flows, four of 4": ((1, 1, 1, 1), 4, 0.5, ("turns", 200, 5.0, 0.1)),
    "in turn 1 : 5, 100 flows, six of 2": ((1,) * 6, 2, 0.6, ("turns", 100, 5.0, 0.1)),
    "in turn 1 : 5, 200 flows, eight of 1": ((1,) * 8, 1, 0.5, ("turns", 200, 5.0, 0.1)),
    "in turn 1 : 5, 200 flows, four of 4, exponential": ((1, 1, 1, 1), 4, 0.5, ("turns", 200, 5.0, None)),
    "AR(1) σ 0.8, 2000 flows, four of 8": ((1, 1, 2, 2), 8, 0.5, ("ar", 2000, 0.8, 0.2)),
    "AR(1) σ 0.6, 1000 flows, three of 16": ((1, 1, 1), 16, 0.5, ("ar", 1000, 0.6, 0.3)),
    "AR(1) σ 0.2, 1000 flows, four of 6": ((1, 1, 2, 2), 6, 0.7, ("ar", 1000, 0.2, 0.1)),
    "AR(1) σ 0.6, 2000 flows, four of 4, exponential": ((1, 1, 2, 2), 4, 0.6, ("ar", 2000, 0.6, None)),
}
CORRELATED_FLOWS, CORRELATED_WARMUP = 16_000, 2.0
WAYS = (0.0, 0.00005, 0.0001, 0.0002, 0.0004)  # seconds each way
AHEAD = (0.25, 0.5, 0.75, 1.0)  # values of reserve.PREFETCH
FACTORS = ((1.0, 1.0, 1.0), (1.5, 1.0, 1.0), (0.7, 1.0, 1.0), (1.0, 1.0, 0.7), (0.7, 1.0, 0.7), (0.5, 1.0, 0.5))


@dataclass(frozen=True)
class Case:
    service: Literal["fifo", "sharing"]
    workers: int
    demand: str
    load: float
    delay: float
    flows: int

    def world(self, seed: int) -> World:
        rate = self.load * self.workers * sum(SPEEDS) / MEAN
        servers = [Server(speed=s, workers=self.workers, service=self.service, delay=self.delay) for s in SPEEDS]
        warmup = 0.1 * self.flows / rate
        return World(
            servers, Poisson(rate), DEMANDS[self.demand](MEAN), seed=seed, flows=self.flows, warmup=warmup, rings=True
        )

    @property
    def title(self) -> str:
        return f"{self.service} {self.workers} {self.demand} {self.load}"


class WithFactors(Adaptive):
    """adaptive with given factors on the reserve of the SLA classes."""

    def __init__(self, factors: tuple[float, float, float]) -> None:
        super().__init__()
        self.factors = factors

    def decide(self, observation: Observation) -> Directive:
        return replace(super().decide(observation), sla_reserve=self.factors)


def run(case: Case, seed: int) -> Floats:
    """Return mean and p99 of central queue, without a reserve, and with it: (3, 2) milliseconds."""
    world, found = case.world(seed), []
    for held in ("off", "learned"):
        result = Simulation(world, ring_slots=16384).run(Adaptive(), reserve=held)
        found.append(result.fct)
    records = result.records
    works = records["work_ns"] * 1e-9
    central = central_queue(records["arrival_ns"], works, list(SPEEDS), [case.workers] * len(SPEEDS))
    first = np.searchsorted(records["arrival_ns"], np.uint64(round(world.warmup * 1e9)))
    found.insert(0, central[first:] + 2 * case.delay)
    return np.array([[fct.mean(), np.percentile(fct, 99)] for fct in found]) * 1e3


def run_classes(case: Case, seed: int, factors: tuple[float, float, float] | None) -> Floats:
    """Return the mean of gold, silver, bronze and all flows, milliseconds; None: no reserve."""
    world = replace(case.world(seed), gold=0.1, bronze=0.3)
    policy = Adaptive() if factors is None else WithFactors(factors)
    result = Simulation(world, ring_slots=16384).run(policy, reserve="off" if factors is None else "learned")
    first = len(result.records) - len(result.fct)
    classes = result.classes[first:]
    return np.array([result.fct[classes == i].mean() for i in range(3)] + [result.fct.mean()]) * 1e3


def run_start(farm: str, demand: str, load: float, delay: float, seed: int) -> Floats:
    """Return the logarithm of the mean over that of the central queue, by windows of arrival: (windows,)."""
    speeds, workers = FARMS[farm]
    rate = load * sum(s * k for s, k in zip(speeds, workers, strict=True)) / START_MEAN
    law = BoundedPareto(START_MEAN, ratio=100.0) if demand == "pareto" else DEMANDS[demand](START_MEAN)
    servers = [Server(speed=s, workers=k, delay=delay) for s, k in zip(speeds, workers, strict=True)]
    flows = round(rate * WINDOWS[-1][1])
    result = Simulation(World(servers, Poisson(rate), law, seed=seed, flows=flows, rings=True), ring_slots=16384).run(
        Adaptive(), reserve="learned"
    )
    begun = result.records["arrival_ns"] * 1e-9
    central = (
        central_queue(result.records["arrival_ns"], result.records["work_ns"] * 1e-9, list(speeds), list(workers))
        + 2 * delay
    )
    inside = [(begin <= begun) & (begun < end) for begin, end in WINDOWS]
    return np.array([np.log(result.fct[at].mean() / central[at].mean()) for at in inside])


def start(pool: ProcessPoolExecutor, seeds: range, delay: float) -> None:
    """Print the means after a cold start over those of the central queue."""
    heads = [f"{begin:g} … {end:g} s" for begin, end in WINDOWS]
    print(f"| farm, demand, load | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}")
    for farm, demand, rho in itertools.product(FARMS, ("exponential", "pareto"), (0.7, 0.85, 0.95)):
        runs = [(farm, demand, rho, delay, seed) for seed in seeds]
        found = np.array(list(pool.map(run_start, *zip(*runs, strict=True))))
        half = 2.0 * found.std(axis=0, ddof=1) / np.sqrt(len(found))
        cells = [f"{np.exp(m):.3f} ±{h:.3f}" for m, h in zip(found.mean(axis=0), half, strict=True)]
        print(f"| {farm}, {demand}, {rho} | {' | '.join(cells)} |", flush=True)


def correlated(rng: np.random.Generator, kind: str, length: int, size: float, noise: float | None) -> Floats:
    """Return demands, seconds, whose level is 1 and size in turn, or lognormal of deviation size, for such a time."""
    n = CORRELATED_FLOWS
    if kind == "turns":
        ends = np.cumsum(rng.geometric(1.0 / length, n))
        level = np.where(np.searchsorted(ends, np.arange(n), side="right") % 2 == 1, size, 1.0)
    else:
        keep = np.exp(-1.0 / length)
        steps = rng.normal(0.0, size * np.sqrt(1.0 - keep * keep), n)
        level = np.exp(list(itertools.accumulate(steps, lambda x, step: keep * x + step)))
    each = rng.exponential(size=n) if noise is None else np.exp(noise * rng.normal(size=n))
    return np.asarray(MEAN * level * each)


def run_correlated(name: str, seed: int) -> Floats:
    """Return mean and p99 with holding over those without, and the mean of the central queue over the latter: (3,)."""
    speeds, workers, load, demand = CORRELATED[name]
    works = Works(correlated(np.random.default_rng(seed), *demand))
    rate = load * workers * sum(speeds) / works.mean
    servers = [Server(speed=s, workers=workers) for s in speeds]
    world = World(
        servers, Poisson(rate), works, seed=seed, flows=CORRELATED_FLOWS, rings=True, warmup=CORRELATED_WARMUP
    )
    found = [Simulation(world, ring_slots=16384).run(Adaptive(), reserve=held) for held in ("off", "learned")]
    off, on = (np.array([x.fct.mean(), np.percentile(x.fct, 99)]) for x in found)
    records = found[0].records
    central = central_queue(records["arrival_ns"], records["work_ns"] * 1e-9, list(speeds), [workers] * len(speeds))
    late = records["arrival_ns"] >= CORRELATED_WARMUP * 1e9
    return np.append(on / off, central[late].mean() / off[0])


def slow_minutes(pool: ProcessPoolExecutor, seeds: range) -> None:
    """Print what holding does where times rise and fall for all servers at once."""
    print("| demands, servers | mean, by seeds | p99 | central queue |\n|---|--:|--:|--:|")
    for name in CORRELATED:
        found = np.array(list(pool.map(run_correlated, [name] * len(seeds), seeds)))
        cells = [", ".join(f"{x:.2f}" for x in found[:, column]) for column in range(3)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def run_way(delay: float, ahead: float, flows: int, seed: int) -> float:
    """Return the logarithm of the mean over that of the central queue: one worker a server, exponential, load 0.95."""
    reserve.PREFETCH = ahead
    rate = 0.95 * sum(SPEEDS) / START_MEAN
    world = World(
        [Server(speed=s, delay=delay) for s in SPEEDS],
        Poisson(rate),
        Exponential(START_MEAN),
        seed=seed,
        flows=flows,
        warmup=0.2 * flows / rate,
        rings=True,
    )
    result = Simulation(world, ring_slots=16384).run(Adaptive(), reserve="learned")
    records = result.records
    central = central_queue(records["arrival_ns"], records["work_ns"] * 1e-9, list(SPEEDS), [1] * len(SPEEDS))
    late = central[len(records) - len(result.fct) :] + 2 * delay
    return float(np.log(result.fct.mean() / late.mean()))


def way(pool: ProcessPoolExecutor, seeds: range, flows: int) -> None:
    """Print what the way costs, and what a longer or shorter queue for a flow beyond the limit changes."""
    print("| ms each way | " + " | ".join(f"{ahead:g}" for ahead in AHEAD) + " |\n|---|" + "--:|" * len(AHEAD))
    for delay in WAYS:
        runs = list(itertools.product(AHEAD, seeds))
        logs = list(pool.map(run_way, *zip(*[(delay, ahead, flows, seed) for ahead, seed in runs], strict=True)))
        found = np.array(logs).reshape(len(AHEAD), len(seeds))
        usual = found[AHEAD.index(0.5)]
        half = 2.0 * (found - usual).std(axis=1, ddof=1) / np.sqrt(len(seeds))
        half = np.where(half > 0.0, half, 2.0 * usual.std(ddof=1) / np.sqrt(len(seeds)))
        cells = [f"{np.exp(m):.3f} ±{h:.3f}" for m, h in zip(found.mean(axis=1), half, strict=True)]
        print(f"| {delay * 1e3:g} | {' | '.join(cells)} |", flush=True)


def run_entry(entry: Entry, seed: int) -> Floats:
    """Return mean, p99, p99.9 and the mean of the recovery's phase, without and with holding: (2, 4) seconds."""
    policies = [Policy(name="adaptive", reserve="off"), Policy(name="adaptive")]
    scenario = entry.scenario.model_copy(update={"policies": policies})
    found = []
    for policy in range(2):
        run = execute(Job(scenario, policy, seed))
        phases = {phase.name: figures for phase, figures in zip(scenario.phases, run.phases, strict=True)}
        recovery = phases[entry.recovery]["mean"] if entry.recovery else np.nan
        found.append([*(run.figures[name] for name in ("mean", "p99", "p999")), recovery])
    return np.array(found)


def suite(pool: ProcessPoolExecutor, seeds: range) -> None:
    """Print the table of the suite's scenarios with one balancer."""
    print("| scenario | mean without, ms | mean | p99 | p99.9 |\n|---|--:|--:|--:|--:|")
    for entry in load(DEFAULT).entries:
        if entry.scenario.balancers.count > 1:
            continue
        found = np.array(list(pool.map(run_entry, [entry] * len(seeds), seeds)))
        change = relative(list(found[:, 1, 0]), list(found[:, 0, 0]))
        cells = [f"{change.mean:+.1%} ±{change.half:.1%}", *(f"{x - 1:+.1%}" for x in geometric(found)[1:3])]
        note = f" (recovery {geometric(found)[3] - 1:+.1%})" if entry.recovery else ""
        without = found[:, 0, 0].mean() * 1e3
        print(f"| {entry.name}{note} | {without:.3g} | " + " | ".join(cells).replace("-", "−") + " |", flush=True)


def geometric(found: Floats) -> Floats:
    """Return the ratios, with over without, of runs (seeds, 2, figures)."""
    return np.asarray(np.exp(np.log(found[:, 1] / found[:, 0]).mean(axis=0)))


def ratio(one: Floats, other: Floats) -> str:
    found = relative(list(one), list(other))
    return f"{1 + found.mean:8.3f} ±{found.half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=100_000, help="a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.0, help="of the link, each way, seconds")
    parser.add_argument("--only", default="fifo", help="cases whose name contains this: fifo, 'sharing 1', pareto …")
    parser.add_argument("--classes", action="store_true", help="factors on the reserve of the SLA classes instead")
    parser.add_argument("--suite", action="store_true", help="the scenarios of vickrey eval with one balancer instead")
    parser.add_argument("--start", action="store_true", help="the first seconds after a cold start instead")
    parser.add_argument("--correlated", action="store_true", help="times that rise and fall together instead")
    parser.add_argument("--way", action="store_true", help="queues for a flow beyond the limit, by the way, instead")
    args = parser.parse_args()
    seeds = range(1, args.seeds + 1)
    with ProcessPoolExecutor() as pool:
        if args.suite:
            suite(pool, seeds)
            return
        if args.correlated:
            slow_minutes(pool, seeds)
            return
        if args.way:
            way(pool, seeds, args.flows)
            return
        if args.start:
            start(pool, seeds, args.delay)
            return
        if args.classes:
            print(f"{'gold, silver, bronze':24}{'gold':>9}{'silver':>9}{'bronze':>9}{'all':>9}   mean FCT, ms")
            for load in (0.7, 0.9):
                case = Case("fifo", 4, "exponential", load, args.delay, args.flows)
                for factors in (None, *FACTORS):
                    runs = list(pool.map(run_classes, *zip(*[(case, seed, factors) for seed in seeds], strict=True)))
                    name = f"{load} " + ("no reserve" if factors is None else str(factors))
                    print(f"{name:24}" + "".join(f"{x:9.2f}" for x in np.mean(runs, axis=0)), flush=True)
            return
        columns = ("central queue", "no reserve", "learned")
        print(
            f"{'service, workers, demand, load':30}"
            + "".join(f"{c:>16}" for c in columns)
            + "   / central       / none"
        )
        services: tuple[Literal["fifo", "sharing"], ...] = ("fifo", "sharing")
        for service in services:
            for workers in (1, 4):
                for demand in DEMANDS:
                    for load in LOADS:
                        case = Case(service, workers, demand, load, args.delay, args.flows)
                        if args.only not in case.title:
                            continue
                        found: Floats = np.array(list(pool.map(run, [case] * len(seeds), seeds)))
                        cells = "".join(f"{m:9.2f} /{p:5.0f}" for m, p in found.mean(axis=0))
                        ratios = ratio(found[:, 2, 0], found[:, 0, 0]) + ratio(found[:, 2, 0], found[:, 1, 0])
                        print(f"{case.title:30}{cells}{ratios}", flush=True)


if __name__ == "__main__":
    main()
