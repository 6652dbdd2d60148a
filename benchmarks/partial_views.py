"""Several balancers over the same servers, each seeing its own flows alone: what was tried, with confidence intervals.

    python benchmarks/partial_views.py                    # the tables of docs/adaptive.md, half an hour
    python benchmarks/partial_views.py --quick            # fewer flows and seeds: some minutes, wider intervals
    python benchmarks/partial_views.py --only tried       # one table: tried, balancers, farms, faults

Mean completion times in mean service times of the average server, ± 95 % over the seeds, and their ratio to `former`,
paired by seed: (K·n + ½)/ŵ with own estimates, what `adaptive` did before. "told" means the true service times.
The classic farm: sixteen servers of one worker, every fourth four times as fast, exponential demand, load 0.9, four
balancers. The first tenth of each run does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane import shared_view
from controlplane.bids import split, truthful
from controlplane.policies.adaptive import Adaptive
from controlplane.policy import CURVE_N, Directive, Floats, Observation
from controlplane.simulation.intervals import Estimate, estimate, relative
from dataplane.simulator import (
    BoundedPareto,
    Crash,
    Deterministic,
    Exponential,
    Lognormal,
    Poisson,
    Recover,
    Server,
    Simulation,
    SpeedChange,
    Trace,
    World,
)
from dataplane.simulator.world import Demand, Event

UNIT = 0.010  # seconds: mean service time of a server of average speed
CLASSIC = tuple(4.0 if i % 4 == 0 else 1.0 for i in range(16))
RING_SLOTS = 8192


@dataclass(frozen=True)
class Case:
    """One farm and its traffic."""

    name: str
    speeds: tuple[float, ...] = CLASSIC
    balancers: int = 4
    load: float = 0.9
    demand: Callable[[float], Demand] = Exponential
    workers: int = 1
    service: str = "fifo"
    shares: tuple[float, ...] = ()  # of the flows, by balancer; (): at random
    dies: bool = False  # the first balancer's flows go to the others from half of the run on
    events: Callable[[float], tuple[Event, ...]] = field(default=lambda length: ())
    after: float = 0.1  # share of the run that does not count

    def world(self, flows: int, seed: int) -> World:
        mean = UNIT * float(np.mean(self.speeds))
        rate = self.load * self.workers * sum(self.speeds) / mean
        servers = [Server(speed=s, workers=self.workers, service=self.service) for s in self.speeds]
        world = World(
            servers,
            Poisson(rate),
            self.demand(mean),
            seed=seed,
            flows=flows,
            warmup=self.after * flows / rate,
            balancers=self.balancers,
            events=self.events(flows / rate),
            rings=True,
        )
        if not self.shares and not self.dies:
            return world
        rng = np.random.default_rng(seed)
        times = np.cumsum(rng.exponential(1.0 / rate, flows))
        shares = np.array(self.shares or [1.0] * self.balancers)
        who = rng.choice(self.balancers, flows, p=shares / shares.sum()).astype(np.uint32)
        if self.dies:
            late = (who == 0) & (np.arange(flows) >= flows // 2)
            who[late] = rng.integers(1, self.balancers, int(late.sum()))
        return replace(world, arrivals=Trace((times * 1e9).astype(np.uint64), balancers=who), split="trace")


class Fixed:
    """The same curves for ever, (servers, points)."""

    name = "fixed"

    def __init__(self, curves: Floats) -> None:
        self.curves = curves

    def decide(self, observation: Observation) -> Directive:
        return Directive(rule="bids", curves=self.curves)


class Former(Adaptive):
    """(K·n + ½)/ŵ with own estimates."""

    def __init__(self) -> None:
        super().__init__()
        self.shared.decide = lambda *_: None  # type: ignore[method-assign]


class OwnTruthful(Adaptive):
    """Δ(n) as if there were no other balancers."""

    def decide(self, observation: Observation) -> Directive:
        return super().decide(replace(observation, balancers=1))


class Variant(Adaptive):
    """The shared view with another bid, or other service times."""

    def __init__(self, told: Floats | None = None, bid: Callable[..., Floats] | None = None) -> None:
        super().__init__()
        self.shared = _Varied(told, bid)


class _Varied(shared_view.SharedView):
    def __init__(self, told: Floats | None, bid: Callable[..., Floats] | None) -> None:
        super().__init__()
        self.told, self.bid = told, bid

    def service(self) -> tuple[Floats, Floats]:
        return super().service() if self.told is None else (self.told, np.zeros(len(self.told)))

    def bids(self, curves: Floats, s: Floats, lam: Floats, utilisation: float) -> Floats:
        return super().bids(curves, s, lam, utilisation) if self.bid is None else self.bid(curves, s, lam, utilisation)


def delay_alone(curves: Floats, s: Floats, lam: Floats, utilisation: float) -> Floats:
    return curves


def wait_alone(curves: Floats, s: Floats, lam: Floats, utilisation: float) -> Floats:
    return np.maximum(curves - s[:, None], 0.0)


def social(curves: Floats, s: Floats, lam: Floats, utilisation: float) -> Floats:
    return curves / (1.0 - lam * s)[:, None]


def quarters(balancers: int, n: int, other: float, speeds: Floats) -> list[Floats]:
    """(n + ½)/speed for one's own part of the servers, and `other` times 4 as much for the rest."""
    own = np.arange(n) * balancers // n
    base = (balancers * CURVE_N + 0.5) / speeds[:, None]
    return [np.where((own == b)[:, None], base, other * base) for b in range(balancers)]


