"""Soft actor-critic over many categorical heads, recurrent, with every expectation over a head's levels exact.

Source    Christodoulou, "Soft Actor-Critic for Discrete Action Settings", 2019 (arXiv 1910.07207), eqs. 10 to 12;
          Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018 (arXiv 1812.05905): twin critics;
          Sunehag et al., "Value-Decomposition Networks", AAMAS 2018: the value as a sum over heads

    z       state of the recurrent body, (…, n, H); actor and critics read the same one, and the critics' loss trains it
    a       joint action: a level a_h of every head h (for rows: of every server), drawn independently from π_h
    α_h     temperature; one a head kind (all servers' `mu` share one)

**The value of a joint action** is the mean over head kinds of the mean over active servers of a value a head:

    Q(s, a) = ⟨ q_h(s, a_h) ⟩            ⟨x_h⟩ = mean over kinds of the mean over active servers

There is one error a step, so each q_h is fitted beside all the others (a server's level is not blamed for what
another's did); the maximum and the soft expectation of Q over joint actions fall apart into the heads' own; and means
instead of sums keep q of one size for 2 servers and for 256. What is given up: interactions between heads within a
step, beyond what the state tells. With one head all this is Christodoulou's algorithm:

    V(s)     = ⟨ Σ_a π_h(a) (min_j q⁻_jh(a) − α_h log π_h(a)) ⟩                             eq. 10
    y        = r + γ (1 − terminated) V(s')
    J_Q      = Σ_j (Q_j(s, a) − y)²                                                         eq. 5, two critics
    J_π      = ⟨ Σ_a π_h(a) (α_h log π_h(a) − min_j q_jh(a)) ⟩                              eq. 12
    J_α      = Σ_kinds −log α_h (Σ_a π_h log π_h + H̄_h),  H̄_h = share · log |levels|        eq. 11, in log α

The actor's heads are linear in z as the critics' are, so π ∝ exp(q/α) can be met exactly without J_π shaping the
body. J_π differentiates π of *every* level, weighed with the critics' values: that is how the reward reaches the actor.

`ssac` is the same agent in control of all balancers of a replica at once: it sees the mean of their views, learns from
the mean of their rewards, and does the same at all of them. Deployed, each balancer runs it on its own view.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from controlplane.agents.agent import Hidden, Numbers
from controlplane.agents.batch import Sequences, Transition, balancers_of
from controlplane.agents.bounds import Deviations, Positive, Rate, Share
from controlplane.agents.networks import Heads, RowNetwork
from controlplane.agents.replay import ReplayAgent, ReplayConfig
from controlplane.learned.encoding import Inputs
from controlplane.learned.schema import ActionSchema

# Values a head: of rows (…, n, row heads, levels) and of all (…, global heads, levels), or (…, 1, n) of kind choice.
PerHead = tuple[Tensor, Tensor]
# log π of what is impossible: finite, so that 0 · log 0 is 0 and its gradient too.
LOG_NEVER = -1e9


@dataclass(frozen=True)
class SacConfig(ReplayConfig):
    """Hyper-parameters of SAC."""

    target_rate: Rate = 0.01  # how far the target networks move towards the learned ones an update
    alpha: Positive = 0.1  # temperature to begin with, in units of the normalised reward
    alpha_rate: Share = 3e-3  # learning rate of log α; 0 keeps it
    target_entropy: Share = 0.3  # share of the greatest entropy, log |levels|, that is kept
    epsilon: Deviations = 0.0  # heads of a row that are drawn evenly instead, on average, when exploring
    actor_rate: Rate = 1e-3  # learning rate of the actor's heads (learning_rate: body and critics)


# The equations


def over_heads(per_head: PerHead, active: Tensor) -> Tensor:
    """Return ⟨x_h⟩ (…) of x (…, n, row heads) and (…, global heads), active (…, n)."""
    return kinds(per_head, active).mean(-1)


def kinds(per_head: PerHead, active: Tensor) -> Tensor:
    """Return each head kind's mean over the active servers, (…, row heads + global heads)."""
    rows, whole = per_head
    mask = active.unsqueeze(-1)
    return torch.cat([(rows * mask).sum(-2) / mask.sum(-2).clamp(min=1), whole], -1)


def of_chosen(values: PerHead, numbers: PerHead) -> PerHead:
    """Return x_h(a_h) of the chosen levels (…, n, row heads) and (…, global heads)."""
    rows, whole = (
        x.gather(-1, a.unsqueeze(-1)).squeeze(-1) if a.numel() else x.sum(-1)
        for x, a in zip(values, numbers, strict=True)
    )
    return rows, whole


