"""What a balancer is doing, as one document: processes, services, servers, with rates and FCTs of the last seconds.

The counters in the segment are cumulative. A history of them, taken about once a second, gives the recent: newest
minus oldest. Percentiles come from the histogram of the flows between the two, not from averages of percentiles.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.counters import BUCKET_EDGES_S, FAILED, OUTCOME_NAMES, Snapshot
from controlplane.servers import Server
from shm_layout.layout import SLA_CLASSES

WINDOW_S = 5.0  # when nothing else is asked for
WINDOW_MOST_S = 10.0
# A snapshot of thousands of servers is megabytes; it is taken as much more rarely.
ROWS_PER_SECOND = 512

Floats = NDArray[np.float64]


class History:
    """The snapshots of one service over the last seconds, oldest first."""

    def __init__(self, first: Snapshot) -> None:
        self._taken: deque[Snapshot] = deque([first])

    @property
    def newest(self) -> Snapshot:
        return self._taken[-1]

    def is_due(self, now: float, rows: int) -> bool:
        """Return whether the next is due; rows: servers times workers."""
        return now - self.newest.now >= max(1.0, rows / ROWS_PER_SECOND)

    def add(self, snapshot: Snapshot) -> None:
        self._taken.append(snapshot)
        # At least two stay, so that there is always a difference.
        while len(self._taken) > 2 and snapshot.now - self._taken[1].now >= WINDOW_MOST_S:
            self._taken.popleft()

    def recent(self, now: Snapshot, window_s: float = WINDOW_S) -> Recent:
        """Return what happened in about the last so many seconds."""
        since = now.now - window_s
        # The one nearest to the window's begin, but never `now` itself.
        before = min((s for s in self._taken if s is not now), key=lambda s: abs(s.now - since), default=self._taken[0])
        return Recent(before, now)


class Recent:
    """The difference of two snapshots of a service. A server whose counters began anew counts from zero."""

    def __init__(self, before: Snapshot, now: Snapshot) -> None:
        self.seconds = max(now.now - before.now, 1e-3)
        n = len(now.ids)
        m = min(n, len(before.ids))
        same = np.zeros(n, dtype=bool)
        same[:m] = (now.ids[:m] == before.ids[:m]) & (now.flows[:m] >= before.flows[:m])
        rows = np.flatnonzero(same)

        def since(new: NDArray[np.uint64], old: NDArray[np.uint64]) -> NDArray[np.int64]:
            rose = new.astype(np.int64)
            rose[rows] -= old[rows].astype(np.int64)
            return np.maximum(rose, 0)

        self.flows = since(now.flows, before.flows)
        self.outcomes = since(now.outcomes, before.outcomes)
        self.fct_sum_ns = since(now.fct_sum_ns, before.fct_sum_ns)
        self.histogram = since(now.histogram, before.histogram)
        # Sums of doubles: bids, prices and margins of the auctions won.
        self.won = since(now.stats["auctions_won"], before.stats["auctions_won"])
        self.priced = since(now.stats["priced"], before.stats["priced"])
        self.bid_sum, self.price_sum, self.margin_sum = (
            rows_since(now.stats[name], before.stats[name], rows) for name in ("bid_sum", "price_sum", "margin_sum")
        )
        self.flows_class, self.waited_class, self.wait_class_ns = (
            np.maximum(now.workers[name].sum(axis=0).astype(float) - before.workers[name].sum(axis=0), 0.0)
            for name in ("flows_class", "waited_class", "wait_class_sum_ns")
        )
        self.held = max(now.total("held") - before.total("held"), 0)
        self.requests = max(now.total("requests_total") - before.total("requests_total"), 0)
        self.connections = max(now.total("connections_total") - before.total("connections_total"), 0)


def rows_since(new: Floats, old: Floats, rows: NDArray[np.intp]) -> Floats:
    """Return new, less old in these rows."""
    rose = np.array(new, dtype=float)
    rose[rows] -= old[rows]
    return rose


def ratio(total: float, count: float) -> float | None:
    """Return a mean, to six digits that matter; None when there is nothing to divide by."""
    return float(f"{total / count:.6g}") if count > 0 and np.isfinite(total) else None


def percentile_ms(histogram: NDArray[np.int64], q: float) -> float | None:
    """Return a percentile of a histogram, interpolated within its bucket; None when it is empty."""
    cumulative = np.cumsum(histogram)
    total = int(cumulative[-1]) if len(cumulative) else 0
    if total == 0:
        return None
    wanted = q / 100 * total
    bucket = int(np.searchsorted(cumulative, wanted, side="left"))
    below = int(cumulative[bucket - 1]) if bucket else 0
    share = (wanted - below) / max(int(histogram[bucket]), 1)
    low, high = float(BUCKET_EDGES_S[bucket]), float(BUCKET_EDGES_S[bucket + 1])
    return round((low + share * (high - low)) * 1e3, 4)


def fct_ms(histogram: NDArray[np.int64], sum_ns: int) -> dict[str, float | None]:
    """Return mean and percentiles of completion times in milliseconds; None each where nothing completed."""
    count = int(histogram.sum())
    return {
        "mean_ms": round(sum_ns / count / 1e6, 4) if count else None,
        "p50_ms": percentile_ms(histogram, 50),
        "p90_ms": percentile_ms(histogram, 90),
        "p99_ms": percentile_ms(histogram, 99),
    }


@dataclass(frozen=True)
class Learned:
    """What the directive in force says of each server slot."""

    policy: str
    rule: str
    sequence: int
    age_s: float
    weights: Floats | None  # (rows,) where the directive has them
    ids: NDArray[np.uint64]
    reserve: float | None = None  # for a flow that nobody waits before, unit of the bids; None: there is none

    def weight(self, server: Server) -> float | None:
        if self.weights is None or server.slot >= len(self.weights) or int(self.ids[server.slot]) != server.id:
            return None
        return round(float(self.weights[server.slot]), 6)


def server_status(server: Server, snapshot: Snapshot, recent: Recent, learned: Learned | None) -> dict[str, Any]:
    """Return the document of one server."""
    i = server.slot
    outcomes = snapshot.outcomes[i]
    flows = int(recent.flows[i])
    total = int(recent.flows.sum())
    fct = fct_ms(recent.histogram[i], int(recent.fct_sum_ns[i]))
    return {
        "name": server.name,
        "address": server.address.text,
        "id": server.id,
        "slot": server.slot,
        "state": server.shown_state,
        "health": server.health,
        "cause": server.down_cause or server.eject_cause,
        "last_check": server.last_check,
        "backup": server.backup,
        "weight": server.weight,
        "learned_weight": learned.weight(server) if learned is not None else None,
        "maxconn": server.maxconn,
        "capacity": server.capacity or None,
        "coalition": server.coalition or None,
        "share": round(flows / total, 4) if total else 0.0,
        "in_flight": int(snapshot.in_flight[i]),
        "flows_total": int(snapshot.flows[i]),
        "rps": round(flows / recent.seconds, 2),
        **{f"fct_{name}": value for name, value in fct.items()},
        "bid_mean": ratio(recent.bid_sum[i], recent.won[i]),
        "price_mean": ratio(recent.price_sum[i], recent.priced[i]),
        "margin_mean": ratio(recent.margin_sum[i], recent.priced[i]),
        "errors": int(outcomes[list(FAILED)].sum()),
        "errors_recent": int(recent.outcomes[i][list(FAILED)].sum()),
        "outcomes": {name: int(count) for name, count in zip(OUTCOME_NAMES, outcomes, strict=True)},
        "retries": int(snapshot.stats["retries"][i]),
        "bytes_in": int(snapshot.stats["bytes_in"][i]),
        "bytes_out": int(snapshot.stats["bytes_out"][i]),
        "connections_opened": int(snapshot.stats["connections_opened"][i]),
        "connections_reused": int(snapshot.stats["connections_reused"][i]),
        "ejections_total": server.ejections_total,
        "downs_total": server.down_count,
    }


def _class_status(snapshot: Snapshot, recent: Recent, i: int) -> dict[str, Any]:
    """Return what became of the flows of one SLA class lately: how many wait, the rate, share and mean of the waits."""
    flows, waited = float(recent.flows_class[i]), float(recent.waited_class[i])
    return {
        "queued": snapshot.total("queued_class", i),
        "rps": round(flows / recent.seconds, 2),
        "waited": round(waited / flows, 4) if flows else 0.0,
        "wait_mean_ms": ratio(float(recent.wait_class_ns[i]) / 1e6, waited),
        "flows_total": snapshot.total("flows_class", i),
    }


def traffic_status(mode: str, snapshot: Snapshot, recent: Recent) -> dict[str, Any]:
    """Return the totals of one service."""
    taken = recent.requests if mode == "http" else recent.connections
    return {
        "rps": round(taken / recent.seconds, 2),
        "window_s": round(recent.seconds, 2),
        "connections": snapshot.total("connections"),
        "queued": snapshot.total("queued"),
        "classes": {name: _class_status(snapshot, recent, i) for i, name in enumerate(SLA_CLASSES)},
        "held_ps": round(recent.held / recent.seconds, 2),
        "bid_mean": ratio(recent.bid_sum.sum(), recent.won.sum()),
        "price_mean": ratio(recent.price_sum.sum(), recent.priced.sum()),
        "margin_mean": ratio(recent.margin_sum.sum(), recent.priced.sum()),
        "in_flight": int(snapshot.in_flight.sum()),
        "fct": fct_ms(recent.histogram.sum(axis=0), int(recent.fct_sum_ns.sum())),
        "errors": int(snapshot.outcomes[:, list(FAILED)].sum()),
        "totals": {
            name: snapshot.total(name)
            for name in (
                "connections_total",
                "connections_refused",
                "requests_total",
                "requests_bad",
                "answered_here",
                "retries",
                "retries_denied",
                "queue_total",
                "queue_timeouts",
                "no_server_down",
                "no_server_full",
                "auctions",
                "auctions_fallback",
                "auctions_above_reserve",
                "held",
                "handoffs",
                "bytes_in",
                "bytes_out",
            )
        },
        "rejected": snapshot.rejected(),
    }
