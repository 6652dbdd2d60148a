"""QMIX: balancers that are trained together and act alone; what they expect is mixed into one value of all, which never
falls when one of them expects more.

Source      Rashid et al., "QMIX: Monotonic Value Function Factorisation for Deep Multi-Agent Reinforcement Learning",
            ICML 2018; double Q-learning: van Hasselt, Guez, Silver, AAAI 2016

    q_u          utility of head u of balancer k: a recurrent network of what that balancer alone has seen
    Q_tot(s, a)  the mixer of the chosen utilities (mixing.py)
    a'           each head's best level by the network that learns: argmax_a q_u(τ', a)
    y            r + γ (1 − terminated) Q_tot⁻(s', a'), ⁻ the target networks                            equation 6
    L            mean of (y − Q_tot(s, a))² over the steps after the burn-in                             equation 6
    acting       ε-greedy, ε annealed linearly; the greedy level is argmax_a q_u: no softmax of Q is taken anywhere
                 (the public MARLLB code takes one, which is no maximum). As in dqn.py ε counts heads: so many of a
                 balancer's deviate on average, or it would never act as its policy does

The reward is the mean of the balancers'. One network serves all balancers and all servers. A step is a control interval
and a sequence begins with the recurrent state that was stored (Kapturowski et al., ICLR 2019), warmed by a burn-in.

Departures  the paper runs whole episodes from their start, one replay entry each, and copies the target network every
            200 episodes; here the target follows by `target_rate` an update. Rewards are centred (agent.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from controlplane.agents.agent import Numbers
from controlplane.agents.batch import Sequences
from controlplane.agents.bounds import Deviations, Rate, Units, Updates
from controlplane.agents.mixing import MonotoneMixer, SumMixer
from controlplane.agents.networks import RowNetwork
from controlplane.agents.replay import ReplayAgent, ReplayConfig
from controlplane.agents.sac import PerHead, mean_over, of_chosen, td_target
from controlplane.learned.schema import ActionSchema

Mixer = MonotoneMixer | SumMixer


@dataclass(frozen=True)
class QMixConfig(ReplayConfig):
    """Hyper-parameters of QMIX and VDN."""

    embed: Units = 32  # width of the mixing network
    mixer_hidden: Units = 32  # width of what encodes the joint state for it
    double: bool = True  # the learning network chooses, the target network judges
    target_rate: Rate = 0.01  # how far the target networks move towards the learned ones an update
    epsilon: Deviations = 1.0  # heads of a balancer that deviate, on average, at first (1 head: the usual ε)
    epsilon_end: Deviations = 0.05  # and at last
    epsilon_updates: Updates = 2_000  # updates in which it falls


def greedy(values: PerHead, allowed: PerHead | None = None) -> PerHead:
    """Return the best levels, (…, heads, levels) → (…, heads); among those allowed, of the same shapes, bool."""
    found = []
    for i, x in enumerate(values):
        if not x.numel():
            found.append(x.new_zeros(x.shape[:-1], dtype=torch.int64))
        else:
            found.append((x if allowed is None else x.masked_fill(~allowed[i], -torch.inf)).argmax(-1))
    return found[0], found[1]


def td_loss(
    online: PerHead,
    target: PerHead,
    numbers: PerHead,
    mixed: Callable[[PerHead], Tensor],
    mixed_target: Callable[[PerHead], Tensor],
    reward: Tensor,
    done: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    double: bool,
) -> tuple[Tensor, Tensor]:
    """Return the mean squared TD error over valid steps, and Q_tot (B, T − 1).  QMIX, equation 6.

    online, target: values of every level, rows (B, K, T, n, HR, L) and all (B, K, T, HG, L). numbers: levels chosen,
    (B, K, T, n, HR) and (B, K, T, HG). mixed and mixed_target: make Q_tot (B, T) of utilities of chosen levels. reward,
    done, valid: (B, T − 1).
    """
    total = mixed(of_chosen(online, numbers))[:, :-1]
    with torch.no_grad():
        best = greedy(online if double else target)
        y = td_target(reward, done, mixed_target(of_chosen(target, best))[:, 1:], gamma)
    return mean_over((y - total).square(), valid), total


def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move a target network towards what it follows (Polyak averaging)."""
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
            slow.lerp_(fast, rate)


