"""What each server contributes, live: Shapley values each round, for hand-offs and for `vickrey policy show`.

spare     the white paper's game, v(S) = Σ spare capacity: additive, so φ_i = c_i − L_i, and it costs nothing
pooled    flows in flight that are saved when a coalition serves its members' arrivals together (games.PooledMM1)
serving   flows in flight that are saved when a coalition, rather than nobody, serves all of the load
          (games.ServingCost)
Only the ratio within a coalition matters to a hand-off, so the two costly games are played within each coalition by
itself (all active servers, where none is configured), sampled beyond EXACT members, and again every SECONDS at most.
"""

from __future__ import annotations

import numpy as np

from controlplane.policy import Bools, Floats

GAMES = ("spare", "pooled", "serving")
EXACT, SAMPLES, SECONDS = 8, 512, 2.0


class Contributions:
    """The last round's values and when they were taken."""

    def __init__(self, game: str) -> None:
        self.game = game
        if game != "spare":
            import controlplane.auction.games  # noqa: F401  what is missing is said when the policy is set
        self._values: Floats = np.zeros(0)
        self._members: Bools = np.zeros(0, dtype=bool)
        self._due = -np.inf
        self._now = -np.inf

    def update(
        self,
        now: float,
        capacity: Floats,
        load: Floats,
        mu: Floats,
        k: Floats,
        arrivals: Floats,
        active: Bools,
        coalition: Floats,
    ) -> Floats:
        """Return the Shapley values, (servers,), not negative; 0 for servers that take no flows."""
        spare: Floats = np.maximum(capacity - load, 0.0) * active
        if self.game == "spare":
            return spare
        same = len(self._values) == len(active) and np.array_equal(self._members, active)
        if not same or now >= self._due or now < self._now:
            self._values = np.maximum(self._play(mu, k, arrivals, active, coalition), 0.0)
            self._members, self._due = active.copy(), now + SECONDS
        self._now = now
        return self._values

    def _play(self, mu: Floats, k: Floats, arrivals: Floats, active: Bools, coalition: Floats) -> Floats:
        from controlplane.auction.games import Game, PooledMM1, ServingCost
        from controlplane.auction.shapley import EXACT_MAX, monte_carlo, values

        phi = np.zeros(len(active))
        groups = np.unique(coalition[active & (coalition > 0)])
        rows_of = [np.flatnonzero(active & (coalition == group)) for group in groups] or [np.flatnonzero(active)]
        for rows in rows_of:
            n = len(rows)
            if n == 0:
                continue
            game: Game
            if self.game == "pooled":
                game = PooledMM1(k[rows] * mu[rows], arrivals[rows])
            else:
                game = ServingCost(mu[rows], k[rows], float(arrivals[rows].sum()))
            if n <= min(EXACT, EXACT_MAX):
                phi[rows] = values(game, n).phi
            else:
                phi[rows] = monte_carlo(game, n, SAMPLES, np.random.default_rng(0))[0]
        found: Floats = np.nan_to_num(phi, nan=0.0, posinf=0.0, neginf=0.0)
        return found
