"""Weights that an agent may give: clipped, normalised to a capacity sum, or projected onto both constraints at once.

    clip        low <= w <= high                      the sum is what it is
    normalise   clipped, then w · total / Σw          the ratios stay within high/low, a single weight may not
    project     the nearest w (Euclid) with low <= w <= high and Σw = total

Servers that are not active get weight 0 and count in no sum. Shapes: (…, servers).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

METHODS = ("clip", "normalise", "project")


@dataclass(frozen=True)
class WeightLimits:
    """What weights are brought to. total: the capacity sum; None: the number of active servers, for a mean of 1."""

    low: float = 0.25
    high: float = 4.0
    total: float | None = None
    method: str = "normalise"

    def __post_init__(self) -> None:
        if not (0 < self.low <= self.high < np.inf):
            raise ValueError(f"weight limits: expected 0 < low <= high, not {self.low} … {self.high}")
        if self.total is not None and not (0 < self.total < np.inf):
            raise ValueError(f"weight limits: total {self.total}")
        if self.method not in METHODS:
            raise ValueError(f"weight limits: {self.method!r} is not one of {', '.join(METHODS)}")

    def apply(self, weights: Floats, active: Mask) -> Floats:
        """Return weights within the limits; a weight of 0 drains its server and stays 0 if another is left."""
        drained = active & (weights <= 0)
        drained &= (active & ~drained).any(axis=-1, keepdims=True)
        used = active & ~drained
        total = used.sum(axis=-1).astype(np.float64) if self.total is None else np.full(used.shape[:-1], self.total)
        if self.method == "project":
            return project(weights, used, self.low, self.high, total)
        clipped = np.where(used, np.clip(weights, self.low, self.high), 0.0)
        return clipped if self.method == "clip" else normalise(clipped, total)


def normalise(weights: Floats, total: Floats) -> Floats:
    """Return w · total / Σw; all-zero rows stay zero."""
    sums = weights.sum(axis=-1)
    factor = np.divide(total, sums, out=np.zeros_like(sums), where=sums > 0)
    return np.asarray(weights * factor[..., None])


def project(weights: Floats, used: Mask, low: float, high: float, total: Floats) -> Floats:
    """Return the nearest point with low <= w <= high on `used`, 0 elsewhere, and Σw = total.

    It is clip(w − τ, low, high) for the τ that gives the sum, found by bisection. A total that the bounds do not
    allow is taken as the nearest that they do.
    """
    n = used.sum(axis=-1)
    wanted = np.clip(total, n * low, n * high)
    left = weights.min(axis=-1, where=used, initial=0.0) - high
    right = weights.max(axis=-1, where=used, initial=0.0) - low
    for _ in range(60):
        middle = (left + right) / 2
        sums = np.where(used, np.clip(weights - middle[..., None], low, high), 0.0).sum(axis=-1)
        left, right = np.where(sums > wanted, middle, left), np.where(sums > wanted, right, middle)
    return np.where(used, np.clip(weights - ((left + right) / 2)[..., None], low, high), 0.0)
