"""Discrete BCQ: double Q-learning from a dataset, among the levels that the dataset makes likely.

Source      Fujimoto, Conti, Ghavamzadeh, Pineau, "Benchmarking Batch Deep Reinforcement Learning Algorithms", 2019
            (arXiv 1910.01708), algorithm 1

    G_h(a | s)   what the recorded policy would do: softmax, fitted by likelihood (cloning.py)
    A_h(s)       { a : G_h(a | s) / max_b G_h(b | s) > threshold }, the levels that are allowed
    y            r + γ (1 − terminated) ⟨q⁻_h(s', argmax_{a ∈ A_h(s')} q_h(s', a))⟩
    J            ½ (Q(s, a) − y)² − ⟨log G_h(a_h | s)⟩ + 0.01 · ⟨mean of the logits' squares⟩ − ⟨log π_h(a*_h | s)⟩
    a*           argmax_{a ∈ A_h(s)} q_h(s, a), what is done

A threshold of 0 is double DQN, one of 1 is cloning.

Departures  the paper acts by a* itself, which takes two heads and a comparison. A policy file has one head a number, so
            π is fitted to a* on the dataset's states and is what acts and is exported. It shares a recurrent body with
            the recorded policy, not with the values: shared, as in the paper, likelihoods spoiled the values here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from controlplane.agents.batch import Sequences
from controlplane.agents.bounds import Rate, Share, Weight
from controlplane.agents.cloning import likelihood
from controlplane.agents.networks import Heads, RowNetwork
from controlplane.agents.offline import OfflineAgent, OfflineConfig
from controlplane.agents.qmix import follow, greedy
from controlplane.agents.sac import PerHead, log_policy, mean_over, of_chosen, over_heads, td_target
from controlplane.learned.schema import ActionSchema


@dataclass(frozen=True)
class ConstrainedConfig(OfflineConfig):
    """Hyper-parameters of BCQ."""

    threshold: Share = 0.3  # of a level's likelihood to the likeliest one's
    logits_weight: Weight = 0.01  # of the logits' squares
    target_rate: Rate = 0.01  # how far the target network moves towards the learned one an update


def allowed(logits: PerHead, threshold: float) -> PerHead:
    """Return A_h(s): which levels are likelier than threshold times the likeliest, and can be chosen, bool."""
    log_pi = log_policy(logits)
    rows, whole = (
        (x - x.amax(-1, keepdim=True)).exp() >= threshold if x.numel() else torch.zeros_like(x, dtype=torch.bool)
        for x in log_pi
    )
    return rows, whole & torch.isfinite(logits[1])


def squares(logits: PerHead, active: Tensor) -> Tensor:
    """Return ⟨mean over levels of the squares⟩ of logits, those that are −inf left out, (…)."""
    kept = [torch.where(torch.isfinite(x), x, torch.zeros_like(x)) for x in logits]
    means = [x.square().mean(-1) if x.numel() else x.sum(-1) for x in kept]
    return over_heads((means[0], means[1]), active)


class BatchConstrainedQ(OfflineAgent):
    """A network of values; the recorded policy and the one that acts, upon a body of their own."""

    name = "bcq"
    config_class = ConstrainedConfig
    config: ConstrainedConfig
    decode = "mode"

    def __init__(self, schema: ActionSchema, config: ConstrainedConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        c = self.config
        if not 0 <= c.threshold <= 1:
            raise ValueError(f"agent {self.name}: expected threshold from 0 to 1, not {c.threshold}")
        self.policy = RowNetwork(schema, c.hidden, neutral=True)
        self.recorded = Heads(schema, c.hidden)  # upon the policy's body
        self.values = RowNetwork(schema, c.hidden)
        self.target = copy.deepcopy(self.values).requires_grad_(False)
        learned = {"policy": self.policy, "recorded": self.recorded, "q": self.values}
        self.networks = nn.ModuleDict(learned | {"target": self.target})
        parameters = [p for p in self.networks.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=c.learning_rate)

    def actor(self) -> RowNetwork:
        return self.policy

    def learn(self) -> dict[str, float]:
        losses = self.losses(self.sample())
        parts = losses["td"] + losses["recorded"] + losses["policy"] + self.config.logits_weight * losses["logits"]
        norm = self.step(parts)
        follow(self.target, self.values, self.config.target_rate)
        return {f"loss/{name}": float(x.detach()) for name, x in losses.items()} | {"gradient_norm": norm}

    def losses(self, batch: Sequences) -> dict[str, Tensor]:
        """Return the four terms, over the steps of a batch that may be learned from."""
        b, valid, active = batch.burn_in, batch.valid[:, batch.burn_in :], batch.active[:, batch.burn_in :]
        numbers = batch.numbers_rows[:, b:-1], batch.numbers_whole[:, b:-1]
        q = self.values.heads(self.states(self.values, batch)[:, b:], active)
        doing = self.states(self.policy, batch)[:, b:]
        logits = self.recorded.heads(doing, active)
        with torch.no_grad():
            best = greedy(q, allowed(logits, self.config.threshold))  # a* of every step, the last one included
            judged = self.target.heads(self.states(self.target, batch)[:, b + 1 :], active[:, 1:])
            value = over_heads(of_chosen(judged, (best[0][:, 1:], best[1][:, 1:])), active[:, 1:])
            reward = self.reward(batch.reward, batch.cost)[:, b:-1]
            y = td_target(reward, batch.done[:, b:-1], self.centred(value, valid), self.config.gamma)
        now = active[:, :-1]
        chosen = over_heads(of_chosen((q[0][:, :-1], q[1][:, :-1]), numbers), now)
        recorded = logits[0][:, :-1], logits[1][:, :-1]
        policy = self.policy.heads(doing[:, :-1], now)
        return {
            "td": 0.5 * mean_over((chosen - y).square(), valid),
            "recorded": -mean_over(likelihood(recorded, numbers, now), valid),
            "logits": mean_over(squares(recorded, now), valid),
            "policy": -mean_over(likelihood(policy, (best[0][:, :-1], best[1][:, :-1]), now), valid),
        }
