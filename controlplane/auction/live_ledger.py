"""The ledger of a live service: a record for each round in which flows came, and for some flows, of their auctions.

    kind "round"    service, round, seconds, policy, rule, auctions, bid, price, margin (means of the round), reserve,
                    above_reserve, held, handoffs, and `servers`: of each that won or is busy its name, auctions won,
                    bid, price, margin and what its policy fitted (sensitivity, capacity, load_ratio, shapley …)
    kind "auction"  server, bid, price, load, sla, route, found, handoff, outcome, status, fct_ms, directive

The control loop hands over what it saw after it has published, and never waits: a thread makes the records, hashes and
writes them. Who cannot write (disk full, a directory that is gone) drops records, counts them, and puts the number on
record once it can. A file that was tampered with is set aside under another name, not continued.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.auction.ledger import Ledger, LedgerError
from controlplane.policy import Directive, Observation, Profile
from shm_layout.errors import SegmentError
from shm_layout.layout import FLOW_RECORD, OUTCOMES, SLA_CLASSES
from shm_layout.segment import Segment

log = logging.getLogger("vickrey.ledger")

# Rounds that may wait for the writer, and flows of one round that are recorded at most.
WAITING_MAX, FLOWS_MAX = 64, 256
# Seconds between tries to open the file, and between writes to the disk.
RETRY_SECONDS, FLUSH_SECONDS = 5.0, 1.0
# A file grows to this, and so many older ones are kept.
FILE_BYTES, FILES_KEPT = 64 << 20, 4

Job = Callable[[Ledger], object]

_NO_PROFILE = Profile(*(np.zeros((0, 0)) for _ in range(4)))


class Totals:
    """Counters of the rounds, summed over workers."""

    NAMES = ("auctions", "auctions_above_reserve", "held", "handoffs")

    def __init__(self, segment: Segment) -> None:
        workers = segment.read_workers()
        self.values = {name: int(workers[name].sum()) for name in self.NAMES}

    def since(self, before: Totals) -> dict[str, int]:
        """Return what was added; a data plane that started anew counts from 0."""
        return {name: max(value - before.values[name], 0) for name, value in self.values.items()}


class LiveLedger:
    """Records of one service, written by a thread of its own: `round` from the control loop, `close` at the end."""

    def __init__(self, path: str | os.PathLike[str], segment: Segment, service: str, sample: float) -> None:
        self.path, self.segment, self.service, self.sample = Path(path), segment, service, sample
        self.rounds = 0  # offered to the writer
        self.dropped = 0  # rounds and flows that it was too slow for, or never could open the file for
        self.records = 0
        self.error = ""  # why nothing is written now
        self._dropped_by_disk = 0
        self._rng = np.random.default_rng()
        self._totals = Totals(segment)
        self._before: Observation | None = None
        self._cursors: dict[int, int] = {}
        self._jobs: queue.Queue[Job | None] = queue.Queue(WAITING_MAX)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name=f"ledger-{service}", daemon=True)
        self._thread.start()

    @property
    def state(self) -> dict[str, Any]:
        """What `vickrey policy show` says of it."""
        return {
            "path": str(self.path),
            "sample": self.sample,
            "rounds": self.rounds,
            "records": self.records,
            "dropped": self.dropped + self._dropped_by_disk,
            "error": self.error or None,
        }

    # --- the control loop's side --------------------------------------------------------------------------------------

    def round(self, o: Observation, directive: Directive, policy: str) -> None:
        """Hand over one round; does nothing when no flow came, and never waits."""
        # What waits for the writer is small, also with thousands of servers.
        o = replace(o, profile=_NO_PROFILE, read_records=None, read_features=None, read_histogram=None)
        directive = replace(directive, curves=None)
        totals, before = Totals(self.segment), self._before
        since = totals.since(self._totals)
        self._totals, self._before = totals, o
        flows = self._sampled(o)
        if before is None or not since["auctions"]:
            return
        number, self.rounds = self.rounds, self.rounds + 1
        self._offer(
            lambda ledger: ledger.append(
                "round", service=self.service, **round_record(o, before, directive, since, policy, number)
            )
        )
        if len(flows):
            names = {int(server): name for server, name in zip(o.ids, o.names, strict=True)}
            self._offer(lambda ledger: _append_flows(ledger, flows, names, self.service))

    def close(self, seconds: float) -> None:
        """Write what waits and end; a disk that hangs is waited for no longer than this."""
        self._closing.set()
        with suppress(queue.Full):
            self._jobs.put(None, timeout=seconds)
        self._thread.join(seconds)

    def _offer(self, job: Job) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self.dropped += 1

    def _sampled(self, o: Observation) -> NDArray[np.void]:
        """Return some of the flow records written since the last round; the first call returns none."""
        found = []
        if self.sample <= 0:
            return np.empty(0, dtype=FLOW_RECORD)
        heads = self.segment.read_workers()["ring_head"]
        for worker, head in enumerate(heads.tolist()):
            cursor = self._cursors.get(worker)
            self._cursors[worker] = head
            if cursor is None or head == cursor:
                continue
            if head < cursor:  # a data plane that started anew
                cursor = 0
            with suppress(SegmentError):
                read = self.segment.read_records(worker, cursor)
                self._cursors[worker] = read.cursor
                found.append(read.records[self._rng.random(len(read.records)) < self.sample])
        return np.concatenate(found)[:FLOWS_MAX] if found else np.empty(0, dtype=FLOW_RECORD)

    # --- the writer's side --------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        ledger: Ledger | None = None
        ending = False
        while not ending:
            ledger = ledger or self._open()
            if ledger is None:
                self._closing.wait(RETRY_SECONDS)
            jobs, ending = self._take(FLUSH_SECONDS if ledger else 0.001)
            if ledger is None:
                self.dropped += len(jobs)
                continue
            for job in jobs:
                try:
                    job(ledger)
                except (ValueError, OSError) as error:
                    self.dropped += 1
                    self.error = str(error)
            ledger.flush()  # lossy: a full disk does not raise
            self.records, self._dropped_by_disk = ledger.records, ledger.dropped
            self.error = ledger.error or self.error
        if ledger is not None:
            with suppress(OSError, ValueError):
                ledger.close()
                self.records = ledger.records

    def _open(self) -> Ledger | None:
        try:
            ledger = Ledger(self.path, lossy=True, set_aside=True, max_bytes=FILE_BYTES, keep=FILES_KEPT)
        except (LedgerError, OSError, ValueError) as error:
            if not self.error:
                log.error("%s: the ledger is not written: %s", self.service, error)
            self.error = str(error)
            return None
        self.error = ""
        return ledger

    def _take(self, seconds: float) -> tuple[list[Job], bool]:
        """Return the jobs that came, after waiting for the first, and whether it is to end."""
        jobs: list[Job] = []
        try:
            job = self._jobs.get(timeout=seconds)
            while job is not None:
                jobs.append(job)
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, False
        return jobs, True


def round_record(
    o: Observation, before: Observation, directive: Directive, since: dict[str, int], policy: str, number: int
) -> dict[str, Any]:
    """Return the fields of a round's record."""
    rows = np.flatnonzero(o.same_since(before))
    won = np.zeros(o.n_servers)
    bids, margins, priced = won.copy(), won.copy(), won.copy()
    won[rows] = np.maximum(o.auctions_won[rows] - before.auctions_won[rows], 0.0)
    bids[rows] = o.bid_sum[rows] - before.bid_sum[rows]
    if o.priced is not None and o.margin_sum is not None and before.priced is not None:
        assert before.margin_sum is not None
        priced[rows] = np.maximum(o.priced[rows] - before.priced[rows], 0.0)
        margins[rows] = o.margin_sum[rows] - before.margin_sum[rows]
    bid, margin = _ratio(bids.sum(), won.sum()), _ratio(margins.sum(), priced.sum())
    reserve = directive.classic.reserve if directive.classic is not None else 0.0
    if directive.reserve is not None:
        reserve = float(directive.reserve[0])
    servers = []
    for row in np.flatnonzero((o.ids != 0) & ((won > 0) | (o.in_flight > 0))):
        own_bid, own_margin = _ratio(bids[row], won[row]), _ratio(margins[row], priced[row])
        fitted = {name: _number(v[row]) for name, v in directive.fitted.items() if name not in _MEANS and row < len(v)}
        means = {"bid": own_bid, "price": _sum(own_bid, own_margin), "margin": own_margin}
        servers.append(
            {"name": o.names[row], "won": int(won[row]), "in_flight": int(o.in_flight[row])} | means | fitted
        )
    return {
        "round": number,
        "seconds": _number(o.now - before.now),
        "policy": policy,
        "rule": directive.rule,
        "auctions": since["auctions"],
        "above_reserve": since["auctions_above_reserve"],
        "held": since["held"],
        "handoffs": since["handoffs"],
        "waiting": int(o.waiting),
        "bid": bid,
        "price": _sum(bid, margin),
        "margin": margin,
        "reserve": _number(reserve) if reserve > 0 else None,
        "servers": servers,
    }


