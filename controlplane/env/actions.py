"""What an action means: four kinds, each with its space and its way from numbers to what is published.

    curves        a correction of the base policy's bid curves; zero is the base policy itself (the default)
    discrete      a level for each server, {1, 1.5, 2} by default: weights
    weights       a weight for each server, low · (high/low)^((a + 1)/2); zero is equal weights
    adjustments   w_t+1 = w_t + step · a

Actions out of their box are clipped to it. Weights then go through `WeightLimits`; a rule makes them a directive:
"sed" bids (n + 1)/w, "gsed" bids (n + 1/2)/w, "alias" and "wrr" are lotteries in proportion.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from controlplane.env.orders import Orders
from controlplane.weights import WeightLimits
from dataplane._dataplane import lib

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]

# Rule by name: how the row's directive is made, and the constant c of (n + c)/w.
RULES: Final = {
    "sed": (lib.VECTOR_BIDS, 1.0),
    "gsed": (lib.VECTOR_BIDS, 0.5),
    "alias": (lib.VECTOR_ALIAS, 1.0),
    "wrr": (lib.VECTOR_WRR, 1.0),
}
# Numbers of a correction that are not a server's: K, c and the window.
GLOBALS: Final = 3


@dataclass(frozen=True)
class Bounds:
    """Greatest corrections, as logarithms of factors: an action of ±1 multiplies or divides by e^bound."""

    mu: float = math.log(4.0)  # a server's speed; two servers' ratio may be off by the square: 1:16
    k: float = math.log(4.0)  # the flows that it bears at once
    balancers: float = math.log(4.0)  # K, flows there for each one seen
    scale: float = math.log(4.0)  # an idle server's bid: c of (K·n + c)/w
    window: float = math.log(8.0)  # the memory of a base policy that learns

    def __post_init__(self) -> None:
        for name in ("mu", "k", "balancers", "scale", "window"):
            if not 0 <= getattr(self, name) <= math.log(1e6):
                raise ValueError(f"bound of {name}: expected 0 … {math.log(1e6):.1f}, not {getattr(self, name)}")


class ActionKind(ABC):
    """One kind of action, for rows of a source. It may keep state, one value a row."""

    name: str
    needs_base: bool = False
    constant = 1.0  # of (n + constant)/w

    @abstractmethod
    def space(self, servers: int) -> spaces.Space[Any]: ...

    @abstractmethod
    def reset(self, rows: Rows, active: Mask) -> None:
        """Begin an episode in these rows; active: (rows, servers)."""

    @abstractmethod
    def order(self, actions: NDArray[Any], rows: Rows, active: Mask, orders: Orders) -> None:
        """Write what actions (n, …) of rows (n,) mean into the orders; active: (n, servers)."""


class CurveCorrection(ActionKind):
    """(K, c, window, δμ_0, δk_0, δμ_1, δk_1, …), each in [−1, 1] of its bound.

    Server i then bids  e^−δμ_i · (base_i(n · K · e^−δk_i) + (c − 1) · base_i(0)).
    """

    name = "curves"
    needs_base = True

    def __init__(self, servers: int, bounds: Bounds) -> None:
        self.bounds = bounds
        per_server = np.tile([bounds.mu, bounds.k], servers)
        self._bounds = np.concatenate([[bounds.balancers, bounds.scale, bounds.window], per_server])

    def space(self, servers: int) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (GLOBALS + 2 * servers,), np.float32)

    def reset(self, rows: Rows, active: Mask) -> None:
        """Nothing is kept."""

    def order(self, actions: NDArray[Any], rows: Rows, active: Mask, orders: Orders) -> None:
        logs = np.clip(actions, -1.0, 1.0) * self._bounds
        orders.mode[rows] = lib.VECTOR_CURVES
        orders.correction[rows] = np.delete(logs, 2, axis=1)
        orders.window[rows] = np.exp(logs[:, 2])


class WeightAction(ActionKind):
    """What the three kinds of weights have in common."""

    def __init__(self, servers: int, limits: WeightLimits, rule: str) -> None:
        if rule not in RULES:
            raise ValueError(f"rule: {rule!r} is not one of {', '.join(RULES)}")
        self.servers, self.limits = servers, limits
        self.mode, self.constant = RULES[rule]

    def reset(self, rows: Rows, active: Mask) -> None:
        """Nothing is kept."""

    @abstractmethod
    def raw(self, actions: NDArray[Any], rows: Rows) -> Floats:
        """Return weights (n, servers) before the limits."""

    def order(self, actions: NDArray[Any], rows: Rows, active: Mask, orders: Orders) -> None:
        # A row without an active server gives nothing to share out: all alike.
        some = np.where(active.any(axis=1, keepdims=True), active, True)
        weights = self.limits.apply(self.raw(actions, rows), some)
        orders.mode[rows] = self.mode
        orders.weights[rows] = weights
        self.keep(weights, rows, some)

    def keep(self, weights: Floats, rows: Rows, active: Mask) -> None:
        """Remember what was given, if the next action depends on it."""


class Discrete(WeightAction):
    """A level's index for each server."""

    name = "discrete"

    def __init__(self, servers: int, limits: WeightLimits, rule: str, levels: tuple[float, ...]) -> None:
        super().__init__(servers, limits, rule)
        self.levels = np.asarray(levels, dtype=np.float64)
        if self.levels.ndim != 1 or len(self.levels) < 2 or not (np.isfinite(self.levels) & (self.levels >= 0)).all():
            raise ValueError(f"levels: expected two or more weights >= 0, not {levels}")

    def space(self, servers: int) -> spaces.Space[Any]:
        return spaces.MultiDiscrete(np.full(servers, len(self.levels)))

    def raw(self, actions: NDArray[Any], rows: Rows) -> Floats:
        return np.asarray(self.levels[np.clip(actions, 0, len(self.levels) - 1).astype(np.intp)])


