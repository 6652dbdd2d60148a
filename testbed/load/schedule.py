"""When requests leave and what work each brings: from a seed or a file, the same for every system compared."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from testbed.demand import Demand, Floats


@dataclass(frozen=True)
class Schedule:
    """Arrival times in seconds from the start, ascending, and each request's demand; NaN leaves it to the server."""

    arrival_s: Floats
    demand_ms: Floats

    def __post_init__(self) -> None:
        if self.arrival_s.shape != self.demand_ms.shape:
            raise ValueError("a schedule needs as many demands as arrivals")
        if len(self.arrival_s) and (self.arrival_s[0] < 0 or np.any(np.diff(self.arrival_s) < 0)):
            raise ValueError("arrival times must ascend from 0")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        return float(self.arrival_s[-1]) if len(self) else 0.0


def poisson(rate: float, seconds: float, seed: int, demand: Demand | None = None) -> Schedule:
    """Poisson arrivals for so many seconds.

    Arrivals and demands have generators of their own: at another rate the same requests come in the same order,
    closer or farther apart.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError("rate and seconds must be above 0")
    gaps = np.random.default_rng([seed, 0])
    n = int(rate * seconds + 6 * (rate * seconds) ** 0.5) + 10
    arrival_s = np.cumsum(gaps.exponential(size=n)) / rate
    arrival_s = arrival_s[arrival_s < seconds]
    return Schedule(arrival_s, _demands(len(arrival_s), seed, demand))


def from_times(arrival_s: Floats, seed: int = 1, demand: Demand | None = None) -> Schedule:
    return Schedule(arrival_s, _demands(len(arrival_s), seed, demand))


def from_csv(path: Path, seed: int = 1, demand: Demand | None = None) -> Schedule:
    """Columns `arrival_s` and, when no demand is given, `demand_ms`; ValueError names the line that is wrong."""
    arrivals, demands = [], []
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if "arrival_s" not in (rows.fieldnames or []):
            raise ValueError(f"{path}:1: no column arrival_s")
        for row in rows:
            try:
                arrivals.append(float(row["arrival_s"]))
                demands.append(float(row.get("demand_ms") or "nan"))
            except (TypeError, ValueError):
                raise ValueError(f"{path}:{rows.line_num}: not a number") from None
    arrival_s = np.array(arrivals, dtype=np.float64)
    return from_times(arrival_s, seed, demand) if demand else Schedule(arrival_s, np.array(demands, dtype=np.float64))


def _demands(n: int, seed: int, demand: Demand | None) -> Floats:
    if demand is None:
        return np.full(n, np.nan)
    return demand.sample(n, np.random.default_rng([seed, 1]))
