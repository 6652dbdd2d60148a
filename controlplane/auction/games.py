"""Characteristic functions: what a coalition of servers is worth, for Shapley values.

A game is called with coalitions (coalitions, servers), True where a server is in it, or with their bit masks (uint64),
and returns their values (coalitions,); nobody is worth 0, and more is better. `along(order)` returns the values of the
first 0, 1, … n servers of an order.

    SpareCapacity   the white paper's: what its members have to spare. It adds up, so φ_i = spare_i
    PooledMM1       flows in flight that are saved when its members serve their arrivals together, as one fast server
    ServingCost     flows in flight that are saved when its members, rather than nobody, serve all of the load

Costs are mean numbers in flight: by Little's law the mean completion time, times the arrival rate that all share. A
coalition that cannot carry its load would cost infinitely much, and no average survives one infinity; and yet two that
cannot carry it are not equally bad. So cost goes on beyond 97 % utilisation (the most to which the balancer itself lets
a server be planned, controlplane/bids.py) as it rises there: steeply, but finite, and steeper the more is missing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from controlplane.auction.shapley import Bools, Floats, Masks, members
from controlplane.bids import UTILISATION_MAX, mean_in_flight

Coalitions = Masks | Bools
Game = Callable[[Bools], Floats]

# Utilisations at which a server's cost is tabulated, closer together near the top; and prices for its share.
UTILISATIONS: Floats = UTILISATION_MAX * (1.0 - np.linspace(1.0, 0.0, 97) ** 2)
PRICES = 512
# Half width of the central difference for marginal costs, in parts of the capacity.
STEP = 1e-4


def _members(coalitions: Coalitions, n: int) -> NDArray[np.float64]:
    """Return who is in each coalition, (coalitions, n), 1 or 0."""
    inside = coalitions if coalitions.ndim == 2 else members(coalitions.astype(np.uint64), n)
    return inside.astype(np.float64)


def _checked(name: str, values: Floats, least: float) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < least).any():
        raise ValueError(f"expected finite {name} of {least:g} or more, one a server")
    return values


def _sums(x: Floats) -> Floats:
    """Return the sums of the first 0, 1, … of the last axis."""
    out = np.zeros((*x.shape[:-1], x.shape[-1] + 1))
    np.cumsum(x, axis=-1, out=out[..., 1:])
    return out


class SpareCapacity:
    """v(S) = Σ_{s ∈ S} (capacity_s − load_s). Shapley value: φ_i = spare_i, for each adds the same whenever it joins.

    Source: the white paper, section 3.
    """

    def __init__(self, spare: Floats) -> None:
        self.spare = _checked("spare capacity", spare, -np.inf)

    def __call__(self, coalitions: Coalitions) -> Floats:
        return _members(coalitions, len(self.spare)) @ self.spare

    def along(self, order: NDArray[np.intp]) -> Floats:
        return _sums(self.spare[order])


class PooledMM1:
    """v(S) = Σ_{i ∈ S} L(λ_i/μ_i) − L(Σλ_i/Σμ_i), L(ρ) = ρ/(1 − ρ): what pooling saves.

    mu: flows a second that each serves at most, (servers,) > 0. lam: those that come to it, (servers,).
    One alone saves nothing; two halve what they save together; n that are equal save (n − 1)/n of their flows in
    flight. Never negative: a pool's utilisation is between its members'.
    Source: Anily & Haviv, "Cooperation in service systems", Operations Research 58(3), 2010.
    """

    def __init__(self, mu: Floats, lam: Floats) -> None:
        self.mu, self.lam = _checked("mu", mu, 0.0), _checked("lam", lam, 0.0)
        if (self.mu == 0).any():
            raise ValueError("expected mu above 0 of every server")
        self.alone = self.in_flight(self.lam / self.mu)

    @staticmethod
    def in_flight(rho: Floats) -> Floats:
        """Return ρ/(1 − ρ), beyond 97 % along its tangent there."""
        top = UTILISATION_MAX
        below = np.minimum(rho, top)
        return np.asarray(below / (1.0 - below) + np.maximum(rho - top, 0.0) / (1.0 - top) ** 2)

    def __call__(self, coalitions: Coalitions) -> Floats:
        inside = _members(coalitions, len(self.mu))
        return self._saved(inside @ self.mu, inside @ self.lam, inside @ self.alone)

    def along(self, order: NDArray[np.intp]) -> Floats:
        return self._saved(_sums(self.mu[order]), _sums(self.lam[order]), _sums(self.alone[order]))

    def _saved(self, capacity: Floats, arrivals: Floats, alone: Floats) -> Floats:
        rho = np.divide(arrivals, capacity, out=np.zeros_like(capacity), where=capacity > 0)
        return alone - self.in_flight(rho)


class ServingCost:
    """v(S) = C(∅) − C(S), C(S) = min Σ_{i ∈ S} L_i(λ_i) with Σλ_i = λ: what it costs to serve all of λ with S alone.

    mu, k: rate of one worker and number of workers, (servers,): L_i is the mean number in an M/M/k. lam: all arrivals a
    second. unserved: cost of each arrival a second beyond 97 % of what S can serve, in seconds (of waiting, say: a
    client's timeout); by default the highest marginal cost that any server reaches there, so that serving is never
    dearer than not serving and a server more never makes a coalition worse.

    The split that costs least has equal marginal costs, so at a given price each server's share is the same in every
    coalition: shares are tabulated once, and a coalition's price is found by bisection, all coalitions at a time.
    For M/M/1 it is the square-root rule λ_i = μ_i − √μ_i (Σμ − λ)/Σ√μ.
    """

    def __init__(self, mu: Floats, k: Floats, lam: float, unserved: float | None = None) -> None:
        mu, k = _checked("mu", mu, 0.0), _checked("k", k, 1.0)
        if (mu == 0).any():
            raise ValueError("expected mu above 0 of every server")
        if not (np.isfinite(lam) and lam >= 0):
            raise ValueError(f"expected lam of 0 or more, not {lam}")
        self.n, self.lam = len(mu), float(lam)
        self.capacity = UTILISATION_MAX * k * mu
        rate, cost, marginal = _tables(mu, k)
        highest = float(marginal[:, -1].max(initial=1.0))
        self.unserved = highest if unserved is None else float(unserved)
        if not (np.isfinite(self.unserved) and self.unserved >= 0):
            raise ValueError(f"expected unserved of 0 or more, not {unserved}")
        lowest = float(marginal[:, 0].min(initial=highest))
        self.price = np.geomspace(lowest, highest, PRICES)
        # Share of each server, and what it costs, at each price: (PRICES, servers).
        self.share = np.zeros((PRICES, self.n))
        self.cost = np.zeros((PRICES, self.n))
        for i in range(self.n):
            self.share[:, i] = np.interp(self.price, marginal[i], rate[i], left=0.0)
            self.cost[:, i] = np.interp(self.share[:, i], rate[i], cost[i])

    def __call__(self, coalitions: Coalitions) -> Floats:
        return self.unserved * self.lam - self.costs(coalitions)

    def costs(self, coalitions: Coalitions) -> Floats:
        """Return C(S), (coalitions,), mean flows in flight and the price of those that are not served."""
        inside = _members(coalitions, self.n)
        served = np.minimum(self.lam, inside @ self.capacity)
        low = np.zeros(len(inside), dtype=np.intp)
        high = np.full(len(inside), PRICES - 1)
        # share[low] sums to less than what is served, share[high] to at least that.
        while (high - low > 1).any():
            middle = (low + high) // 2
            enough = np.einsum("cs,cs->c", inside, self.share[middle]) >= served
            high, low = np.where(enough, middle, high), np.where(enough, low, middle)
        sums = (np.einsum("cs,cs->c", inside, table) for table in (self.share[low], self.share[high], self.cost[low]))
        return self._cost(served, low, high, *sums)

    def along(self, order: NDArray[np.intp]) -> Floats:
        shares, costs = _sums(self.share[:, order]), _sums(self.cost[:, order])
        served = np.minimum(self.lam, _sums(self.capacity[order]))
        high = np.clip((shares < served).sum(axis=0), 1, PRICES - 1)
        low, each = high - 1, np.arange(len(order) + 1)
        cost = self._cost(served, low, high, shares[low, each], shares[high, each], costs[low, each])
        return self.unserved * self.lam - cost

    def _cost(
        self, served: Floats, low: NDArray[np.intp], high: NDArray[np.intp], below: Floats, above: Floats, cost: Floats
    ) -> Floats:
        """Return the costs of coalitions that serve `below`, at `cost`, at one price and `above` at the next."""
        part = np.clip((served - below) / np.maximum(above - below, 1e-300), 0.0, 1.0)
        price = self.price[low] + part * (self.price[high] - self.price[low])
        carried = cost + (served - below) * 0.5 * (self.price[low] + price)
        return np.asarray(carried + (self.lam - served) * self.unserved)


def _tables(mu: Floats, k: Floats) -> tuple[Floats, Floats, Floats]:
    """Return arrivals a second, mean numbers in flight and marginal costs (seconds), (servers, utilisations) each."""
    n, points = len(mu), len(UTILISATIONS)
    each = [np.repeat(x, points) for x in (mu, k)]
    capacity = (k * mu)[:, None]
    rate = capacity * UTILISATIONS

    def in_flight(lam: Floats) -> Floats:
        return mean_in_flight(lam.ravel(), *each).reshape(n, points)

    step = capacity * STEP
    marginal = (in_flight(rate + step) - in_flight(np.maximum(rate - step, 0.0))) / (2.0 * step)
    marginal[:, 0] = 1.0 / mu
    return rate, in_flight(rate), np.maximum.accumulate(marginal, axis=1)
