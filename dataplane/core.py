"""The balancing core for Python: tables for the control plane, and a balancer in the hand for tests and benchmarks.

    table = maglev_table(weights, ids, 65537)
    balancer = Balancer(segment, worker=0, seed=1)
    award = balancer.dispatch(now_ns)

The engines call the same functions from C; nothing here decides anything. A call from Python costs more than the
dispatch itself, so loops that are to be timed go through drill_dispatch() and drill_flows().
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shm_layout.layout import SERVER_STATS, WORKER
from shm_layout.mapping import Mapping

try:
    from dataplane._dataplane import ffi, lib
except ImportError as error:
    raise ImportError("dataplane._dataplane is not built: run `python -m dataplane.build_ffi`") from error

NO_SERVER: int = lib.NO_SERVER
OUTCOME_OK: int = lib.OUTCOME_OK
SLA_SILVER: int = lib.SLA_SILVER


def maglev_table(weights: ArrayLike, ids: ArrayLike, size: int) -> NDArray[np.uint32]:
    """Return a Maglev table: `size` (a prime) server slots in proportion to the weights. ValueError: bad weights."""
    shares, names = _weights(weights), np.ascontiguousarray(ids, dtype=np.uint64)
    if names.shape != shares.shape:
        raise ValueError(f"{names.size} ids for {shares.size} weights")
    table = np.empty(size, dtype=np.uint32)
    scratch = np.empty(lib.maglev_scratch(shares.size) // 8 + 1, dtype=np.uint64)
    error = lib.maglev_build(
        ffi.from_buffer("float[]", shares),
        ffi.from_buffer("uint64_t[]", names),
        shares.size,
        ffi.from_buffer("uint32_t[]", table),
        size,
        ffi.from_buffer(scratch),
    )
    if error:
        raise ValueError(f"no Maglev table of {size} slots: a prime, and weights finite, not negative, not all zero")
    return table


def alias_table(weights: ArrayLike) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return (keep, other) of Vose's alias method: keep in units of 2^-32. ValueError: bad weights."""
    shares = _weights(weights)
    keep, other = np.empty(shares.size, dtype=np.uint32), np.empty(shares.size, dtype=np.uint32)
    scratch = np.empty(3 * shares.size, dtype=np.uint32)
    arrays = [ffi.from_buffer("uint32_t[]", array) for array in (keep, other, scratch)]
    if lib.alias_build(ffi.from_buffer("float[]", shares), shares.size, *arrays):
        raise ValueError("no alias table: weights must be finite, not negative, not all zero")
    return keep, other


def _weights(weights: ArrayLike) -> NDArray[np.float32]:
    shares = np.ascontiguousarray(weights, dtype=np.float32)
    if shares.ndim != 1 or not shares.size:
        raise ValueError(f"weights of shape {shares.shape}, not (servers,)")
    return shares


class Award(NamedTuple):
    """An auction's result; fields as in struct award. server NO_SERVER: nobody may take the flow."""

    server: int
    full: bool
    rule: int
    above_reserve: bool
    bid: float
    price: float
    held: bool = False
    handoff: bool = False
    load: float = 0.0
    idle_bid: float = 0.0


