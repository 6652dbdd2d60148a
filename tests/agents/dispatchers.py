"""Two dispatchers before the same servers, exactly solved: each flow comes to one of them, by lot.

Both see the numbers in flight and whether the flow is theirs; the other's choice counts for nothing. Both are rewarded
alike, with the flow's expected completion time. What is best is what is best for one dispatcher (env/routing.py), so
the chain judges the policy that both follow when the flow is theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.agents.batch import Transition
from controlplane.env.routing import Chain, RoutingVector
from controlplane.learned.encoding import GLOBAL_COLUMNS, Inputs

_MINE = GLOBAL_COLUMNS.index("flows")


def seen(inputs: Inputs, owner: NDArray[np.int64]) -> Inputs:
    """Return what both dispatchers see, (2·R, …), of inputs (R, …) when flows are of owners (R,) 0 or 1."""
    whole = np.repeat(inputs.whole, 2, axis=0)
    whole[:, _MINE] = np.ravel(owner[:, None] == np.arange(2))
    return Inputs(np.repeat(inputs.rows, 2, axis=0), whole, np.repeat(inputs.active, 2, axis=0))


def gap(agent: Any, chain: Chain) -> float:
    """Return by which share the greedy policy's mean completion time is above the least one."""
    table = chain.farm.inputs
    both = seen(table, np.zeros(len(table.rows), dtype=np.int64))
    mine = Inputs(both.rows[::2], both.whole[::2], both.active[::2])
    _, chosen, _ = agent.act(mine, agent.initial(len(mine.rows), len(chain.farm.speeds)), explore=False)
    return chain.mean_time(chosen[:, 0].reshape(chain.farm.shape)) / chain.optimum()[0] - 1.0


def train(agent: Any, env: RoutingVector, steps: int, rng: np.random.Generator) -> None:
    """Let an agent dispatch for so many vector steps, and learn."""
    each, both, n = np.arange(env.num_envs), 2 * env.num_envs, len(env.farm.speeds)
    hidden, never = agent.initial(both, n), np.zeros(both, dtype=np.bool_)
    for step in range(steps):
        owner = rng.integers(0, 2, env.num_envs)
        inputs = seen(env.inputs, owner)
        none, chosen, _ = agent.act(inputs, hidden, explore=True)
        _, reward, *_ = env.step(chosen.reshape(-1, 2)[each, owner])
        reward = np.repeat(reward, 2).astype(np.float32)
        costs = np.zeros((both, 0), dtype=np.float32)
        agent.observe(Transition(inputs, none, chosen, reward, costs, never, never | (step == 0), hidden, balancers=2))
        while agent.ready:
            agent.learn()
