"""What an agent is to achieve: which reward of which field, its shaping, and costs of constraints, per step and row.

    Reward("jain")                                       Jain's index of flow_duration_mean_decay, the default
    Reward("fct_mean")                                   minus the mean FCT of the flows that ended in the interval
    Reward("fct_tail", quantile=0.99)                    minus their 99th percentile
    Reward("fct_mean", shaping="jain", gamma=0.99)       plus γ Φ(s') − Φ(s) with Φ = Jain's index
    Constraint("utilisation", 0.8, weight=2)             cost: 2 · max(0, greatest utilisation − 0.8)

Costs are reported in `info`, each by itself and their weighted sum; they are taken off the reward only when asked for
(`penalise`), since an agent that learns its multipliers must see the bare reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controlplane.env import rewards
from controlplane.env.reading import COUNTERS, TRUTHS, Reading
from shm_layout.features import FEATURES, PRIOR, percentiles

Floats = NDArray[np.float64]

FIELDS: Final = FEATURES
TIMES: Final = ("fct_mean", "fct_tail")
METRICS: Final = (*rewards.FAIRNESS, *TIMES)
UTILISATION: Final = "utilisation"
# A server's utilisation so long ago weighs half of its present one.
UTILISATION_SECONDS = 10.0


def _one_of(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{what}: {name!r} is not one of {', '.join(known)}")


@dataclass(frozen=True)
class Reward:
    """A reward: metric of a field, or of completion times; with potential-based shaping by another metric, if any."""

    metric: str = "jain"
    field: str = "flow_duration_mean_decay"
    invert: bool = False  # x becomes 1/(1 + x): for metrics that reward greater x, of fields better small
    quantile: float = 0.99  # of fct_tail
    shaping: str | None = None  # a fairness metric: the potential
    shaping_field: str | None = None  # of the potential; None: field
    shaping_scale: float = 1.0
    gamma: float = 0.99  # of the shaping; must be the agent's
    scale: float = 1.0  # of the metric

    def __post_init__(self) -> None:
        _one_of("reward metric", self.metric, METRICS)
        _one_of("reward field", self.field, FIELDS)
        if self.shaping is not None:
            _one_of("shaping potential", self.shaping, tuple(rewards.FAIRNESS))
        if self.shaping_field is not None:
            _one_of("shaping field", self.shaping_field, FIELDS)
        if not 0 < self.quantile < 1:
            raise ValueError(f"reward quantile: {self.quantile} is not between 0 and 1")

    @classmethod
    def of(cls, given: Reward | str | Mapping[str, Any]) -> Reward:
        """Return a Reward from its metric's name or its fields."""
        if isinstance(given, Reward):
            return given
        return cls(given) if isinstance(given, str) else cls(**given)


@dataclass(frozen=True)
class Constraint:
    """The greatest value of a field over the active servers shall not pass a limit.

    field: one of the features, or "utilisation": the share of its workers' time that a server was busy in the
    interval, which only the simulator knows.
    """

    field: str
    limit: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        _one_of("constraint field", self.field, (*FIELDS, UTILISATION))
        if not (np.isfinite(self.limit) and np.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"constraint on {self.field}: limit {self.limit}, weight {self.weight}")

    @classmethod
    def of(cls, given: Constraint | Sequence[Any] | Mapping[str, Any]) -> Constraint:
        if isinstance(given, Constraint):
            return given
        return cls(**given) if isinstance(given, Mapping) else cls(*given)


@dataclass(frozen=True)
class Score:
    """What one step was worth, one value a row."""

    reward: Floats  # (rows,)
    cost: Floats  # (rows,) Σ weight · violation
    costs: Floats  # (rows, constraints) the violations
    flows: Floats  # (rows,) that came in the interval
    completed: Floats  # (rows,) that ended in it
    failed: Floats  # (rows,)
    fct_mean: Floats  # (rows,) seconds, of those that ended; the last known when none did


