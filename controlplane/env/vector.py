"""LoadBalanceVector: many LoadBalance-v0 at once, stepped by one C call; observations are views of what it wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from controlplane.env.core import Core, Settings, Step
from controlplane.env.reading import Reading

Observation = dict[str, NDArray[Any]]


class LoadBalanceVector(VectorEnv[Observation, NDArray[Any], NDArray[Any]]):
    """`num_envs` replicas of LoadBalance (which documents spaces, rewards and arguments), simulated only.

    Replica i of `reset(seed=s)` is `LoadBalance().reset(seed=s + i)`. Episodes that ended begin anew in the next step
    (or in the same one with `autoreset="SameStep"`), as Gymnasium defines it.

    Observations are views: what a step returned is overwritten by the step after the next one. `copy=True` copies.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        copy: bool = False,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if render_mode is not None:
            raise ValueError("LoadBalanceVector renders nothing")
        mode = AutoresetMode(autoreset)
        if mode is AutoresetMode.DISABLED:
            raise ValueError("autoreset: NextStep or SameStep")
        if settings.get("source", "sim") != "sim":
            raise ValueError("LoadBalanceVector is simulated; LoadBalance attaches to a live balancer")
        self.num_envs, self.copy = num_envs, copy
        self.metadata = {"render_modes": [], "autoreset_mode": mode}
        self._mode, self._max_steps = mode, max_episode_steps
        self.core = Core(Settings(**settings), num_envs)
        self.single_observation_space = self.core.observation_space()
        self.single_action_space = self.core.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin episodes in all replicas, or in those of options["reset_mask"]."""
        each = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(self.num_envs)]
        seeds: list[int | None] = list(each)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], dtype=np.bool_)
        for i in np.flatnonzero(mask):
            if seeds[i] is not None or self._generators[i] is None:
                self._generators[i] = seeding.np_random(seeds[i])[0]
        self._begin(np.flatnonzero(mask))
        return self._observation(self._now()), {"time": np.zeros(self.num_envs), "_time": mask}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        actions = np.asarray(actions)
        again = self._ended.copy() if self._mode is AutoresetMode.NEXT_STEP else np.zeros_like(self._ended)
        if again.any():
            self._begin(np.flatnonzero(again))
            step = self.core.step(actions, np.flatnonzero(~again).tolist())
        else:
            step = self.core.step(actions)
        self._steps += ~again
        acting = self.core.acting
        terminated = step.terminated & ~again
        truncated = step.truncated & ~again
        if self._max_steps is not None:
            truncated |= ~terminated & (self._steps >= self._max_steps)
        rewards = np.where(again, 0.0, step.score.reward[acting])
        infos = self._infos(step, ~again)
        self._ended = terminated | truncated
        if self._mode is AutoresetMode.SAME_STEP and self._ended.any():
            final = {key: value.copy() for key, value in self._observation(step.reading).items()}
            infos["final_obs"], infos["_final_obs"] = self._each(final), self._ended.copy()
            infos["final_info"] = {
                key: value.copy() for key, value in infos.items() if not key.startswith(("_", "final"))
            }
            infos["_final_info"] = self._ended.copy()
            self._begin(np.flatnonzero(self._ended))
        return self._observation(self._now()), rewards, terminated, truncated, infos

    @property
    def policy(self) -> str:
        """Whose decisions are in force."""
        return self.core.policy

    def _each(self, observation: Observation) -> NDArray[Any]:
        """Return final observations one by one, None where none ended, as Gymnasium's own vector environments do."""
        each = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(self._ended):
            each[i] = {key: value[i] for key, value in observation.items()}
        return each

    def _begin(self, replicas: NDArray[np.intp]) -> None:
        generators: dict[int, np.random.Generator] = {}
        for i in replicas:
            generator = self._generators[i]
            if generator is None:
                raise RuntimeError("reset() comes before step()")
            generators[int(i)] = generator
        self.core.reset(generators)
        self._steps[replicas] = 0
        self._ended[replicas] = False

    def _now(self) -> Reading:
        assert self.core.reading is not None
        return self.core.reading

    def _observation(self, reading: Reading) -> Observation:
        # One row in so many is the replica's acting balancer: a view with a stride.
        rows = slice(0, None, self.core.balancers)
        observation: Observation = {"active": reading.active[rows].view(np.int8), "servers": reading.features[rows]}
        if self.core.settings.truth:
            observation["truth"] = self.core.truth(reading)
        return {key: value.copy() for key, value in observation.items()} if self.copy else observation

    def _infos(self, step: Step, stepped: NDArray[np.bool_]) -> dict[str, Any]:
        score, acting = step.score, self.core.acting
        infos: dict[str, Any] = {
            "time": step.seconds,
            "cost": score.cost[acting],
            "costs": score.costs[acting],
            "flows": score.flows[acting],
            "completed": score.completed[acting],
            "failed": score.failed[acting],
            "fct_mean": score.fct_mean[acting],
        }
        infos.update({f"_{key}": stepped for key in tuple(infos)})
        return infos

    def close_extras(self, **kwargs: Any) -> None:
        self.core.close()
