"""What corrections of a base policy are worth on a farm, by regression over farms: for the agent `arms`.

    u = (K, c, m)   a correction: the logarithms of K and of c in units of their bounds, and m in units of PART times
                    μ's: that part of the logarithm of a server's capacity over the farm's geometric mean by which its
                    bids are lower
    y(farm, u)      log of the mean completion time over the base policy's, on the same arrivals and demands, and
                    `tail` times that of the p99; each = s·(K, c, m) + q·(K², c², m², Kc, Km, cm)

One episode says of one farm what is mostly chance. So the farms of a regime are taken together: they have one q, and
slopes s that depend on the load and, from three balancers on, on their number. All y of a farm share the chance of the
base policy's episode, so that they count from the farm's mean, the base's 0 in it (generalised least squares, where all
episodes have as much of it). Ridge regression towards a PRIOR by which every correction costs: where few farms were
seen, nothing is worth doing. Drawing the farms anew with replacement (Efron's bootstrap, 1979) tells how sure a surface
is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controlplane.learned.schema import ActionSchema

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Halves = NDArray[np.float16]

PART: Final = 0.6
UNIT_LEAST = PART * 0.01
# Corrections that are tried lie in this box, and between these sums of −K + c + m: beyond, all are bad.
LEAST, MOST = np.array([-1.0, -0.5, -0.4]), np.array([0.5, 1.0, 1.0])
SUM_LEAST, SUM_MOST = -0.8, 1.3

# What is known of the base policy's bids and of the servers: bids come from the own flows, in order (shared_view.py);
# servers where flows queue; servers whose flows share the cores.
ORDERED, QUEUES, CORES = range(3)
# y's mean, and p99, of a correction of one unit of which nothing is known, and how many episodes' weight that has.
PRIOR, STRENGTH = 0.02, 1.0
# Of fewer farms a regime has nothing but the prior: drawn with replacement, a few are always much alike.
FEW = 8
TERMS: Final = 9


@dataclass(frozen=True)
class Arms:
    """Corrections tried on one farm, and what they came to."""

    u: Floats  # (arms, 3)
    y: Floats  # (arms, 2), of the mean and of the p99
    regime: int
    balancers: int
    load: float


@dataclass(frozen=True)
class Farm:
    """One farm's arms, and what a balancer saw there in two of the episodes: the base policy's, and one arm's."""

    arms: Arms
    rows: Halves  # (2, T, n, SERVER_COLUMNS)
    whole: Singles  # (2, T, GLOBAL_COLUMNS)
    active: NDArray[np.bool_]  # (2, T, n)
    relative: Halves  # (2, T, n) what relative_of() gives

    @property
    def is_whole(self) -> bool:
        """Whether flows ended in all episodes."""
        return bool(np.isfinite(self.arms.y).all())


def units_of(schema: ActionSchema) -> Floats:
    """Return what one unit of u is, as logarithms (3,). Raises ValueError for other heads than K, c and μ."""
    if (schema.kind, schema.row_heads, sorted(schema.global_heads)) != ("curves", ("mu",), ["balancers", "scale"]):
        raise ValueError("expected kind curves, row_heads [mu] and global_heads [balancers, scale]: μ, K and c")
    units = np.array([schema.bounds["balancers"], schema.bounds["scale"], PART * schema.bounds["mu"]])
    if not (units >= UNIT_LEAST).all():
        raise ValueError("expected bounds of mu, balancers and scale of at least 0.01")
    return units


def relative_of(weights: Floats | None, active: NDArray[np.bool_]) -> Floats:
    """Return the logarithm of each server's capacity (n,) over the geometric mean of those that are active; 0 of the
    others, and where the base policy tells no weights."""
    if weights is None or not active.any():
        return np.zeros(len(active))
    logs = np.log(np.maximum(np.asarray(weights, dtype=np.float64), 1e-9))
    return np.where(active, logs - logs[active].mean(), 0.0)


def corrections(schema: ActionSchema, u: Floats, relative: Floats) -> tuple[Floats, Floats]:
    """Return what corrections u (R, 3) are as values of the heads, (R, n, 1) and (R, 2). relative: (R, n).

    Values beyond ±1 are cut in an episode: of m = 1, on servers of 5.3 times the geometric mean and more.
    """
    logs, bounds = u * units_of(schema), schema.bounds
    of = {"balancers": logs[:, 0], "scale": logs[:, 1]}
    whole = np.stack([of[name] / bounds[name] for name in schema.global_heads], 1)
    return (logs[:, 2:] * relative / bounds["mu"])[:, :, None], whole


