"""The auction's equations exactly as the white paper has them, each a pure function over arrays of servers.

Source    the white paper, section 4 (equations) and 7.2 … 7.5 (walkthrough). In C: dataplane/core/classic.c for live
          flows, in single precision; dataplane/auction/rounds.c for the round-based simulation, in double
Symbols   L load, c capacity, s sensitivity, r risk aversion, t target load ratio, x the task's load, ρ load ratio
Shapes    every array is float64 (servers,), or broadcasts with it; loads and capacities in the same unit

    ρ         = min(L / c, 1)
    base      = s·ρ + x
    adjusted  = base · (1 + r·max(0, ρ − t))
    neural    : adjusted · (1 + η), · (1 − η) or unchanged           (optional)
    noise     : + ε, a small random value                            (optional)
    final     = min(adjusted · (1 + c / 200), 1000)
    winner    = the lowest final bid; the second-lowest is the price
    reserve   = 1.5 · mean winning bid of the round
    tasks     = base + amplitude · sin(2π · round / period), on average
    welfare   = −Σ |L − c·t|
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

OVERLOAD = 0.6  # a winner busier than this looks for a partner …
PARTNER_BELOW = 0.5  # … in its coalition that is less busy than this
CLAMP = 1000.0
CAPACITY_SCALE = 200.0
RESERVE_FACTOR = 1.5
NOBODY = -1


class Award(NamedTuple):
    """One auction's result. price is infinite when only one server bids, all are when none does."""

    winner: int
    bid: float
    price: float


def load_ratio(load: ArrayLike, capacity: ArrayLike) -> Floats:
    """Return ρ = min(L / c, 1)."""
    return np.minimum(np.divide(load, capacity, dtype=np.float64), 1.0)


def base_bid(sensitivity: ArrayLike, ratio: ArrayLike, task_load: ArrayLike) -> Floats:
    """Return s·ρ + x."""
    return np.add(np.multiply(sensitivity, ratio, dtype=np.float64), task_load)


def risk_factor(risk_aversion: ArrayLike, ratio: ArrayLike, target: ArrayLike) -> Floats:
    """Return 1 + r·max(0, ρ − t)."""
    return 1.0 + np.multiply(risk_aversion, np.maximum(0.0, np.subtract(ratio, target)), dtype=np.float64)


def final_bid(adjusted: ArrayLike, capacity: ArrayLike, noise: ArrayLike = 0.0) -> Floats:
    """Return min((adjusted + ε) · (1 + c/200), 1000)."""
    dampened = np.add(adjusted, noise, dtype=np.float64) * (1.0 + np.divide(capacity, CAPACITY_SCALE))
    return np.minimum(dampened, CLAMP)


def bids(
    load: ArrayLike,
    capacity: ArrayLike,
    sensitivity: ArrayLike,
    risk_aversion: ArrayLike,
    target: ArrayLike,
    task_load: ArrayLike,
    neural: ArrayLike = 1.0,
    noise: ArrayLike = 0.0,
) -> Floats:
    """Return every server's final bid for one task, (servers,); with task_load (tasks, 1), (tasks, servers)."""
    ratio = load_ratio(load, capacity)
    # The two factors are multiplied first, as in C: the results agree to the last bit.
    factor = np.multiply(risk_factor(risk_aversion, ratio, target), neural)
    return final_bid(base_bid(sensitivity, ratio, task_load) * factor, capacity, noise)


def award(bids: Floats, rng: np.random.Generator | None = None) -> Award:
    """Return the lowest bidder, its bid and the second-lowest bid. Equal bids draw lots; without rng the first wins."""
    if not bids.size:
        return Award(NOBODY, np.inf, np.inf)
    lowest = float(bids.min())
    equal = np.flatnonzero(bids == lowest)
    winner = int(equal[0] if rng is None else rng.choice(equal))
    others = np.delete(bids, winner)
    return Award(winner, lowest, float(others.min()) if others.size else np.inf)


def reserve_after(winning_bids: ArrayLike, before: float = 0.0) -> float:
    """Return the reserve after a round: 1.5 times the mean winning bid, or as before when nothing was won."""
    won = np.asarray(winning_bids, dtype=np.float64)
    return RESERVE_FACTOR * float(won.mean()) if won.size else before


def average_tasks(round_number: ArrayLike, base: float, amplitude: float, period: float) -> Floats:
    """Return the mean number of tasks of a round, base + amplitude · sin(2π · round / period); never below 0."""
    turns = np.divide(round_number, period, dtype=np.float64)
    return np.maximum(base + amplitude * np.sin(2.0 * np.pi * turns), 0.0)


def process(load: ArrayLike, rate: ArrayLike) -> Floats:
    """Return the loads when each server has worked for a round at its fixed rate."""
    return np.maximum(np.subtract(load, rate, dtype=np.float64), 0.0)


def social_welfare(load: ArrayLike, capacity: ArrayLike, target: ArrayLike) -> float:
    """Return −Σ |L − c·t|: 0 when every server carries its target."""
    return -float(np.abs(np.subtract(load, np.multiply(capacity, target), dtype=np.float64)).sum())


def jain(values: ArrayLike) -> float:
    """Return Jain's index (Σu)² / (n·Σu²): 1 when all are equal, 1/n when one has everything; 1 when all are 0."""
    u = np.asarray(values, dtype=np.float64)
    squares = float(np.square(u).sum())
    return float(u.sum()) ** 2 / (u.size * squares) if squares > 0 else 1.0