class Weights(WeightAction):
    """A weight for each server, on a logarithmic scale between the limits; drain: −1 means none."""

    name = "weights"

    def __init__(self, servers: int, limits: WeightLimits, rule: str, drain: bool) -> None:
        super().__init__(servers, limits, rule)
        self.drain = drain

    def space(self, servers: int) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (servers,), np.float32)

    def raw(self, actions: NDArray[Any], rows: Rows) -> Floats:
        a = np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
        weights = self.limits.low * (self.limits.high / self.limits.low) ** ((a + 1.0) / 2.0)
        return np.where(a <= -1.0, 0.0, weights) if self.drain else weights


class Adjustments(WeightAction):
    """w_t+1 = w_t + step · a, from equal weights on."""

    name = "adjustments"

    def __init__(self, servers: int, limits: WeightLimits, rule: str, step: float, rows: int) -> None:
        super().__init__(servers, limits, rule)
        if not 0 < step < np.inf:
            raise ValueError(f"step: {step}")
        self.step = step
        self.weights = np.ones((rows, servers))

    def space(self, servers: int) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (servers,), np.float32)

    def reset(self, rows: Rows, active: Mask) -> None:
        self.weights[rows] = 1.0

    def raw(self, actions: NDArray[Any], rows: Rows) -> Floats:
        # Adjusting cannot drain: a weight that falls to nothing is at its lower limit.
        moved = self.weights[rows] + self.step * np.clip(np.asarray(actions, dtype=np.float64), -1.0, 1.0)
        return np.maximum(moved, self.limits.low * 1e-3)

    def keep(self, weights: Floats, rows: Rows, active: Mask) -> None:
        # A server that comes back begins where equal weights do.
        self.weights[rows] = np.where(active, weights, 1.0)


KINDS: Final = ("curves", "discrete", "weights", "adjustments")


def make_action(
    kind: str,
    servers: int,
    rows: int,
    *,
    bounds: Bounds,
    limits: WeightLimits,
    rule: str,
    levels: tuple[float, ...],
    step: float,
    drain: bool,
) -> ActionKind:
    """Return the kind of that name; ValueError: there is none, or an option is out of range."""
    match kind:
        case "curves":
            return CurveCorrection(servers, bounds)
        case "discrete":
            return Discrete(servers, limits, rule, levels)
        case "weights":
            return Weights(servers, limits, rule, drain)
        case "adjustments":
            return Adjustments(servers, limits, rule, step, rows)
    raise ValueError(f"action: {kind!r} is not one of {', '.join(KINDS)}")
