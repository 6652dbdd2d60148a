"""A comparison: rounds, in each of them every balancer, freshly started, with the same arrivals and demands.

In each round the direct path is measured first (what the servers' lateness and the path cost without a balancer);
with that the references are simulated. The order of the balancers turns from round to round. A run whose generator was
late, or beside which others used the CPU, is repeated once, and then marked. A balancer that is not installed, or does
not start, is left out with its own words, and the others go on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from testbed.compare import traffic
from testbed.compare.measure import IDLE_S, Run, Servers, send
from testbed.compare.scenario import Scenario
from testbed.compare.traffic import Traffic
from testbed.compare.variant import Variant
from testbed.demand import Floats
from testbed.farm import Farm
from testbed.interrupts import Deferred
from testbed.load.generator import Target
from testbed.load.schedule import Schedule
from testbed.peers.peer import Peer, Server
from testbed.processes import StartError
from testbed.reference import Change, central_queue, least_work_left

CENTRAL = "central queue (simulated)"
OVER_PATH = "central queue over the path (simulated)"
CLAIRVOYANT = "least work left (simulated)"
DIRECT = "direct path"
PREFERRED_PROCESSES = 2  # two processes of backends distort least; each has its own where one is to be killed
DIRECT_S = 4.0

Say = Callable[[str], None]


@dataclass
class Reference:
    """Flow completion times of one round, simulated; seconds, of all requests of the traffic."""

    name: str
    round: int
    fct_s: Floats
    traffic: Traffic


@dataclass
class Comparison:
    """All that was measured."""

    scenario: Scenario
    names: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    overhead_ms: list[float] = field(default_factory=list)
    service_late_ms: list[float] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # did not start, and why
    absent: dict[str, str] = field(default_factory=dict)  # not installed
    configurations: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    def of(self, variant: str) -> list[Run]:
        return [run for run in self.runs if run.variant == variant]


@contextlib.contextmanager
def served(scenario: Scenario) -> Iterator[tuple[Servers, list[str], list[Server]]]:
    """Start the scenario's servers: what they are, their names, and what a balancer may be told of them."""
    if scenario.topology:
        from testbed.compare.topologies import running

        with running(scenario.topology) as found:
            yield found
        return
    specs = scenario.specs
    alone = any(event.kind == "kill" for event in scenario.events)
    with Farm(specs, processes=len(specs) if alone else PREFERRED_PROCESSES) as farm:
        # What a weight is depends on the rule; to all of them it is a share of the flows, so speed times workers.
        most = max(spec.speed * spec.workers for spec in specs)
        truth = [
            Server(address, max(1, round(100 * spec.speed * spec.workers / most)), spec.workers)
            for address, spec in zip(farm.addresses, specs, strict=True)
        ]
        yield farm, [spec.name for spec in specs], truth


