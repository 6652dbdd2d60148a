"""Double deep Q-learning over many categorical heads, recurrent: the yardstick that keeps no policy.

Source    Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015, algorithm 1;
          van Hasselt, Guez and Silver, "Deep Reinforcement Learning with Double Q-learning", AAAI 2016, eq. 4;
          Kapturowski et al. (R2D2), ICLR 2019, for the recurrent state; the joint action's value is sac.py's:

    Q(s, a) = ⟨ q_h(s, a_h) ⟩                               mean over head kinds of the mean over active servers
    y       = r + γ (1 − terminated) ⟨ q⁻_h(s', argmax_a q_h(s', a)) ⟩
    J       = (Q(s, a) − y)²

As Q is a mean over heads, its maximum over joint actions is each head's own. The loss is the square, not Huber's:
completion times are skewed, and what is wanted is their mean. Exploration: on average ε heads of a row deviate to a
random level (Agent.deviate).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from controlplane.agents.agent import Numbers
from controlplane.agents.batch import Sequences
from controlplane.agents.bounds import Deviations, Rate, Updates
from controlplane.agents.networks import RowNetwork
from controlplane.agents.replay import ReplayAgent, ReplayConfig
from controlplane.agents.sac import PerHead, mean_over, of_chosen, over_heads, td_target
from controlplane.learned.schema import ActionSchema


@dataclass(frozen=True)
class DqnConfig(ReplayConfig):
    """Hyper-parameters of DQN."""

    target_rate: Rate = 0.02  # how far the target network moves towards the learned one an update
    epsilon: Deviations = 1.0  # heads of a row that deviate, on average, at first (1 head: the usual ε)
    epsilon_end: Deviations = 0.1  # and at last
    epsilon_updates: Updates = 2_000  # updates in which it falls


class DeepQNetwork(ReplayAgent):
    """Double DQN with one value head a decision."""

    name = "dqn"
    config_class = DqnConfig
    config: DqnConfig
    decode = "mode"  # values are no logits: a mean under their softmax would mean nothing

    def __init__(self, schema: ActionSchema, config: DqnConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        self.network = RowNetwork(schema, self.config.hidden)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.networks = nn.ModuleDict({"network": self.network, "target": self.target})
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate, fused=True)

    def actor(self) -> RowNetwork:
        return self.network

    @property
    def epsilon(self) -> float:
        """Heads of a row that deviate now, on average."""
        c = self.config
        done = min(self.updates / max(c.epsilon_updates, 1), 1.0)
        return c.epsilon + done * (c.epsilon_end - c.epsilon)

    def choose(
        self, rows: NDArray[np.float32], whole: NDArray[np.float32], active: NDArray[np.bool_], explore: bool
    ) -> tuple[Numbers, Numbers]:
        best = super().choose(rows, whole, active, False)
        return self.deviate(best, (rows, whole), active, self.epsilon) if explore else best

    def learn(self) -> dict[str, float]:
        loss, value = self.loss(self.sample())
        norm = self.step(loss)
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, self.config.target_rate)
        return {"loss/critic": loss.item(), "value": value.item(), "epsilon": self.epsilon, "gradient_norm": norm}

    def loss(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """Return J and the mean of Q(s, a), over the steps of a batch that may be learned from."""
        b, valid = batch.burn_in, batch.valid[:, batch.burn_in :]
        given = batch.rows, batch.whole, batch.active, batch.hidden, self.borders(batch), b
        values = self.network.heads(self.network.states(*given)[:, b:], batch.active[:, b:])
        active, following = batch.active[:, b:-1], batch.active[:, b + 1 :]
        numbers = batch.numbers_rows[:, b:-1], batch.numbers_whole[:, b:-1]
        q = over_heads(of_chosen((values[0][:, :-1], values[1][:, :-1]), numbers), active)
        with torch.no_grad():
            target_values = self.target.heads(self.target.states(*given)[:, b + 1 :], following)
            best = greatest((values[0][:, 1:], values[1][:, 1:]))
            value_next = over_heads(of_chosen(target_values, best), following)
            reward = self.reward(batch.reward, batch.cost)[:, b:-1]
            y = td_target(reward, batch.done[:, b:-1], value_next, self.config.gamma)
        return mean_over((q - y).square(), valid), mean_over(q.detach(), valid)

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        super().load_actor(parameters)
        self.target.load_numpy(parameters)


def greatest(values: PerHead) -> PerHead:
    """Return the best level of each head."""
    rows, whole = (x.argmax(-1) if x.numel() else x.sum(-1).long() for x in values)
    return rows, whole
