"""One run: a balancer (or none), a schedule, the events of the scenario, the sampler; and what was seen of it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from testbed.compare import machine, sender
from testbed.compare.scenario import Event, Scenario
from testbed.compare.traffic import Traffic
from testbed.interrupts import Deferred
from testbed.load.generator import Result, Target
from testbed.load.report import PRIORITY_HINT, Summary, summarize
from testbed.load.schedule import Schedule
from testbed.peers.peer import Peer
from testbed.peers.vickrey import Vickrey
from testbed.processes import Child, StartError, cpu_seconds
from testbed.telemetry import EVERY_S, Sampler, Telemetry

DRAIN_S = 3.0  # after the last arrival; who has no answer by then is counted with the age it reached
IDLE_S = 10.0  # for the servers to become idle between two runs
_ROOT = Path(__file__).resolve().parent.parent.parent


class Servers(Protocol):
    """Running servers: a farm, or a topology."""

    @property
    def addresses(self) -> list[str]: ...
    @property
    def capacity_s(self) -> float: ...
    def stats(self) -> list[dict[str, Any]]: ...
    def fault(self, name: str, **fault: Any) -> None: ...
    def kill(self, name: str) -> None: ...
    def revive(self, name: str) -> None: ...


@dataclass
class Run:
    """One balancer in one round. Records cover the warm-up too; cpu_s: of the balancers, by role."""

    variant: str
    round: int
    result: Result
    traffic: Traffic
    telemetry: Telemetry
    cpu_s: dict[str, float]
    busy: float
    others: float
    invalid: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        return not self.invalid

    @property
    def is_doubtful(self) -> bool:
        """The generator was late or stood still, or others took much CPU that balancer or servers would have had."""
        return not self.is_valid or self.others > machine.AGAIN_LIMIT

    @property
    def doubt(self) -> tuple[bool, float]:
        """To compare two runs of one schedule by: what came out plays no part."""
        if self.is_valid:
            return False, self.others
        judged = summarize(self.result)
        return True, max(judged.stall_max, judged.late_p99)

    @property
    def records(self) -> NDArray[np.void]:
        """Of the counted requests."""
        return self.result.records[self.is_counted]

    @property
    def is_counted(self) -> NDArray[np.bool_]:
        counted: NDArray[np.bool_] = self.traffic.schedule.arrival_s >= self.traffic.warmup_s
        return counted

    @property
    def summary(self) -> Summary:
        return summarize(self.result, after_s=self.traffic.warmup_s, counts_waiting=True)


def send(
    signals: Deferred,
    scenario: Scenario,
    servers: Servers,
    names: Sequence[str],
    traffic: Traffic,
    peers: Sequence[Peer],
    *,
    variant: str,
    number: int,
    direct: tuple[list[Target], NDArray[np.intp]] | None = None,
    schedule: Schedule | None = None,
) -> Run:
    """Send the traffic through the balancers (all of it over when this returns), or straight to the servers (direct).

    schedule: instead of the traffic's own. KeyboardInterrupt when a signal came.
    """
    targets, choice = direct or traffic.targets(scenario, [("127.0.0.1", peer.port) for peer in peers])
    events = [] if direct else _actions(scenario.events, traffic.warmup_s)
    with tempfile.TemporaryDirectory(prefix="vickrey-compare-") as folder:
        warm = 1 if scenario.clients and not direct else 16
        sender.write_plan(
            Path(folder),
            targets,
            schedule or traffic.schedule,
            choice,
            keep_alive=scenario.keep_alive,
            warm=warm,
            drain_s=DRAIN_S,
        )
        with _sender(folder) as child:
            began = _await_begin(child, signals)
            watched = machine.Machine()
            cpu_before = _cpu(peers)
            sampler = Sampler(servers, names, peers, began)
            _watch(child, signals, sampler, events, servers, began)
            cpu = {role: seconds - cpu_before.get(role, 0.0) for role, seconds in _cpu(peers).items()}
            busy, others = watched.stop()
            child.process.wait()
            if child.process.returncode:
                raise StartError(f"the load generator ended with status {child.process.returncode}: {child.log()}")
        result = sender.read_result(Path(folder))
    run = Run(variant, number, result, traffic, sampler.telemetry, cpu, busy, others)
    _judge(run)
    return run


@contextlib.contextmanager
def _sender(folder: str) -> Iterator[Child]:
    env = {**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "testbed.compare.sender", folder]
    child = Child("load", command, stdout=subprocess.PIPE, cwd=_ROOT, env=env)
    try:
        yield child
    finally:
        child.stop()


def _await_begin(child: Child, signals: Deferred) -> float:
    """When the run began, by CLOCK_MONOTONIC."""
    assert child.process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + 60.0
        while not selector.select(0.1):
            signals.check()
            if time.monotonic() > deadline:
                raise StartError(f"the load generator did not begin: {child.log()}")
    line = child.process.stdout.readline()
    if not line:
        child.process.wait()
        raise StartError(f"the load generator ended with status {child.process.returncode}: {child.log()}")
    return float(json.loads(line)["began"])


def _watch(
    child: Child,
    signals: Deferred,
    sampler: Sampler,
    events: list[tuple[float, Event, bool]],
    servers: Servers,
    began: float,
) -> None:
    """Until the generator ends: take samples, and do to the servers what is due."""
    next_sample = began
    waiting = list(events)
    while child.is_alive:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now - began:
            _, event, begins = waiting.pop(0)
            act(servers, event, begins)
        if now >= next_sample:
            sampler.sample()
            next_sample = max(next_sample + EVERY_S, time.monotonic())
        wake = min([next_sample, now + 0.2, *(began + at for at, _, _ in waiting[:1])])
        if signals.wait(max(wake - time.monotonic(), 0.0)):
            raise KeyboardInterrupt
    begun = [action[1] for action in events if action[2] and action not in waiting]
    for _, event, begins in waiting:
        if not begins and event in begun:
            act(servers, event, False)  # what was not ended yet ends now


def act(servers: Servers, event: Event, begins: bool) -> None:
    """Do to a server what the event says, or end it."""
    if event.kind == "kill":
        (servers.kill if begins else servers.revive)(event.server)
    else:
        servers.fault(event.server, **(event.fault if begins else {"kind": "none"}))


def _actions(events: Sequence[Event], warmup_s: float) -> list[tuple[float, Event, bool]]:
    """What is to be done, in order: when, to what, and whether it begins or ends."""
    found = [(event.at + warmup_s, event, True) for event in events]
    # An event without an end ends after the run: far behind its last arrival.
    found += [(float("inf") if e.until is None else e.until + warmup_s, e, False) for e in events]
    return sorted(found, key=lambda action: action[0])


def _cpu(peers: Sequence[Peer]) -> dict[str, float]:
    """CPU seconds of the balancers by role; `all` is the process tree."""
    seconds = {"all": cpu_seconds(pid for peer in peers for pid in peer.pids())}
    ours = [peer for peer in peers if isinstance(peer, Vickrey)]
    if ours:
        seconds["data plane"] = cpu_seconds(pid for peer in ours for pid in peer.roles()["data plane"])
    return seconds


def _judge(run: Run) -> None:
    summary = summarize(run.result)
    run.invalid += [reason.removesuffix(PRIORITY_HINT) for reason in summary.invalid_because]  # no such option here
    if run.busy > machine.BUSY_LIMIT:
        run.notes.append(f"the CPU was {run.busy:.0%} busy: queues of the CPU were measured, too")
    if run.others > machine.OTHERS_LIMIT:
        run.notes.append(f"others used {run.others:.0%} of the CPU")
