"""Routing as an exact Markov decision process: every flow is a step, and the best there is can be computed.

Flows arrive as a Poisson stream at two or three servers of unlike speed with exponential demands, first come first
served, one at a time. Whoever routes sees the numbers in flight. `Chain` has the exact answers: the least mean
completion time (dataplane/simulator/references.py), and that of any policy by relative value iteration on the chain
made uniform (Puterman, "Markov Decision Processes", 1994, §8.5.5 and §11.5). `Routing` and `RoutingVector` are the
environments in which agents learn it.

    servers     speeds μ_i, flows a second; arrivals λ = load · Σ μ; at most `room` flows on each server
    observed    Dict(rows (n, SERVER_COLUMNS), whole (GLOBAL_COLUMNS,), active (n,)): the inputs of a network
                (learned/encoding.py). In flight, and the speeds through the base bids (n + 1)/μ; nothing else is told,
                for nothing else matters. A server without room is not active.
    action      Discrete(n), the server; one without room is refused (ValueError) unless none has any
    reward      −(n_i + 1)/μ_i, the expected completion time of the flow, seconds: exact, so that all noise is in the
                transitions. Its mean over flows is −L/λ with L the mean number in flight (Little).
    start       what WARM_UP flows came to by shortest expected delay; options={"empty": True}: empty
    end         never

A flow that finds all servers full is lost; `room` is to be so large that it does not matter (`Chain.lost` tells).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, SLOPE_N, Inputs, encode
from dataplane.simulator import Server
from dataplane.simulator.references import optimum
from shm_layout.features import FEATURES

Floats = NDArray[np.float64]
Policy = NDArray[np.int64]  # (room + 1,) * n: the server for a flow that finds these numbers in flight
Observation = dict[str, NDArray[Any]]

# Bounds on the gain are this close when an iteration ends: relative to it, or absolutely.
TOLERANCE = 1e-5
CLOSE = 1e-9
ITERATIONS_MAX = 200_000
# No input is beyond it: logarithms, cut.
INPUT_MAX = 16.0
# Steps that a fresh environment runs by shortest expected delay before it is handed over.
WARM_UP = 200


@dataclass(frozen=True)
class Farm:
    """What arrives where. Raises ValueError for what has no answer."""

    speeds: tuple[float, ...] = (4.0, 1.0)
    load: float = 0.7
    room: int = 30

    def __post_init__(self) -> None:
        if len(self.speeds) < 1 or min(self.speeds) <= 0:
            raise ValueError(f"speeds: expected positive numbers, not {self.speeds}")
        if not 0 < self.load < 1:
            raise ValueError(f"load: expected more than 0 and less than 1, not {self.load}")
        if self.room < 1:
            raise ValueError(f"room: expected 1 or more flows, not {self.room}")

    @property
    def arrivals(self) -> float:
        """λ, flows a second."""
        return self.load * sum(self.speeds)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.room + 1,) * len(self.speeds)

    @cached_property
    def states(self) -> NDArray[np.int64]:
        """Return all states (S, n), in the order of a policy's ravel()."""
        return np.stack([x.ravel() for x in np.indices(self.shape)], axis=1)

    @cached_property
    def inputs(self) -> Inputs:
        """Return what is observed in each state, in the order of `states`."""
        n = self.states.astype(np.float64)
        mu = np.asarray(self.speeds)
        features = np.ones((*n.shape, len(FEATURES)))  # times that tell nothing
        features[:, :, 0] = n
        curves = np.broadcast_to((np.arange(SLOPE_N + 1) + 1.0) / mu[:, None], (len(n), len(mu), SLOPE_N + 1))
        return encode(features, n < self.room, np.zeros((*n.shape, 4)), curves, 1.0 / self.arrivals, 1)

    def by_bids(self, c: float) -> Policy:
        """Return the policy of bids (n + c)/μ: c = 1 is shortest expected delay. The faster one wins a tie."""
        mu = np.asarray(self.speeds)
        bids = (self.states + c) / mu - 1e-9 * mu
        bids[self.states == self.room] = np.inf
        return np.asarray(bids.argmin(axis=1).reshape(self.shape), dtype=np.int64)


