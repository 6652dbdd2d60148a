"""Shapley values: what each server adds to a coalition, averaged over all orders in which they may join.

Source    Shapley, "A Value for n-Person Games", 1953; the white paper's section 3
Value     φ_i = Σ_{S ∌ i} |S|! (n − |S| − 1)! / n! · (v(S ∪ i) − v(S))
Exact     to n = 20. With A(S) = (|S| − 1)! (n − |S|)! / n! · v(S) and B(S) = |S|! (n − |S| − 1)! / n! · v(S) this is
          φ_i = Σ_{S ∋ i} (A + B)(S) − Σ_S B(S), and the sums over S ∋ i come for all i from folding one array in half
          n times: 2^(n+1) additions instead of n·2^n
Sampled   above: random orders, stratified. One block puts the servers on a circle at random and joins them round it
          from every start, in both directions: each server comes once in each position and direction, so that the size
          of the coalition it meets, the largest part of the spread, is not left to chance. Blocks are independent:
          their spread gives the error. A game that has `along(order)`, the values of the first 0, 1, … n of an order,
          is asked for that: sums that go on need not be begun anew for each coalition
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Masks: TypeAlias = NDArray[np.uint64]

EXACT_MAX = 20
# Fewest blocks from which a spread is estimated. With fewer samples it starts round the circle from fewer places.
BLOCKS_MIN = 8
# Coalitions handed to a game at a time: what it allocates for them stays small.
CHUNK = 1 << 13
SAMPLES = 100_000


@dataclass(frozen=True)
class Values:
    """Shapley values (servers,) and how far they may be off: half widths of 95 % intervals, zero when exact."""

    phi: Floats
    error: Floats
    exact: bool


def values(
    game: Callable[[NDArray[np.bool_]], Floats], n: int, rng: np.random.Generator | None = None, samples: int = SAMPLES
) -> Values:
    """Return the Shapley values of a game of n servers: exact to n = 20, sampled above.

    game: coalitions (coalitions, n), True where a server is in it, to values (coalitions,), as games.py has them.
    """
    if n <= EXACT_MAX:
        phi = exact(lambda masks: game(members(masks, n)), n)
        return Values(phi, np.zeros(n), True)
    phi, stderr = monte_carlo(game, n, samples, rng if rng is not None else np.random.default_rng(0))
    return Values(phi, student_95(blocks_for(n, samples) - 1) * stderr, False)


def members(masks: Masks, n: int) -> Bools:
    """Return which servers are in each coalition, (coalitions, n): bit i of a mask is server i. n <= 64."""
    bits = np.arange(n, dtype=np.uint64)
    return (masks[:, None] >> bits & np.uint64(1)).astype(np.bool_)


def exact(value: Callable[[Masks], Floats] | Floats, n: int) -> Floats:
    """Return the Shapley values, (n,). value: of coalitions given as bit masks, or of all 2^n in order of their masks.

    ValueError: n is not 0 … 20, or a value is not finite.
    """
    if not 0 <= n <= EXACT_MAX:
        raise ValueError(f"expected 0 to {EXACT_MAX} servers for exact Shapley values, not {n}")
    v = _all_values(value, n) if callable(value) else np.asarray(value, dtype=np.float64)
    if v.shape != (1 << n,) or not np.isfinite(v).all():
        raise ValueError(f"expected {1 << n} finite values, one a coalition")
    if n == 0:
        return np.zeros(0)
    with_i, without_i = _weights(n)
    size = np.bitwise_count(np.arange(1 << n, dtype=np.uint32))
    fold = (with_i + without_i)[size] * v
    rest = float((without_i[size] * v).sum())
    phi = np.empty(n)
    for i in reversed(range(n)):
        half = len(fold) // 2
        phi[i] = fold[half:].sum() - rest
        fold = fold[:half] + fold[half:]
    return phi


def _all_values(value: Callable[[Masks], Floats], n: int) -> Floats:
    v = np.empty(1 << n)
    for start in range(0, 1 << n, CHUNK):
        masks = np.arange(start, min(start + CHUNK, 1 << n), dtype=np.uint64)
        v[start : start + len(masks)] = value(masks)
    return v


@lru_cache(maxsize=32)
def _weights(n: int) -> tuple[Floats, Floats]:
    """Return what a coalition's value weighs for its members and for the others, by size, (n + 1,) each."""
    choose = np.array([math.comb(n, s) for s in range(n + 1)], dtype=np.float64)
    s = np.arange(n + 1.0)
    # (s − 1)! (n − s)! / n! = 1 / (s · C(n, s)) and s! (n − s − 1)! / n! = 1 / ((n − s) · C(n, s)).
    inside = np.divide(1.0, s * choose, out=np.zeros(n + 1), where=s > 0)
    outside = np.divide(1.0, (n - s) * choose, out=np.zeros(n + 1), where=s < n)
    return inside, outside