def searched(speeds: Floats) -> list[Floats]:
    """The best curves for the classic farm that CMA-ES found, by speed and by whose quarter the server is in.

    Straight lines: slope and first bid of own fast, own slow, other fast, other slow; 60 generations of 60,000 flows.
    """
    slope, first = np.exp([0.0, 0.785, 0.983, 2.829]), np.array([0.117, -0.5, 1.022, 2.860])
    curves = []
    for b in range(4):
        kind = np.where(np.arange(16) // 4 == b, 0, 2) + (speeds == 1.0)
        curves.append(np.maximum(slope[kind, None] * CURVE_N + first[kind, None], 0.0))
    return curves


def run(case: Case, policy: Any, flows: int, seed: int) -> float:
    """Return the mean completion time in UNITs. policy: one for all, or a list of curves, one a balancer."""
    simulation = Simulation(case.world(flows, seed), ring_slots=RING_SLOTS)
    if isinstance(policy, list):
        for b, curves in enumerate(policy):
            simulation.publish_bids(curves, balancer=b)
        return float(simulation.run().fct.mean()) / UNIT
    return float(simulation.run(policy).fct.mean()) / UNIT


def full_information(case: Case, flows: int, seed: int) -> float:
    world = replace(case.world(flows, seed), view="shared")
    s = 1.0 / np.array(case.speeds) * world.demand.mean
    k = np.full(len(s), float(case.workers))
    simulation = Simulation(world)
    simulation.publish_bids(truthful(split(world.arrivals.mean_rate, 1.0 / s, k), 1.0 / s, k))
    return float(simulation.run().fct.mean()) / UNIT


Row = tuple[str, Callable[[Case], Any]]


def service_times(case: Case) -> Floats:
    return UNIT * float(np.mean(case.speeds)) / np.array(case.speeds)


def gsed(c: float, slope: float | None = None) -> Callable[[Case], Any]:
    def make(case: Case) -> Any:
        k = case.balancers if slope is None else slope
        return Fixed((k * CURVE_N + c) / np.array(case.speeds)[:, None])

    return make


FORMER: Row = ("(K·n + ½)/ŵ, own estimates: former", lambda case: Former())
ADAPTIVE: Row = ("**adaptive**", lambda case: Adaptive())

TRIED: tuple[Row, ...] = (
    FORMER,
    ("least connections", lambda case: Fixed(np.tile(CURVE_N, (len(case.speeds), 1)))),
    ("(n + ½)/w, told", gsed(0.5, 1.0)),
    ("(K·n + ½)/w, told", gsed(0.5)),
    ("Δ(n) fitted on the own view", lambda case: OwnTruthful()),
    ("each a quarter of its own, told", lambda case: quarters(4, 16, 1e3, np.array(case.speeds))),
    ("prefers its quarter 1.25 : 1, told", lambda case: quarters(4, 16, 1.25, np.array(case.speeds))),
    ("prefers its quarter 5 : 1, told", lambda case: quarters(4, 16, 5.0, np.array(case.speeds))),
    ("searched lines by quarter, told", lambda case: searched(np.array(case.speeds))),
    ("D(n)", lambda case: Variant(bid=delay_alone)),
    ("D(n) − s, told s", lambda case: Variant(service_times(case), wait_alone)),
    ("D(n) − s", lambda case: Variant(bid=wait_alone)),
    ("D(n)/(1 − λs), told s", lambda case: Variant(service_times(case), social)),
    ("D(n)/(1 − λs)", lambda case: Variant(bid=social)),
    ("(D(n) − ρs)/√(1 − λs), told s", lambda case: Variant(service_times(case))),
    ("(D(n) − ρs)/√(1 − λs): adaptive", lambda case: Adaptive()),
)


def lognormal(mean: float) -> Demand:
    return Lognormal(mean, 2.0)


def swap(length: float) -> tuple[Event, ...]:
    """Fast servers become slow, and the one after each fast, at half of the run."""
    half = length / 2
    slow = [SpeedChange(half, i, 1.0) for i in range(0, 16, 4)]
    return (*slow, *(SpeedChange(half, i + 1, 4.0) for i in range(0, 16, 4)))


def crash(length: float) -> tuple[Event, ...]:
    return (Crash(0.4 * length, 0), Crash(0.4 * length, 1), Recover(0.6 * length, 0), Recover(0.6 * length, 1))


FARMS = (
    Case("twelve equal servers", (1.0,) * 12),
    Case("five servers 1, 1, 2, 4, 8; three balancers, load 0.8", (1.0, 1.0, 2.0, 4.0, 8.0), 3, 0.8),
    Case("eight servers 1, 1, 1, 1, 2, 2, 4, 4; two balancers", (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0), 2),
    Case("64 servers, every fourth 4x", CLASSIC * 4),
    Case("24 servers of speeds 1 … 8, load 0.8", tuple(float(s) for s in np.geomspace(1, 8, 24)), 4, 0.8),
    Case("deterministic demand", demand=Deterministic),
    Case("lognormal demand, cv 2, load 0.8", demand=lognormal, load=0.8),
    Case("bounded Pareto demand, load 0.7", demand=BoundedPareto, load=0.7),
    Case("four workers a server, 4 balancers", (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0), 4, workers=4),
    Case("shared cores (k = 1), 4 balancers", service="sharing"),
)

FAULTS = (
    Case("shares of the flows 8 : 4 : 2 : 1", shares=(8.0, 4.0, 2.0, 1.0)),
    Case("one of four balancers goes at half of the run; from then on", dies=True, after=0.5),
    Case("fast and slow servers swap at half of the run; from then on", events=swap, after=0.5),
    Case("two servers crash and come back, load 0.7", load=0.7, events=crash, after=0.35),
)


def balancer_cases() -> Iterator[Case]:
    for k in (2, 4, 8):
        for load in (0.5, 0.7, 0.8, 0.9, 0.95):
            yield Case(f"{k} balancers, load {load}", balancers=k, load=load)


def table(case: Case, rows: tuple[Row, ...], flows: int, seeds: int) -> dict[str, tuple[Estimate, Estimate]]:
    """Return mean, and ratio − 1 to the first row's, by row."""
    found: dict[str, NDArray[np.float64]] = {}
    for label, make in rows:
        found[label] = np.array([run(case, make(case), flows, seed + 1) for seed in range(seeds)])
        print(f"  {case.name}: {label}: {found[label].mean():.3f}", file=sys.stderr, flush=True)
    first = found[rows[0][0]]
    return {label: (estimate(values), relative(values, first)) for label, values in found.items()}


def show(e: Estimate, percent: bool = False) -> str:
    return f"{100 * e.mean:+.1f} % ±{100 * e.half:.1f}" if percent else f"{e.mean:.3f} ±{e.half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60,000 flows, 3 seeds")
    parser.add_argument("--flows", type=int, default=0, help="a run (default 200,000)")
    parser.add_argument("--seeds", type=int, default=0, help="(default 10)")
    parser.add_argument("--only", choices=("tried", "balancers", "farms", "faults"), help="one of the tables")
    parser.add_argument("--match", default="", help="cases whose name contains this")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    flows = args.flows or (60_000 if args.quick else 200_000)
    seeds = args.seeds or (3 if args.quick else 10)
    out: dict[str, dict[str, list[float]]] = {}

    def add(case: str, label: str, pair: tuple[Estimate, Estimate]) -> None:
        mean, ratio = pair
        out.setdefault(case, {})[label] = [mean.mean, mean.half, ratio.mean, ratio.half]

    if args.only in (None, "tried"):
        case = Case("classic")
        if not args.json:
            print("| classic farm, 4 balancers, load 0.9 | mean | against former |\n|---|---|---|")
        for label, pair in table(case, TRIED, flows, seeds).items():
            add(case.name, label, pair)
            if not args.json:
                print(f"| {label} | {show(pair[0])} | {show(pair[1], True)} |", flush=True)
        full = estimate([full_information(case, flows, seed + 1) for seed in range(seeds)])
        out[case.name]["full information"] = [full.mean, full.half]
        if not args.json:
            print(f"| all see all flows, Δ(n), told | {show(full)} | |")
    for name, cases in (("balancers", tuple(balancer_cases())), ("farms", FARMS), ("faults", FAULTS)):
        if args.only not in (None, name):
            continue
        if not args.json:
            print(f"\n| {name} | former | adaptive | |\n|---|---|---|---|")
        for case in cases:
            if args.match not in case.name:
                continue
            found = table(case, (FORMER, ADAPTIVE), flows, seeds)
            for label, pair in found.items():
                add(case.name, label, pair)
            former, now = found.values()
            if not args.json:
                print(f"| {case.name} | {show(former[0])} | {show(now[0])} | {show(now[1], True)} |", flush=True)
    if args.json:
        print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
