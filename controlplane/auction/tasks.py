"""Tasks of the round-based simulation: what each asks for, and how many come in a round.

Source    the white paper, sections 2 (task module) and 7.2. A task has a load, an SLA level, a complexity and a latency
          requirement; complexity multiplies the work that it means for a server, not the load that the bids see
Arrivals  average = base + amplitude · sin(2π · round / period); the number is Poisson about it, or exactly it, rounded
Order     gold before silver before bronze, and within a class the older first, where SLA classes count
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.auction.mechanism import average_tasks
from dataplane._dataplane import ffi
from shm_layout.layout import dtype_of

CLASSES = ("gold", "silver", "bronze")
GOLD, SILVER, BRONZE = range(3)
TASK = dtype_of("round_task", ffi)

_CHUNK = 256  # rounds whose tasks are drawn at once

Range = tuple[float, float]
Tasks = NDArray[Any]
"""Records of dtype TASK, (tasks,)."""


@dataclass(frozen=True)
class Demand:
    """What comes: ranges are uniform, shares and latencies per class in the order of CLASSES, latencies in rounds."""

    base: float
    amplitude: float
    period: float
    random: bool
    load: Range
    complexity: Range
    shares: tuple[float, float, float]
    latency: tuple[float, float, float]

    @property
    def mean_work(self) -> float:
        """Mean work of a task."""
        return sum(self.load) / 2 * sum(self.complexity) / 2


def rounds_of(demand: Demand, rounds: int, rng: np.random.Generator) -> Iterator[Tasks]:
    """Yield the tasks that arrive in rounds 1 … `rounds`, in order of arrival."""
    shares = np.cumsum(demand.shares) / sum(demand.shares)
    latency = np.array(demand.latency)
    for first in range(1, rounds + 1, _CHUNK):
        numbers = np.arange(first, min(first + _CHUNK, rounds + 1))
        average = average_tasks(numbers, demand.base, demand.amplitude, demand.period)
        counts = rng.poisson(average) if demand.random else np.rint(average).astype(np.int64)
        total = int(counts.sum())
        tasks = np.zeros(total, dtype=TASK)
        tasks["load"] = rng.uniform(*demand.load, total)
        tasks["work"] = tasks["load"] * rng.uniform(*demand.complexity, total)
        tasks["sla"] = np.minimum(np.searchsorted(shares, rng.random(total), side="right"), BRONZE)
        tasks["latency"] = latency[tasks["sla"]]
        yield from np.split(tasks, np.cumsum(counts)[:-1])


def in_order(tasks: Tasks) -> Tasks:
    """Return tasks gold first, then silver, then bronze; those of a class as they came."""
    ordered: Tasks = tasks[np.argsort(tasks["sla"], kind="stable")]
    return ordered
