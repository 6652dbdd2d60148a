"""Three-armed bandits that learn the sensitivity: each server has its own arms, and no state.

Source    bandit: the white paper, section 2;  ucb1: Auer, Cesa-Bianchi and Fischer, "Finite-time Analysis of the
          Multiarmed Bandit Problem", Machine Learning 47, 2002;  thompson: Agrawal and Goyal, "Further Optimal Regret
          Bounds for Thompson Sampling", AISTATS 2013, algorithm 2 (Gaussian)
Update    value_a ← value_a + (r − value_a) / n_a
Choice    bandit: ε-greedy
          ucb1: the largest value_a + w·σ·sqrt(2 ln N / n_a), an arm never tried first
          thompson: the largest draw from Normal(value_a·n_a / (n_a + 1), (w·σ)² / (n_a + 1))
          σ is the root mean square of the server's rewards: the papers' rewards span 0 … 1, these a few hundredths.
          w is Options.width: 0 chooses the best mean. Beyond a share tries_most of the rounds it is the best mean too
Shapes    value, count (servers, 3);  square (servers,) sum of squared rewards
"""

from __future__ import annotations

import numpy as np

from controlplane.auction.learning import ACTIONS, ActionLearner, Floats, Options, Rows, greedy, moved


class Bandit(ActionLearner):
    mode = "bandit"

    def __init__(self, n: int, rng: np.random.Generator, options: Options) -> None:
        super().__init__(n, rng, options)
        self.value = np.zeros((n, len(ACTIONS)))
        self.count = np.zeros((n, len(ACTIONS)))
        self.square = np.zeros(n)

    def _learn(self, rows: Rows, state: Floats, action: Rows, reward: Floats, following: Floats) -> None:
        self.count[rows, action] += 1.0
        self.value[rows, action] += (reward - self.value[rows, action]) / self.count[rows, action]
        self.square[rows] += reward**2

    def _choose(self, state: Floats) -> Rows:
        return self._epsilon_greedy(self.value)

    def _within_bounds(self, index: Floats) -> Rows:
        """Return the largest of index (servers, 3) in a share tries_most of the rounds; else the best mean."""
        chosen = greedy(index)
        if self.options.tries_most < 1:
            may = self.rng.random(self.n) < self.options.tries_most
            chosen = np.where(may, chosen, greedy(self.value))
        return chosen

    def _scale(self) -> Floats:
        """Return σ of each server, (servers, 1); before the first reward that is not 0, 1."""
        total = self.count.sum(axis=1)
        scale = np.sqrt(self.square / np.maximum(total, 1.0))
        return np.asarray(np.where(scale > 0, scale, 1.0)[:, None])

    def rows(self, same: Rows) -> None:
        super().rows(same)
        self.value = moved(self.value, same, 0.0)
        self.count = moved(self.count, same, 0.0)
        self.square = moved(self.square, same, 0.0)


class UCB1(Bandit):
    mode = "ucb1"

    def _choose(self, state: Floats) -> Rows:
        width = self.options.width
        if width == 0.0:
            return greedy(self.value)
        total = np.maximum(self.count.sum(axis=1, keepdims=True), 1.0)
        untried = self.count == 0
        bonus = width * self._scale() * np.sqrt(2.0 * np.log(total) / np.where(untried, 1.0, self.count))
        return self._within_bounds(np.where(untried, np.inf, self.value + bonus))


class Thompson(Bandit):
    mode = "thompson"

    def _choose(self, state: Floats) -> Rows:
        width = self.options.width
        if width == 0.0:
            return greedy(self.value)
        believed = self.value * self.count / (self.count + 1.0)
        spread = width * self._scale() / np.sqrt(self.count + 1.0)
        return self._within_bounds(believed + spread * self.rng.standard_normal(self.value.shape))


KINDS: dict[str, type[Bandit]] = {kind.mode: kind for kind in (Bandit, UCB1, Thompson)}
