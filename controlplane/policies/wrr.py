"""Smooth weighted round robin by the configured weights: nginx's and, in effect, HAProxy's roundrobin.

Source    nginx, "Upstream: smooth weighted round-robin balancing", commit 52327e0627f4, 2012
Turn      the server with the greatest credit; each turn adds w_i to all and takes Σw from the one that had it
"""

from __future__ import annotations

from controlplane.policies.wcmp import configured_shares
from controlplane.policy import Directive, Observation


class WeightedRoundRobin:
    name = "wrr"

    def decide(self, observation: Observation) -> Directive:
        return Directive(rule="wrr", weights=configured_shares(observation))
