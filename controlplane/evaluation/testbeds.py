"""The two test beds of MARLLB and the Markov-potential-game paper as worlds of the simulator, and one run in them.

What they report is taken as it is: two balancers over four servers of two cores and three of four; six balancers over
twelve of four and twelve of eight; Apache with 32 processes and a backlog of 128 a server; the rates; episodes of 60 s
with an action every 250 ms. What they do not report is assumed here, once, and the same for all methods:

pages     wiki and static ones, with exponential work of WIKI and STATIC on one core: little below the smallest means
          that they measured, 63.4 and 3.1 ms
mix       such that ECMP, which sends every server as much, fills a server of two cores at `Case.limit` queries a
          second: MARLLB's bore 518.8 (mean 0.5 s) and not 690.9 (3.2 s)
small     cores are cores: a flow uses one, all flows share them
large     144 real cores would be busy a seventh of the time at 796.3 queries a second; theirs were virtual, on four
          machines. Each server is one shared processor, as fast as its share of cores, with the load of the small test
          bed at LARGE_AS queries a second
arrivals  Poisson (they replayed a day of Wikipedia's); connections are spread over the balancers by hash

docs/marllb.md says how far that carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controlplane import registry
from controlplane.evaluation.published import Bed, Case, Kind
from controlplane.simulation.scenario import Policy
from controlplane.simulation.scenario_file import load
from dataplane.simulator import Server, Simulation, Trace, Works, World
from dataplane.simulator.references import central_queue
from dataplane.simulator.results import OUTCOME_OK

WIKI, STATIC = 0.055, 0.0025  # seconds on one core
LARGE_RATE, LARGE_AS = 796.3, 690.9
PROCESSES, BACKLOG = 32, 128
INTERVAL = 0.25
DURATION, WARMUP = 60.0, 5.0

KINDS: Final[tuple[Kind, ...]] = ("wiki", "static", "all")
FIGURES: Final = ("mean", "p90", "p99")
CENTRAL_QUEUE: Final = "central queue"

_SCENARIOS: Final[dict[Bed, str]] = {"small": "marllb-2", "large": "marllb-6"}


@dataclass(frozen=True)
class Testbed:
    servers: tuple[Server, ...]
    balancers: int
    delay: float


def testbed(bed: Bed) -> Testbed:
    """Return one of the two."""
    scenario = load(_SCENARIOS[bed])
    servers = scenario.slots()
    cores = sum(server.workers for server in servers)
    held = PROCESSES + BACKLOG
    if bed == "small":
        built = [replace(server, backlog=held - server.workers) for server in servers]
    else:
        small = sum(server.workers for server in load(_SCENARIOS["small"]).slots())
        speed = LARGE_RATE / LARGE_AS * small / cores  # of a core, against one of the small test bed
        built = [replace(s, speed=speed * s.workers, workers=1, backlog=held - 1) for s in servers]
    return Testbed(tuple(built), scenario.balancers.count, servers[0].delay)


def mean_work(case: Case) -> float:
    """Return the mean work of a query, seconds on one core of the small test bed."""
    servers = testbed("small").servers
    return min(server.workers for server in servers) * len(servers) / case.limit


def share_static(case: Case) -> float:
    """Return the share of the queries that are for static pages."""
    return (WIKI - mean_work(case)) / (WIKI - STATIC)


def load_of(case: Case) -> float:
    """Return the offered load of a case."""
    return case.rate * mean_work(case) / sum(server.capacity for server in testbed(case.bed).servers)


@dataclass(frozen=True)
class Traffic:
    """What arrives: times, work of each query in seconds, and whether it is for a static page, (queries,) each."""

    times_ns: NDArray[np.uint64]
    works: NDArray[np.float64]
    static: NDArray[np.bool_]


def traffic(case: Case, seed: int, duration: float) -> Traffic:
    """Return the queries of a case and a seed, the same ones for every method."""
    rng = np.random.default_rng([seed, round(case.rate * 10)])
    gaps = rng.exponential(1.0 / case.rate, round(case.rate * duration))
    static = rng.random(len(gaps)) < share_static(case)
    works = rng.exponential(1.0, len(gaps)) * np.where(static, STATIC, WIKI)
    return Traffic(np.rint(np.cumsum(gaps) * 1e9).astype(np.uint64), works, static)


def world_of(case: Case, seed: int, duration: float = DURATION) -> tuple[World, Traffic]:
    """Return the world of a case, and what arrives in it."""
    bed, arriving = testbed(case.bed), traffic(case, seed, duration)
    world = World(
        bed.servers,
        Trace(arriving.times_ns),
        Works(arriving.works),
        seed=seed,
        balancers=bed.balancers,
        split="hash",
        warmup=min(WARMUP, duration / 4),
    )
    return world, arriving


@dataclass(frozen=True)
class Trial:
    """One run: a policy, or the central queue, with one seed."""

    case: Case
    policy: Policy | None  # None: the central queue
    title: str
    seed: int
    duration: float = DURATION


@dataclass(frozen=True)
class Found:
    """Completion times in seconds by kind of page and figure; share of the queries that were turned away."""

    times: Mapping[Kind, Mapping[str, float]]
    rejected: float
    error: str = ""


def perform(trial: Trial) -> Found:
    """Make one run."""
    world, arriving = world_of(trial.case, trial.seed, trial.duration)
    late = arriving.times_ns >= round(world.warmup * 1e9)
    if trial.policy is None:
        servers = world.servers
        fct = central_queue(arriving.times_ns, arriving.works, [s.speed for s in servers], [s.workers for s in servers])
        return Found(_times(fct[late] + 2 * testbed(trial.case.bed).delay, arriving.static[late]), 0.0)
    if trial.policy.weights == "equal":
        world = replace(world, servers=[replace(server, weight=1) for server in world.servers])
    try:
        policy = registry.create(trial.policy.spec)
        result = Simulation(world).run(policy, interval=INTERVAL)
    except Exception as error:  # a policy may raise anything; the others' runs go on
        return Found({}, 1.0, " ".join(f"{type(error).__name__}: {error}".split())[:500])
    records: Any = result.records
    number = np.searchsorted(arriving.times_ns, records["arrival_ns"])
    good = (records["outcome"] == OUTCOME_OK) & late[number]
    fct = (records["closed_ns"][good] - records["arrival_ns"][good]) * 1e-9
    return Found(_times(fct, arriving.static[number[good]]), 1.0 - float(good.sum()) / max(int(late.sum()), 1))


def _times(fct: NDArray[np.float64], static: NDArray[np.bool_]) -> dict[Kind, dict[str, float]]:
    parts: dict[Kind, NDArray[np.float64]] = {"wiki": fct[~static], "static": fct[static], "all": fct}
    return {kind: _figures(values) for kind, values in parts.items()}


def _figures(fct: NDArray[np.float64]) -> dict[str, float]:
    if len(fct) == 0:
        return dict.fromkeys(FIGURES, float("nan"))
    p90, p99 = np.quantile(fct, [0.9, 0.99])
    return {"mean": float(fct.mean()), "p90": float(p90), "p99": float(p99)}