def log_policy(logits: PerHead) -> PerHead:
    """Return log π_h."""
    rows, whole = (F.log_softmax(x, -1).clamp(min=LOG_NEVER) if x.numel() else x for x in logits)
    return rows, whole


def expectation(log_pi: PerHead, values: PerHead, alpha: PerHead) -> PerHead:
    """Return Σ_a π_h(a) (q_h(a) − α_h log π_h(a)), exactly: eq. 10's V and eq. 12's −J of each head."""
    rows, whole = ((p.exp() * (q - a.unsqueeze(-1) * p)).sum(-1) for p, q, a in zip(log_pi, values, alpha, strict=True))
    return rows, whole


def lesser(values: list[PerHead]) -> PerHead:
    """Return min_j q_jh of two critics; what cannot be chosen (−inf) is worth 0, and has probability 0."""
    rows, whole = (torch.minimum(one, two) for one, two in zip(*values, strict=True))
    return rows, whole.masked_fill(torch.isinf(whole), 0.0)


def entropy(log_pi: PerHead) -> PerHead:
    """Return H(π_h) = −Σ_a π_h(a) log π_h(a)."""
    rows, whole = (-(p.exp() * p).sum(-1) for p in log_pi)
    return rows, whole


def greatest_entropy(schema: ActionSchema, active: Tensor) -> Tensor:
    """Return log of the number of levels of each head kind, (kinds,); of kind choice, of the active servers (…, 1)."""
    if schema.kind == "choice":
        return active.sum(-1, keepdim=True).clamp(min=2).log()
    return torch.full((len(schema.row_heads) + len(schema.global_heads),), math.log(len(schema.levels)))


def td_target(reward: Tensor, done: Tensor, value_next: Tensor, gamma: float) -> Tensor:
    """Return y = r + γ (1 − terminated) V(s'). A truncated episode would still have gone on: it bootstraps."""
    return reward + gamma * (~done).to(reward.dtype) * value_next


