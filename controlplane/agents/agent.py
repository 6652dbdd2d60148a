"""What every agent does: act, observe, learn, hand over its actor, and be saved and resumed.

A trainer's loop, for all of them:

    hidden = agent.initial(rows, servers)
    while …:
        numbers_rows, numbers_whole, after = agent.act(inputs, hidden, explore=True)
        …                                        # a step of the environments; rows that begin anew get state 0
        agent.observe(Transition(…, hidden=hidden))
        while agent.ready:
            losses = agent.learn()
        hidden = after

Rewards are brought to mean 0 and deviation 1 of what was seen (`normalise_reward`): for a task that goes on for ever
this moves every value by the same constant, and makes temperatures and learning rates mean the same whatever the unit
(Naik et al., "Reward Centering", RLC 2024). Costs of constraints are taken off them with learned multipliers
(lagrange.py).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from controlplane.agents.batch import Sequences, Transition, tensors
from controlplane.agents.bounds import Discount, Number, Positive, Rate, Units, Updates, Weight
from controlplane.agents.lagrange import Multipliers
from controlplane.agents.networks import RowNetwork
from controlplane.learned.encoding import Inputs
from controlplane.learned.schema import ActionSchema

Numbers = NDArray[np.int64]
Hidden = NDArray[np.float32]


@dataclass(frozen=True)
class AgentConfig:
    """Hyper-parameters that all agents have."""

    hidden: Units = 32  # units of the network
    gamma: Discount = 0.95  # discount a step
    learning_rate: Rate = 1e-3  # of Adam
    decay: Updates = 0  # calls of learn() in which learning rates fall linearly to a fiftieth; 0: they stay
    max_grad_norm: Positive = 100.0  # gradients are scaled down to it
    steps_per_update: Number = 1  # vector steps observed from one learn() to the next (PPO: its horizon instead)
    normalise_reward: bool = True  # to mean 0, deviation 1
    memory: bool = True  # False: the state is initial at each step, for what needs no memory (exact.py)
    cost_limit: Weight = 0.01  # mean cost that each constraint may have
    multiplier_rate: Weight = 0.01  # by how much a multiplier rises a step for each unit above the limit; 0: never
    multiplier_max: Weight = 100.0


class Agent(ABC):
    """Learns a RowNetwork. Subclasses set `networks` (all that has parameters) before anything is saved."""

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    on_policy: ClassVar[bool] = False  # learns only from what the present network did
    several: ClassVar[bool] = False  # learns from all balancers of a replica together
    decode: str = "mean"  # how the exported network's logits become values: "mode" or "mean"

    networks: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, schema: ActionSchema, config: AgentConfig | None = None, seed: int = 0) -> None:
        self.schema = schema
        self.config = config if config is not None else self.config_class()
        if not isinstance(self.config, self.config_class):
            raise TypeError(f"agent {self.name}: expected a {self.config_class.__name__}")
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.multipliers = Multipliers(self.config.cost_limit, self.config.multiplier_rate, self.config.multiplier_max)
        self.scale = RewardScale()
        self.observed = 0  # vector steps
        self.updates = 0  # calls of learn()
        torch.manual_seed(seed)  # initial weights

    # Acting

    def initial(self, rows: int, servers: int) -> Hidden:
        """Return the state of networks that have seen nothing, (rows, servers, hidden)."""
        return np.zeros((rows, servers, self.config.hidden), dtype=np.float32)

    def act(self, inputs: Inputs, hidden: Hidden, explore: bool) -> tuple[Numbers, Numbers, Hidden]:
        """Return chosen levels (R, n, row heads), (R, global heads) or (R, 1) the server, and the state after."""
        with torch.no_grad():
            rows, whole, after = self.actor()(*tensors(inputs), torch.from_numpy(hidden))
        numbers_rows, numbers_whole = self.choose(rows.numpy(), whole.numpy(), inputs.active, explore)
        return numbers_rows, numbers_whole, after.numpy() if self.config.memory else hidden

    def choose(
        self, rows: NDArray[np.float32], whole: NDArray[np.float32], active: NDArray[np.bool_], explore: bool
    ) -> tuple[Numbers, Numbers]:
        """Return levels drawn from the softmax of these logits, or the likeliest."""
        return self._draw(rows, explore), self._draw(whole, explore)

    def _draw(self, logits: NDArray[np.float32], explore: bool) -> Numbers:
        if logits.size == 0:
            return np.zeros(logits.shape[:-1], dtype=np.int64)
        if explore:
            # Adding Gumbel noise and taking the greatest is a draw from the softmax; −inf is never drawn.
            logits = logits + self.rng.gumbel(size=logits.shape).astype(np.float32)
        return np.asarray(logits.argmax(axis=-1), dtype=np.int64)

    def deviate(
        self,
        chosen: tuple[Numbers, Numbers],
        logits: tuple[NDArray[np.float32], NDArray[np.float32]],
        active: NDArray[np.bool_],
        heads: float,
    ) -> tuple[Numbers, Numbers]:
        """Return the choice with so many heads of each row, on average, at any level that can be chosen.

        However many a row has: if each deviated with one chance, no row of many heads would act as its policy does.
        """
        rows, whole = logits
        number = active.sum(axis=1) * rows.shape[2] + whole.shape[1]  # (R,)
        chance = np.minimum(heads / np.maximum(number, 1), 1.0)
        out = []
        for numbers, values in zip(chosen, logits, strict=True):
            anything = self._draw(np.where(np.isfinite(values), np.float32(0.0), np.float32(-np.inf)), True)
            deviates = self.rng.random(numbers.shape) < chance.reshape(-1, *(1,) * (numbers.ndim - 1))
            out.append(np.where(deviates, anything, numbers))
        return out[0], out[1]

    # Learning

    def observe(self, transition: Transition) -> None:
        """Take in one vector step."""
        self.observed += 1
        self.scale.update(transition.reward)
        self.multipliers.update(transition.cost)
        self.store(transition)

    @abstractmethod
    def store(self, transition: Transition) -> None:
        """Keep a step to learn from."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether learn() is due."""

    @abstractmethod
    def learn(self) -> dict[str, float]:
        """Make one update and return its losses and other figures to plot."""

    @abstractmethod
    def actor(self) -> RowNetwork:
        """Return the network that acts, which is what is exported."""

    def reward(self, reward: Tensor, cost: Tensor) -> Tensor:
        """Return what is maximised: r, normalised, less the costs times their multipliers. (…), (…, C) → (…)."""
        if self.config.normalise_reward:
            reward = (reward - self.scale.mean) / self.scale.deviation
        if cost.shape[-1]:
            reward = reward - cost @ torch.as_tensor(self.multipliers.values, dtype=cost.dtype)
        return reward

    def borders(self, batch: Sequences) -> Tensor:
        """Return at which steps of a batch the state is initial, (B, T): where episodes begin, or everywhere."""
        return batch.fresh if self.config.memory else torch.ones_like(batch.fresh)

    def step(self, loss: Tensor) -> float:
        """Descend along a loss and return the gradients' norm before it was cut."""
        if self.config.decay:
            left = max(1.0 - self.updates / self.config.decay, 0.02)
            for group in self.optimizer.param_groups:
                group["lr"] = left * group.setdefault("initial_lr", group["lr"])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.networks.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return float(norm)

    # Saving

    def state_dict(self, *, replay: bool = False) -> dict[str, Any]:
        """Return all that is needed to go on, tensors and plain values (torch.load with weights_only reads it).

        replay: with what was stored to learn from, which is large; without it an agent collects anew first.
        """
        return {
            "agent": self.name,
            "schema": json.dumps(self.schema.as_json()),
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "multipliers": self.multipliers.state_dict(),
            "scale": self.scale.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
            "generator": self.generator.get_state(),
            "observed": self.observed,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError when it is another agent's or of another action schema."""
        if state["agent"] != self.name:
            raise ValueError(f"agent {self.name}: the state is of agent {state['agent']}")
        if ActionSchema.of(json.loads(state["schema"])) != self.schema:
            raise ValueError(f"agent {self.name}: the state is of another action schema: {state['schema']}")
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.multipliers.load_state_dict(state["multipliers"])
        self.scale.load_state_dict(state["scale"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.generator.set_state(state["generator"])
        self.observed, self.updates = int(state["observed"]), int(state["updates"])

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        """Begin from an exported network (fine-tuning). Critics begin anew."""
        self.actor().load_numpy(parameters)


class RewardScale:
    """Running mean and deviation of rewards; early ones are forgotten as more come (the policy has changed since)."""

    RATE = 5e-3  # of a vector step, at least

    def __init__(self) -> None:
        self.steps, self.mean, self.square = 0, 0.0, 0.0

    def update(self, reward: NDArray[np.float32]) -> None:
        if reward.size == 0:
            return
        self.steps += 1
        rate = max(1.0 / self.steps, self.RATE)
        self.mean += rate * (float(reward.mean()) - self.mean)
        self.square += rate * (float(np.square(reward - self.mean).mean()) - self.square)

    @property
    def deviation(self) -> float:
        return max(float(np.sqrt(self.square)), 1e-6)

    def state_dict(self) -> dict[str, float]:
        return {"steps": self.steps, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.steps, self.mean, self.square = int(state["steps"]), float(state["mean"]), float(state["square"])
