"""The Python face of the shared segment: what the control plane publishes, and what it reads of the data plane.

    with Segment.create(segment_name("main", "web"), Limits(max_servers=64, max_workers=2), "web") as segment:
        segment.publish_settings(SettingsData(servers=[…]), epoch=1)

    with Segment.attach(segment_name("main", "web"), writable=True) as segment:
        segment.begin_controller()
        segment.publish_directive(DirectiveData(ids=segment.read_settings().ids, rule="bids", curves=…))

Everything read is a copy, made by one C call that is safe against its writers. Times are CLOCK_MONOTONIC nanoseconds,
counters are as in segment.h; features.py turns reservoirs and histograms into seconds. Errors: see errors.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shm_layout._segment import ffi, lib
from shm_layout.errors import (
    ControllerLockedError,
    ControllerSupersededError,
    PayloadRejectedError,
    SegmentDeadError,
    SegmentEmptyError,
    SegmentError,
    SegmentInUseError,
    SegmentMismatchError,
    SegmentMissingError,
    SegmentReadError,
)
from shm_layout.layout import (
    CONTROLLER,
    CURVE_EXACT,
    CURVE_LOW,
    CURVE_POINTS,
    FLOW_RECORD,
    HEADER,
    HISTOGRAM_BUCKETS,
    HISTOGRAM_LOW,
    METRIC_DURATION,
    METRIC_FCT,
    OUTCOMES,
    REJECTS,
    RULES,
    SAMPLE,
    SERVER_STATS,
    WORKER,
)
from shm_layout.mapping import Limits, Mapping, check_return, now_ns, segment_name
from shm_layout.payload import (
    FREE_SERVER,
    DirectiveData,
    DirectiveView,
    RouteData,
    ServerData,
    SettingsData,
    SettingsView,
    check_directive,
    check_settings,
    decode_directive,
    decode_settings,
    pack_address,
    unpack_address,
)

_WORD_TIME_BITS = 48
_WORD_TIME_UNIT_NS = 128
_STATS_WORDS = SERVER_STATS.itemsize // 8
# Fields of the stats that are not sums over workers: the greatest counts.
_STATS_MAXIMA = ("failures_in_a_row", "gateway_failures_in_a_row", "last_open_ns", "last_close_ns")
_STATS_FLOATS = tuple(name for name in SERVER_STATS.names or () if SERVER_STATS[name].kind == "f")


@dataclass(frozen=True, slots=True)
class Words:
    """What server words say, decoded; (servers,) each."""

    in_flight: NDArray[np.uint32]  # flows open over all workers
    changed_ns: NDArray[np.uint64]  # when that number changed last, to 128 ns


@dataclass(frozen=True, slots=True)
class Reservoirs:
    """Copies of the reservoirs of one metric: a consistent one each."""

    samples: NDArray[np.void]  # (workers, servers, slots) of dtype SAMPLE; time_ns 0: empty
    counts: NDArray[np.uint64]  # (workers, servers) samples ever offered
    ids: NDArray[np.uint64]  # (workers, servers) server that they are of


@dataclass(frozen=True, slots=True)
class Records:
    """Flow records read, the cursor to go on from, and how many were overwritten before they could be read."""

    records: NDArray[np.void]  # (n,) of dtype FLOW_RECORD
    cursor: int
    lost: int


class Segment(Mapping):
    """One mapped segment: create(), attach(), close(), unlink() as in Mapping; publishing and reading here."""

    _epoch: int | None = None  # of the controller that this process is

    # --- publishing ---------------------------------------------------------------------------------------------------

    def publish_settings(self, settings: SettingsData | bytes, epoch: int = 0) -> None:
        """Publish the settings; the supervisor only. PayloadRejectedError: readers would refuse them."""
        payload = settings.encode() if isinstance(settings, SettingsData) else settings
        check_settings(payload, self.limits.max_servers)
        self._publish(self._header.off_settings, payload, epoch)

    def publish_directive(self, directive: DirectiveData | Any, epoch: int | None = None) -> None:
        """Publish a directive, a DirectiveData or its bytes; the controller only, after begin_controller().

        epoch: the controller's, as begin_controller() returned it, when left out. PayloadRejectedError: readers would
        refuse it. ControllerSupersededError: a newer controller began; nothing was published.
        """
        if epoch is None:
            if self._epoch is None:
                raise SegmentError(f"{self.name}: begin_controller() comes before publish_directive()")
            epoch = self._epoch
        if isinstance(directive, DirectiveData):
            directive.epoch = epoch
        payload = directive.encode() if isinstance(directive, DirectiveData) else directive
        check_directive(payload, self.limits.max_servers, self.limits.table_slots)
        self._check_epoch()
        self._publish(self._header.off_directive, payload, epoch)

    def begin_controller(self, *, takeover: bool = False) -> int:
        """Become the segment's controller and return its epoch. ControllerLockedError: another one is, and runs.

        takeover: become it all the same; the data plane then refuses the other's directives, and the other one gets
        ControllerSupersededError.
        """
        try:
            self.lock_controller()
        except ControllerLockedError:
            if not takeover:
                raise
        self._epoch = int(lib.segment_controller_begin(self._writable_base(), os.getpid(), now_ns()))
        return self._epoch

    def beat_controller(self, cycle_ns: int, late: int = 0, failed: int = 0) -> None:
        """Give a sign of life after a control cycle that took cycle_ns; late and failed decisions are totals.

        ControllerSupersededError: a newer controller began.
        """
        self._check_epoch()
        lib.segment_controller_beat(self._writable_base(), now_ns(), cycle_ns, late, failed)

    # --- what was published -------------------------------------------------------------------------------------------

    @property
    def settings_published(self) -> int:
        """Publications of settings so far: a cheap way to see that they changed."""
        return int(lib.segment_published(self.base, self._header.off_settings))

    @property
    def directives_published(self) -> int:
        """Publications of directives so far."""
        return int(lib.segment_published(self.base, self._header.off_directive))

    def read_settings(self) -> SettingsView:
        """Return the newest settings. SegmentEmptyError: none yet; SegmentReadError, PayloadRejectedError: damaged."""
        payload, epoch = self._read(self._header.off_settings)
        check_settings(payload, self.limits.max_servers)
        return decode_settings(payload, epoch)

    def read_directive(self) -> DirectiveView:
        """Return the newest directive. SegmentEmptyError: none yet; SegmentReadError, PayloadRejectedError: damaged."""
        payload, epoch = self._read(self._header.off_directive)
        check_directive(payload, self.limits.max_servers, self.limits.table_slots)
        return decode_directive(payload, epoch)

    # --- what the workers wrote ---------------------------------------------------------------------------------------

    def read_header(self) -> np.void:
        """Return the header that was checked at attach, a record of dtype HEADER."""
        return cast(np.void, np.frombuffer(ffi.buffer(self._header), dtype=HEADER)[0])

    def read_words(self, first: int = 0, n: int | None = None) -> Words:
        """Return flows in flight and time of last change of servers first … first + n - 1 (all when n is left out)."""
        n = self._count(first, n)
        words = np.empty(n, dtype=np.uint64)
        self._call(lib.segment_read_words, first, n, ffi.from_buffer("uint64_t[]", words))
        now = now_ns()
        mask = (1 << _WORD_TIME_BITS) - 1
        # The stored time wraps after 417 days, so it is read as an age; one from just after `now` counts as now.
        age = (np.uint64(now // _WORD_TIME_UNIT_NS & mask) - (words & np.uint64(mask))) & np.uint64(mask)
        age[age > mask // 2] = 0
        changed = np.uint64(now) - np.minimum(age * np.uint64(_WORD_TIME_UNIT_NS), np.uint64(now))
        return Words((words >> np.uint64(_WORD_TIME_BITS)).astype(np.uint32), changed)

    def read_stats(
        self, first: int = 0, n: int | None = None, *, worker: int | None = None, ids: NDArray[np.uint64] | None = None
    ) -> NDArray[np.void]:
        """Return the stats of servers first … first + n - 1, (n,) of dtype SERVER_STATS.

        worker: of that one alone, as it wrote them. Else merged over the workers that ever started: counters are
        summed, last_* and *_in_a_row are the greatest. ids: (n,) the servers that the slots hold now, by default those
        of the settings; stats of a slot's former server, which a worker has not cleared yet, are left out.
        """
        n = self._count(first, n)
        if worker is not None:
            return self._worker_stats(worker, first, n)
        if ids is None:
            ids = self._slot_ids()[first : first + n]
        merged: NDArray[np.void] | None = None
        for each in self.started_workers():
            stats = self._worker_stats(int(each), first, n)
            foreign = stats["id"] != ids
            if foreign.any():
                stats[foreign] = np.zeros((), dtype=SERVER_STATS)
            merged = stats if merged is None else _add_stats(merged, stats)
        if merged is None:
            merged = np.zeros(n, dtype=SERVER_STATS)
        merged["id"] = ids
        return merged

    def read_workers(self) -> NDArray[np.void]:
        """Return all workers' blocks, (max_workers,) of dtype WORKER; started_ns 0: never started."""
        workers = np.empty(self.limits.max_workers, dtype=WORKER)
        data = ffi.from_buffer("struct worker[]", workers)
        for w in range(len(workers)):
            self._call(lib.segment_read_worker, w, data + w)
        return workers

    def started_workers(self) -> NDArray[np.intp]:
        """Return the indices of the workers that ever started."""
        return np.flatnonzero(self.read_workers()["started_ns"])

    def read_controller(self) -> np.void:
        """Return the controller's signs of life, a record of dtype CONTROLLER."""
        controller = np.empty(1, dtype=CONTROLLER)
        self._call(lib.segment_read_controller, ffi.from_buffer("struct controller[]", controller))
        return cast(np.void, controller[0])

    def read_records(self, worker: int, cursor: int = 0, room: int = 4096) -> Records:
        """Return at most `room` flow records of a worker from `cursor` on, oldest first; any number may read."""
        records = np.empty(room, dtype=FLOW_RECORD)
        position, lost = ffi.new("uint64_t *", cursor), ffi.new("uint64_t *")
        data = ffi.from_buffer("struct flow_record[]", records)
        got = self._call(lib.segment_read_records, worker, position, data, room, lost)
        return Records(records[:got], int(position[0]), int(lost[0]))

    def read_reservoirs(self, metric: int, first: int = 0, n: int | None = None) -> Reservoirs:
        """Return the reservoirs of a metric (METRIC_FCT, METRIC_DURATION), one row a worker that ever started."""
        n = self._count(first, n)
        workers = self.started_workers()
        shape = (len(workers), n)
        samples = np.empty((*shape, self.limits.reservoir_slots), dtype=SAMPLE)
        counts, ids = np.empty(shape, dtype=np.uint64), np.empty(shape, dtype=np.uint64)
        for row, worker in enumerate(workers):
            out = ffi.from_buffer("struct sample[]", samples[row])
            of_counts, of_ids = (ffi.from_buffer("uint64_t[]", array[row]) for array in (counts, ids))
            self._call(lib.segment_read_reservoirs, int(worker), metric, first, n, out, of_counts, of_ids)
        return Reservoirs(samples, counts, ids)

    # --- how ----------------------------------------------------------------------------------------------------------

    def _call(self, function: Any, *arguments: Any) -> int:
        return check_return(function(self.base, *arguments), self.name)

    def _writable_base(self) -> Any:
        if not self.writable:
            raise SegmentError(f"{self.name}: attached for reading only")
        return self.base

    def _publish(self, block: int, payload: Any, epoch: int) -> None:
        with ffi.from_buffer(payload) as data:
            code = lib.segment_publish(self._writable_base(), block, data, len(data), epoch)
        check_return(code, self.name)

    def _read(self, block: int) -> tuple[NDArray[np.uint64], int]:
        # Untouched memory costs nothing: the room is the greatest payload, the copy only what was published.
        room = self._block_capacity(block)
        out, epoch = np.empty(room // 8, dtype=np.uint64), ffi.new("uint64_t *")
        length = self._call(lib.segment_read, block, ffi.from_buffer(out), room, epoch)
        return out[: length // 8], int(epoch[0])

    def _block_capacity(self, block: int) -> int:
        header = self._header
        end = header.off_directive if block == header.off_settings else header.off_controller
        return int(end - block) // 2

    def _check_epoch(self) -> None:
        if self._epoch is None:
            return
        now = int(self.read_controller()["epoch"])
        if now != self._epoch:
            raise ControllerSupersededError(f"{self.name}: epoch {now} took over from {self._epoch}")

    def _count(self, first: int, n: int | None) -> int:
        limit = self.limits.max_servers
        n = limit - first if n is None else n
        if first < 0 or n < 0 or first + n > limit:
            raise SegmentError(f"{self.name}: servers {first} … {first + n - 1} of {limit}")
        return n

    def _slot_ids(self) -> NDArray[np.uint64]:
        """Ids of all slots by the newest settings, 0 where there is none."""
        ids = np.zeros(self.limits.max_servers, dtype=np.uint64)
        try:
            published = self.read_settings().ids
            ids[: len(published)] = published
        except SegmentEmptyError:
            pass
        return ids

    def _worker_stats(self, worker: int, first: int, n: int) -> NDArray[np.void]:
        stats = np.empty(n, dtype=SERVER_STATS)
        self._call(lib.segment_read_stats, worker, first, n, ffi.from_buffer("struct server_stats[]", stats))
        return stats


def _add_stats(a: NDArray[np.void], b: NDArray[np.void]) -> NDArray[np.void]:
    """Return the stats of two workers put together; rows are of the same servers."""
    total = (a.view(np.uint64).reshape(-1, _STATS_WORDS) + b.view(np.uint64).reshape(-1, _STATS_WORDS)).reshape(-1)
    merged: NDArray[np.void] = total.view(SERVER_STATS)
    for name in _STATS_FLOATS:
        merged[name] = a[name] + b[name]
    for name in _STATS_MAXIMA:
        merged[name] = np.maximum(a[name], b[name])
    return merged


__all__ = [
    "CURVE_EXACT",
    "CURVE_LOW",
    "CURVE_POINTS",
    "FREE_SERVER",
    "HISTOGRAM_BUCKETS",
    "HISTOGRAM_LOW",
    "METRIC_DURATION",
    "METRIC_FCT",
    "OUTCOMES",
    "REJECTS",
    "RULES",
    "ControllerLockedError",
    "ControllerSupersededError",
    "DirectiveData",
    "DirectiveView",
    "Limits",
    "PayloadRejectedError",
    "Records",
    "Reservoirs",
    "RouteData",
    "Segment",
    "SegmentDeadError",
    "SegmentEmptyError",
    "SegmentError",
    "SegmentInUseError",
    "SegmentMismatchError",
    "SegmentMissingError",
    "SegmentReadError",
    "ServerData",
    "SettingsData",
    "SettingsView",
    "Words",
    "now_ns",
    "pack_address",
    "segment_name",
    "unpack_address",
]
