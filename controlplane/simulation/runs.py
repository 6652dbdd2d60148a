"""One run: a policy in a scenario's world with one seed, or the reference on the same flows, and its figures.

A run is a pure function of its job, so that runs may be made in any process, in any order.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane import registry
from controlplane.simulation.scenario import Scenario, length
from dataplane.simulator import Simulation
from dataplane.simulator.references import birth_death_bound, central_queue, least_work_left, pooled_srpt
from dataplane.simulator.results import OUTCOME_OK, flow_classes
from dataplane.simulator.world import World
from shm_layout.layout import SLA_CLASSES

Floats = NDArray[np.float64]

REFERENCE = -1  # in place of a policy's number

# Shares of the flows that take longer, for the plot of the tail: 1 … 10^-4.
TAIL_SHARES: Floats = 10.0 ** -np.linspace(0.0, 4.0, 61)
# Flows that a quantile needs beyond it to be plotted.
TAIL_FLOWS = 10
# Records that the controller finds at most, a look: of those that read them.
RING_SLOTS = 16384
# Parts of the run in the plot over time.
PARTS = 100


@dataclass(frozen=True, slots=True)
class Job:
    scenario: Scenario
    policy: int  # number in the scenario's list, or REFERENCE
    seed: int


def jobs_of(scenario: Scenario) -> list[Job]:
    """Return every run that a scenario asks for, seed by seed."""
    kinds = list(range(len(scenario.policies)))
    if scenario.reference not in ("none", "birth-death"):  # a formula needs no run
        kinds.append(REFERENCE)
    return [Job(scenario, kind, seed) for seed in scenario.seeds for kind in kinds]


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a job. Times in seconds; nan where there was nothing to take a figure from."""

    policy: int
    seed: int
    figures: dict[str, float]
    phases: tuple[dict[str, float], ...]
    classes: dict[str, dict[str, float]]  # by SLA class; empty where all are of one
    tail: Floats  # (TAIL_SHARES,) completion times
    course: Floats  # (PARTS,) mean completion times by time of arrival
    utilisation: Floats  # (servers,)
    cpu_s: float


def execute(job: Job) -> Run:
    """Run a job; takes from milliseconds to minutes."""
    began = time.process_time()
    scenario = job.scenario
    utilisation = np.zeros(0)
    counts: dict[str, float] = {}
    if job.policy == REFERENCE:
        world = scenario.world(job.seed)
        # Any run has the flows: without a policy it is the quickest.
        records = Simulation(world).run().records
        fct = _reference(scenario, world, records)
        sla = flow_classes(world, len(records))
    else:
        policy = scenario.policies[job.policy]
        world = scenario.world(job.seed, policy)
        slots = RING_SLOTS if world.rings else 64
        simulation = Simulation(world, ring_slots=slots)
        result = simulation.run(registry.create(policy.spec), interval=scenario.interval, reserve=policy.reserve)
        summary, utilisation = result.summary(), result.utilisation
        counts = {
            "flows": float(summary.flows),
            "rejected": float(summary.rejected),
            "failed": float(summary.failed),
            "open": float(summary.open),
            "jain": summary.jain,
            "batch_error": summary.mean_error,
        }
        good = result.records["outcome"] == OUTCOME_OK
        records, sla = result.records[good], result.classes[good]
        fct = (records["closed_ns"] - records["arrival_ns"]) * 1e-9
    arrived = records["arrival_ns"] * 1e-9
    alone = np.maximum(records["work_ns"], 1.0) * 1e-9 / max(server.speed for server in world.servers)

    def between(start: float, end: float) -> slice:
        return slice(*np.searchsorted(arrived, [start, end]))  # arrivals are in order

    counted = between(world.warmup, math.inf)
    return Run(
        job.policy,
        job.seed,
        counts | times(fct[counted], alone[counted]),
        tuple(times(fct[part], alone[part]) for part in (between(p.start, p.end) for p in scenario.phases)),
        _by_class(fct[counted], alone[counted], sla[counted]),
        _tail(fct[counted]),
        _course(arrived, fct, length(world)),
        utilisation,
        time.process_time() - began,
    )


def _by_class(fct: Floats, alone: Floats, sla: NDArray[np.uint8]) -> dict[str, dict[str, float]]:
    here = [i for i in range(len(SLA_CLASSES)) if (sla == i).any()]
    return {SLA_CLASSES[i]: times(fct[sla == i], alone[sla == i]) for i in here} if len(here) > 1 else {}


def times(fct: Floats, alone: Floats) -> dict[str, float]:
    """Return the figures of completion times. alone: what each flow would take alone on the fastest server.

    The mean slowdown is not among them: where flows may be arbitrarily small, as with exponential demand, it has none.
    """
    if len(fct) == 0:
        return dict.fromkeys(("mean", "p50", "p90", "p99", "p999", "slowdown", "slowdown_p99"), math.nan)
    p50, p90, p99, p999 = np.quantile(fct, [0.5, 0.9, 0.99, 0.999])
    slowdown, slowdown_p99 = np.quantile(fct / alone, [0.5, 0.99])
    return {
        "mean": float(fct.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "p999": float(p999),
        "slowdown": float(slowdown),
        "slowdown_p99": float(slowdown_p99),
    }


def _tail(fct: Floats) -> Floats:
    tail = np.full(len(TAIL_SHARES), math.nan)
    told = TAIL_SHARES * len(fct) >= TAIL_FLOWS
    if told.any():
        tail[told] = np.quantile(fct, 1.0 - TAIL_SHARES[told])
    return tail


def _course(arrived: Floats, fct: Floats, end: float) -> Floats:
    part = np.minimum((arrived / end * PARTS).astype(np.int64), PARTS - 1)
    number = np.bincount(part, minlength=PARTS)
    total = np.bincount(part, weights=fct, minlength=PARTS)
    mean: Floats = np.divide(total, number, out=np.full(PARTS, math.nan), where=number > 0)
    return mean


def _reference(scenario: Scenario, world: World, records: NDArray[np.void]) -> Floats:
    """Return what each flow takes there, seconds. The servers are those at the start: their events are left out."""
    servers = [server for server in world.servers if server.present and not server.backup]
    functions = {"central-queue": central_queue, "least-work-left": least_work_left, "srpt": pooled_srpt}
    found = functions[scenario.reference](
        records["arrival_ns"],
        records["work_ns"] * 1e-9,
        [server.speed for server in servers],
        [server.workers for server in servers],
    )
    return found + 2 * min(server.delay for server in servers)


def bound(scenario: Scenario) -> float:
    """Return the birth–death bound of the mean completion time, seconds."""
    world = scenario.world(0)
    servers = [server for server in world.servers if server.present]
    floor = birth_death_bound(world.arrivals.mean_rate, world.demand.mean, servers)
    return floor + 2 * min(server.delay for server in servers)
