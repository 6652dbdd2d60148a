"""Generalised shortest expected delay: (K·n + c) / w with the configured weights as speeds.

c = 1 is shortest expected delay, c = 0 greedy on the work ahead; near the optimum lie c = 0 … 0.5. K is the number
of balancers that share the servers: each sees only its own flows, about one in K of them.

Source    Selen, Adan, Kapodistria, van Leeuwaarden, "Steady-state analysis of shortest expected delay routing",
          QUESTA 84, 2016, for c = 1; the other c were measured (docs/policies.md)
Bid       (K·n + c) / w
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from controlplane.policy import CURVE_N, Directive, Floats, Observation, PolicyError

# Weight 0 takes no flows; its curve must only be finite.
WEIGHT_FLOOR = 1e-3


def speed_curves(weight: Floats, slope: float, constant: float) -> Floats:
    """Return (slope·n + constant) / weight, (servers, CURVE_POINTS)."""
    return np.asarray((slope * CURVE_N + constant) / np.maximum(weight, WEIGHT_FLOOR)[:, None])


class GeneralisedShortestExpectedDelay:
    name = "gsed"
    tunable: ClassVar = {"c": (0.0, 1.0)}  # by fine-tuning, controlplane/deployment/adapt.py

    def __init__(self, c: float = 0.5, k: float | None = None) -> None:
        if not (np.isfinite(c) and c >= 0) or not (k is None or (np.isfinite(k) and k > 0)):
            raise PolicyError(f"expected c >= 0 and k > 0, not c = {c}, k = {k}")
        self.c, self.k = c, k

    def decide(self, observation: Observation) -> Directive:
        k = observation.balancers if self.k is None else self.k
        return Directive(
            rule="bids", curves=speed_curves(observation.weight, k, self.c), weights=observation.weight + 1e-9
        )
