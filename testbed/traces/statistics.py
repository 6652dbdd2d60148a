"""What a trace is like, from one reading in bounded memory: how much, how fast, how bursty, how heavy.

The index of dispersion for counts at a scale is variance over mean of the arrivals in windows of that length: 1 for a
Poisson process at every scale, above 1 for bursts, below 1 for arrivals that are more even than chance.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.traces.record import Records, canonical_bytes

# Windows of a power of ten, from 10 µs; each needs so many windows and arrivals a window to be worth a line.
_SCALES_NS = tuple(10**k for k in range(4, 17))
WINDOWS_LEAST = 20
ARRIVALS_LEAST = 0.05
QUANTILES = (0.5, 0.9, 0.99, 0.999)
# Work is counted in bins by the upper bits of its float64: 8 bits of mantissa, so 0.2 % from a bin's middle.
_BIN_SHIFT = np.uint64(44)
BIN_ERROR = 1 / 512


class Dispersion:
    """Counts arrivals in windows of one length, counted from the first arrival."""

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self._index = 0  # the window that is still filling, and its arrivals
        self._count = 0
        self._sum = self._squares = 0

    def add(self, index: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Add arrivals by their numbers of window, ascending; return them again by the windows ten times as long."""
        if len(index) and index[0] == self._index:
            self._count += int(count[0])
            rest_index, rest = index[1:], count[1:]
        else:
            rest_index, rest = index, count
        if len(rest):
            self._sum += self._count + int(rest[:-1].sum())
            self._squares += self._count**2 + int(np.square(rest[:-1]).sum())
            self._index, self._count = int(rest_index[-1]), int(rest[-1])
        wider = index // 10
        edges = np.flatnonzero(np.diff(wider, prepend=-1))
        return wider[edges], np.add.reduceat(count, edges) if len(edges) else count

    def result(self, span_ns: int) -> dict[str, float] | None:
        """Return the figures over whole windows; None when there are too few."""
        windows = span_ns // self.window_ns
        total, squares = self._sum, self._squares  # the last arrival's window is not whole
        if windows < WINDOWS_LEAST or total < ARRIVALS_LEAST * windows:
            return None
        mean = total / windows
        variance = (squares - total * mean) / (windows - 1)
        return {"window_s": self.window_ns * 1e-9, "windows": windows, "index": variance / mean}


@dataclass
class Amount:
    """Mean, spread and quantiles of something that is not negative; NaN is counted apart."""

    rows: int = 0
    known: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    _squares: float = 0.0
    _bins: dict[int, int] = field(default_factory=dict)

    def add(self, values: NDArray[np.float64]) -> None:
        self.rows += len(values)
        values = values[~np.isnan(values)]
        if len(values) == 0:
            return
        self.known += len(values)
        self.total += float(values.sum())
        self._squares += float(np.square(values).sum())
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        # + 0.0 turns -0.0 into 0.0, whose bits are the smallest.
        bins, counts = np.unique((values + 0.0).view(np.uint64) >> _BIN_SHIFT, return_counts=True)
        for one, count in zip(bins.tolist(), counts.tolist(), strict=True):
            self._bins[one] = self._bins.get(one, 0) + count

    def quantile(self, q: float) -> float:
        """Return the q-quantile, within BIN_ERROR of its size."""
        rank, seen = max(math.ceil(q * self.known), 1), 0
        for one in sorted(self._bins):
            seen += self._bins[one]
            if seen >= rank:
                edges = np.array([one, one + 1], dtype=np.uint64) << _BIN_SHIFT
                low, high = edges.view(np.float64).tolist()
                return float(min(max((low + high) / 2, self.least), self.most))
        return math.nan

    def as_json(self) -> dict[str, Any]:
        if self.known == 0:
            return {"known": 0}
        mean = self.total / self.known
        variance = max(self._squares / self.known - mean**2, 0.0)
        quantiles = {f"p{100 * q:g}".replace(".", ""): self.quantile(q) for q in QUANTILES}
        spread = math.sqrt(variance) / mean if mean > 0 else 0.0
        return {
            "known": self.known, "total": self.total, "mean": mean, "cv": spread,
            "min": self.least, **quantiles, "max": self.most,
        }  # fmt: skip


class Statistics:
    """Feed it the blocks of a trace."""

    def __init__(self) -> None:
        self.rows = 0
        self.first_ns = self.last_ns = 0
        self.work, self.bytes = Amount(), Amount()
        self.balancers: dict[int, int] = {}
        self._dispersion = [Dispersion(window) for window in _SCALES_NS]
        self._gap_squares = 0.0
        self._digest = hashlib.sha256()

    def add(self, records: Records) -> None:
        if len(records) == 0:
            return
        t = np.ascontiguousarray(records["t_ns"])
        if self.rows == 0:
            self.first_ns = self.last_ns = int(t[0])
        gaps = np.diff(t, prepend=self.last_ns) * 1e-9
        self._gap_squares += float(np.square(gaps).sum())
        self.rows += len(records)
        self.last_ns = int(t[-1])
        index = (t - self.first_ns) // _SCALES_NS[0]
        edges = np.flatnonzero(np.diff(index, prepend=-1))
        index, count = index[edges], np.diff(edges, append=len(t))
        for scale in self._dispersion:
            index, count = scale.add(index, count)
        self.work.add(np.ascontiguousarray(records["work"]))
        size = records["bytes"].astype(np.float64)
        self.bytes.add(np.where(size == 0, np.nan, size))
        balancers, counts = np.unique(records["balancer"], return_counts=True)
        for balancer, of_it in zip(balancers.tolist(), counts.tolist(), strict=True):
            self.balancers[balancer] = self.balancers.get(balancer, 0) + of_it
        self._digest.update(canonical_bytes(records))

    def as_json(self) -> dict[str, Any]:
        span_ns = self.last_ns - self.first_ns
        gaps = self.rows - 1
        rate = cv = None
        if gaps > 0 and span_ns > 0:
            mean = span_ns * 1e-9 / gaps
            rate = 1 / mean
            cv = math.sqrt(max(self._gap_squares / gaps / mean**2 - 1, 0.0))
        return {
            "rows": self.rows,
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
            "span_s": span_ns * 1e-9,
            "rate_per_s": rate,
            "interarrival_cv": cv,
            "dispersion": [found for scale in self._dispersion if (found := scale.result(span_ns)) is not None],
            "work": self.work.as_json(),
            "bytes": self.bytes.as_json(),
            "balancers": {str(balancer): self.balancers[balancer] for balancer in sorted(self.balancers)},
            "sha256": self._digest.hexdigest(),
        }
