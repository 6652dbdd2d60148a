"""I-SAC: every balancer is a soft actor-critic of its own, that sees only its own view and its own reward.

Source      independent learners: Tan, "Multi-Agent Reinforcement Learning: Independent vs. Cooperative Agents", ICML
            1993; the baseline I-SAC of Yao et al., "Multi-Agent Reinforcement Learning for Network Load Balancing in
            Data Center", CIKM 2022 (arXiv 2201.11727); the learner is sac.py

    shared=False    K networks, K replays, K temperatures: balancer k learns from row k of every replica and from no
                    other. What is exported is one file; `actor()` is the first balancer's, `actors` are all.
    shared=True     one network that all balancers act by and learn, each from a replay of its own, from which a batch
                    takes equal parts: parameter sharing (Gupta, Egorov, Kochenderfer, AAMAS 2017). What is learned
                    serves any number of balancers, so this is the default.

To each of them the others are part of the environment, which changes as they learn: nothing here mends that, which is
what qmix.py is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from controlplane.agents.agent import Agent, Hidden, Numbers
from controlplane.agents.batch import Sequences, Transition
from controlplane.agents.bounds import Balancers
from controlplane.agents.networks import RowNetwork
from controlplane.agents.replay import Replay
from controlplane.agents.sac import SacConfig, SoftActorCritic
from controlplane.learned.encoding import Inputs
from controlplane.learned.schema import ActionSchema


@dataclass(frozen=True)
class IndependentConfig(SacConfig):
    """Hyper-parameters of I-SAC."""

    shared: bool = True  # one network for all balancers
    balancers: Balancers = 4  # networks, when they are not shared: so many balancers must there be


def of_balancer(step: Transition, k: int) -> Transition:
    """Return what balancer k of every replica saw, did and got."""
    rows = slice(k, None, step.balancers)
    return Transition(
        Inputs(step.inputs.rows[rows], step.inputs.whole[rows], step.inputs.active[rows]),
        step.numbers_rows[rows],
        step.numbers_whole[rows],
        step.reward[rows],
        step.cost[rows],
        step.done[rows],
        step.fresh[rows],
        step.hidden[rows],
    )


class Separate(Replay):
    """A replay for each balancer behind the face of one; a batch takes equal parts of each."""

    def __init__(self, capacity: int, length: int, burn_in: int) -> None:
        super().__init__(capacity, length, burn_in)
        self.each: list[Replay] = []

    def __len__(self) -> int:
        return sum(len(replay) for replay in self.each)

    def add(self, step: Transition) -> None:
        if not self.each:
            k = step.balancers
            self.each = [Replay(max(self.capacity // k, 1), self.length, self.burn_in) for _ in range(k)]
        for k, replay in enumerate(self.each):
            replay.add(of_balancer(step, k))

    def starts(self) -> Any:
        return self.each[0].starts() if self.each else np.zeros(0, dtype=np.int64)

    def sample(self, rng: np.random.Generator, batch: int, *, several: bool = False) -> Sequences:
        share = -(-batch // max(len(self.each), 1))
        parts = [vars(replay.sample(rng, share)) for replay in self.each]
        joined = {
            field.name: torch.cat([part[field.name] for part in parts])
            for field in fields(Sequences)
            if field.name != "burn_in"
        }
        return Sequences(**joined, burn_in=self.burn_in)

    def state_dict(self) -> dict[str, Any]:
        return {"each": [replay.state_dict() for replay in self.each]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.each = []
        for one in state["each"]:
            replay = Replay(self.capacity, self.length, self.burn_in)
            replay.load_state_dict(one)
            self.each.append(replay)


class IndependentSoftActorCritic(Agent):
    """One SoftActorCritic for each balancer, or one for all with a replay for each."""

    name = "isac"
    config_class = IndependentConfig
    config: IndependentConfig

    def __init__(self, schema: ActionSchema, config: IndependentConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        c = self.config
        if c.balancers < 1:
            raise ValueError(f"agent {self.name}: expected balancers >= 1, not {c.balancers}")
        number = 1 if c.shared else c.balancers
        plain = SacConfig(**{field.name: getattr(c, field.name) for field in fields(SacConfig)})
        if not c.shared:  # one row of a replica each: warm-up and capacity are of all of them together
            plain = replace(plain, capacity=max(c.capacity // number, 1), warmup=c.warmup // number)
        self.learners = [SoftActorCritic(schema, plain, seed + k) for k in range(number)]
        if c.shared:
            self.learners[0].replay = Separate(c.capacity, c.length, c.burn_in)
        self.decode = self.learners[0].decode
        self.networks = nn.ModuleList(learner.networks for learner in self.learners)
        self.multipliers, self.scale = self.learners[0].multipliers, self.learners[0].scale

    # Acting

    def act(self, inputs: Inputs, hidden: Hidden, explore: bool) -> tuple[Numbers, Numbers, Hidden]:
        number = len(self.learners)
        if number == 1:
            return self.learners[0].act(inputs, hidden, explore)
        if len(inputs.rows) % number:
            raise ValueError(f"agent {self.name}: {len(inputs.rows)} rows, not of {number} balancers (`balancers`)")
        parts = []
        for k, learner in enumerate(self.learners):
            own = slice(k, None, number)
            mine = Inputs(inputs.rows[own], inputs.whole[own], inputs.active[own])
            parts.append(learner.act(mine, hidden[own], explore))
        rows, whole, after = (
            np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:]) for arrays in zip(*parts, strict=True)
        )
        return rows, whole, after

    # Learning

    def observe(self, transition: Transition) -> None:
        self.observed += 1
        self.store(transition)

    def store(self, transition: Transition) -> None:
        if len(self.learners) == 1:
            self.learners[0].observe(transition)
            return
        if transition.balancers != len(self.learners):
            raise ValueError(
                f"agent {self.name}: {transition.balancers} balancers, expected {len(self.learners)} (`balancers`)"
            )
        for k, learner in enumerate(self.learners):
            learner.observe(of_balancer(transition, k))

    @property
    def ready(self) -> bool:
        return all(learner.ready for learner in self.learners)

    def learn(self) -> dict[str, float]:
        """Make one update of each balancer's learner and return the means of their figures."""
        self.updates += 1
        figures = [learner.learn() for learner in self.learners]
        return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}

    def actor(self) -> RowNetwork:
        return self.learners[0].actor()

    @property
    def actors(self) -> list[RowNetwork]:
        """What each balancer acts by; one network when it is shared."""
        return [learner.actor() for learner in self.learners]

    # Saving

    def state_dict(self, *, replay: bool = False) -> dict[str, Any]:
        return {
            "agent": self.name,
            "learners": [learner.state_dict(replay=replay) for learner in self.learners],
            "observed": self.observed,
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["agent"] != self.name:
            raise ValueError(f"agent {self.name}: the state is of agent {state['agent']}")
        if len(state["learners"]) != len(self.learners):
            raise ValueError(
                f"agent {self.name}: the state has {len(state['learners'])} networks, expected {len(self.learners)}"
            )
        for learner, one in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(one)
        self.observed, self.updates = int(state["observed"]), int(state["updates"])

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        for learner in self.learners:
            learner.load_actor(parameters)