class Chain:
    """Exact answers for a farm, by value iteration over all its states."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self._in_flight = farm.states.sum(axis=1).reshape(farm.shape).astype(np.float64)
        self._best: tuple[float, Policy] | None = None

    def optimum(self) -> tuple[float, Policy]:
        """Return the least mean completion time, seconds, and a policy that has it."""
        if self._best is None:
            farm = self.farm
            servers = [Server(speed=speed) for speed in farm.speeds]
            best = optimum(farm.arrivals, 1.0, servers, most=farm.room, tolerance=TOLERANCE)
            self._best = best.mean_fct, best.choice
        return self._best

    def mean_time(self, policy: Policy) -> float:
        """Return the mean completion time of a stationary policy, seconds. Raises ValueError for another farm's."""
        farm = self.farm
        if policy.shape != farm.shape or policy.min() < 0 or policy.max() >= len(farm.speeds):
            raise ValueError(f"policy: expected servers 0 to {len(farm.speeds) - 1}, shape {farm.shape}")
        chosen = np.take_along_axis(farm.states, policy.reshape(-1, 1), axis=1)[:, 0].reshape(farm.shape)
        if ((chosen == farm.room) & (self._in_flight < farm.room * len(farm.speeds))).any():
            raise ValueError("policy: sends a flow to a server without room")
        return self._gain(policy, self._in_flight) / farm.arrivals

    def lost(self, policy: Policy) -> float:
        """Return the share of flows that find all servers full, to within 1e-9."""
        full = np.zeros(self.farm.shape)
        full[(-1,) * full.ndim] = 1.0
        return self._gain(policy, full)

    def _gain(self, policy: Policy, cost: Floats) -> float:
        """Return the mean of a cost (of a state, for as long as it lasts) under a policy: v ← c + P v.

        The chain is looked at with rate Λ = λ + Σ μ; each sweep bounds the gain by the least and greatest of
        c + P v − v (Puterman, theorem 8.5.5).
        """
        farm = self.farm
        rate = farm.arrivals + sum(farm.speeds)
        after = self._after(policy)
        value = np.zeros(farm.shape)
        for sweep in range(ITERATIONS_MAX):
            new = cost + farm.arrivals / rate * value.ravel()[after]
            for i, mu in enumerate(farm.speeds):
                moved, into = np.moveaxis(value, i, 0), np.moveaxis(new, i, 0)
                into[1:] += mu / rate * moved[:-1]
                into[0] += mu / rate * moved[0]
            if sweep % 16 == 15:
                change = new - value
                least, greatest = float(change.min()), float(change.max())
                if greatest - least <= max(TOLERANCE * abs(greatest), CLOSE):
                    return 0.5 * (least + greatest)
            value = new - new[(0,) * new.ndim]
        raise ArithmeticError(f"value iteration has not come to an end after {ITERATIONS_MAX} sweeps")

    def _after(self, policy: Policy) -> NDArray[np.int64]:
        """Return the number of the state that a flow leaves each state for; where all are full, the same."""
        farm = self.farm
        step = np.asarray([(farm.room + 1) ** (len(farm.speeds) - 1 - i) for i in range(len(farm.speeds))])
        after = np.arange(policy.size) + step[policy.ravel()]
        after[-1] = policy.size - 1
        return np.asarray(after.reshape(farm.shape), dtype=np.int64)


class RoutingVector(VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """Many farms at once in numpy; a step is one flow in each of them."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, farm: Farm | None = None, num_envs: int = 64) -> None:
        self.farm = farm or Farm()
        self.num_envs = num_envs
        n = len(self.farm.speeds)
        self.single_observation_space = _space(n)
        self.single_action_space = spaces.Discrete(n)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._mu = np.asarray(self.farm.speeds)
        self.in_flight = np.zeros((num_envs, n), dtype=np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.in_flight[:] = 0
        if not (options or {}).get("empty", False):
            policy = self.farm.by_bids(1.0)
            for _ in range(WARM_UP):
                self.step(policy[tuple(self.in_flight.T)])
        return self._observe(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        every = np.arange(self.num_envs)
        found = self.in_flight[every, actions]
        full = found == self.farm.room
        if (full & (self.in_flight < self.farm.room).any(axis=1)).any():
            raise ValueError("routing: the chosen server has no room and another has")
        reward = -(found + 1.0) / self._mu[actions]
        self.in_flight[every, actions] += ~full
        # Until the next arrival each busy server ends flows at rate μ: as many as a Poisson stream has, if it has them.
        gap = self.np_random.exponential(1.0 / self.farm.arrivals, self.num_envs)
        self.in_flight = np.maximum(self.in_flight - self.np_random.poisson(gap[:, None] * self._mu), 0)
        never = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observe(), reward, never, never.copy(), {}

    @property
    def inputs(self) -> Inputs:
        """What is observed now, as a network takes it."""
        at = np.ravel_multi_index(tuple(self.in_flight.T), self.farm.shape)
        table = self.farm.inputs
        return Inputs(table.rows[at], table.whole[at], table.active[at])

    def _observe(self) -> Observation:
        inputs = self.inputs
        return {"rows": inputs.rows, "whole": inputs.whole, "active": inputs.active.astype(np.int8)}


class Routing(gymnasium.Env[Observation, np.int64]):
    """One farm as Gymnasium has environments."""

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, farm: Farm | None = None) -> None:
        self._vector = RoutingVector(farm, 1)
        self.farm = self._vector.farm
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._vector.np_random = self.np_random
        observation, info = self._vector.reset(options=options)
        return {key: value[0] for key, value in observation.items()}, info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, reward, *_ = self._vector.step(np.asarray([action]))
        return {key: value[0] for key, value in observation.items()}, float(reward[0]), False, False, {}


def _space(n: int) -> spaces.Dict:
    return spaces.Dict(
        {
            "rows": spaces.Box(-INPUT_MAX, INPUT_MAX, (n, len(SERVER_COLUMNS)), np.float32),
            "whole": spaces.Box(-INPUT_MAX, INPUT_MAX, (len(GLOBAL_COLUMNS),), np.float32),
            "active": spaces.MultiBinary(n),
        }
    )
