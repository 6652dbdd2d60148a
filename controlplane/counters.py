"""What the data plane has counted, as the supervisor reads it: one snapshot of a service, summed over its workers.

Counters are cumulative since the data plane started; whoever wants rates takes differences (status.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controlplane.outlier import Outcomes
from shm_layout.layout import HISTOGRAM_LOW, OUTCOMES, REJECTS, RULES
from shm_layout.segment import Segment

Counts = NDArray[np.uint64]

OUTCOME_NAMES: Final = OUTCOMES
RULE_NAMES: Final = RULES
# Outcomes that count against a server.
FAILED: Final = tuple(
    i for i, name in enumerate(OUTCOMES) if name in ("server_5xx", "connect_failed", "server_abort", "server_timeout")
)
# Edges of the histogram's buckets, seconds; the first begins at 0, the last has no end and is given one.
BUCKET_EDGES_S: Final[NDArray[np.float64]] = np.concatenate(([0.0], HISTOGRAM_LOW[1:], [HISTOGRAM_LOW[-1] * 9 / 8]))

_OK, _5XX, _CONNECT, _ABORT, _TIMEOUT = (
    OUTCOMES.index(name) for name in ("ok", "server_5xx", "connect_failed", "server_abort", "server_timeout")
)


@dataclass(frozen=True)
class Snapshot:
    """The counters of one service at one time; row i is server slot i."""

    now: float  # monotonic seconds
    ids: Counts
    in_flight: NDArray[np.uint32]
    stats: NDArray[np.void]  # (servers,) of dtype SERVER_STATS, summed over the workers
    workers: NDArray[np.void]  # (workers,) of dtype WORKER
    controller: Any  # a record of dtype CONTROLLER

    def total(self, name: str, index: int | None = None) -> int:
        """Return the sum of a field over the workers; index: of an array's element."""
        values = self.workers[name]
        return int((values if index is None else values[:, index]).sum())

    def rejected(self) -> dict[str, int]:
        """Return how many blocks the workers did not take, by reason."""
        return {reason: self.total("rejected", i) for i, reason in enumerate(REJECTS)}

    @property
    def fallback_active(self) -> bool:
        return bool(self.workers["fallback_active"].any())

    @property
    def flows(self) -> Counts:
        flows: Counts = self.stats["flows_total"]
        return flows

    @property
    def outcomes(self) -> Counts:
        """(servers, OUTCOMES)"""
        outcomes: Counts = self.stats["outcomes"]
        return outcomes

    @property
    def histogram(self) -> Counts:
        """(servers, HISTOGRAM_BUCKETS)"""
        histogram: Counts = self.stats["fct_histogram"]
        return histogram

    @property
    def fct_sum_ns(self) -> Counts:
        total: Counts = self.stats["fct_sum_ns"]
        return total


def take_snapshot(segment: Segment, ids: Counts, workers: int) -> Snapshot:
    """Read the counters of the first len(ids) slots and the first so many workers."""
    n = len(ids)
    return Snapshot(
        now=time.monotonic(),
        ids=ids,
        in_flight=segment.read_words(0, n).in_flight,
        stats=segment.read_stats(0, n, ids=ids),
        workers=segment.read_workers()[:workers],
        controller=segment.read_controller(),
    )


def read_outcomes(segment: Segment, servers: int, workers: int) -> Outcomes:
    """Read what passive marking needs, worker by worker."""
    stats = np.stack([segment.read_stats(0, servers, worker=worker) for worker in range(workers)])
    outcomes = stats["outcomes"]
    return Outcomes(
        ids=stats["id"],
        good=outcomes[..., _OK],
        errors_5xx=outcomes[..., _5XX],
        connect_failed=outcomes[..., _CONNECT],
        broken=outcomes[..., _ABORT] + outcomes[..., _TIMEOUT],
        in_a_row=stats["failures_in_a_row"],
        gateway_in_a_row=stats["gateway_failures_in_a_row"],
    )
