"""Reads one service's segment into an Observation: settings when they changed, words and stats every time.

Time is passed in: over a live segment it is CLOCK_MONOTONIC, over the simulator's its clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from controlplane.policy import CURVE_N, Floats, Ids, Observation, Profile
from shm_layout._segment import ffi, lib
from shm_layout.layout import FLOW_RECORD, HISTOGRAM_BUCKETS, SERVER_HEALTH, SERVER_STATES
from shm_layout.mapping import check_return
from shm_layout.segment import Segment

_READY = SERVER_STATES.index("ready")
_UP = SERVER_HEALTH.index("up")
# The word {n, time} of a server: n in the high 16 bits, the time in the low 48, in units of 128 ns.
_TIME_BITS, _TIME_UNIT_NS = 48, 128
_TIME_MASK = (1 << _TIME_BITS) - 1


@dataclass(frozen=True)
class Table:
    """The server table as published."""

    published: int  # publications when it was read
    version: int
    ids: Ids
    names: tuple[str, ...]
    active: NDArray[np.bool_]
    weight: Floats
    maxconn: Floats
    capacity: Floats
    coalition: Floats
    route_loads: Floats  # (routes + 1,) 0: to be learned
    classes_differ: bool


class Observer:
    """Makes observations of one segment."""

    def __init__(
        self,
        segment: Segment,
        interval: float = 0.2,
        balancers: int = 1,
        objective: str = "mean",
        reserve: str = "off",
    ) -> None:
        self.segment = segment
        self.interval, self.balancers, self.objective, self.reserve = interval, balancers, objective, reserve
        self._cursors: dict[int, int] = {}  # of the flow records read, by worker
        self._table: Table | None = None

    def table(self) -> Table:
        """Return the server table in force; SegmentEmptyError: none was published yet."""
        published = self.segment.settings_published
        if self._table is None or self._table.published != published:
            view = self.segment.read_settings()
            servers = view.servers
            up = (
                (servers["id"] != 0)
                & (servers["state"] == _READY)
                & (servers["health"] == _UP)
                & (servers["weight"] > 0)
            )
            first = up & (servers["backup"] == 0)
            maxconn = servers["maxconn"].astype(np.float64)
            self._table = Table(
                published,
                int(view.head["version"]),
                servers["id"].copy(),
                tuple(view.names),
                first if first.any() else up,
                servers["weight"].astype(np.float64),
                np.where(maxconn > 0, maxconn, np.inf),
                servers["capacity"].astype(np.float64),
                servers["coalition"].astype(np.float64),
                np.append(0.0, view.head["routes"]["load"][: view.head["n_routes"]].astype(np.float64)),
                bool(view.head["sla_header_bytes"]),
            )
        return self._table

    def signature(self) -> tuple[int, ...]:
        """Return numbers that differ as soon as anything happened that a policy could see; cheap."""
        workers = self.segment.read_workers()
        totals = (workers["auctions"].sum(), workers["requests_total"].sum(), workers["started_ns"].max(initial=0))
        busy = int(self._words(len(self.table().ids)).any()) if int(totals[0]) else 0
        return self.segment.settings_published, busy, *(int(total) for total in totals)

    def read(self, now_ns: int) -> Observation:
        """Return what is there now."""
        table = self.table()
        n = len(table.ids)
        words = self._words(n, whole=True)
        in_flight = (words >> np.uint64(_TIME_BITS)).astype(np.float64)
        # A word changed since now_ns was taken reads as nearly the whole cycle ago: it is of age 0.
        age = (np.uint64(now_ns // _TIME_UNIT_NS & _TIME_MASK) - (words & np.uint64(_TIME_MASK))) & np.uint64(
            _TIME_MASK
        )
        running = np.where((age > _TIME_MASK // 2) | (words == 0), 0.0, age * (_TIME_UNIT_NS * 1e-9))
        stats = self.segment.read_stats(0, n, ids=table.ids)
        time = stats["time_ns"] * 1e-9
        bins = np.searchsorted(CURVE_N, in_flight, side="right") - 1
        time[np.arange(n), bins] += running
        profile = Profile(
            time,
            stats["completions"].astype(np.float64),
            stats["arrivals"].astype(np.float64),
            stats["found_fct_ns"] * 1e-9,
        )
        return Observation(
            now=now_ns * 1e-9,
            interval=self.interval,
            balancers=self.balancers,
            objective=self.objective,
            ids=table.ids,
            names=table.names,
            active=table.active,
            weight=table.weight,
            maxconn=table.maxconn,
            in_flight=in_flight,
            profile=profile,
            flows=stats["flows_total"].astype(np.float64),
            outcomes=stats["outcomes"].astype(np.float64),
            fct_sum=stats["fct_sum_ns"] * 1e-9,
            auctions_won=stats["auctions_won"].astype(np.float64),
            bid_sum=stats["bid_sum"].astype(np.float64),
            reserve=self.reserve,
            waiting=float(self.segment.read_workers()["queued"].sum()),
            load_in_flight=stats["load_in_flight"].astype(np.float64),
            priced=stats["priced"].astype(np.float64),
            margin_sum=stats["margin_sum"].astype(np.float64),
            capacity=table.capacity,
            coalition=table.coalition,
            route_loads=table.route_loads,
            classes_differ=table.classes_differ,
            read_records=lru_cache(maxsize=1)(self._records),
            read_features=self._features,
            read_histogram=_histogram_reader(stats),
        )

    def _words(self, n: int, whole: bool = False) -> NDArray[np.uint64]:
        """Return the raw words of servers 0 … n - 1, or only their n."""
        words = np.empty(n, dtype=np.uint64)
        base = self.segment.base
        check_return(lib.segment_read_words(base, 0, n, ffi.from_buffer("uint64_t[]", words)), self.segment.name)
        return words if whole else words >> np.uint64(_TIME_BITS)

    def _features(self) -> Floats:
        from shm_layout.features import read_features

        return read_features(self.segment, self.table().ids).values

    def _records(self) -> NDArray[np.void]:
        """Return the flow records written since the last call, of dtype FLOW_RECORD; the first call returns none."""
        found = []
        for worker in range(len(self.segment.read_workers())):
            cursor = self._cursors.get(worker)
            if cursor is None:
                self._cursors[worker] = int(self.segment.read_workers()["ring_head"][worker])
                continue
            read = self.segment.read_records(worker, cursor)
            self._cursors[worker] = read.cursor
            found.append(read.records)
        return np.concatenate(found) if found else np.empty(0, dtype=FLOW_RECORD)


def _histogram_reader(stats: NDArray[np.void]) -> Callable[[], Floats]:
    def read() -> Floats:
        counts: Floats = stats["fct_histogram"].astype(np.float64).reshape(-1, HISTOGRAM_BUCKETS)
        return counts

    return read
