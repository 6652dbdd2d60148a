"""LoadBalanceParallel: several balancers over the same servers, one agent each, as a PettingZoo environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray

from controlplane.env.core import Core, Settings
from controlplane.env.worlds import default_world

try:
    from pettingzoo import ParallelEnv  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("LoadBalanceParallel needs PettingZoo: pip install 'vickrey[rl]'") from error

Observation = dict[str, NDArray[Any]]


class LoadBalanceParallel(ParallelEnv[str, Observation, NDArray[Any]]):  # type: ignore[misc]
    """Balancers that each see only the flows they dispatch themselves, and act at the same time.

    Agents are "balancer_0", "balancer_1", …; spaces, rewards and arguments are LoadBalance's. Each agent is rewarded
    for what it sees; `shared_reward=True` gives all of them the mean. `state()` is what all see together, with the
    truth about the servers, for training with a central critic. Simulated only; the default world has four balancers.
    """

    metadata = {"name": "load_balance_parallel_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012

    def __init__(
        self,
        *,
        shared_reward: bool = False,
        max_episode_steps: int | None = 500,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if render_mode is not None:
            raise ValueError("LoadBalanceParallel renders nothing")
        if settings.get("source", "sim") != "sim":
            raise ValueError("LoadBalanceParallel is simulated; a live balancer is attached to with LoadBalance")
        settings.setdefault("world", default_world(balancers=4))
        self.render_mode = render_mode
        self.core = Core(Settings(**settings), every_balancer=True)
        self.shared_reward, self._max_steps = shared_reward, max_episode_steps
        self.possible_agents = [f"balancer_{b}" for b in range(self.core.balancers)]
        self.agents: list[str] = []
        # The same object at every call, as PettingZoo demands, and one each, so that each can be seeded.
        self.observation_spaces = {agent: self.core.observation_space() for agent in self.possible_agents}
        self.action_spaces = {agent: self.core.action_space() for agent in self.possible_agents}
        self._generator: np.random.Generator | None = None
        self._steps = 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Observation], dict[str, dict[str, Any]]]:
        if seed is not None or self._generator is None:
            self._generator = seeding.np_random(seed)[0]
        self.core.reset({0: self._generator})
        self._steps = 0
        self.agents = list(self.possible_agents)
        return self._observations(), {agent: {"time": 0.0} for agent in self.agents}

    def step(
        self, actions: dict[str, NDArray[Any]]
    ) -> tuple[dict[str, Observation], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        if not self.agents:
            return {}, {}, {}, {}, {}
        step = self.core.step(np.stack([np.asarray(actions[agent]) for agent in self.possible_agents]))
        self._steps += 1
        score = step.score
        rewards = np.full(len(self.agents), score.reward.mean()) if self.shared_reward else score.reward
        terminated = bool(step.terminated[0])
        late = self._max_steps is not None and self._steps >= self._max_steps
        truncated = not terminated and (bool(step.truncated[0]) or late)
        agents = self.agents
        infos = {
            agent: {
                "time": float(step.seconds[0]),
                "cost": float(score.cost[b]),
                "costs": score.costs[b].copy(),
                "flows": int(score.flows[b]),
                "completed": int(score.completed[b]),
                "failed": int(score.failed[b]),
                "fct_mean": float(score.fct_mean[b]),
            }
            for b, agent in enumerate(agents)
        }
        observations = self._observations()
        if terminated or truncated:
            self.agents = []
        return (
            observations,
            {agent: float(rewards[b]) for b, agent in enumerate(agents)},
            dict.fromkeys(agents, terminated),
            dict.fromkeys(agents, truncated),
            infos,
        )

    def state(self) -> NDArray[np.float32]:
        """What all balancers see and what the servers are, in one vector."""
        reading = self.core.reading
        if reading is None:
            raise RuntimeError("reset() comes before state()")
        return np.concatenate([reading.features.ravel(), self.core.truth(reading).ravel()])

    def neutral_action(self) -> NDArray[Any]:
        """The action that does least; of kind "curves": the base policy as it is."""
        return self.core.neutral_action()

    def render(self) -> None:
        """Nothing to see."""

    def close(self) -> None:
        self.core.close()

    def _observations(self) -> dict[str, Observation]:
        reading = self.core.reading
        assert reading is not None
        observations: dict[str, Observation] = {}
        for b, agent in enumerate(self.possible_agents):
            observations[agent] = {
                "active": reading.active[b].astype(np.int8),
                "servers": reading.features[b].copy(),
            }
            if self.core.settings.truth:
                observations[agent]["truth"] = self.core.truth(reading)[0]
        return observations
