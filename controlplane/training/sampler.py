"""Rollouts for agents that learn by gradients: an agent acts in whole episodes and explores; transitions come back.

A round is one job a lane. Every lane has its own chance, drawn from the training's seed, the round and the lane, and
acts with the agent as it stood when the round began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from controlplane.agents import agent_class
from controlplane.agents.agent import Agent
from controlplane.agents.batch import Transition
from controlplane.learned.encoding import Inputs
from controlplane.training.episodes import Episodes, Setup
from controlplane.training.jobs import EXPLORE, SAMPLES, balancers_for, seeds_for
from controlplane.training.ranges import Sample, Sampler
from controlplane.training.tasks import Task


@dataclass(frozen=True)
class Rollout:
    """What a lane's episodes gave."""

    steps: list[Transition]
    farms: int
    reward: float  # mean
    sample: Sample


@dataclass(frozen=True)
class RolloutJob:
    """One lane of a round."""

    setup: Setup
    task: Task
    agent: str
    config: Any  # the agent's Config
    state: Mapping[str, Any]  # the agent's, without its replay
    seed: tuple[int, ...]
    rows: int  # balancers that act; of the last farm perhaps not all

    def run(self) -> Rollout:
        torch.set_num_threads(1)
        setup = self.setup
        agent = agent_class(self.agent)(setup.schema, self.config, 0)
        agent.load_state_dict(self.state)
        _reseed(agent, [*self.seed, EXPLORE])
        balancers = balancers_for(self.task, self.seed)
        replicas = -(-self.rows // balancers)
        kept = slice(0, self.rows)
        episodes = Episodes(setup, self.task, balancers, replicas, twins=setup.is_paired)
        try:
            episodes.begin(seeds_for(self.seed, replicas))
            hidden = agent.initial(episodes.rows, setup.width)
            sampler = Sampler(balancers, np.random.default_rng([*self.seed, SAMPLES]))
            steps = []
            for number in range(setup.steps):
                inputs = episodes.inputs()
                sampler.add(inputs)
                rows, whole, after = agent.act(inputs, hidden, explore=True)
                outcome = episodes.step(setup.schema.values(rows), setup.schema.values(whole))
                nothing = np.zeros(self.rows, dtype=np.bool_)
                steps.append(
                    Transition(
                        Inputs(inputs.rows[kept], inputs.whole[kept], inputs.active[kept]),
                        rows[kept],
                        whole[kept],
                        outcome.reward[kept],
                        outcome.cost[kept],
                        nothing,  # an episode is cut off, it does not come to an end
                        np.full(self.rows, number == 0),
                        np.asarray(hidden[kept], dtype=np.float32),
                        balancers,
                    )
                )
                hidden = after
        finally:
            episodes.close()
        return Rollout(steps, replicas, float(np.mean([step.reward for step in steps])), sampler.sample())


def _reseed(agent: Agent, seed: Sequence[int]) -> None:
    """Give an agent's exploration a chance of its own."""
    agent.rng = np.random.default_rng(list(seed))
    agent.generator.manual_seed(int(agent.rng.integers(2**62)))
    for number, inner in enumerate(getattr(agent, "learners", ())):
        _reseed(inner, [*seed, number])
    torch.manual_seed(int(agent.rng.integers(2**62)))


def side_by_side(lanes: Sequence[Rollout]) -> list[Transition]:
    """Return the steps of all lanes at once."""

    def join(parts: list[Any]) -> Any:
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    steps = []
    for parts in zip(*(lane.steps for lane in lanes), strict=True):
        inputs = Inputs(
            join([p.inputs.rows for p in parts]),
            join([p.inputs.whole for p in parts]),
            join([p.inputs.active for p in parts]),
        )
        fields: dict[str, Any] = {
            name: join([getattr(p, name) for p in parts])
            for name in ("numbers_rows", "numbers_whole", "reward", "cost", "done", "fresh", "hidden")
        }
        steps.append(Transition(inputs, **fields, balancers=parts[0].balancers))
    return steps
