"""Passive marking: what live traffic says of a server, in Envoy's terms (outlier detection) and HAProxy's (`fall`).

Two judgements, both from the counters that the data plane keeps, polled some ten times a second:

    connections refused `fall` times in a row    the server is down, until its checks bring it back
    errors in a row (consecutive_5xx, …)         the server is ejected: for base_ejection_time times the number of its
                                                 late ejections, at most max_ejection_time

At most max_ejection_percent of the servers are out at once, but one always may be, and never the last that takes flows:
when everybody fails, sending them on is better than sending them nowhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.config import Outlier
from controlplane.servers import Server, ServerTable

Counts = NDArray[np.uint64]

NEVER = 1 << 62


@dataclass(frozen=True)
class Outcomes:
    """What the workers counted of each server: (workers, servers) each, cumulative but in_a_row."""

    ids: Counts  # of the server that the counters belong to
    good: Counts  # answered well
    errors_5xx: Counts  # answered 5xx
    connect_failed: Counts
    broken: Counts  # aborts and timeouts of the server's
    in_a_row: Counts  # failures since the last good answer
    gateway_in_a_row: Counts  # the same without 5xx that the server answered itself


@dataclass
class Runs:
    """Failures in a row of each server over all workers, (servers,)."""

    errors: NDArray[np.int64]
    gateway: NDArray[np.int64]
    connect: NDArray[np.int64]


class FailureRuns:
    """Follows the counters from poll to poll and keeps, for each server, how many flows failed in a row.

    The workers' own runs cannot simply be added: a run of a worker that has sent nothing for an hour says nothing. So
    what counts is what happened between two polls: without a good answer the run goes on; with one it is the longest
    that a worker has had since. For one worker that is exact.
    """

    def __init__(self) -> None:
        self._before: Outcomes | None = None
        self.runs = Runs(*(np.zeros(0, np.int64) for _ in range(3)))

    def rebase(self) -> None:
        """Forget the runs and what was counted until the next poll: it happened while this machine was not itself."""
        self._before = None
        for run in (self.runs.errors, self.runs.gateway, self.runs.connect):
            run[:] = 0

    def forget(self, slot: int) -> None:
        """Start this server's runs anew."""
        if slot < len(self.runs.errors):
            for run in (self.runs.errors, self.runs.gateway, self.runs.connect):
                run[slot] = 0

    def poll(self, now: Outcomes) -> Runs:
        """Take the counters as they are now; returns the runs."""
        servers = now.ids.shape[1]
        if servers != len(self.runs.errors):
            self.runs = Runs(*(_resized(run, servers) for run in vars(self.runs).values()))
        before, self._before = self._before, now
        if before is None:
            return self.runs
        good = _since(now, before, "good").sum(axis=0)
        answered = _since(now, before, "errors_5xx")
        refused = _since(now, before, "connect_failed")
        gateway = refused + _since(now, before, "broken")
        bad = answered + gateway
        runs = self.runs
        runs.errors = _run(runs.errors, bad, now.in_a_row, good)
        # A 5xx that the server answered itself ends a run of gateway failures.
        runs.gateway = _run(runs.gateway, gateway, now.gateway_in_a_row, good + answered.sum(axis=0))
        runs.connect = _run(runs.connect, refused, now.gateway_in_a_row, good + answered.sum(axis=0))
        return runs


def _run(
    run: NDArray[np.int64], bad: NDArray[np.int64], in_a_row: Counts, ended_by: NDArray[np.int64]
) -> NDArray[np.int64]:
    latest = np.minimum(in_a_row.astype(np.int64), bad).max(axis=0)
    longer: NDArray[np.int64] = np.where(ended_by > 0, latest, run + bad.sum(axis=0))
    return longer


def _resized(run: NDArray[np.int64], servers: int) -> NDArray[np.int64]:
    resized = np.zeros(servers, np.int64)
    resized[: min(servers, len(run))] = run[:servers]
    return resized


def _since(now: Outcomes, before: Outcomes, name: str) -> NDArray[np.int64]:
    """Return how far a counter rose. One that fell, or belongs to another server now, began again at zero."""
    new: Counts = getattr(now, name)
    old = np.zeros_like(new)
    known: Counts = getattr(before, name)
    rows, columns = min(len(new), len(known)), min(new.shape[1], known.shape[1])
    part = np.s_[:rows, :columns]
    old[part] = np.where((now.ids[part] == before.ids[part]) & (known[part] <= new[part]), known[part], 0)
    since: NDArray[np.int64] = np.subtract(new, old).astype(np.int64)
    return since


