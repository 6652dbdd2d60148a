"""Truthful bids: the marginal social cost of one more flow on a server, from its departure rates and its share of
arrivals.

Source    Krishnan, "Joining the right queue: a state-dependent decision rule", IEEE TAC 35(1), 1990: one step of policy
          improvement on the best static split
Model     a server ends flows at rate r(n) = min(n, k)·μ with n in flight; k >= 1 need not be whole (a fixed delay
          on the way, which overlaps with service, makes it a little larger than the number of workers)
Symbols   λ  its share of the arrivals, π its stationary distribution, g = L(λ) = Σ n π(n) the mean number in flight
          Δ(n) = h(n + 1) − h(n), where h solves  n − g + λ Δ(n) − r(n) Δ(n − 1) = 0
Shapes    mu, k, lam (servers,); curves (servers, CURVE_POINTS) seconds

Δ is computed from both sides, forward up to g and backward above it, because then every term that is added is
positive and no digit is lost; from n = k − 1 on it is the straight line (n − g + c/(c − λ))/(c − λ) with c = kμ.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from controlplane.policy import CURVE_N, Floats
from shm_layout.layout import CURVE_EXACT

# Beyond this many workers a server is taken as a fluid: its queue begins where n passes k.
WORKERS_EXACT = 256

# Utilisation that the split never exceeds, on the whole and on each server.
UTILISATION_MAX = 0.97

# Offered load from which on there is a flood, and at which there is nothing else.
FLOODED = (1.0, 1.05)

# Grid of utilisations on which marginal costs are tabulated, closer together near 1 where they rise fast.
UTILISATION_GRID: Floats = 1.0 - np.linspace(1.0, 0.06, 64) ** 2


def _moments(load: Floats, k: Floats) -> tuple[Floats, Floats]:
    """Return mean and variance of the number in flight at offered load a = λ/μ < k, elementwise."""
    top = int(np.ceil(k.max(initial=1.0)))
    zeroth, first, second = np.ones_like(load), np.zeros_like(load), np.zeros_like(load)
    # π(n) relative to π(0), rescaled on the way so that it neither overflows nor vanishes.
    term = np.ones_like(load)
    for n in range(1, top):
        term = term * (load / np.minimum(n, k))
        zeroth, first, second = zeroth + term, first + n * term, second + n * n * term
        if n % 32 == 0:
            scale = 1.0 / zeroth
            term, zeroth, first, second = term * scale, zeroth * scale, first * scale, second * scale
    # From n = top on the terms are geometric: Σ_j (top + j)^i ρ^j.
    term = term * (load / np.minimum(top, k))
    rho = load / k
    rest = 1.0 / (1.0 - rho)
    tail1 = rho * rest
    tail2 = rho * (1.0 + rho) * rest * rest
    zeroth = zeroth + term * rest
    first = first + term * rest * (top + tail1)
    second = second + term * rest * (top * top + 2 * top * tail1 + tail2)
    mean = first / zeroth
    return mean, np.maximum(second / zeroth - mean * mean, 0.0)


def mean_in_flight(lam: Floats, mu: Floats, k: Floats) -> Floats:
    """Return L(λ), the mean number in flight, (servers,); λ < kμ."""
    load = lam / mu
    few = k <= WORKERS_EXACT
    mean = np.empty_like(load)
    if few.any():
        small = k <= 64
        for part in (few & small, few & ~small):
            if part.any():
                mean[part] = _moments(load[part], k[part])[0]
    if not few.all():
        # Many workers: hardly anybody waits below saturation.
        many = ~few
        rho = load[many] / k[many]
        mean[many] = load[many] + rho ** np.sqrt(2.0 * (k[many] + 1.0)) / (1.0 - rho)
    return mean


@lru_cache(maxsize=1)
def _marginal_table() -> tuple[Floats, Floats]:
    """Return worker counts (rows,) and μ·dL/dλ on the utilisation grid (rows, grid): dL/dλ = variance of n, over λ."""
    workers = np.concatenate([np.arange(1.0, 64.0), CURVE_N[(CURVE_N >= 64) & (CURVE_N <= WORKERS_EXACT)]])
    k = np.repeat(workers[:, None], len(UTILISATION_GRID), axis=1)
    load = k * UTILISATION_GRID
    marginal = np.ones_like(load)
    for row in range(len(workers)):
        marginal[row, 1:] = _moments(load[row, 1:], k[row, 1:])[1] / load[row, 1:]
    return workers, np.maximum.accumulate(marginal, axis=1)


def split(total: float, mu: Floats, k: Floats) -> Floats:
    """Return the λ_i that minimise Σ L_i(λ_i) with Σ λ_i = total, by equal marginals; total is cut at 0.97 of Σ kμ.

    In a flood there is no such optimum: queues grow whatever is done. From FLOODED[0] times the capacity on the split
    goes over to equal utilisation, with which the queues become such that all wait equally long.
    """
    capacity = mu * k
    offered = total / max(float(capacity.sum()), 1e-300)
    total = min(total, UTILISATION_MAX * float(capacity.sum()))
    if total <= 0.0 or len(mu) == 0:
        return np.zeros_like(mu)
    workers, table = _marginal_table()
    place = np.interp(k, workers, np.arange(len(workers)))
    low = np.minimum(place.astype(np.intp), len(workers) - 2)
    part = (place - low)[:, None]
    # What one more flow a second costs on each server at each utilisation, in seconds: (servers, grid).
    marginal = (table[low] * (1.0 - part) + table[low + 1] * part) / mu[:, None]
    first, flat = np.arange(len(mu)) * len(UTILISATION_GRID), marginal.ravel()

    def shares(price: float) -> Floats:
        cheap = np.count_nonzero(marginal < price, axis=1)
        # Plain minimum and maximum: this runs 25 times a decision, and numpy's clip() costs more than the arithmetic.
        above = np.minimum(np.maximum(cheap, 1), len(UTILISATION_GRID) - 1)
        left, right = flat.take(first + above - 1), flat.take(first + above)
        inside = np.minimum(np.maximum((price - left) / np.maximum(right - left, 1e-300), 0.0), 1.0)
        low, high = UTILISATION_GRID.take(above - 1), UTILISATION_GRID.take(above)
        return np.asarray(capacity * np.where(cheap > 0, low + inside * (high - low), 0.0))

    bottom, top = float(marginal[:, 0].min()), float(marginal[:, -1].max())
    for _ in range(40):
        price = float(np.sqrt(bottom * top))
        if shares(price).sum() < total:
            bottom = price
        else:
            top = price
        if top <= bottom * (1.0 + 1e-6):
            break
    lam = shares(top)
    # Mend the last bit of the bisection: where several equal servers enter at once, they share in proportion.
    lam *= total / max(float(lam.sum()), 1e-300)
    found: Floats = np.minimum(lam, UTILISATION_GRID[-1] * capacity)
    flood = min(max((offered - FLOODED[0]) / (FLOODED[1] - FLOODED[0]), 0.0), 1.0)
    return (1.0 - flood) * found + flood * UTILISATION_MAX * capacity


def truthful(lam: Floats, mu: Floats, k: Floats) -> Floats:
    """Return the bid curves Δ(n), (servers, CURVE_POINTS) seconds; λ = 0 gives a flow's own delay (n + 1)/r(n + 1)."""
    capacity = k * mu
    g = mean_in_flight(lam, mu, k)
    slope = 1.0 / (capacity - lam)
    curves: Floats = (CURVE_N - g[:, None]) * slope[:, None] + (capacity * slope * slope)[:, None]
    few = k <= WORKERS_EXACT
    small = k <= CURVE_EXACT
    # Two groups, so that one server of many workers does not make the recursions long for all.
    for rows in (np.flatnonzero(small), np.flatnonzero(few & ~small)):
        if len(rows):
            _below_saturation(curves, rows, lam[rows], mu[rows], k[rows], g[rows], slope[rows])
    many = np.flatnonzero(~few)
    if len(many):
        wait = np.maximum(CURVE_N + 1.0 - k[many, None], 0.0) * slope[many, None]
        curves[many] = 1.0 / mu[many, None] + wait
    # Rounding may make equal neighbours fall by an ulp.
    return np.maximum.accumulate(np.maximum(curves, 0.0), axis=1)


