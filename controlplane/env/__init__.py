"""Environments for learning: the balancer as Gymnasium and PettingZoo know it, over the simulator or a live segment.

    import gymnasium
    import controlplane.env  # registers LoadBalance-v0

    env = gymnasium.make("LoadBalance-v0", action="curves", reward="fct_mean")
    envs = gymnasium.make_vec("LoadBalance-v0", num_envs=32, vectorization_mode="vector_entry_point", base="gsed")

`gymnasium.make("controlplane.env:LoadBalance-v0")` imports and makes in one. docs/environments.md explains them.

    load_balance   LoadBalance: one balancer                 core        what the three share
    vector         LoadBalanceVector: many, one C call       actions     what an action means
    parallel       LoadBalanceParallel: one agent a balancer base        the policy underneath
    objective      rewards, shaping, constraints             simulated   the simulator as a source of steps
    rewards        their formulae                            live        a running balancer as a source of steps
    dataset        transitions to files and back             worlds      worlds to learn in
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import gymnasium
except ImportError as error:
    raise ImportError("controlplane.env needs Gymnasium: pip install 'vickrey[rl]'") from error

from controlplane.env.actions import Bounds
from controlplane.env.core import Settings
from controlplane.env.load_balance import LoadBalance
from controlplane.env.objective import Constraint, Reward
from controlplane.env.vector import LoadBalanceVector
from controlplane.env.worlds import default_world, random_worlds
from controlplane.weights import WeightLimits

if TYPE_CHECKING:
    from controlplane.env.parallel import LoadBalanceParallel

ID = "LoadBalance-v0"
MAX_EPISODE_STEPS = 500

if ID not in gymnasium.registry:
    gymnasium.register(
        ID,
        entry_point="controlplane.env.load_balance:LoadBalance",
        vector_entry_point="controlplane.env.vector:LoadBalanceVector",
        max_episode_steps=MAX_EPISODE_STEPS,
    )


def __getattr__(name: str) -> Any:
    # PettingZoo is imported by those who use it.
    if name == "LoadBalanceParallel":
        from controlplane.env.parallel import LoadBalanceParallel

        return LoadBalanceParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Bounds",
    "Constraint",
    "LoadBalance",
    "LoadBalanceParallel",
    "LoadBalanceVector",
    "Reward",
    "Settings",
    "WeightLimits",
    "default_world",
    "random_worlds",
]