class Balancer:
    """One worker's balancer over a mapped segment, which must stay open as long as this is used."""

    def __init__(
        self, segment: Mapping, worker: int = 0, seed: int = 1, now_ns: int = 0, *, repair: bool = False
    ) -> None:
        self.segment = segment
        base = ffi.cast("void *", segment.address)
        if repair:
            lib.balancer_repair(base, now_ns)
        self._memory = ffi.new("char[]", lib.balancer_size(base) + 64)
        start = int(ffi.cast("uintptr_t", self._memory))
        self.c: Any = lib.balancer_create(ffi.cast("void *", start + -start % 64), base, worker, seed, now_ns)
        if self.c == ffi.NULL:
            raise ValueError(f"no balancer for worker {worker} of {segment.limits.max_workers}")
        self._open: dict[Any, Any] = {}  # open flows are linked with each other in C: they must stay where they are

    def refresh(self, now_ns: int) -> bool:
        """Adopt what was published; True when the settings changed."""
        return bool(lib.balancer_refresh(self.c, now_ns))

    def dispatch(
        self,
        now_ns: int = 0,
        *,
        hash: int = 0,
        load: float = 1.0,
        avoid: int = NO_SERVER,
        route: int = 0,
        sla: int = SLA_SILVER,
        waiting: int = 0,
        queued: tuple[int, int, int] = (0, 0, 0),
        unheld: bool = False,
    ) -> Award:
        """Hold one auction; arguments as in struct flow_key."""
        key = {
            "hash": hash,
            "load": load,
            "avoid": avoid,
            "route": route,
            "sla": sla,
            "waiting": waiting,
            "queued": queued,
            "unheld": unheld,
        }
        a = lib.balancer_dispatch(self.c, ffi.new("struct flow_key *", key), now_ns)
        flagged, held, handoff = bool(a.above_reserve), bool(a.held), bool(a.handoff)
        return Award(a.server, bool(a.full), a.rule, flagged, a.bid, a.price, held, handoff, a.load, a.idle_bid)

    def open(self, server: int, now_ns: int = 0, *, load: float = 1.0, opened_ns: int | None = None) -> Any:
        """Open a flow on a server and return it."""
        flow = ffi.new("struct flow *")
        lib.flow_open(self.c, flow, server, load, now_ns if opened_ns is None else opened_ns, now_ns)
        self._open[flow] = flow
        return flow

    def close(
        self, flow: Any, now_ns: int = 0, outcome: int = OUTCOME_OK, *, bytes_in: int = 0, bytes_out: int = 0
    ) -> None:
        """Close a flow; nothing happens when it is not open."""
        lib.flow_close(self.c, flow, now_ns, bytes_in, bytes_out, outcome)
        self._open.pop(flow, None)

    def retry(self, flow: Any, now_ns: int, outcome: int) -> None:
        """Take a flow off its server, to be tried on another."""
        lib.flow_retry(self.c, flow, now_ns, outcome)
        self._open.pop(flow, None)

    def sample(self, now_ns: int) -> None:
        """Take samples of the durations of open flows."""
        lib.balancer_sample(self.c, now_ns)

    def in_flight(self, server: int) -> int:
        """Flows in flight on a server over all workers."""
        return int(lib.balancer_in_flight(self.c, server))

    def is_up(self, server: int) -> bool:
        """May the server keep its flows: neither free nor in maintenance, and healthy?"""
        return bool(lib.balancer_is_up(self.c, server))

    def worker(self) -> np.void:
        """Return a copy of this worker's block, a record of dtype WORKER."""
        return _record(lib.balancer_worker(self.c), WORKER)

    def stats(self, server: int) -> np.void:
        """Return a copy of this worker's stats of a server, a record of dtype SERVER_STATS."""
        return _record(lib.balancer_stats(self.c, server), SERVER_STATS)

    def record(self, target: bytes = b"", **fields: Any) -> None:
        """Append a flow record with these fields of struct flow_record."""
        lib.balancer_record(self.c, ffi.new("struct flow_record *", fields), target, len(target))

    def drill_dispatch(self, cycles: int, *, hash: int = 0, now_ns: int = 0) -> NDArray[np.uint64]:
        """Hold so many auctions without opening a flow; return how many each server won, (max_servers,)."""
        won = np.zeros(self.segment.limits.max_servers, dtype=np.uint64)
        lib.drill_dispatch(self.c, cycles, hash, now_ns, ffi.from_buffer("uint64_t[]", won))
        return won

    def drill_flows(self, flows: Any, cycles: int, *, gap_ns: int = 1000, now_ns: int = 0) -> int:
        """Close the oldest of `flows`, dispatch and open in its place, so many times; return the time at the end."""
        return int(lib.drill_flows(self.c, flows, len(flows), cycles, gap_ns, now_ns))


def new_flows(n: int) -> Any:
    """Return n flows, not open, for drill_flows()."""
    return ffi.new("struct flow[]", n)


def _record(pointer: Any, dtype: np.dtype[Any]) -> np.void:
    record: np.void = np.frombuffer(ffi.buffer(pointer, dtype.itemsize), dtype=dtype, count=1).copy()[0]
    return record
