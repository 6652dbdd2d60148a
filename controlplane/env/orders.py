"""What is to be published, one row a balancer; environments write it in place, sources make directives of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shm_layout.layout import CURVE_POINTS


@dataclass(frozen=True)
class Orders:
    """Arrays that live as long as the source."""

    mode: NDArray[np.uint8]  # (rows,) lib.VECTOR_*: which of the others counts
    base: NDArray[np.float32]  # (rows, servers, CURVE_POINTS) bid curves, seconds
    correction: NDArray[np.float64]  # (rows, 2 + 2·servers), see curves_correct() in dataplane/sim/vector.h
    weights: NDArray[np.float64]  # (rows, servers)
    window: NDArray[np.float64]  # (rows,) factor on the memory of a base policy that learns

    @classmethod
    def empty(cls, rows: int, servers: int) -> Self:
        return cls(
            np.zeros(rows, dtype=np.uint8),
            np.zeros((rows, servers, CURVE_POINTS), dtype=np.float32),
            np.zeros((rows, 2 + 2 * servers)),
            np.ones((rows, servers)),
            np.ones(rows),
        )
