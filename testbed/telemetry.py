"""What servers and balancers did during a run, on one time axis: the ground truth beside what the controller believes.

A sampler asks every half second or so: each server for its busy workers, queue, totals, CPU and memory (and so the
truth), each Vickrey balancer for the weights, rates and bids of its controller and its flows in flight (and so what it
believes). A column is one figure over time, for all servers; the CPU of a balancer is its process tree's.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from testbed.demand import Floats
from testbed.peers.peer import Peer
from testbed.peers.vickrey import Vickrey
from testbed.processes import cpu_seconds

EVERY_S = 0.5
TRUTH = ("busy", "queued", "workers", "speed", "served", "service_ms", "cpu_s", "memory", "pid", "up")
BELIEF = ("weight", "in_flight", "mu", "k", "bid")  # bid: for one flow more than there are
_POLICY = "/v1/services/web/policy"


class Truth(Protocol):
    """Running servers, as a farm or a topology: their ground truth, one by one, in their order."""

    def stats(self) -> list[dict[str, Any]]: ...


class Telemetry:
    """The samples of one run; times are seconds from its begin."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.at_s: list[float] = []
        self.balancer_cpu_s: list[float] = []
        self._rows: dict[str, list[list[float]]] = {name: [] for name in (*TRUTH, *BELIEF)}

    def __len__(self) -> int:
        return len(self.at_s)

    def add(self, at_s: float, balancer_cpu_s: float, rows: dict[str, list[float]]) -> None:
        """rows: a value for each server; a column that is not there has none."""
        self.at_s.append(at_s)
        self.balancer_cpu_s.append(balancer_cpu_s)
        for name, column in self._rows.items():
            column.append(rows.get(name) or [float("nan")] * len(self.names))

    def column(self, name: str) -> Floats:
        """Shape (samples, servers); NaN where nobody said."""
        return np.array(self._rows[name], dtype=np.float64).reshape(len(self.at_s), len(self.names))

    def has(self, name: str) -> bool:
        return bool(np.isfinite(self.column(name)).any())

    def processes(self) -> list[list[int]]:
        """Servers, by their place in names, that share a process, and so its CPU time and memory; one that says nothing
        of its process has its own."""
        pids = self.column("pid") if len(self) else np.full((1, len(self.names)), np.nan)
        groups: dict[float, list[int]] = {}
        for i, said in enumerate(pids.T):
            known = said[np.isfinite(said)]
            groups.setdefault(float(known[-1]) if len(known) else -1.0 - i, []).append(i)
        return list(groups.values())

    def increase(self, name: str, begin_s: float, end_s: float) -> Floats:
        """How much a total grew between two times, by server. One that began anew (a restart) counts from zero."""
        at = np.array(self.at_s)
        rows = self.column(name)[(at >= begin_s) & (at <= end_s)]
        grown = np.zeros(len(self.names))
        for i, values in enumerate(rows.T):
            known = values[np.isfinite(values)]
            steps = np.diff(known)
            grown[i] = np.where(steps < 0, known[1:], steps).sum() if len(known) > 1 else 0.0
        return grown

    def span(self, begin_s: float, end_s: float) -> float:
        """Seconds between the first and the last sample in a stretch."""
        within = [t for t in self.at_s if begin_s <= t <= end_s]
        return within[-1] - within[0] if len(within) > 1 else 0.0

    def utilisation(self, begin_s: float, end_s: float) -> Floats:
        """Share of its workers that each server had busy, as the servers say; NaN with fewer than two samples."""
        span = self.span(begin_s, end_s)
        if not span:
            return np.full(len(self.names), np.nan)
        at = np.array(self.at_s)
        within = (at >= begin_s) & (at <= end_s)
        workers = np.nanmax(self.column("workers"), axis=0)
        if self.has("service_ms"):
            share: Floats = self.increase("service_ms", begin_s, end_s) / 1e3 / (span * workers)
            return share
        mean: Floats = np.nanmean(self.column("busy")[within], axis=0) / workers
        return mean

    def rows(self) -> list[dict[str, Any]]:
        """One row a sample and server, of what is known."""
        names = [name for name in self._rows if len(self) and self.has(name)]
        columns = {name: self.column(name) for name in names}
        return [
            {"at_s": round(at, 3), "server": server}
            | {name: value for name in names if (value := float(columns[name][i, j])) == value}
            for i, at in enumerate(self.at_s)
            for j, server in enumerate(self.names)
        ]


def jain(shares: Floats) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has all (Jain, Chiu, Hawe 1984)."""
    total = float((shares**2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * total) if total > 0 else float("nan")


class Sampler:
    """Asks servers and balancers. begin: CLOCK_MONOTONIC seconds of the run's begin."""

    def __init__(self, servers: Truth, names: Sequence[str], peers: Sequence[Peer], begin: float) -> None:
        self.telemetry = Telemetry(names)
        self._servers, self._peers, self._begin = servers, list(peers), begin
        self._pids = [pid for peer in self._peers for pid in peer.pids()]

    def sample(self) -> None:
        rows: dict[str, list[float]] = {}
        with contextlib.suppress(OSError, ValueError):  # a server that hangs costs a sample, not the run
            rows = _columns(TRUTH, self._servers.stats())
        ours = [peer for peer in self._peers if isinstance(peer, Vickrey)]
        if ours:
            with contextlib.suppress(OSError, ValueError, RuntimeError, KeyError, http.client.HTTPException):
                rows |= beliefs(ours)
        now = time.monotonic() - self._begin
        self.telemetry.add(now, cpu_seconds(self._pids), rows)


def beliefs(balancers: Sequence[Vickrey]) -> dict[str, list[float]]:
    """What the controllers think of each server; of several balancers the mean, and all flows in flight."""
    found = []
    for balancer in balancers:
        status, policy = balancer.status(), balancer.call("GET", _POLICY)
        fitted = {server["name"]: server for server in policy.get("servers", [])}
        rows = []
        for server in status["servers"]:
            fit = fitted.get(server["name"], {})
            bids, n = fit.get("bids") or [], server["in_flight"]
            weight = server["learned_weight"] if fit.get("weight") is None else fit["weight"]
            bid = bids[n] if n < len(bids) else None
            rows.append({"weight": weight, "in_flight": n, "mu": fit.get("mu"), "k": fit.get("k"), "bid": bid})
        found.append(_columns(BELIEF, rows))
    columns = {name: np.array([one[name] for one in found]) for name in BELIEF}
    return {
        name: (column.sum(axis=0) if name == "in_flight" else column.mean(axis=0)).tolist()
        for name, column in columns.items()
    }


def _columns(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    nan = float("nan")
    return {name: [nan if row.get(name) is None else float(row[name]) for row in rows] for name in names}


def write_csv(path: Path, runs: Sequence[tuple[dict[str, Any], Telemetry]]) -> None:
    """A row a sample and server; each run's own columns (its variant, its round) come first."""
    rows = [about | row for about, telemetry in runs for row in telemetry.rows()]
    names = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
