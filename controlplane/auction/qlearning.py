"""Tabular Q-learning of the sensitivity: each server has its own table.

Source    the white paper, sections 2 and 7.5; Watkins and Dayan, "Q-learning", Machine Learning 8, 1992
State     s = ⌊10 ρ⌋, 0 … 10
Update    Q(s, a) ← Q(s, a) + α (r + γ max_a' Q(s', a') − Q(s, a))
Choice    ε-greedy
Shapes    q (servers, 11, 3)
"""

from __future__ import annotations

import numpy as np

from controlplane.auction.learning import ACTIONS, ActionLearner, Floats, Options, Rows, moved

STATES = 11


def state_of(load_ratio: Floats) -> Rows:
    """Return ⌊10 ρ⌋ of load ratios from 0 to 1."""
    states: Rows = np.clip(np.floor(10.0 * load_ratio), 0, STATES - 1).astype(np.intp)
    return states


class QLearning(ActionLearner):
    mode = "qlearning"

    def __init__(self, n: int, rng: np.random.Generator, options: Options) -> None:
        super().__init__(n, rng, options)
        self.q = np.zeros((n, STATES, len(ACTIONS)))

    def _learn(self, rows: Rows, state: Floats, action: Rows, reward: Floats, following: Floats) -> None:
        s, after = state_of(state[:, 0]), state_of(following[:, 0])
        best = self.q[rows, after].max(axis=1)
        # Each server has one row: no index comes twice.
        self.q[rows, s, action] += self.options.alpha * (reward + self.options.gamma * best - self.q[rows, s, action])

    def _choose(self, state: Floats) -> Rows:
        return self._epsilon_greedy(self.q[np.arange(self.n), state_of(state[:, 0])])

    def rows(self, same: Rows) -> None:
        super().rows(same)
        self.q = moved(self.q, same, 0.0)