class Scorer:
    """Scores steps; keeps the reading before of every row."""

    def __init__(
        self, reward: Reward, constraints: Sequence[Constraint], penalise: bool, rows: int, servers: int, balancers: int
    ) -> None:
        self.reward, self.constraints, self.penalise = reward, tuple(constraints), penalise
        self._balancers = balancers
        self._counters = np.zeros((rows, servers, len(COUNTERS)))
        self._truth = np.zeros((rows // balancers, servers, len(TRUTHS)))
        self._histogram: NDArray[np.uint64] | None = None
        self._potential = np.zeros(rows)
        self._fct_mean = np.full(rows, PRIOR)
        self._fct_tail = np.full(rows, PRIOR)
        self._weights = np.array([constraint.weight for constraint in self.constraints])
        # Busy and available seconds of each server's workers, those of UTILISATION_SECONDS ago weighing half.
        self._worked = np.zeros((2, rows // balancers, servers))
        self._now_ns = np.zeros(rows // balancers, dtype=np.uint64)

    @property
    def needs_histogram(self) -> bool:
        return self.reward.metric == "fct_tail"

    @property
    def needs_truth(self) -> bool:
        return any(constraint.field == UTILISATION for constraint in self.constraints)

    def begin(self, reading: Reading, rows: Sequence[int] | NDArray[np.intp]) -> None:
        """Forget the past of these rows: an episode begins with this reading."""
        rows = np.asarray(rows, dtype=np.intp)
        self._counters[rows] = reading.counters[rows]
        replicas = np.unique(rows // self._balancers)
        self._truth[replicas] = reading.truth[replicas]
        self._worked[:, replicas] = 0.0
        self._now_ns[replicas] = reading.now_ns[replicas]
        if self.needs_histogram:
            if self._histogram is None:
                self._histogram = np.zeros_like(reading.histogram)
            self._histogram[rows] = reading.histogram[rows]
        self._fct_mean[rows] = self._fct_tail[rows] = PRIOR
        self._potential[rows] = self._potential_of(reading)[rows]

    def score(self, reading: Reading, terminated: NDArray[np.bool_]) -> Score:
        """Return what the step that led to this reading was worth. terminated: (rows,)."""
        # A slot's counters begin anew when another server takes it.
        change = np.maximum(reading.counters - self._counters, 0.0).sum(axis=1)
        self._counters[:] = reading.counters
        flows, completed, fct_sum, failed = change.T
        np.divide(fct_sum, completed, out=self._fct_mean, where=completed > 0)
        reward = self.reward.scale * self._metric(reading, completed)
        if self.reward.shaping is not None:
            potential = self._potential_of(reading)
            reward = reward + rewards.shaping(self._potential, potential, self.reward.gamma, terminated)
            self._potential[:] = potential
        costs = self._costs(reading)
        cost = costs @ self._weights if len(self.constraints) else np.zeros(len(reward))
        if self.penalise:
            reward = reward - cost
        return Score(reward, cost, costs, flows, completed, failed, self._fct_mean.copy())

    def _metric(self, reading: Reading, completed: Floats) -> Floats:
        r = self.reward
        if r.metric == "fct_mean":
            return -self._fct_mean
        if r.metric == "fct_tail":
            assert self._histogram is not None
            # Where a restarted server took counts away, nothing is known of the interval.
            change = np.maximum(reading.histogram.astype(np.int64) - self._histogram.astype(np.int64), 0)
            self._histogram[:] = reading.histogram
            tail = percentiles(change, 100.0 * r.quantile)[:, 0]
            self._fct_tail[:] = np.where(np.isfinite(tail), tail, self._fct_tail)
            return -self._fct_tail
        return rewards.FAIRNESS[r.metric](self._field(reading, r.field), reading.active)

    def _field(self, reading: Reading, field: str) -> Floats:
        x = reading.features[:, :, FIELDS.index(field)].astype(np.float64)
        return 1.0 / (1.0 + x) if self.reward.invert else x

    def _potential_of(self, reading: Reading) -> Floats:
        r = self.reward
        if r.shaping is None:
            return np.zeros(len(reading.features))
        x = self._field(reading, r.shaping_field or r.field)
        return r.shaping_scale * rewards.FAIRNESS[r.shaping](x, reading.active)

    def _costs(self, reading: Reading) -> Floats:
        costs = np.zeros((len(reading.features), len(self.constraints)))
        for column, constraint in enumerate(self.constraints):
            if constraint.field == UTILISATION:
                x = np.repeat(self._utilisation(reading), self._balancers, axis=0)
            else:
                x = reading.features[:, :, FIELDS.index(constraint.field)].astype(np.float64)
            costs[:, column] = rewards.violation(x, constraint.limit, reading.active)
        if self.needs_truth:
            self._truth[:] = reading.truth
        return costs

    def _utilisation(self, reading: Reading) -> Floats:
        """Return (replicas, servers) the busy share of the workers' time, of late."""
        busy, capacity = (TRUTHS.index(name) for name in ("busy_seconds", "capacity_seconds"))
        change = np.maximum(reading.truth - self._truth, 0.0)
        seconds = (reading.now_ns - self._now_ns) * 1e-9
        self._now_ns[:] = reading.now_ns
        self._worked *= 0.5 ** (seconds / UTILISATION_SECONDS)[:, None]
        self._worked += np.stack([change[:, :, busy], change[:, :, capacity]])
        worked, there = self._worked
        return np.divide(worked, there, out=np.zeros_like(there), where=there > 0)
