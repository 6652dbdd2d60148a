"""Rewards as pure functions of the servers' loads: fairness indices, their duals, potential-based shaping, costs.

Every function takes x (…, servers) and active (…, servers), None: all, and reduces the last axis; servers that are
not active count for nothing. Greater is better in all of them. Of no active server, or of loads that are all zero: 1
for Jain's index, whose greatest value it is, and 0 for the others (the product and its logarithm: of an empty
product, 1 and 0).

    jain          (Σx)² / (n Σx²)        Jain, Chiu, Hawe, "A Quantitative Measure of Fairness", 1984; 1/n … 1
    variance      −Σ(x − μ)² / n
    std           −√variance             less sensitive to outliers
    cv            −σ / μ                 does not depend on the unit of x
    max_min       min x                  maximise the least
    min_max       −max x                 its dual: minimise the greatest
    product       Π(x + ε)               Nash welfare
    log_product   Σ log(x + ε)           the same order, in sums

max_min, product and log_product reward what servers are *given*: they also grow with the load itself. Of durations
and flows in flight, which nobody wants more of, use them in `Reward(field=…, invert=True)`, where x is taken as 1/(1
+ x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EPSILON: Final = 1e-6


def _masked(x: ArrayLike, active: Mask | None) -> tuple[Floats, Mask, Floats]:
    """Return x with zeros where not active, the mask, and how many are (…,)."""
    values = np.asarray(x, dtype=np.float64)
    mask = np.ones(values.shape, dtype=bool) if active is None else np.broadcast_to(active, values.shape)
    return np.where(mask, values, 0.0), mask, mask.sum(axis=-1).astype(np.float64)


def _ratio(a: Floats, b: Floats, otherwise: float) -> Floats:
    return np.asarray(np.divide(a, b, out=np.full(np.shape(b), otherwise), where=b > 0))


def jain(x: ArrayLike, active: Mask | None = None) -> Floats:
    """Return J = (Σx)² / (n Σx²)."""
    values, _, n = _masked(x, active)
    # Scaled by the greatest first: squares of small loads must not vanish.
    greatest = np.abs(values).max(axis=-1, keepdims=True, initial=0.0)
    values = values / np.where(greatest > 0, greatest, 1.0)
    return _ratio(np.square(values.sum(axis=-1)), n * np.square(values).sum(axis=-1), 1.0)


def jain_gradient(x: ArrayLike) -> Floats:
    """Return ∂J/∂x_i = (2/n) [Σx / Σx² − (Σx)² x_i / (Σx²)²], (…, servers)."""
    values = np.asarray(x, dtype=np.float64)
    total, squares = values.sum(axis=-1, keepdims=True), np.square(values).sum(axis=-1, keepdims=True)
    gradient: Floats = 2.0 / values.shape[-1] * (total / squares - np.square(total) * values / np.square(squares))
    return gradient


def variance(x: ArrayLike, active: Mask | None = None) -> Floats:
    """Return −Var(x)."""
    values, mask, n = _masked(x, active)
    mean = _ratio(values.sum(axis=-1), n, 0.0)
    return -_ratio(np.square(np.where(mask, values - mean[..., None], 0.0)).sum(axis=-1), n, 0.0)


def standard_deviation(x: ArrayLike, active: Mask | None = None) -> Floats:
    """Return −σ."""
    return -np.sqrt(-variance(x, active))


def coefficient_of_variation(x: ArrayLike, active: Mask | None = None) -> Floats:
    """Return −σ/μ."""
    values, _, n = _masked(x, active)
    return _ratio(standard_deviation(x, active), _ratio(values.sum(axis=-1), n, 0.0), 0.0)


def max_min(x: ArrayLike, active: Mask | None = None) -> Floats:
    """Return min x."""
    values, mask, n = _masked(x, active)
    return np.where(n > 0, np.where(mask, values, np.inf).min(axis=-1, initial=np.inf), 0.0)


def min_max(x: ArrayLike, active: Mask | None = None) -> Floats:
    """Return −max x."""
    values, mask, n = _masked(x, active)
    return np.where(n > 0, -np.where(mask, values, -np.inf).max(axis=-1, initial=-np.inf), 0.0)


def log_product(x: ArrayLike, active: Mask | None = None, epsilon: float = EPSILON) -> Floats:
    """Return log W = Σ log(x + ε)."""
    values, mask, _ = _masked(x, active)
    return np.asarray(np.where(mask, np.log(values + epsilon), 0.0).sum(axis=-1))


def product(x: ArrayLike, active: Mask | None = None, epsilon: float = EPSILON) -> Floats:
    """Return W = Π(x + ε)."""
    values, mask, _ = _masked(x, active)
    return np.asarray(np.where(mask, values + epsilon, 1.0).prod(axis=-1))


def shaping(potential: ArrayLike, potential_next: ArrayLike, gamma: float, terminated: ArrayLike = False) -> Floats:
    """Return F(s, s') = γ Φ(s') − Φ(s), with Φ = 0 in a terminal state.

    Ng, Harada, Russell, "Policy Invariance Under Reward Transformations", ICML 1999: the optimal policy stays what it
    was. A truncated episode has not ended, so its last potential counts.
    """
    after = np.where(terminated, 0.0, np.asarray(potential_next, dtype=np.float64))
    return np.asarray(gamma * after - np.asarray(potential, dtype=np.float64))


def violation(x: ArrayLike, limit: float, active: Mask | None = None) -> Floats:
    """Return max(0, max x − limit): how far the greatest load lies above what is allowed."""
    values, mask, n = _masked(x, active)
    greatest = np.where(mask, values, -np.inf).max(axis=-1, initial=-np.inf)
    return np.where(n > 0, np.maximum(greatest - limit, 0.0), 0.0)


FAIRNESS: Final[dict[str, Callable[[ArrayLike, Mask | None], Floats]]] = {
    "jain": jain,
    "variance": variance,
    "std": standard_deviation,
    "cv": coefficient_of_variation,
    "max_min": max_min,
    "min_max": min_max,
    "product": product,
    "log_product": log_product,
}
