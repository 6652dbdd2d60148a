"""LoadBalance-v0: one balancer as a Gymnasium environment, simulated or live."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from controlplane.env.core import Core, Settings, Step
from controlplane.env.live import LiveSource

Observation = dict[str, NDArray[Any]]


class LoadBalance(gym.Env[Observation, NDArray[Any]]):
    """A load balancer decides how servers bid for the flows of the next control interval.

    ## Actions

    `action=` chooses the kind (controlplane/env/actions.py; each is projected into its limits):

    - "curves" (default): `Box(-1, 1, (3 + 2·servers,))`, a correction of the base policy's bid curves; zero changes
      nothing, so that the zero action is the base policy, `adaptive` unless `base=` says otherwise.
    - "discrete": `MultiDiscrete([3] * servers)`, a weight of {1, 1.5, 2} for each server.
    - "weights": `Box(-1, 1, (servers,))`, weights on a logarithmic scale, 1:16.
    - "adjustments": `Box(-1, 1, (servers,))`, changes of the weights.

    ## Observation

    `Dict(servers=Box((servers, 11)), active=MultiBinary(servers))`, seconds and flows; columns are
    shm_layout.features.FEATURES, row i is server slot i, and `active` says which may take new flows. Rows of free
    slots are zero. `truth=True` adds `truth=Box((servers, 4))`: flows in the server, busy workers, workers, speed;
    simulator only.

    ## Reward

    `reward=` (controlplane/env/objective.py): Jain's index of flow_duration_mean_decay by default. Costs of
    `constraints=` are in `info["costs"]` and, weighted and added up, in `info["cost"]`.

    ## Start

    `reset(seed=)` begins the world anew with flows drawn from the seed: the same seed gives the same bytes. A live
    balancer is taken as it is.

    ## End

    Terminated when the world has no more flows (a world of so many flows); truncated at the world's duration. The
    default world has neither: gymnasium.wrappers.TimeLimit ends its episodes (`gymnasium.make` adds it, 500 steps).

    ## Arguments

    Settings in controlplane/env/core.py; docs/environments.md explains them.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium's own form

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        if render_mode is not None:
            raise ValueError("LoadBalance renders nothing: `vickrey top` and the dashboard show a balancer")
        self.render_mode = render_mode
        self.core = Core(Settings(**settings))
        self.observation_space = cast(gym.Space[Observation], self.core.observation_space())
        self.action_space = self.core.action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.core.reset({0: self.np_random})
        return self._observation(), {"time": 0.0, "policy": self.core.policy}

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        step = self.core.step(np.asarray(action)[None])
        return (
            self._observation(),
            float(step.score.reward[0]),
            bool(step.terminated[0]),
            bool(step.truncated[0]),
            self._info(step),
        )

    def neutral_action(self) -> NDArray[Any]:
        """The action that does least; of kind "curves": the base policy as it is."""
        return self.core.neutral_action()

    def _observation(self) -> Observation:
        reading = self.core.reading
        assert reading is not None
        observation: Observation = {"active": reading.active[0].astype(np.int8), "servers": reading.features[0].copy()}
        if self.core.settings.truth:
            observation["truth"] = self.core.truth(reading)[0]
        return observation

    def _info(self, step: Step) -> dict[str, Any]:
        score = step.score
        info: dict[str, Any] = {
            "time": float(step.seconds[0]),
            "policy": self.core.policy,
            "cost": float(score.cost[0]),
            "costs": score.costs[0].copy(),
            "flows": int(score.flows[0]),
            "completed": int(score.completed[0]),
            "failed": int(score.failed[0]),
            "fct_mean": float(score.fct_mean[0]),
        }
        source = self.core.source
        if isinstance(source, LiveSource) and (directive := source.directive) is not None:
            if directive.weights is not None:
                info["weights"] = directive.weights.astype(np.float64)
        elif self.core.kind.name != "curves":
            info["weights"] = source.orders.weights[0].copy()
        return info

    def close(self) -> None:
        self.core.close()
