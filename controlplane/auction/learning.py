"""How servers learn their sensitivity: one interface, seven modes, every server a row.

    learner = make("qlearning", n=8, rng=np.random.default_rng(1), epsilon=0.1)
    sensitivity = learner.update(sensitivity, load_ratio, target, task_load=5.0, risk_aversion=risk, active=there)

Source    the white paper, sections 2 and 7.5. A round ends with one update
off           s stays as it is
continuous    s ← s · (1 + η (ρ − t))
qlearning     per server a table over ⌊10 ρ⌋ and three actions (qlearning.py)
bandit        per server three arms, their mean rewards, ε-greedy; ucb1 and thompson choose better (bandits.py)
dqn           one network for all servers: ρ, task load, sensitivity, risk aversion → 64 → 64 → 3 (dqn.py; needs torch)

Actions       increase s · (1 + step), decrease s · (1 − step), none
Reward        by how much |ρ − t| fell since the action was taken
Exploration   epsilon: the share of random actions. With 0 nothing is tried that is not believed best, in any mode: an
              agent that knows nothing changes nothing. tries_most bounds what ucb1 and thompson try by themselves
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rows = NDArray[np.intp]
T = TypeVar("T", bound=np.generic)

MODES = ("off", "continuous", "qlearning", "bandit", "ucb1", "thompson", "dqn")
ACTIONS = ("increase", "decrease", "none")
INCREASE, DECREASE, NONE = range(3)
SENSITIVITY_RANGE = (0.01, 100.0)


@dataclass(frozen=True)
class Options:
    """What the modes may be told; each uses what it knows.

    exploration is the width of ucb1's and thompson's uncertainty, in the reward's own scale; by default 1, and 0 when
    epsilon is 0. neural_rate is η of the bid's neural stage: the dqn's action also moves the bid of the next round.
    """

    learning_rate: float = 0.1  # η of continuous
    epsilon: float = 0.1
    alpha: float = 0.1
    gamma: float = 0.9
    step: float = 0.1
    exploration: float | None = None
    tries_most: float = 1.0  # share of rounds in which ucb1 and thompson may choose what is not believed best
    sensitivity_range: tuple[float, float] = SENSITIVITY_RANGE
    neural_rate: float = 0.1
    network_rate: float = 1e-3  # of the dqn's optimiser
    batch: int = 128
    memory: int = 20_000  # transitions in the dqn's replay
    target_every: int = 100  # updates between copies to the dqn's target network

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "alpha", "gamma", "neural_rate", "tries_most"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"expected {name} from 0 to 1, not {getattr(self, name)}")
        if not 0.0 <= self.step < 1.0:
            raise ValueError(f"expected step from 0 to less than 1, not {self.step}")
        if self.exploration is not None and not 0.0 <= self.exploration < np.inf:
            raise ValueError(f"expected exploration of at least 0, not {self.exploration}")
        low, high = self.sensitivity_range
        if not 0.0 < low <= high < np.inf:
            raise ValueError(f"expected sensitivity_range as 0 < low <= high, not {low} … {high}")
        for name in ("batch", "memory", "target_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, not {getattr(self, name)}")
        if not 0.0 < self.network_rate < np.inf:
            raise ValueError(f"expected network_rate above 0, not {self.network_rate}")

    @property
    def width(self) -> float:
        """exploration, or its default."""
        return self.exploration if self.exploration is not None else float(self.epsilon > 0)


class SensitivityLearner:
    """Mode off, and what all modes share. State is per server, in rows.

    neural    (servers,) factor of each server's bid in the round that comes; ones unless a network says otherwise
    """

    mode = "off"

    def __init__(self, n: int, rng: np.random.Generator, options: Options) -> None:
        self.n, self.rng, self.options = n, rng, options
        self.neural: Floats = np.ones(n)

    def update(
        self,
        sensitivity: Floats,
        load_ratio: Floats,
        target: Floats,
        *,
        task_load: float,
        risk_aversion: Floats,
        active: Bools,
    ) -> Floats:
        """Learn from the round that ended and return the sensitivities of the next, (servers,), within their range.

        load_ratio is the ratio now (above 1 counts as 1), task_load the mean load of a task. A server that is not
        active neither learns nor changes, and what it does next is not put down to what it did before.
        """
        low, high = self.options.sensitivity_range
        ratio = np.clip(load_ratio, 0.0, 1.0)
        changed = self._changed(sensitivity, ratio, target, task_load, risk_aversion, active)
        kept: Floats = np.where(active, np.clip(changed, low, high), sensitivity)
        return kept

    def rows(self, same: Rows) -> None:
        """Re-map the state: row i of the new is row same[i] of the old; -1 is a server that nothing is known of."""
        self.neural = moved(self.neural, same, 1.0)
        self.n = same.size

    def _changed(
        self, sensitivity: Floats, ratio: Floats, target: Floats, task_load: float, risk_aversion: Floats, active: Bools
    ) -> Floats:
        return sensitivity


class Continuous(SensitivityLearner):
    """s ← s · (1 + η (ρ − t))."""

    mode = "continuous"

    def _changed(
        self, sensitivity: Floats, ratio: Floats, target: Floats, task_load: float, risk_aversion: Floats, active: Bools
    ) -> Floats:
        changed: Floats = sensitivity * (1.0 + self.options.learning_rate * (ratio - target))
        return changed


class ActionLearner(SensitivityLearner, ABC):
    """A learner that chooses among the three actions and is paid one update later.

    States are rows (ρ, task load, sensitivity, risk aversion). Subclasses have _learn and _choose.
    """

    def __init__(self, n: int, rng: np.random.Generator, options: Options) -> None:
        super().__init__(n, rng, options)
        self.state = np.zeros((n, 4))
        self.action = np.full(n, NONE)
        self.error = np.zeros(n)
        self.acted = np.zeros(n, dtype=bool)
        self._factor = np.array([1.0 + options.step, 1.0 - options.step, 1.0])

    def _changed(
        self, sensitivity: Floats, ratio: Floats, target: Floats, task_load: float, risk_aversion: Floats, active: Bools
    ) -> Floats:
        state = np.column_stack([ratio, np.full(self.n, task_load), sensitivity, risk_aversion])
        error = np.abs(ratio - target)
        paid = np.flatnonzero(self.acted & active)
        if paid.size:
            reward = self.error[paid] - error[paid]
            self._learn(paid, self.state[paid], self.action[paid], reward, state[paid])
        self.action = np.where(active, self._choose(state), NONE)
        self.state, self.error, self.acted = state, error, active.copy()
        changed: Floats = sensitivity * self._factor[self.action]
        return changed

    @abstractmethod
    def _learn(self, rows: Rows, state: Floats, action: Rows, reward: Floats, following: Floats) -> None:
        """Take in what these servers did, were paid, and came to; all (rows,) or (rows, 4)."""

    @abstractmethod
    def _choose(self, state: Floats) -> Rows:
        """Return an action for each server, (servers,)."""

    def _epsilon_greedy(self, value: Floats) -> Rows:
        """Return the best of each row of value (servers, actions), or with probability ε any."""
        chosen = greedy(value)
        if self.options.epsilon > 0:
            tries = self.rng.random(self.n) < self.options.epsilon
            chosen = np.where(tries, self.rng.integers(len(ACTIONS), size=self.n), chosen)
        return chosen

    def rows(self, same: Rows) -> None:
        super().rows(same)
        self.state = moved(self.state, same, 0.0)
        self.error = moved(self.error, same, 0.0)
        self.action = moved(self.action, same, NONE)
        self.acted = moved(self.acted, same, False)


def greedy(value: Floats) -> Rows:
    """Return the best action of each row; equal ones go to the last: who knows nothing changes nothing."""
    best: Rows = len(ACTIONS) - 1 - np.argmax(value[:, ::-1], axis=1)
    return best


def moved(old: NDArray[T], same: Rows, fill: float) -> NDArray[T]:
    """Return rows of old in a new order, `fill` where same is -1."""
    if not old.shape[0]:
        return np.full((same.size, *old.shape[1:]), fill, dtype=old.dtype)
    known = same >= 0
    new = old[np.where(known, same, 0)]
    new[~known] = fill
    return new


def make(mode: str, n: int, rng: np.random.Generator, **options: object) -> SensitivityLearner:
    """Return a learner for n servers. ValueError: no such mode or option, or a bad value.

    RuntimeError: mode dqn, and torch is missing.
    """
    known = {field.name for field in fields(Options)}
    for name in options:
        if name not in known:
            raise ValueError(f"no learning option is called '{name}'; there are {', '.join(sorted(known))}")
    given = Options(**options)  # type: ignore[arg-type]
    match mode:
        case "off":
            return SensitivityLearner(n, rng, given)
        case "continuous":
            return Continuous(n, rng, given)
        case "qlearning":
            from controlplane.auction.qlearning import QLearning

            return QLearning(n, rng, given)
        case "bandit" | "ucb1" | "thompson":
            from controlplane.auction import bandits

            return bandits.KINDS[mode](n, rng, given)
        case "dqn":
            from controlplane.auction.dqn import DeepQ

            return DeepQ(n, rng, given)
    raise ValueError(f"no learning mode is called '{mode}'; there are {', '.join(MODES)}")