class Runner:
    """ready: called before each run, the direct one too; it may wait until the machine is fit to be measured on."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        say: Say,
        direct_s: float = DIRECT_S,
        references: bool = True,
        ready: Callable[[Deferred], None] = Deferred.check,
    ) -> None:
        self.scenario = scenario
        self.found = Comparison(scenario)
        self._say = say
        self._direct_s = direct_s
        self._references = references and not scenario.topology
        self._ready = ready

    def run(self, signals: Deferred) -> Comparison:
        """Do all rounds. A signal ends it early: what was measured so far is returned, marked as interrupted."""
        wanted = []
        for one in self.scenario.variants:
            if one.missing:
                self.found.absent[one.name] = one.missing
                self._say(f"left out: {one.name}: {one.missing}")
            else:
                wanted.append(one)
        try:
            with served(self.scenario) as (servers, names, truth):
                signals.check()
                self.found.names = names
                for number in range(self.scenario.rounds):
                    self._round(signals, servers, truth, wanted, number)
        except KeyboardInterrupt:
            self.found.interrupted = True
            signals.forget()
        return self.found

    def _round(
        self, signals: Deferred, servers: Servers, truth: list[Server], wanted: Sequence[Variant], number: int
    ) -> None:
        plan = traffic.generate(self.scenario, servers.capacity_s, self.scenario.seed + number)
        if self._references:
            self._reference(signals, servers, plan, number)
        shift = number % max(len(wanted), 1)
        for one in [*wanted[shift:], *wanted[:shift]]:
            if one.name in self.found.failed:
                continue
            run = self._measure(signals, servers, truth, plan, one, number)
            if run is not None and run.is_doubtful:
                self._say(f"again: {one.name}: {'; '.join(run.invalid or run.notes)}")
                again = self._measure(signals, servers, truth, plan, one, number)
                run = again if again is not None and again.doubt < run.doubt else run
            if run is not None:
                self.found.runs.append(run)
                self._tell(run)

    def _measure(
        self,
        signals: Deferred,
        servers: Servers,
        truth: list[Server],
        plan: Traffic,
        one: Variant,
        number: int,
    ) -> Run | None:
        scenario = self.scenario
        self._ready(signals)
        with contextlib.ExitStack() as stack:
            peers: list[Peer] = []
            try:
                for _ in range(scenario.balancers):
                    signals.check()
                    health = scenario.health.health if scenario.health else None
                    peer = one.start(truth, balancers=scenario.balancers, health=health, service=scenario.service)
                    peers.append(stack.enter_context(peer))
            except (StartError, OSError, ValueError) as error:
                self.found.failed[one.name] = str(error)
                self._say(f"did not start: {one.name}: {error}")
                return None
            self.found.configurations.setdefault(one.name, peers[0].configuration)
            run = send(signals, scenario, servers, self.found.names, plan, peers, variant=one.name, number=number)
        self._settle(signals, servers, run)
        return run

    def _settle(self, signals: Deferred, servers: Servers, run: Run) -> None:
        """Leave the servers empty and well for the next run."""
        reset = getattr(servers, "reset", None)
        if reset is not None:
            reset()
        waited = 0.0
        while any(server["busy"] or server["queued"] for server in servers.stats()):
            if waited > IDLE_S:
                run.notes.append("the servers did not become idle after it")
                break
            if signals.wait(0.05):
                raise KeyboardInterrupt
            waited += 0.05

    def _reference(self, signals: Deferred, servers: Servers, plan: Traffic, number: int) -> None:
        """Measure the direct path, and simulate the references with the lateness and overhead that it shows."""
        scenario, specs = self.scenario, self.scenario.specs
        speeds = np.array([spec.speed for spec in specs])
        workers = np.array([spec.workers for spec in specs])
        all_of_it = plan.schedule
        n = int(np.searchsorted(all_of_it.arrival_s, min(self._direct_s, scenario.warmup + scenario.seconds)))
        rng = np.random.default_rng([scenario.seed + number, 9])
        share = speeds * workers
        choice = rng.choice(len(specs), n, p=share / share.sum())
        kinds = scenario.traffic
        targets = []
        for address in servers.addresses:
            host, _, port = address.rpartition(":")
            targets += [Target(host, int(port), traffic.path_of(kind)) for kind in kinds]
        for _ in range(2):
            self._ready(signals)
            before = servers.stats()
            run = send(
                signals,
                scenario,
                servers,
                self.found.names,
                plan,
                [],
                variant=DIRECT,
                number=number,
                direct=(targets, choice * len(kinds) + plan.kind[:n]),
                schedule=Schedule(all_of_it.arrival_s[:n], all_of_it.demand_ms[:n]),
            )
            seen_late_ms = late_of(before, servers.stats())
            self._settle(signals, servers, run)
            if not run.is_doubtful:
                break
        records = run.result.records
        good = records["status"] == 200
        records, choice, kind = records[good], choice[good], plan.kind[:n][good]
        if not len(records):
            self.found.notes.append("the direct path gave no answer: no reference")
            return
        path_ms = (records["done_s"] - records["scheduled_s"]) * 1e3 - records["wait_ms"] - records["service_ms"]
        # A service by a timer takes exactly its time, and that its end was seen late is in the path; one that computes
        # may take longer.
        over_ms = records["service_ms"] - records["demand_ms"] / speeds[choice]
        over_s = [float(over_ms[choice == i].mean()) / 1e3 if np.any(choice == i) else 0.0 for i in range(len(specs))]
        self.found.overhead_ms.append(float(path_ms.mean()))
        if seen_late_ms is not None:
            self.found.service_late_ms.append(seen_late_ms + float(over_ms.mean()))
        path_s = np.zeros(len(all_of_it))
        for i in range(len(kinds)):  # a large answer takes longer on any path
            of_kind = path_ms[kind == i] if np.any(kind == i) else path_ms
            mine = plan.kind == i
            path_s[mine] = rng.choice(of_kind, int(mine.sum())) / 1e3
        changes = speed_changes(scenario, plan.warmup_s)
        over_path = functools.partial(central_queue, over_path=True)
        for name, simulate in ((CENTRAL, central_queue), (OVER_PATH, over_path), (CLAIRVOYANT, least_work_left)):
            fct_s = simulate(
                all_of_it.arrival_s,
                all_of_it.demand_ms / 1e3,
                speeds.tolist(),
                workers.tolist(),
                late_s=over_s,
                path_s=path_s,
                changes=changes,
            )
            self.found.references.append(Reference(name, number, fct_s, plan))

    def _tell(self, run: Run) -> None:
        s = run.summary
        marks = f"  INVALID: {'; '.join(run.invalid)}" if run.invalid else ""
        self._say(
            f"round {run.round + 1}/{self.scenario.rounds}  {run.variant:<36} mean {s.mean:8.1f}  p99 {s.p99:8.1f} ms"
            f"  errors {sum(s.errors.values())}  CPU busy {run.busy:.0%}{marks}"
        )


def late_of(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float | None:
    """How late the servers saw the ends of their services meanwhile, milliseconds a request; None: they do not say."""
    rows = [(old, new) for old, new in zip(before, after, strict=True) if "late_ms" in old and "late_ms" in new]
    served = sum(new["served"] - old["served"] for old, new in rows)
    return sum(new["late_ms"] - old["late_ms"] for old, new in rows) / served if served > 0 else None


def speed_changes(scenario: Scenario, warmup_s: float) -> list[Change]:
    """The events as changes of speed; a server that fails in another way than by slowing down serves nobody."""
    changes = []
    for event in scenario.events:
        index = next(i for i, spec in enumerate(scenario.specs) if spec.name == event.server)
        speed = scenario.specs[index].speed
        changes.append((event.at + warmup_s, index, speed / event.factor if event.kind == "slow" else 0.0))
        if event.until is not None:
            changes.append((event.until + warmup_s, index, speed))
    return changes
