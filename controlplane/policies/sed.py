"""Shortest expected delay with the configured weights as speeds: MARLLB's strongest rule that does not learn.

Source    Whitt, "Deciding Which Queue to Join", Operations Research 34(1), 1986
Bid       (n + 1) / w
"""

from __future__ import annotations

from controlplane.policies.gsed import speed_curves
from controlplane.policy import Directive, Observation


class ShortestExpectedDelay:
    name = "sed"

    def decide(self, observation: Observation) -> Directive:
        return Directive(
            rule="bids", curves=speed_curves(observation.weight, 1.0, 1.0), weights=observation.weight + 1e-9
        )