# What a policy fitted under these names is a mean of the past; the record has the round's own.
_MEANS = frozenset({"bid", "price", "margin", "reserve"})


def _append_flows(ledger: Ledger, flows: NDArray[np.void], names: dict[int, str], service: str) -> None:
    for r in flows:
        outcome, sla = int(r["outcome"]), int(r["sla"])
        ledger.append(
            "auction",
            service=service,
            server=names.get(int(r["server_id"]), f"id {int(r['server_id'])}"),
            bid=_number(r["bid"]),
            price=_number(r["price"]),
            load=_number(r["load"]),
            sla=SLA_CLASSES[sla] if sla < len(SLA_CLASSES) else sla,
            route=int(r["route"]),
            found=int(r["found"]),
            handoff=bool(r["handoff"]),
            outcome=OUTCOMES[outcome] if outcome < len(OUTCOMES) else outcome,
            status=int(r["status"]),
            fct_ms=_number((int(r["closed_ns"]) - int(r["opened_ns"])) * 1e-6),
            directive=int(r["directive_sequence"]),
        )


def _ratio(total: float, number: float) -> float | None:
    return _number(total / number) if number > 0 else None


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else _number(a + b)


def _number(value: Any) -> float | None:
    """Return a number of six digits, as JSON has them; None for infinity and NaN."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def check_writable(path: Path) -> None:
    """ValueError when the ledger surely could not be written there."""
    file = path.absolute()
    try:
        if file.is_dir():
            raise ValueError(f"ledger: {path} is a directory")
        if not file.parent.is_dir():
            raise ValueError(f"ledger: there is no directory {file.parent}")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ValueError(f"ledger: {path} cannot be written")
    except OSError as error:  # a name that is too long, a directory that may not be searched
        raise ValueError(f"ledger: {path}: {error.strerror}") from None
