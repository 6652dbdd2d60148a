"""Replay of sequences for recurrent agents: they begin with the state that was stored, warmed up by a burn-in.

Source    Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning" (R2D2), ICLR 2019, §3
Stored    each step of each row; of the state only every `stride`-th, where sequences may begin
Burn-in   the first steps of a sequence only bring the stored state, which an older network made, up to date: no loss,
          no gradient
Borders   at the first step of an episode the state is initial again (`Sequences.fresh`), and the step before it is
          learned from only when it terminated (`Sequences.valid`)

`capacity` counts transitions of one row. Steps overwrite the oldest ones; a sequence never crosses that seam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlplane.agents.agent import Agent, AgentConfig
from controlplane.agents.batch import Sequences, Transition
from controlplane.agents.bounds import BurnIn, Length, Number, Transitions, Warmup
from controlplane.learned.schema import ActionSchema


@dataclass(frozen=True)
class ReplayConfig(AgentConfig):
    """Hyper-parameters of agents that learn from a replay."""

    capacity: Transitions = 200_000  # transitions kept
    warmup: Warmup = 2_000  # transitions before the first update
    batch: Number = 32  # sequences an update (agents with `several`: of replicas)
    length: Length = 16  # steps of a sequence that are learned from
    burn_in: BurnIn = 8  # steps before them

    def __post_init__(self) -> None:
        if self.warmup > self.capacity:
            raise ValueError(f"expected warmup of at most capacity, {self.capacity}, not {self.warmup}")


class Replay:
    """A ring of steps, time first. Arrays are made with the first step, whose shapes all others must have."""

    def __init__(self, capacity: int, length: int, burn_in: int) -> None:
        """capacity: transitions; length: steps learned from; burn_in: steps before them."""
        if length < 1 or burn_in < 0 or capacity < 1:
            raise ValueError(
                f"replay: expected capacity and length >= 1, burn-in >= 0, not {capacity}, {length}, {burn_in}"
            )
        self.capacity, self.length, self.burn_in = capacity, length, burn_in
        self.stride = max(1, length // 2)  # sequences overlap by half, as R2D2's
        self.total = 0  # steps ever added
        self.balancers = 1
        self.steps = 0  # of the ring
        self.arrays: dict[str, NDArray[Any]] = {}
        self.states: NDArray[np.float32] = np.zeros(0, dtype=np.float32)  # (steps / stride, R, n, H)

    @property
    def span(self) -> int:
        """Steps of a sequence, the successor of the last one included."""
        return self.burn_in + self.length + 1

    def __len__(self) -> int:
        """Return how many transitions are there."""
        return min(self.total, self.steps) * (self.arrays["reward"].shape[1] if self.arrays else 0)

    def add(self, step: Transition) -> None:
        """Take in a vector step. Raises ValueError when its shapes are not those of the first."""
        arrays = {
            "rows": step.inputs.rows,
            "whole": step.inputs.whole,
            "active": step.inputs.active,
            "numbers_rows": step.numbers_rows.astype(np.uint8),
            "numbers_whole": step.numbers_whole.astype(np.int16),
            "reward": step.reward.astype(np.float32),
            "cost": step.cost.astype(np.float32),
            "done": step.done,
            "fresh": step.fresh,
        }
        if not self.arrays:
            rows = len(step.reward)
            least = self.span + self.stride  # one sequence must fit wherever the ring is written
            self.steps = -(-max(self.capacity // rows, least) // self.stride) * self.stride
            self.balancers = step.balancers
            self.arrays = {name: np.zeros((self.steps, *x.shape), dtype=x.dtype) for name, x in arrays.items()}
            self.states = np.zeros((self.steps // self.stride, *step.hidden.shape), dtype=np.float32)
        at = self.total % self.steps
        for name, x in arrays.items():
            if x.shape != self.arrays[name].shape[1:]:
                raise ValueError(f"replay: {name} has shape {x.shape}, expected {self.arrays[name].shape[1:]}")
            self.arrays[name][at] = x
        if at % self.stride == 0:
            self.states[at // self.stride] = step.hidden
        self.total += 1

    def starts(self) -> NDArray[np.int64]:
        """Return the numbers of the steps at which a whole sequence begins, counted from the first ever added."""
        first = -(-max(0, self.total - self.steps) // self.stride) * self.stride
        return np.arange(first, self.total - self.span + 1, self.stride, dtype=np.int64)

    def sample(self, rng: np.random.Generator, batch: int, *, several: bool = False) -> Sequences:
        """Return so many sequences, evenly drawn; several: of all balancers of a replica, (B, K, T, …).

        Raises ValueError when not one whole sequence is there.
        """
        starts = self.starts()
        if not len(starts):
            raise ValueError(f"replay: {self.total} steps, a sequence has {self.span}")
        rows = self.arrays["reward"].shape[1]
        start = rng.choice(starts, batch)
        times = (start[:, None] + np.arange(self.span)) % self.steps  # (B, T)
        if several:
            k = self.balancers
            row = rng.integers(0, rows // k, batch)[:, None] * k + np.arange(k)  # (B, K)
            where = times[:, None, :], row[:, :, None]
            state = (start % self.steps // self.stride)[:, None], row
        else:
            row = rng.integers(0, rows, batch)
            where = times, row[:, None]
            state = start % self.steps // self.stride, row
        taken: dict[str, Tensor] = {name: torch.from_numpy(x[where]) for name, x in self.arrays.items()}
        for name in ("numbers_rows", "numbers_whole"):
            taken[name] = taken[name].long()
        return Sequences(**taken, hidden=torch.from_numpy(self.states[state]), burn_in=self.burn_in)

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(x) for name, x in self.arrays.items()}
        return {
            "total": self.total,
            "balancers": self.balancers,
            "arrays": arrays,
            "states": torch.from_numpy(self.states),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.balancers = int(state["total"]), int(state["balancers"])
        self.arrays = {name: x.numpy() for name, x in state["arrays"].items()}
        self.states = state["states"].numpy()
        self.steps = len(self.arrays["reward"]) if self.arrays else 0


class ReplayAgent(Agent):
    """What agents that learn from a replay have in common: storing, and when an update is due."""

    config: ReplayConfig

    def __init__(self, schema: ActionSchema, config: ReplayConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        self.replay = Replay(self.config.capacity, self.config.length, self.config.burn_in)
        self._due = 0  # vector steps observed since the last update

    def store(self, transition: Transition) -> None:
        self.replay.add(transition)
        self._due += 1

    @property
    def ready(self) -> bool:
        enough = len(self.replay) >= self.config.warmup and len(self.replay.starts()) > 0
        return enough and self._due >= self.config.steps_per_update

    def sample(self) -> Sequences:
        """Return a batch, and count the update as made."""
        self._due = 0
        self.updates += 1
        return self.replay.sample(self.rng, self.config.batch, several=self.several)

    def state_dict(self, *, replay: bool = False) -> dict[str, Any]:
        state = super().state_dict(replay=replay)
        # With what waits to be learned from goes how much of it is new.
        return state | {"replay": self.replay.state_dict(), "due": self._due} if replay else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if "replay" in state:
            self.replay.load_state_dict(state["replay"])
            self._due = int(state.get("due", 0))
