"""CQL: double Q-learning from a dataset that thinks little of what the dataset does not show.

Source      Kumar, Zhou, Tucker, Levine, "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020,
            equation 4 (CQL(H)); double Q-learning: van Hasselt, Guez, Silver, AAAI 2016

    q_h(s, a)    value of level a of head h; Q(s, a) = ⟨q_h(s, a_h)⟩, the mean over heads of sac.py
    y            r + γ (1 − terminated) ⟨q⁻_h(s', argmax_a q_h(s', a))⟩
    J            ½ (Q(s, a) − y)² + weight · ⟨ log Σ_a exp q_h(s, a) − q_h(s, a_h) ⟩

The second term pushes the values of all levels down, the greatest most, and those of recorded ones up: levels that
were never tried are not overestimated, which without it nothing would correct, as they are never tried offline either.
With weight 0 this is double DQN. Levels are chosen by argmax; the softmax appears in the penalty alone.

The square is not softened for great errors: what comes after a step is skewed here (waits can be long, not short), and
Huber's loss would fit a median of it. As in the paper's experiments with discrete actions there is no actor besides.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from controlplane.agents.batch import Sequences
from controlplane.agents.bounds import Rate, Weight
from controlplane.agents.networks import RowNetwork
from controlplane.agents.offline import OfflineAgent, OfflineConfig
from controlplane.agents.qmix import follow, greedy
from controlplane.agents.sac import PerHead, mean_over, of_chosen, over_heads, td_target
from controlplane.learned.schema import ActionSchema


@dataclass(frozen=True)
class ConservativeConfig(OfflineConfig):
    """Hyper-parameters of CQL."""

    weight: Weight = 1.0  # of the penalty, in units of the normalised reward
    target_rate: Rate = 0.01  # how far the target network moves towards the learned one an update


def penalty(values: PerHead, numbers: PerHead, active: Tensor) -> Tensor:
    """Return ⟨log Σ_a exp q_h(s, a) − q_h(s, a_h)⟩, (…).  Equation 4 without its weight."""
    everything = [x.logsumexp(-1) if x.numel() else x.sum(-1) for x in values]
    chosen = of_chosen(values, numbers)
    return over_heads((everything[0] - chosen[0], everything[1] - chosen[1]), active)


class ConservativeQ(OfflineAgent):
    """A network of values and its target."""

    name = "cql"
    config_class = ConservativeConfig
    config: ConservativeConfig
    decode = "mode"  # argmax of the values

    def __init__(self, schema: ActionSchema, config: ConservativeConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        self.network = RowNetwork(schema, self.config.hidden)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.networks = nn.ModuleDict({"network": self.network, "target": self.target})
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate)

    def actor(self) -> RowNetwork:
        return self.network

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        super().load_actor(parameters)
        self.target.load_numpy(parameters)

    def learn(self) -> dict[str, float]:
        losses = self.losses(self.sample())
        norm = self.step(losses["td"] + self.config.weight * losses["penalty"])
        follow(self.target, self.network, self.config.target_rate)
        figures = {f"loss/{name}": float(x.detach()) for name, x in losses.items() if name != "value"}
        return figures | {"value": float(losses["value"].detach()), "gradient_norm": norm}

    def losses(self, batch: Sequences) -> dict[str, Tensor]:
        """Return the TD error, the penalty and the mean value, over the steps of a batch that may be learned from."""
        b, valid, active = batch.burn_in, batch.valid[:, batch.burn_in :], batch.active[:, batch.burn_in :]
        values = self.network.heads(self.states(self.network, batch)[:, b:], active)
        q, later = (values[0][:, :-1], values[1][:, :-1]), (values[0][:, 1:], values[1][:, 1:])
        numbers = batch.numbers_rows[:, b:-1], batch.numbers_whole[:, b:-1]
        with torch.no_grad():
            judged = self.target.heads(self.states(self.target, batch)[:, b + 1 :], active[:, 1:])
            value = over_heads(of_chosen(judged, greedy(later)), active[:, 1:])
            reward = self.reward(batch.reward, batch.cost)[:, b:-1]
            y = td_target(reward, batch.done[:, b:-1], self.centred(value, valid), self.config.gamma)
        chosen = over_heads(of_chosen(q, numbers), active[:, :-1])
        return {
            "td": 0.5 * mean_over((chosen - y).square(), valid),
            "penalty": mean_over(penalty(q, numbers, active[:, :-1]), valid),
            "value": mean_over(chosen, valid),
        }
