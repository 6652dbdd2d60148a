"""What became of every flow of a run, and its summary.

Slowdown is a flow's FCT over the time that it would have taken alone on the fastest server. Jain's index is over the
servers' utilisations: (Σu)² / (n·Σu²), 1 when all are equally busy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataplane._dataplane import ffi, lib
from dataplane.simulator.world import World

OUTCOME_OK = 0
REFUSED = 7
OPEN = 255

# For the confidence interval of a mean of correlated samples: means of so many batches in a row are nearly independent.
BATCHES = 30
STUDENT_95_29 = 2.045


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the start of the run."""

    now: float
    arrivals: int
    completed: int
    refused: int  # by the balancer: no server up, or its queue full
    overflowed: int  # answered with an error by a server whose backlog was full
    failed: int  # lost in a crash, or out of retries
    retries: int
    in_flight: int
    waiting: int
    finished: bool
    mean_fct: float  # of the completed
    work: float  # seconds at speed 1, of all arrivals


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures over the flows that arrived after the warm-up; times in seconds."""

    flows: int
    completed: int
    refused: int
    overflowed: int
    failed: int
    open: int
    mean: float
    mean_error: float  # half width of the mean's 95 % confidence interval, by batch means
    p50: float
    p90: float
    p99: float
    p999: float
    slowdown: float
    slowdown_p99: float
    utilisation: tuple[float, ...]
    jain: float

    @property
    def rejected(self) -> int:
        return self.refused + self.overflowed


def flow_classes(world: World, n: int) -> NDArray[np.uint8]:
    """Return the SLA class of the first n flows of a world: 0 gold, 1 silver, 2 bronze."""
    classes = np.zeros(max(n, 1), dtype=np.uint8)
    lib.sim_classes(world.seed % 2**64, world.gold, world.bronze, 0, n, ffi.from_buffer("uint8_t[]", classes))
    return classes[:n]


def batch_error(values: NDArray[np.float64]) -> float:
    """Return the half width of the 95 % confidence interval of the mean of a stationary sequence."""
    size = len(values) // BATCHES
    if size == 0:
        return math.inf
    means = values[: size * BATCHES].reshape(BATCHES, size).mean(axis=1)
    return float(STUDENT_95_29 * means.std(ddof=1) / math.sqrt(BATCHES))


def jain_index(values: NDArray[np.float64]) -> float:
    """Return (Σx)² / (n·Σx²), 1 for equal values, 1/n when one has all; 1 for all zero."""
    squares = float(np.square(values).sum())
    return float(values.sum() ** 2 / (len(values) * squares)) if squares > 0 else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A run. `records`: what the engine wrote, fields of struct sim_record; `servers`: of struct sim_server_state."""

    world: World
    records: NDArray[Any]
    totals: Totals
    servers: NDArray[Any]
    utilisation: NDArray[np.float64]  # since the warm-up

    @property
    def fct(self) -> NDArray[np.float64]:
        """Completion times of the flows that ended well, after the warm-up, in order of arrival."""
        r = self._after_warmup()
        r = r[r["outcome"] == OUTCOME_OK]
        return np.asarray((r["closed_ns"] - r["arrival_ns"]) * 1e-9)

    @property
    def classes(self) -> NDArray[np.uint8]:
        """The SLA class of each record: 0 gold, 1 silver, 2 bronze."""
        return flow_classes(self.world, len(self.records))

    def _after_warmup(self) -> NDArray[Any]:
        # Arrivals are in order.
        first = np.searchsorted(self.records["arrival_ns"], np.uint64(round(self.world.warmup * 1e9)))
        return self.records[first:]

    def summary(self) -> Summary:
        r = self._after_warmup()
        outcomes = np.bincount(r["outcome"], minlength=256)
        good = r[r["outcome"] == OUTCOME_OK]
        fct = (good["closed_ns"] - good["arrival_ns"]) * 1e-9
        fastest = max(server.speed for server in self.world.servers)
        alone = np.maximum(good["work_ns"], 1.0) * 1e-9 / fastest
        slowdown = fct / alone
        if len(fct) > 0:
            p50, p90, p99, p999 = (float(q) for q in np.quantile(fct, [0.5, 0.9, 0.99, 0.999]))
            mean, slow, slow99 = float(fct.mean()), float(slowdown.mean()), float(np.quantile(slowdown, 0.99))
        else:
            mean = p50 = p90 = p99 = p999 = slow = slow99 = math.nan
        return Summary(
            flows=len(r),
            completed=len(good),
            refused=int(outcomes[REFUSED]),
            overflowed=int(outcomes[1]),
            failed=int(outcomes[2:REFUSED].sum()),
            open=int(outcomes[OPEN]),
            mean=mean,
            mean_error=batch_error(fct),
            p50=p50,
            p90=p90,
            p99=p99,
            p999=p999,
            slowdown=slow,
            slowdown_p99=slow99,
            utilisation=tuple(float(u) for u in self.utilisation),
            jain=jain_index(self.utilisation),
        )
