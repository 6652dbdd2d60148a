"""What one step of a source yields, before it becomes observations and rewards: arrays, one row a balancer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shm_layout.features import FEATURES

# Columns of `counters`, cumulative since the server's slot was taken.
COUNTERS = ("flows", "completions", "fct_sum", "failures")
# Columns of `truth`: what only the simulator knows.
TRUTHS = ("in_server", "busy", "workers", "speed", "busy_seconds", "capacity_seconds")


@dataclass(frozen=True)
class Reading:
    """One instant of all rows. Replicas hold `rows / replicas` balancers each, in order."""

    features: NDArray[np.float32]  # (rows, servers, 11) columns FEATURES; zero for free slots
    active: NDArray[np.bool_]  # (rows, servers) may take new flows
    counters: NDArray[np.float64]  # (rows, servers, 4) columns COUNTERS
    truth: NDArray[np.float64]  # (replicas, servers, 6) columns TRUTHS; zero for a live source
    histogram: NDArray[np.uint64]  # (rows, HISTOGRAM_BUCKETS) FCTs, cumulative; (rows, 0) when not asked for
    settings_version: NDArray[np.uint64]  # (rows,)
    now_ns: NDArray[np.uint64]  # (replicas,) since the start
    finished: NDArray[np.bool_]  # (replicas,) the world has come to its end

    @classmethod
    def empty(cls, replicas: int, rows: int, servers: int, buckets: int) -> Self:
        return cls(
            np.zeros((rows, servers, len(FEATURES)), dtype=np.float32),
            np.zeros((rows, servers), dtype=np.bool_),
            np.zeros((rows, servers, len(COUNTERS))),
            np.zeros((replicas, servers, len(TRUTHS))),
            np.zeros((rows, buckets), dtype=np.uint64),
            np.zeros(rows, dtype=np.uint64),
            np.zeros(replicas, dtype=np.uint64),
            np.zeros(replicas, dtype=np.bool_),
        )

    def take(self, other: Reading) -> None:
        """Copy another reading of the same shape into this one."""
        for field in fields(self):
            np.copyto(getattr(self, field.name), getattr(other, field.name))
