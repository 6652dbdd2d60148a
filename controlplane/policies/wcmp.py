"""Weighted random by the configured weights (WCMP); with equal weights it is ECMP.

Source    Zhou et al., "WCMP: Weighted Cost Multipathing for Improved Fairness in Data Centers", EuroSys 2014
Draw      server i with probability w_i / Σw, by Vose's alias method in the data plane
"""

from __future__ import annotations

import numpy as np

from controlplane.policy import Directive, Floats, Observation


def configured_shares(observation: Observation) -> Floats:
    """Return the weights of the servers that may take flows; equal ones where none may: a lottery needs a ticket."""
    shares = np.where(observation.active, observation.weight, 0.0)
    return shares if shares.sum() > 0 else np.ones(observation.n_servers)


class WeightedRandom:
    name = "wcmp"

    def decide(self, observation: Observation) -> Directive:
        return Directive(rule="alias", weights=configured_shares(observation))
