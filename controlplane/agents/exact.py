"""An agent on an exact routing problem: trained in the environment, judged by the chain, without noise.

What is learned is a function of the numbers in flight alone (`memory=False`), so that the greedy policy is one of the
chain's stationary policies and has an exact mean completion time. docs/learning.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from controlplane.agents.agent import Agent
from controlplane.agents.batch import Transition
from controlplane.env.routing import Chain, Farm, Policy, RoutingVector


def greedy(agent: Agent, farm: Farm) -> Policy:
    """Return what an agent chooses in each state when it does not explore."""
    inputs = farm.inputs
    hidden = agent.initial(len(inputs.rows), len(farm.speeds))
    _, chosen, _ = agent.act(inputs, hidden, explore=False)
    return chosen[:, 0].reshape(farm.shape)


def gap(agent: Agent, chain: Chain) -> float:
    """Return by which share the greedy policy's mean completion time is above the least one."""
    return chain.mean_time(greedy(agent, chain.farm)) / chain.optimum()[0] - 1.0


def train(
    agent: Agent,
    env: RoutingVector,
    steps: int,
    *,
    seed: int = 0,
    every: int = 0,
    report: Callable[[int], bool] | None = None,
) -> dict[str, float]:
    """Train for so many vector steps and return the last update's figures.

    report: called each `every` steps with their number; training ends when it returns True.
    """
    env.reset(seed=seed)
    rows = env.num_envs
    hidden = agent.initial(rows, len(env.farm.speeds))
    none, never = np.zeros((rows, len(env.farm.speeds), 0), dtype=np.int64), np.zeros(rows, dtype=np.bool_)
    costs = np.zeros((rows, 0), dtype=np.float32)
    losses: dict[str, float] = {}
    for step in range(steps):
        inputs = env.inputs
        _, chosen, _ = agent.act(inputs, hidden, explore=True)
        _, reward, *_ = env.step(chosen[:, 0])
        agent.observe(
            Transition(inputs, none, chosen, reward.astype(np.float32), costs, never, never | (step == 0), hidden)
        )
        while agent.ready:
            losses = agent.learn()
        if report is not None and every and (step + 1) % every == 0 and report(step + 1):
            break
    return losses