class QMix(ReplayAgent):
    """Recurrent utilities of each head, mixed monotonically."""

    name = "qmix"
    config_class = QMixConfig
    config: QMixConfig
    several = True
    decode = "mode"  # argmax of the utilities
    mixer_class: ClassVar[type[Mixer]] = MonotoneMixer

    def __init__(self, schema: ActionSchema, config: QMixConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        c = self.config
        self.utility = RowNetwork(schema, c.hidden)
        self.mixer = self.mixer_class(schema, c.embed, c.mixer_hidden)
        self.networks = nn.ModuleDict({"utility": self.utility, "mixer": self.mixer})
        self.target_utility, self.target_mixer = copy.deepcopy(self.utility), copy.deepcopy(self.mixer)
        targets = nn.ModuleDict({"utility": self.target_utility, "mixer": self.target_mixer}).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=c.learning_rate)
        self.networks["targets"] = targets  # saved with the others, never descended along

    # Acting

    @property
    def epsilon(self) -> float:
        """How many heads of a balancer try any level, on average, now."""
        c = self.config
        gone = min(self.updates / max(c.epsilon_updates, 1), 1.0)
        return c.epsilon + gone * (c.epsilon_end - c.epsilon)

    def choose(
        self, rows: NDArray[np.float32], whole: NDArray[np.float32], active: NDArray[np.bool_], explore: bool
    ) -> tuple[Numbers, Numbers]:
        heads = active.sum(axis=1) * rows.shape[2] + whole.shape[1]
        chance = self.epsilon / np.maximum(heads, 1) * explore
        return self._head(rows, chance[:, None, None]), self._head(whole, chance[:, None])

    def _head(self, values: NDArray[np.float32], chance: NDArray[np.float64]) -> Numbers:
        """Return each head's best level, or with this chance any (of those that are not −∞)."""
        if values.size == 0:
            return np.zeros(values.shape[:-1], dtype=np.int64)
        best = np.asarray(values.argmax(axis=-1), dtype=np.int64)
        if not chance.any():
            return best
        lots = np.where(np.isfinite(values), self.rng.random(values.shape), -1.0)
        return np.where(self.rng.random(best.shape) < chance, lots.argmax(axis=-1), best)

    # Learning

    def learn(self) -> dict[str, float]:
        c = self.config
        seq = self.sample()
        reward = self.reward(seq.reward, seq.cost).mean(1)[:, :-1]  # the team's: (B, T − 1)
        loss, total = td_loss(
            self.values(self.utility, seq),
            self.values(self.target_utility, seq),
            (seq.numbers_rows, seq.numbers_whole),
            lambda q: self.total(self.mixer, q, seq),
            lambda q: self.total(self.target_mixer, q, seq),
            reward,
            seq.done[:, 0, :-1],
            seq.valid[:, 0],
            gamma=c.gamma,
            double=c.double,
        )
        norm = self.step(loss)
        follow(self.target_utility, self.utility, c.target_rate)
        follow(self.target_mixer, self.mixer, c.target_rate)
        value = float(total.detach().mean())
        return {"loss/td": float(loss.detach()), "value": value, "epsilon": self.epsilon, "gradient_norm": norm}

    def values(self, network: RowNetwork, seq: Sequences) -> PerHead:
        """Return values of every level along sequences, (B, K, T, n, HR, L) and (B, K, T, HG, L)."""
        flat = seq.merged()
        borders = self.borders(flat)
        states = network.states(flat.rows, flat.whole, flat.active, flat.hidden, borders, flat.burn_in)
        return network.heads(states.view(*seq.active.shape, -1), seq.active)

    def total(self, mixer: Mixer, utilities: PerHead, seq: Sequences) -> Tensor:
        """Return Q_tot (B, T) of utilities (B, K, T, n, HR) and (B, K, T, HG): each step is a state of its own."""
        b, _, t = seq.reward.shape

        def by_step(x: Tensor) -> Tensor:
            return x.transpose(1, 2).flatten(0, 1)

        arguments = (*utilities, seq.rows, seq.whole, seq.active)
        mixed: Tensor = mixer(*(by_step(x) for x in arguments))
        return mixed.view(b, t)

    def actor(self) -> RowNetwork:
        return self.utility

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        super().load_actor(parameters)
        self.target_utility.load_numpy(parameters)
