"""A vector of episodes in one task: replicas that the agent acts in, and beside each, if wanted, its twin: the same
farm, the same arrivals and demands, left to the base policy.

Completion times are noisy and differ by more from episode to episode than policies do; on the same arrivals most of
that cancels. So rewards are differences from the twin's, and evaluations ratios to it.

    fct         log(F° / F)     mean FCT of the flows that ended in the interval; ° is the twin. The default
    in_flight   (N° − N) / N̄°   flows in flight at the end of the interval; N̄° is the twin's mean so far. By Little's
                                law the mean of N is the arrival rate times the mean FCT; it is seen sooner, with more
                                noise (heterogeneous-4x: deviations of a step 0.14, and 0.10 of fct)
Flows that failed more often than the twin's cost FAILURE_COST mean flows each. Any other reward is env.Reward's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controlplane.env.core import Core, Settings
from controlplane.env.objective import Reward
from controlplane.env.simulated import SimulatedSource
from controlplane.learned.encoding import SLOPE_N, Inputs, encode
from controlplane.learned.schema import ActionSchema
from controlplane.training.tasks import Task
from dataplane.simulator import Simulation, World
from dataplane.simulator.results import OUTCOME_OK

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PAIRED: Final = ("in_flight", "fct")
# A failed flow is as bad as so many times the mean completion time.
FAILURE_COST = 10.0
# Bound of a paired reward.
REWARD_MOST = 5.0


@dataclass(frozen=True)
class Setup:
    """What all episodes of a training have in common. Plain values: it travels to other processes."""

    schema: ActionSchema
    steps: int = 100  # of an episode
    interval: float = 0.2  # seconds a step
    base: str | Mapping[str, Any] = "adaptive"
    base_every: int = 1
    reward: str | Mapping[str, Any] = "fct"
    shared_reward: bool = True  # the balancers of a farm are rewarded alike
    rule: str = "sed"  # of kinds discrete and weights, and what weights are brought to (env.WeightLimits)
    limits: Mapping[str, Any] = field(default_factory=dict)
    constraints: tuple[tuple[str, float], ...] = ()
    warmup: float = 0.2  # share of an episode that does not count in an evaluation
    width: int = 16  # rows of servers

    @property
    def seconds(self) -> float:
        """How long an episode lasts."""
        return self.steps * self.interval

    @property
    def skipped(self) -> int:
        """How many steps of an episode are its warm-up."""
        return int(self.warmup * self.steps)

    @property
    def is_paired(self) -> bool:
        return isinstance(self.reward, str) and self.reward in PAIRED


@dataclass(frozen=True)
class Outcome:
    """What one step gave."""

    reward: NDArray[np.float32]  # (rows,) of the agent's rows
    cost: NDArray[np.float32]  # (rows, constraints)
    flows: Floats  # (replicas,) of all, the twins last
    completed: Floats
    fct_sum: Floats  # seconds
    failed: Floats
    in_flight: Floats  # (replicas,) after it


class Episodes:
    """Replicas of a task with one number of balancers; `begin`, then `inputs` and `step` in turn."""

    def __init__(
        self,
        setup: Setup,
        task: Task,
        balancers: int,
        replicas: int,
        *,
        twins: bool,
        width: int = 0,
        records: bool = False,
    ) -> None:
        """records: keep what became of every flow, for p99()."""

        def world(generator: np.random.Generator) -> World:
            drawn = task.world(generator, balancers, setup.seconds)
            return replace(drawn, records=replace(drawn, duration=setup.seconds).records_expected if records else None)

        schema, reward = setup.schema, "fct_mean" if setup.is_paired else setup.reward
        self.setup, self.replicas, self.balancers, self.twins = setup, replicas, balancers, twins
        self.rows = replicas * balancers
        settings = Settings(
            world=world,
            servers=width or setup.width,
            interval=setup.interval,
            action=schema.kind,
            base=setup.base,
            base_every=setup.base_every,
            bounds=dict(schema.bounds),
            rule=setup.rule,
            limits=dict(setup.limits),
            levels=schema.levels if schema.kind == "discrete" else (1.0, 2.0),
            reward=Reward.of(reward),
            constraints=setup.constraints,
        )
        self.core = Core(
            settings,
            replicas * (2 if twins else 1),
            every_balancer=True,
            followers=replicas if twins else 0,
            with_base=True,
        )
        self._counters = np.zeros(0)
        self._change = np.zeros(0)
        self._in_flight_sum = np.zeros(replicas)
        self._steps = 0

    def begin(self, seeds: Sequence[Sequence[int]]) -> None:
        """Begin an episode in every replica; seeds: one for each, of its farm, traffic and all chance in it."""
        generators = {i: np.random.default_rng(seed) for i, seed in enumerate(seeds)}
        if self.twins:
            generators |= {self.replicas + i: np.random.default_rng(seed) for i, seed in enumerate(seeds)}
        reading = self.core.reset(generators)
        self._counters = reading.counters.copy()
        self._change = np.zeros_like(self._counters)
        self._in_flight_sum[:] = 0.0
        self._steps = 0
        self.core.prepare()

    @property
    def _simulations(self) -> list[Simulation]:
        source = self.core.source
        assert isinstance(source, SimulatedSource)
        return [simulation for simulation in source.simulations if simulation is not None]

    @property
    def world(self) -> World:
        """The first replica's farm and traffic."""
        return self._simulations[0].world

    def p99(self) -> Floats:
        """Return the p99 completion times (replicas,) of the flows that ended after the warm-up, seconds; NaN where
        none did. The twins come last. For episodes with records; raises RuntimeError when some flows have none."""
        since = np.uint64(round(self.setup.skipped * self.setup.interval * 1e9))
        found = []
        for simulation in self._simulations:
            r = simulation.records
            if len(r) < simulation.totals().arrivals:
                raise RuntimeError(f"{len(r)} of {simulation.totals().arrivals} flows were recorded")
            r = r[(r["outcome"] == OUTCOME_OK) & (r["closed_ns"] > since)]
            fct = (r["closed_ns"] - r["arrival_ns"]) * 1e-9
            found.append(float(np.quantile(fct, 0.99)) if len(fct) else float("nan"))
        return np.array(found)

    def inputs(self) -> Inputs:
        """Return what the agent's rows see now."""
        reading, own = self.core.reading, slice(0, self.rows)
        assert reading is not None
        curves = self.core.source.orders.base[own, :, : SLOPE_N + 1]
        return encode(
            reading.features[own],
            reading.active[own].copy(),
            self._change[own],
            curves,
            self.setup.interval,
            self.balancers,
        )

    def step(self, rows: NDArray[Any], whole: NDArray[Any]) -> Outcome:
        """Act by the values of heads (as ActionSchema.to_action takes them) and run one interval."""
        step = self.core.step(self.setup.schema.to_action(rows, whole))
        self.core.prepare()
        reading = step.reading
        self._change = np.maximum(reading.counters - self._counters, 0.0)
        self._counters = reading.counters.copy()
        self._steps += 1
        flows, completed, fct_sum, failed = self._by_replica(self._change.sum(axis=1)).T
        in_flight = self._by_replica(reading.features[:, :, 0].sum(axis=1, dtype=np.float64)[:, None])[:, 0]
        reward = self._reward(self._change.sum(axis=1), reading.features[:, :, 0].sum(axis=1, dtype=np.float64))
        if not self.setup.is_paired:
            reward = step.score.reward[: self.rows]
        if self.setup.shared_reward:
            reward = np.repeat(reward.reshape(-1, self.balancers).mean(axis=1), self.balancers)
        costs = step.score.costs[: self.rows].astype(np.float32)
        return Outcome(reward.astype(np.float32), costs, flows, completed, fct_sum, failed, in_flight)

    def _reward(self, change: Floats, in_flight: Floats) -> Floats:
        """Return (rows,) what the agent's rows are worth beside their twins'.

        change: (all rows, 4) columns COUNTERS. in_flight: (all rows,).
        """
        n = self.rows
        if not self.twins:
            return np.zeros(n)
        (flows, completed, fct_sum, failed), twin = change[:n].T, change[n:].T
        per_row = self._in_flight_sum
        per_row += in_flight[n:].reshape(-1, self.balancers).mean(axis=1)
        usual = np.repeat(per_row / self._steps, self.balancers) + 1.0  # of one balancer
        if self.setup.reward == "fct":
            mine = fct_sum / np.maximum(completed, 1.0)
            other = twin[2] / np.maximum(twin[1], 1.0)
            both = (mine > 0) & (other > 0)
            gain = np.where(both, np.log(np.where(both, other, 1.0) / np.where(both, mine, 1.0)), 0.0)
        else:
            gain = (in_flight[n:] - in_flight[:n]) / usual
        lost = (failed - twin[3]) / np.maximum(flows, 1.0)
        return np.asarray(np.clip(gain - FAILURE_COST * lost, -REWARD_MOST, REWARD_MOST))

    def _by_replica(self, x: Floats) -> Floats:
        """Sum the balancers of each replica: (rows, c) → (replicas, c)."""
        return np.asarray(x.reshape(-1, self.balancers, x.shape[1]).sum(axis=1))

    def close(self) -> None:
        self.core.close()


class Tally:
    """Mean completion times of whole episodes, the warm-up left out."""

    def __init__(self, setup: Setup, replicas: int) -> None:
        self._skip = setup.skipped
        self._steps = 0
        self._sums = np.zeros((4, replicas))

    def add(self, outcome: Outcome) -> None:
        """Take in a step."""
        self._steps += 1
        if self._steps > self._skip:
            self._sums += np.stack([outcome.flows, outcome.completed, outcome.fct_sum, outcome.failed])

    @property
    def fct(self) -> Floats:
        """Mean completion times (replicas,) of flows that ended, seconds, times `failing`."""
        _, completed, fct_sum, _ = self._sums
        return np.asarray(fct_sum / np.maximum(completed, 1.0) * self.failing)

    @property
    def failing(self) -> Floats:
        """1 + FAILURE_COST · failed / flows (replicas,)."""
        flows, _, _, failed = self._sums
        return np.asarray(1.0 + FAILURE_COST * failed / np.maximum(flows, 1.0))

    @property
    def complete(self) -> Bools:
        """Whether any flow ended at all in each replica."""
        return np.asarray(self._sums[1] > 0)
