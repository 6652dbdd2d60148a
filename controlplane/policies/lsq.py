"""Least connections, or join the shortest queue: the server with the fewest flows in flight; ties draw lots.

Source    Winston, "Optimality of the Shortest Line Discipline", Journal of Applied Probability 14(1), 1977
Bid       n
"""

from __future__ import annotations

import numpy as np

from controlplane.policy import CURVE_N, Directive, Observation


class LeastConnections:
    name = "lsq"

    def decide(self, observation: Observation) -> Directive:
        return Directive(rule="bids", curves=np.tile(CURVE_N, (observation.n_servers, 1)))