class OutlierDetector:
    """Ejects servers and takes them back."""

    def __init__(self, settings: Outlier | None) -> None:
        self.settings = settings
        self._swept = 0.0

    def judge(self, table: ServerTable, runs: Runs, now: float) -> list[tuple[Server, str]]:
        """Eject those whose runs are too long, as far as the limits allow; returns which, and why."""
        settings = self.settings
        if settings is None or settings.enforcing == 0:
            return []
        most_errors = settings.consecutive_5xx or NEVER
        most_gateway = settings.consecutive_gateway_failure or NEVER
        ejected = []
        for slot in np.flatnonzero((runs.errors >= most_errors) | (runs.gateway >= most_gateway)):
            server = table.slots[slot] if slot < len(table.slots) else None
            if server is None or not server.takes_flows or not self.may_eject(table, server):
                continue
            errors = int(runs.errors[slot])
            cause = (
                f"{errors} errors in a row"
                if errors >= most_errors
                else f"{runs.gateway[slot]} gateway failures in a row"
            )
            unanswered = int(runs.gateway[slot]) >= errors
            runs.errors[slot] = runs.gateway[slot] = 0
            # As with Envoy's: the chance that it is done rather than only found.
            if random.random() * 100 < settings.enforcing:
                self._eject(server, cause, unanswered, now)
                ejected.append((server, cause))
        return ejected

    def may_eject(self, servers: ServerTable, server: Server) -> bool:
        """Return whether the limits allow one more to be out."""
        if self.settings is None or not any(other.takes_flows for other in servers if other is not server):
            return False
        out = sum(other.ejected for other in servers)
        return out < max(1, len(servers) * self.settings.max_ejection_percent // 100)

    def _eject(self, server: Server, cause: str, unanswered: bool, now: float) -> None:
        assert self.settings is not None
        server.eject_unanswered, server.checks_good = unanswered, 0
        server.ejections += 1
        server.ejections_total += 1
        for_s = min(self.settings.base_ejection_time * server.ejections, self.settings.max_ejection_time)
        server.ejected_until = now + max(for_s, self.settings.base_ejection_time)
        server.eject_cause = cause
        server.changed = now

    def take_back(self, servers: ServerTable, now: float) -> list[tuple[Server, str]]:
        """End the ejections whose time is over, and all of them when nobody else is left; returns whose, and why.

        Once each `interval` a server that stayed in is forgiven one of its late ejections.
        """
        alone = not any(server.takes_flows for server in servers)
        back = []
        for server in servers:
            if not server.ejected:
                continue
            usable = server.up and server.state == "ready" and not server.leaving and server.weight > 0
            if server.ejected_until <= now or self.settings is None:
                back.append((server, "its time is over"))
            elif alone and usable:
                back.append((server, "nobody else is left"))
            else:
                continue
            self._absolve(server, now)
        if self.settings is not None and now - self._swept >= self.settings.interval:
            self._swept = now
            returned = {server for server, _ in back}
            for server in servers:
                if not server.ejected and server.ejections and server not in returned:
                    server.ejections -= 1
        return back

    def checked_good(self, server: Server, went_up: bool, rise: int, now: float) -> bool:
        """A check of an ejected server was good; returns whether that ends the ejection.

        It does when the server was down meanwhile, and after `rise` of them when all that it was ejected for is that it
        did not answer, as a server that was killed and is back. Not again for one that does so repeatedly, and never
        for one that answered errors: its checks were good then, too.
        """
        first = server.eject_unanswered and server.ejections <= 1 and server.checks_good >= rise
        if not server.ejected or not (went_up or first):
            return False
        self._absolve(server, now)
        return True

    def _absolve(self, server: Server, now: float) -> None:
        server.ejected_until, server.eject_cause, server.changed = 0.0, "", now

    def shift(self, servers: ServerTable, slept_s: float) -> None:
        """Let ejections last longer by the time that this machine stood still."""
        for server in servers:
            if server.ejected:
                server.ejected_until += slept_s