def regime_of(kind: int, balancers: int) -> int:
    """Return the regime of a farm: its kind, ORDERED, QUEUES or CORES, with one balancer, with two, or with more."""
    return 3 * (min(balancers, 3) - 1) + kind


def draw(generator: np.random.Generator, number: int) -> Floats:
    """Return so many corrections of the box, (number, 3)."""
    found: list[Floats] = []
    while len(found) < number:
        u: Floats = generator.uniform(LEAST, MOST)
        if SUM_LEAST < -u[0] + u[1] + u[2] < SUM_MOST:
            found.append(u)
    return np.array(found).reshape(number, 3)


def terms(u: Any, stack: Any = np.stack) -> Any:
    """Return the three linear and the six quadratic terms of u (…, 3): (…, TERMS); stack: of the library of u."""
    k, c, m = u[..., 0], u[..., 1], u[..., 2]
    return stack([k, c, m, k * k, c * c, m * m, k * c, k * m, c * m], -1)


@dataclass(frozen=True)
class Judge:
    """How episodes are judged."""

    tail: float  # what the p99 counts beside the mean
    worst: float  # |y| beyond which it counts hardly more
    noise: float  # least standard deviation of a farm's y


def surfaces(farms: list[Arms], drawn: NDArray[np.intp], judge: Judge) -> Floats:
    """Return each farm's coefficients (farms, TERMS), all of them from the episodes of those drawn."""
    out = np.empty((len(farms), TERMS))
    of = np.array([farm.regime for farm in farms])
    for regime in np.unique(of):
        mine = [farms[i] for i in drawn if of[i] == regime] if np.count_nonzero(of == regime) >= FEW else []
        depends = len(_slopes_depend_on(farms[int(np.argmax(of == regime))]))
        found = _regression(mine, depends, 0, judge) + judge.tail * _regression(mine, depends, 1, judge)
        for i in np.flatnonzero(of == regime):
            out[i, :3] = found[: 3 * depends].reshape(3, depends) @ _slopes_depend_on(farms[i])
            out[i, 3:] = found[3 * depends :]
    return out


def _slopes_depend_on(farm: Arms) -> Floats:
    more = [np.log2(farm.balancers) - 2.0] if farm.balancers > 2 else []
    return np.array([1.0, farm.load - 0.8, *more])


def _regression(farms: list[Arms], depends: int, metric: int, judge: Judge) -> Floats:
    """Return the coefficients (3·depends + 6,) of a regime, of one column of y."""
    prior = np.zeros(3 * depends + 6)
    prior[3 * depends : 3 * depends + 3] = PRIOR
    if not farms:
        return prior
    x, y, weight = [], [], []
    for farm in farms:
        t = terms(np.concatenate([np.zeros((1, 3)), farm.u]))  # the base policy's first
        slopes = (t[:, :3, None] * _slopes_depend_on(farm)).reshape(len(t), -1)
        known, gains = np.hstack([slopes, t[:, 3:]]), np.concatenate([[0.0], farm.y[:, metric]])
        found = judge.worst * np.tanh(gains / judge.worst)
        x.append(known - known.mean(axis=0))
        y.append(found - found.mean())
        # A farm whose episodes differ much says little.
        weight.append(np.full(len(t), 1.0 / (judge.noise**2 + float(np.var(y[-1])))))
    matrix, target, w = np.concatenate(x), np.concatenate(y), np.concatenate(weight)
    w /= w.mean()
    weighted = (matrix * w[:, None]).T
    normal = weighted @ matrix + STRENGTH * np.eye(len(prior))
    return np.asarray(prior + np.linalg.solve(normal, weighted @ (target - matrix @ prior)))


def doubted(farms: list[Arms], generator: np.random.Generator, number: int, judge: Judge) -> Floats:
    """Return so many sets of surfaces, each from as many farms drawn with replacement: (number, farms, TERMS)."""
    return np.stack([surfaces(farms, generator.choice(len(farms), len(farms)), judge) for _ in range(number)])
