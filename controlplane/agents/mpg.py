"""MPG: balancers that each learn alone, with rewards that make what is best for one best for all: a Markov potential
game.

Source      Yao, Ding, "Learning Distributed and Fair Policies for Network Load Balancing as Markov Potential Game",
            NeurIPS 2022 (arXiv 2206.01451). Rewards `var` and `var_log`: env.py of the authors' public code

    x_ij     duration of the flows that balancer i has open on server j, its decayed mean: what it can see of the load
    F_i      = −Var_j(x_ij) = −(1/n) Σ_j (x_ij − x̄_i)²               variance-based fairness, what balancer i sees of it
    r_i      = −(w_v Var_j(x_ij) + w_l log(ε + Var_j(x_ij)))          variance and log-variance

A game is a potential game when one function of the joint state changes with each player's choice as that player's own
reward does; then players who each better their own reward, knowing nothing of the others, come to a Nash equilibrium.
The paper shows that variance-based fairness of the whole load is such a function, and that each balancer may use what
it sees in its place. So nothing is exchanged and no critic is central: each balancer runs SAC (isac.py; sac.py). The
logarithm keeps a gradient where the variance is small already, which by itself would fade with its square.

The reward is made from what the balancer itself sees at the end of the step, whatever reward the environment gives: the
input column `flow_duration_mean_decay`, the logarithm of the duration over the service's usual FCT, and the column
`interval`, which gives that FCT in control intervals. So x is in control intervals, and n counts active servers.

Departures  the authors' code has no ε; it is here so that one server, or equal ones, have a finite reward. Their code
            has both rewards, but no weights of their sum: 1 each here. Rewards are normalised as agent.py says.
            Equal durations are not short ones (docs/environments.md); this agent is here to be compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from controlplane.agents.batch import Transition
from controlplane.agents.bounds import Positive, Weight
from controlplane.agents.isac import IndependentConfig, IndependentSoftActorCritic
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.schema import ActionSchema

Floats = NDArray[np.float64]

_DURATION: Final = SERVER_COLUMNS.index("flow_duration_mean_decay")
_INTERVAL: Final = GLOBAL_COLUMNS.index("interval")
# What encode() adds before it takes the logarithm.
_OFFSET: Final = 0.01


@dataclass(frozen=True)
class PotentialConfig(IndependentConfig):
    """Hyper-parameters of MPG."""

    variance: Weight = 1.0  # w_v
    log_variance: Weight = 1.0  # w_l
    epsilon: Positive = 1e-4  # square control intervals


def durations(inputs: Inputs) -> Floats:
    """Return the durations of open flows, (R, n), in control intervals, as the inputs tell them."""
    relative = np.exp(inputs.rows[:, :, _DURATION].astype(np.float64)) - _OFFSET
    usual = np.exp(-inputs.whole[:, _INTERVAL].astype(np.float64))
    return np.asarray(np.maximum(relative, 0.0) * usual[:, None])


def variance(x: Floats, active: NDArray[np.bool_]) -> Floats:
    """Return Var_j(x_ij) over the active servers, (R,)."""
    number = np.maximum(active.sum(axis=1), 1)
    mean = np.where(active, x, 0.0).sum(axis=1) / number
    return np.asarray(np.where(active, np.square(x - mean[:, None]), 0.0).sum(axis=1) / number)


def potential_reward(
    x: Floats, active: NDArray[np.bool_], variance_weight: float = 1.0, log_weight: float = 1.0, epsilon: float = 1e-4
) -> Floats:
    """Return r_i = −(w_v Var + w_l log(ε + Var)) of durations x (R, n), (R,)."""
    spread = variance(x, active)
    return np.asarray(-(variance_weight * spread + log_weight * np.log(epsilon + spread)))


class PotentialGame(IndependentSoftActorCritic):
    """I-SAC with the rewards of a Markov potential game."""

    name = "mpg"
    config_class = PotentialConfig
    config: PotentialConfig

    def __init__(self, schema: ActionSchema, config: PotentialConfig | None = None, seed: int = 0) -> None:
        super().__init__(schema, config, seed)
        self._last: Transition | None = None  # waits for what its step led to

    def store(self, transition: Transition) -> None:
        """Keep the step before, whose reward is seen now."""
        last, self._last = self._last, copy.deepcopy(transition)  # whose arrays a trainer may write to again
        if last is None:
            return
        c = self.config
        # Where an episode has begun anew, what the step before led to is not seen. Such a step is learned from only if
        # it terminated; the reward of what it began with stands in.
        new = transition.fresh
        x = np.where(new[:, None], durations(last.inputs), durations(transition.inputs))
        active = np.where(new[:, None], last.inputs.active, transition.inputs.active)
        reward = potential_reward(x, active, c.variance, c.log_variance, c.epsilon)
        super().store(replace(last, reward=reward.astype(np.float32)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._last = None
