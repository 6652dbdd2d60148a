"""Behaviour cloning: do what was recorded, as often as it was recorded; the floor for all offline agents.

Source      Pomerleau, "ALVINN: An Autonomous Land Vehicle in a Neural Network", NIPS 1988: supervised learning of
            what a driver did

    π_h(a | s)   softmax of the network's logits, a head each
    J            −⟨log π_h(a_h | s)⟩ over the recorded levels a_h, ⟨·⟩ the mean over heads of sac.py

Rewards are not looked at. Exported, it takes the expected level of each head (kinds curves and weights), which is the
mean of what was recorded in such a state, or the likeliest (discrete, choice).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlplane.agents.agent import Numbers
from controlplane.agents.batch import Sequences
from controlplane.agents.networks import RowNetwork
from controlplane.agents.offline import OfflineAgent, OfflineConfig
from controlplane.agents.sac import PerHead, log_policy, mean_over, of_chosen, over_heads
from controlplane.learned.schema import ActionSchema


def likelihood(logits: PerHead, numbers: PerHead, active: Tensor) -> Tensor:
    """Return ⟨log π_h(a_h)⟩ of recorded levels, (…)."""
    return over_heads(of_chosen(log_policy(logits), numbers), active)


class BehaviourCloning(OfflineAgent):
    """A network of logits, fitted to recorded levels."""

    name = "bc"
    config_class = OfflineConfig

    def __init__(self, schema: ActionSchema, config: OfflineConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        self.network = self.networks = RowNetwork(schema, self.config.hidden)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.config.learning_rate)

    def actor(self) -> RowNetwork:
        return self.network

    def choose(
        self, rows: NDArray[np.float32], whole: NDArray[np.float32], active: NDArray[np.bool_], explore: bool
    ) -> tuple[Numbers, Numbers]:
        """Draw as the recorded policy did, when exploring; else the likeliest."""
        return self._draw(rows, explore), self._draw(whole, explore)

    def learn(self) -> dict[str, float]:
        loss = self.loss(self.sample())
        return {"loss/likelihood": float(loss.detach()), "gradient_norm": self.step(loss)}

    def loss(self, batch: Sequences) -> Tensor:
        """Return −⟨log π⟩ over the steps of a batch that may be learned from."""
        b = batch.burn_in
        active = batch.active[:, b:-1]
        logits = self.network.heads(self.states(self.network, batch)[:, b:-1], active)
        numbers = batch.numbers_rows[:, b:-1], batch.numbers_whole[:, b:-1]
        return -mean_over(likelihood(logits, numbers, active), batch.valid[:, b:])
