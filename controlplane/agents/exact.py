"""An agent on an exact routing problem: trained in the environment, judged by the chain, without noise.

What is learned is a function of the numbers in flight alone (`memory=False`), so that the greedy policy is one of the
chain's stationary policies and has an exact mean completion time. docs/learning.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.agents import agent_class
from controlplane.agents.agent import Agent
from controlplane.agents.batch import Transition
from controlplane.env.routing import Chain, Farm, Policy, RoutingVector
from controlplane.learned.schema import ActionSchema


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


@dataclass(frozen=True)
class Recipe:
    """What trains an agent on these problems in some twenty seconds of one core."""

    options: dict[str, Any]
    envs: int
    steps: int

    def shortened(self, share: float) -> Recipe:
        """Return the recipe with so much of its steps: for easier farms."""
        return Recipe(self.options | {"decay": int(share * self.options["decay"])}, self.envs, int(share * self.steps))

    def agent(self, name: str, seed: int) -> Agent:
        kind = agent_class(name)
        return kind(ActionSchema("choice"), kind.config_class(**self.options), seed)


# No memory; γ such that the discounted optimum is the undiscounted one to within 0.05 % on the benchmark's farms (0.97
# costs 0.5 % at 10:1); rates that begin high, because critics that are not fitted yet misjudge the slow servers, and
# fall, because a near-tie in a frequent state costs up to 5 % when it flips; in SAC some even draws, because an actor
# that no longer tries the slow server cannot learn that it should.
_COMMON: dict[str, Any] = {"memory": False, "gamma": 0.98, "length": 1}
_REPLAYED = _COMMON | {"burn_in": 0, "batch": 256, "warmup": 5_000, "capacity": 200_000, "target_rate": 0.05}
RECIPES: dict[str, Recipe] = {
    "sac": Recipe(
        _REPLAYED
        | {
            "learning_rate": 4e-3,
            "actor_rate": 1e-2,
            "alpha": 0.05,
            "alpha_rate": 1e-3,
            "target_entropy": 0.15,
            "epsilon": 0.1,
            "decay": 1_800,
        },
        envs=256,
        steps=1_800,
    ),
    "dqn": Recipe(
        _REPLAYED
        | {"learning_rate": 4e-3, "epsilon": 0.3, "epsilon_end": 0.15, "epsilon_updates": 500, "decay": 2_000},
        envs=256,
        steps=2_000,
    ),
    "ppo": Recipe(
        _COMMON
        | {
            "learning_rate": 5e-3,
            "entropy_weight": 0.02,
            "gae_lambda": 0.8,
            "horizon": 32,
            "minibatches": 8,
            "decay": 94,
        },
        envs=128,
        steps=3_008,
    ),
}
# With one balancer they are those two, by another way.
RECIPES |= {"ssac": RECIPES["sac"], "isac": RECIPES["sac"], "vdn": RECIPES["dqn"]}
