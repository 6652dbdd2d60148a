"""Weighted consistent hashing: a client stays on its server, and a change of servers moves few clients.

Source    Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4
Draw      table[hash of the client mod its size], slots in proportion to the configured weights
"""

from __future__ import annotations

from controlplane.policies.wcmp import configured_shares
from controlplane.policy import Directive, Observation


class Maglev:
    name = "maglev"

    def decide(self, observation: Observation) -> Directive:
        return Directive(rule="maglev", weights=configured_shares(observation))