def blocks_for(n: int, samples: int) -> int:
    """Return how many independent blocks a sampling of so many coalitions takes."""
    return max(samples // (_starts(n, samples) * n), BLOCKS_MIN)


def _starts(n: int, samples: int) -> int:
    """Return from how many places of the circle a block starts."""
    return min(n, max(samples // (BLOCKS_MIN * n), 1))


def monte_carlo(
    value: Callable[[Bools], Floats], n: int, samples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return estimates of the Shapley values and their standard errors, (n,) each, from about so many coalitions, but
    no fewer than those of BLOCKS_MIN orders.

    value: as in `values`. The estimates add up to v(all) − v(none), as the values do. A 95 % interval is
    ±student_95(blocks_for(n, samples) − 1) standard errors.
    """
    if n < 2:
        raise ValueError(f"expected 2 servers or more, not {n}")
    count, blocks = _starts(n, samples), blocks_for(n, samples)
    estimates = np.empty((blocks, n))
    for block in range(blocks):
        circle = rng.permutation(n)
        starts = np.arange(n) if count == n else (rng.integers(n) + np.arange(count) * n // count) % n
        estimates[block] = _round_the_circle(value, circle, starts)
    return estimates.mean(axis=0), estimates.std(axis=0, ddof=1) / math.sqrt(blocks)


def _round_the_circle(value: Callable[[Bools], Floats], circle: NDArray[np.intp], starts: NDArray[np.intp]) -> Floats:
    """Return what each server adds, averaged over the orders that go round the circle from these starts, (n,)."""
    n, count = len(circle), len(starts)
    along = getattr(value, "along", None) or partial(_along, value)
    # v[s, l]: the value of the l servers from start s on.
    v = np.array([along(np.roll(circle, -int(start))) for start in starts])
    added = np.diff(v, axis=1)  # by the server that stands l after start s
    standing = (starts[:, None] + np.arange(n)[None, :]) % n
    total = np.bincount(standing.ravel(), weights=added.ravel(), minlength=n)
    orders = count
    if count == n:
        # The same arcs joined backwards: the server before start s joins the l from s on.
        before = np.roll(v, 1, axis=0)[:, 1:] - v[:, :-1]
        total += np.roll(before.sum(axis=1), -1)
        orders = 2 * n
    phi = np.empty(n)
    phi[circle] = total / orders
    return phi


def _along(value: Callable[[Bools], Floats], order: NDArray[np.intp]) -> Floats:
    """Return the values of the first 0, 1, … n servers of an order, (n + 1,)."""
    n = len(order)
    place = np.empty(n, dtype=np.intp)
    place[order] = np.arange(n)
    rows = max((CHUNK << 6) // n, 1)
    sizes = np.arange(n + 1)
    return np.concatenate([value(place < sizes[at : at + rows, None]) for at in range(0, n + 1, rows)])


def student_95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz & Stegun 26.7.5), within 0.1 % from 7 degrees on."""
    z, v = 1.959964, float(freedom)
    z3, z5, z7 = z**3, z**5, z**7
    return (
        z
        + (z3 + z) / (4 * v)
        + (5 * z5 + 16 * z3 + 3 * z) / (96 * v**2)
        + (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * v**3)
    )
