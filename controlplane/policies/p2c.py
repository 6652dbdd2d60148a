"""Power of two choices: least connections among d servers drawn at random for each flow.

Source    Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001
Bid       n, of d servers
"""

from __future__ import annotations

import numpy as np

from controlplane.policy import CURVE_N, Directive, Observation, PolicyError


class PowerOfTwo:
    name = "p2c"

    def __init__(self, d: int = 2) -> None:
        if d < 1:
            raise PolicyError(f"expected d >= 1, not {d}")
        self.d = int(d)

    def decide(self, observation: Observation) -> Directive:
        return Directive(rule="bids", curves=np.tile(CURVE_N, (observation.n_servers, 1)), choices=self.d)
