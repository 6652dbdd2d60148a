"""Proximal policy optimisation over many categorical heads, recurrent: the yardstick that learns on-policy.

Source    Schulman et al., "Proximal Policy Optimization Algorithms", 2017 (arXiv 1707.06347), eqs. 7 and 9;
          Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016,
          eq. 16

    δ_t     = r_t + γ (1 − terminated) V(s_{t+1}) − V(s_t),      Â_t = δ_t + γ λ Â_{t+1}, cut where an episode ends
    r_h     = π_h(a_h) / π_h,old(a_h)                            ratio of one head
    J_π     = ⟨ min(r_h Â, clip(r_h, 1 − ε, 1 + ε) Â) ⟩          mean over head kinds of the mean over active servers
    J       = −J_π + v (V − V̂)²/var V̂ − e ⟨ H(π_h) / log |levels| ⟩,   V̂ = Â + V_old

The value's error is relative to its variance: body and optimiser are shared, and values are tens of rewards.

A departure from the paper: each head is clipped by itself, all with the advantage of the joint action. The ratio of the
joint action is a product over all servers' heads: with 64 servers nearly every one would be outside of the clip.

A rollout is `horizon` steps of all rows; updates run over pieces of `length` steps, which begin with the state that was
stored with them. Old probabilities are those of the network as the update begins, which is the one that acted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from controlplane.agents.agent import Agent, AgentConfig
from controlplane.agents.batch import Sequences, Transition, stack
from controlplane.agents.bounds import Length, Number, Part, Share, Weight
from controlplane.agents.networks import RowNetwork, pool
from controlplane.agents.sac import (
    PerHead,
    entropy,
    greatest_entropy,
    kinds,
    log_policy,
    mean_over,
    of_chosen,
    over_heads,
)
from controlplane.learned.schema import ActionSchema


@dataclass(frozen=True)
class PpoConfig(AgentConfig):
    """Hyper-parameters of PPO."""

    horizon: Number = 64  # steps of a rollout
    length: Length = 16  # steps of a piece, run from its stored state; divides the horizon
    epochs: Number = 4  # passes over a rollout
    minibatches: Number = 4  # parts of a pass
    gae_lambda: Share = 0.95
    clip: Part = 0.2
    value_weight: Weight = 0.5
    entropy_weight: Weight = 0.01

    def __post_init__(self) -> None:
        if self.horizon % self.length:
            raise ValueError(f"ppo: length {self.length} does not divide horizon {self.horizon}")


class ProximalPolicy(Agent):
    """PPO. Policy and value share the body."""

    name = "ppo"
    config_class = PpoConfig
    config: PpoConfig
    on_policy = True

    def __init__(self, schema: ActionSchema, config: PpoConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        self.policy = RowNetwork(schema, self.config.hidden, neutral=True)
        self.value = nn.Linear(2 * self.config.hidden, 1)
        self.networks = nn.ModuleDict({"policy": self.policy, "value": self.value})
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=self.config.learning_rate, fused=True)
        self.steps: list[Transition] = []

    def actor(self) -> RowNetwork:
        return self.policy

    def store(self, transition: Transition) -> None:
        self.steps.append(transition)

    @property
    def ready(self) -> bool:
        return len(self.steps) > self.config.horizon  # one more than the horizon: the last is only looked at

    def learn(self) -> dict[str, float]:
        c = self.config
        pieces, old, advantage, target = self.rollout()
        self.steps = []
        self.updates += 1
        number = len(pieces.reward)
        figures: dict[str, float] = {}
        for _ in range(c.epochs):
            for part in torch.randperm(number, generator=self.generator).chunk(c.minibatches):
                chosen = old[0][part], old[1][part]
                losses = self.losses(take(pieces, part), chosen, advantage[part], target[part])
                loss = losses["policy"] + c.value_weight * losses["value"] - c.entropy_weight * losses["entropy"]
                norm = self.step(loss)
                figures = {f"loss/{k}" if k != "entropy" else k: float(x.detach()) for k, x in losses.items()}
                figures["gradient_norm"] = norm
        return figures

    def rollout(self) -> tuple[Sequences, PerHead, Tensor, Tensor]:
        """Return the rollout in pieces (B, length + 1), old log π_h(a_h) of them, advantages and value targets
        (B, length), advantages normalised."""
        c = self.config
        whole = stack(self.steps)  # (R, horizon + 1, …)
        valid = whole.valid
        with torch.no_grad():
            states = self.policy.states(whole.rows, whole.whole, whole.active, whole.hidden, self.borders(whole))
            values = self.values(states, whole.active)
            log_pi = log_policy(self.policy.heads(states, whole.active))
            old = of_chosen(log_pi, (whole.numbers_rows, whole.numbers_whole))
            reward = self.reward(whole.reward, whole.cost)
            advantage = advantages(reward, values, whole.done, valid, c.gamma, c.gae_lambda)
        target = advantage + values[:, :-1]
        mean = mean_over(advantage, valid)
        advantage = (advantage - mean) / variance(advantage, valid).sqrt()
        pieces = [self._piece(whole, start) for start in range(0, c.horizon, c.length)]
        return (
            join(pieces),
            (cut(old[0][:, :-1], c.length), cut(old[1][:, :-1], c.length)),
            cut(advantage, c.length),
            cut(target, c.length),
        )

    def _piece(self, whole: Sequences, start: int) -> Sequences:
        """Return the steps from `start` on, and the one after them, with the state that was stored there."""
        until = start + self.config.length + 1
        hidden = torch.from_numpy(self.steps[start].hidden)
        return _each(lambda name: hidden if name == "hidden" else getattr(whole, name)[:, start:until])

    def losses(self, batch: Sequences, old: PerHead, advantage: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return −J_π, the value's error and the mean entropy, over the steps that may be learned from."""
        c, valid = self.config, batch.valid
        active = batch.active[:, :-1]
        states = self.policy.states(
            batch.rows[:, :-1], batch.whole[:, :-1], active, batch.hidden, self.borders(batch)[:, :-1]
        )
        log_pi = log_policy(self.policy.heads(states, active))
        new = of_chosen(log_pi, (batch.numbers_rows[:, :-1], batch.numbers_whole[:, :-1]))
        rows, whole = (clipped(x, before, advantage, c.clip) for x, before in zip(new, old, strict=True))
        surrogate = over_heads((rows, whole), active)
        had = kinds(entropy(log_pi), active) / greatest_entropy(self.schema, active)
        return {
            "policy": -mean_over(surrogate, valid),
            "value": mean_over((self.values(states, active) - target).square(), valid) / variance(target, valid),
            "entropy": mean_over(had.mean(-1), valid),
        }

    def values(self, states: Tensor, active: Tensor) -> Tensor:
        """Return V(s) (…) of the states (…, n, H)."""
        value: Tensor = self.value(pool(states, active)).squeeze(-1)
        return value

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = []  # a rollout that was cut off is begun anew


