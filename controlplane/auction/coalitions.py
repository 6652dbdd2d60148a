"""Coalitions: whom an overloaded winner hands work to, in which shares, and which server can best be spared.

Source    the white paper, sections 3 and 7.4: a winner whose load ratio exceeds 0.6 looks for a partner in its
          coalition below 0.5, and the task is split between the two, equally or by Shapley value
Beyond    coalitions of any size (the white paper's future work): all partners that are free take part, or the `most`
          freest; thresholds are arguments, and docs/auction.md says what tuning them by measurement is worth
Shares    in proportion to the Shapley values of the coalition formed; those of the white paper's game are the spare
          capacities. A task that can be split is split in these shares, a live flow goes to one with these chances
Draining  the server that contributes least goes first, as long as those that remain carry the load
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.auction.shapley import Floats
from controlplane.bids import UTILISATION_MAX

Indices = NDArray[np.intp]

# The white paper's.
OVERLOAD = 0.6
PARTNER_BELOW = 0.5


def partners(
    winner: int,
    load_ratio: Floats,
    coalition: NDArray[np.generic],
    above: float = OVERLOAD,
    below: float = PARTNER_BELOW,
    most: int | None = None,
) -> Indices:
    """Return who may share the winner's task, the freest first: none unless its load ratio exceeds `above`.

    load_ratio, coalition: (servers,). most: how many at most; the white paper's is 1, None takes all.
    """
    if not load_ratio[winner] > above:
        return np.zeros(0, dtype=np.intp)
    fit = (coalition == coalition[winner]) & (load_ratio < below)
    fit[winner] = False
    found = np.flatnonzero(fit)
    return found[np.argsort(load_ratio[found], kind="stable")][:most]


def shares(phi: Floats) -> Floats:
    """Return probabilities in proportion to Shapley values; who contributes nothing, or less, gets nothing.

    Where nobody contributes, all get the same.
    """
    positive = np.maximum(np.asarray(phi, dtype=np.float64), 0.0)
    largest = float(positive.max(initial=0.0))
    if not (largest > 0 and np.isfinite(largest)):
        return np.full(len(positive), 1.0 / max(len(positive), 1))
    scaled = positive / largest  # no sum of them overflows
    found: Floats = scaled / scaled.sum()
    return found


def split_equal(load: float, n: int) -> Floats:
    """Return the loads of n servers that share a task equally."""
    return np.full(n, load / n)


def split_shapley(load: float, phi: Floats) -> Floats:
    """Return the loads of servers that share a task in proportion to their Shapley values."""
    return load * shares(phi)


@dataclass(frozen=True)
class DrainPlan:
    """In which order servers can be spared, and how far that goes."""

    order: tuple[int, ...]  # all servers, the one to drain first at the front
    spared: int  # how many of them can be drained, in this order, with the load still carried
    utilisation: tuple[float, ...]  # of those that remain after draining 1, 2, …


def drain_order(phi: Floats, capacity: Floats, load: float, limit: float = UTILISATION_MAX) -> DrainPlan:
    """Return the order in which to drain servers: least contribution first, passing over those that are still needed.

    phi: what each contributes, (servers,): Shapley values of games.ServingCost. capacity: flows a second that each can
    serve. load: flows a second that all serve now. limit: utilisation that those who remain must not exceed.
    """
    phi, left = np.asarray(phi, dtype=np.float64), np.asarray(capacity, dtype=np.float64).copy()
    if phi.shape != left.shape or not np.isfinite(phi).all():
        raise ValueError("expected finite phi and capacity, one a server each")
    waiting = [int(i) for i in np.argsort(phi, kind="stable")]
    order: list[int] = []
    utilisation: list[float] = []
    spared = 0
    remaining = float(left.sum())
    while waiting:
        can = [i for i in waiting if len(waiting) > 1 and load <= limit * (remaining - left[i]) * (1 + 1e-12)]
        # When nobody can be spared any more, the rest follow as they contribute.
        chosen = can[0] if can else waiting[0]
        spared += bool(can) and spared == len(order)
        order.append(chosen)
        waiting.remove(chosen)
        remaining = float(left[waiting].sum())
        utilisation.append(load / remaining if remaining > 0 else float("inf"))
    return DrainPlan(tuple(order), spared, tuple(utilisation))
