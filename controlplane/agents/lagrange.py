"""Constraints by Lagrange multipliers that are learned from violations, for any agent.

max E[r] subject to E[c_j] ≤ d_j becomes  min_{λ ≥ 0} max_π E[r − Σ_j λ_j (c_j − d_j)]:  the agent maximises
r − Σ λ_j c_j, while each multiplier climbs along its violation (dual ascent; Altman, "Constrained Markov Decision
Processes", 1999, ch. 4; Tessler, Mankowitz and Mannor, "Reward Constrained Policy Optimization", ICLR 2019, eq. 8):

    λ_j ← clip(λ_j + rate · (c̄_j − d_j), 0, most)

c̄_j is the mean over the rows of a vector step. Multipliers are in units of the reward that is maximised (the
normalised one) for each unit of cost. An environment's costs are violations already, max(0, greatest − limit): d is how
much of that may remain on average. With d = 0 a multiplier never falls again; one that stays at `most` tells that the
constraint cannot be met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Multipliers:
    """One multiplier a constraint, from 0. How many there are is known with the first costs."""

    def __init__(self, limit: float = 0.0, rate: float = 0.01, most: float = 100.0) -> None:
        """limit: mean cost allowed; rate: a step, for each unit of violation; most: greatest multiplier."""
        if rate < 0 or most < 0:
            raise ValueError(f"multipliers: expected rate and greatest value >= 0, not {rate} and {most}")
        self.limit, self.rate, self.most = limit, rate, most
        self.values: NDArray[np.float64] = np.zeros(0)

    def update(self, cost: NDArray[Any]) -> None:
        """Climb along the violations of a vector step, cost (R, C)."""
        if len(self.values) != cost.shape[1]:
            if len(self.values):
                raise ValueError(f"multipliers: {cost.shape[1]} costs, expected {len(self.values)}")
            self.values = np.zeros(cost.shape[1])
        if cost.size:
            violation = cost.mean(axis=0, dtype=np.float64) - self.limit
            self.values = np.clip(self.values + self.rate * violation, 0.0, self.most)

    def state_dict(self) -> dict[str, list[float]]:
        return {"values": self.values.tolist()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self.values = np.asarray(state["values"], dtype=np.float64)