def variance(x: Tensor, valid: Tensor) -> Tensor:
    """Return the variance over the steps that may be learned from; not 0."""
    return mean_over((x - mean_over(x, valid)).square(), valid).clamp(min=1e-6)


def clipped(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return each head's min(r Â, clip(r) Â) of log π new and old (B, T, …), advantage (B, T).  Eq. 7."""
    ratio = (new - old).exp()
    a = advantage.reshape(*advantage.shape, *(1,) * (ratio.dim() - advantage.dim()))
    return torch.minimum(ratio * a, ratio.clamp(1.0 - clip, 1.0 + clip) * a)


def advantages(reward: Tensor, values: Tensor, done: Tensor, valid: Tensor, gamma: float, lam: float) -> Tensor:
    """Return Â (B, T) of reward, values and done (B, T + 1): GAE, eq. 16.

    valid (B, T): the successor of a step is known, or it terminated; elsewhere Â is 0 and nothing is carried over.
    """
    carried = torch.zeros_like(reward[:, 0])
    out = []
    for t in reversed(range(valid.shape[1])):
        goes_on = (~done[:, t]).to(reward.dtype)
        delta = reward[:, t] + gamma * goes_on * values[:, t + 1] - values[:, t]
        carried = (delta + gamma * lam * goes_on * carried) * valid[:, t]
        out.append(carried)
    return torch.stack(out[::-1], 1)


def cut(x: Tensor, length: int) -> Tensor:
    """Return (R, T, …) as pieces (T / length · R, length, …), in the order of ProximalPolicy.rollout."""
    return torch.cat([x[:, start : start + length] for start in range(0, x.shape[1], length)], 0)


def join(parts: list[Sequences]) -> Sequences:
    """Return batches one after the other."""
    return _each(lambda name: torch.cat([getattr(part, name) for part in parts], 0))


def take(batch: Sequences, rows: Tensor) -> Sequences:
    """Return some sequences of a batch."""
    return _each(lambda name: getattr(batch, name)[rows])


def _each(tensor: Callable[[str], Tensor]) -> Sequences:
    tensors: dict[str, Any] = {f.name: tensor(f.name) for f in fields(Sequences) if f.name != "burn_in"}
    return Sequences(**tensors)