def mean_over(x: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over the steps that may be learned from."""
    return (x * valid).sum() / valid.sum().clamp(min=1)


class SoftActorCritic(ReplayAgent):
    """Discrete SAC. The actor's network owns the body; the critics are heads upon its state."""

    name = "sac"
    config_class = SacConfig
    config: SacConfig

    def __init__(self, schema: ActionSchema, config: SacConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        c = self.config
        self.policy = RowNetwork(schema, c.hidden, neutral=True)
        self.critics = nn.ModuleList(Heads(schema, c.hidden) for _ in range(2))
        self.target_body = copy.deepcopy(self.policy).requires_grad_(False)  # its heads are not used
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        number = len(schema.row_heads) + len(schema.global_heads) + (schema.kind == "choice")
        self.log_alpha = nn.Parameter(torch.full((number,), math.log(c.alpha)))
        self.networks = nn.ModuleDict(
            {
                "policy": self.policy,
                "critics": self.critics,
                "target_body": self.target_body,
                "target_critics": self.target_critics,
                "temperatures": nn.ParameterList([self.log_alpha]),
            }
        )
        body = [*self.policy.enter.parameters(), *self.policy.mix.parameters(), *self.policy.cell.parameters()]
        heads = [p for p in self.policy.parameters() if not any(p is q for q in body)]
        self.optimizer = torch.optim.Adam(
            [
                {"params": [*body, *self.critics.parameters()], "lr": c.learning_rate},
                {"params": heads, "lr": c.actor_rate},
                {"params": [self.log_alpha], "lr": c.alpha_rate},
            ],
            fused=True,
        )

    def actor(self) -> RowNetwork:
        return self.policy

    def choose(
        self, rows: NDArray[np.float32], whole: NDArray[np.float32], active: NDArray[np.bool_], explore: bool
    ) -> tuple[Numbers, Numbers]:
        chosen = super().choose(rows, whole, active, explore)
        if not (explore and self.config.epsilon):
            return chosen
        return self.deviate(chosen, (rows, whole), active, self.config.epsilon)

    def learn(self) -> dict[str, float]:
        batch = self.sample()
        losses = self.losses(batch)
        norm = self.step(losses["critic"] + losses["actor"] + losses["alpha"])
        self.follow()
        alpha = self.log_alpha.detach().exp().mean()
        return {f"loss/{name}": float(x.detach()) for name, x in losses.items() if name != "entropy"} | {
            "entropy": float(losses["entropy"]),
            "alpha": float(alpha),
            "gradient_norm": norm,
        }

    def losses(self, batch: Sequences) -> dict[str, Tensor]:
        """Return J_Q, J_π, J_α and the mean entropy, over the steps of a batch that may be learned from."""
        b, valid = batch.burn_in, batch.valid[:, batch.burn_in :]
        given = batch.rows, batch.whole, batch.active, batch.hidden, self.borders(batch), b
        states = self.policy.states(*given)
        active, state = batch.active[:, b:-1], states[:, b:-1]
        numbers = batch.numbers_rows[:, b:-1], batch.numbers_whole[:, b:-1]
        reward = self.reward(batch.reward, batch.cost)[:, b:-1]

        with torch.no_grad():
            target_states = self.target_body.states(*given)
            value = self.value(states[:, b + 1 :], target_states[:, b + 1 :], batch.active[:, b + 1 :])
            target = td_target(reward, batch.done[:, b:-1], value, self.config.gamma)
        values = [critic.heads(state, active) for critic in self._heads(self.critics)]
        critic_loss = torch.zeros(())
        for q in values:
            chosen = over_heads(of_chosen(q, numbers), active)
            critic_loss = critic_loss + mean_over((chosen - target).square(), valid)

        log_pi = log_policy(self.policy.heads(state.detach(), active))
        detached = lesser([(rows.detach(), whole.detach()) for rows, whole in values])
        soft = over_heads(expectation(log_pi, detached, self.alpha), active)
        actor_loss = -mean_over(soft, valid)

        had = entropy(log_pi)
        greatest = greatest_entropy(self.schema, active)
        wanted = self.config.target_entropy * greatest
        gap = (kinds(had, active).detach() - wanted) * valid.unsqueeze(-1)
        alpha_loss = (self.log_alpha * gap).sum() / valid.sum().clamp(min=1)
        share = kinds(had, active).detach() / greatest
        return {
            "critic": critic_loss,
            "actor": actor_loss,
            "alpha": alpha_loss,
            "entropy": mean_over(share.mean(-1), valid),
        }

    def value(self, state: Tensor, target_state: Tensor, active: Tensor) -> Tensor:
        """Return V(s) by the target critics and the present policy (eq. 10), (…)."""
        log_pi = log_policy(self.policy.heads(state, active))
        q = lesser([critic.heads(target_state, active) for critic in self._heads(self.target_critics)])
        return over_heads(expectation(log_pi, q, self.alpha), active)

    @property
    def alpha(self) -> PerHead:
        """Temperatures of the row heads and of those for all, without gradient."""
        alpha = self.log_alpha.detach().exp()
        rows = len(self.schema.row_heads)
        return alpha[:rows], alpha[rows:]

    def follow(self) -> None:
        """Move the targets towards what they follow (Polyak averaging)."""
        rate = self.config.target_rate
        with torch.no_grad():
            for target, source in ((self.target_body, self.policy), (self.target_critics, self.critics)):
                for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
                    slow.lerp_(fast, rate)

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        super().load_actor(parameters)
        self.target_body.load_numpy(parameters)

    @staticmethod
    def _heads(modules: nn.ModuleList) -> list[Heads]:
        return [cast(Heads, module) for module in modules]


class SingleSoftActorCritic(SoftActorCritic):
    """S-SAC: one agent that controls all balancers of a replica."""

    name = "ssac"

    def act(self, inputs: Inputs, hidden: Hidden, explore: bool) -> tuple[Numbers, Numbers, Hidden]:
        k = balancers_of(inputs)
        one = Inputs(_mean(inputs.rows, k), _mean(inputs.whole, k), inputs.active[::k])
        rows, whole, after = super().act(one, hidden[::k], explore)
        return rows.repeat(k, axis=0), whole.repeat(k, axis=0), after.repeat(k, axis=0)

    def store(self, transition: Transition) -> None:
        t, k = transition, balancers_of(transition.inputs)
        super().store(
            Transition(
                Inputs(_mean(t.inputs.rows, k), _mean(t.inputs.whole, k), t.inputs.active[::k]),
                t.numbers_rows[::k],
                t.numbers_whole[::k],
                _mean(t.reward, k),
                _mean(t.cost, k),
                t.done[::k],
                t.fresh[::k],
                t.hidden[::k],
            )
        )


def _mean(x: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return the means over k successive rows."""
    return np.asarray(x.reshape(len(x) // k, k, *x.shape[1:]).mean(axis=1), dtype=np.float32)