def _below_saturation(
    curves: Floats, rows: NDArray[np.intp], lam: Floats, mu: Floats, k: Floats, g: Floats, slope: Floats
) -> None:
    """Replace the straight line by the recursions where n < k − 1; all but curves are of these rows."""
    top = int(np.ceil(k.max())) - 1
    if top <= 0:
        return
    n = np.arange(top + 1.0)[:, None]
    rate = np.minimum(n, k) * mu
    line = (n - g) * slope + k * mu * slope * slope
    delta = line.copy()
    for m in range(top, 0, -1):
        delta[m - 1] = (lam * delta[m] + (m - g)) / rate[m]
    ahead = np.where(lam > 1e-12 * mu, lam, np.inf)  # so little traffic has g < 1: only n = 0 would go forward
    forward = np.where(np.isinf(ahead), 1.0 / mu, g / ahead)
    for m in range(min(top, int(np.ceil(g.max()))) + 1):
        if m > 0:
            # Kept as it is above g, where it would run away.
            forward = np.where(m < g, (g - m + rate[m] * forward) / ahead, forward)
        delta[m] = np.where(m < g, forward, delta[m])
    delta = np.where(n >= k - 1.0, line, delta)
    points = np.flatnonzero(top >= CURVE_N)
    curves[rows[:, None], points] = delta[CURVE_N[points].astype(np.intp)].T
