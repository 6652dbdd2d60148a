"""Truthful bids, learned: every server bids the marginal social cost of one more flow, told nothing, from a cold start.

Source    Krishnan, "Joining the right queue", IEEE TAC 35(1), 1990; docs/adaptive.md
Learns    s and k of every server (controlplane/estimator.py) from its occupancy profile, with decay and change
          detection
Splits    the arrivals over the servers so that one more flow a second costs the same on each (controlplane/bids.py:
          split)
Bids      Δ(n) for that share (bids.py: truthful); a server that fails more flows than the others adds what that
          costs, and one that has not been seen for long bids less for its first flow, the more so the longer: it is
          probed, not starved
Balancers that share the servers (K > 1) see a part of the flows: (K·n + c)/ŵ then, until something better is measured
"""

from __future__ import annotations

import numpy as np

from controlplane.bids import split, truthful
from controlplane.learner import Learner
from controlplane.policy import CURVE_N, Directive, Floats, Observation

# A failed flow costs its client as much as this many mean completion times.
FAILURE_COST = 10.0
# A server's first bid falls by a factor e for so many seconds and so many flows of the service gone elsewhere.
PROBE_SECONDS, PROBE_FLOWS = 30.0, 100.0
# c of (K·n + c)/ŵ.
SHARED_C = 0.5


class Adaptive:
    name = "adaptive"

    def __init__(self) -> None:
        self.learner = Learner()

    def decide(self, observation: Observation) -> Directive:
        o = observation
        fit = self.learner.update(o)
        failing = self.learner.failing()
        # Capacity that fails its flows is none.
        capacity = fit.capacity * (1.0 - failing)
        lam = np.zeros(o.n_servers)
        may = o.active & (o.weight > 0)
        if may.any():
            lam[may] = split(self.learner.arrival_rate, fit.mu[may] * (1.0 - 0.99 * failing[may]), fit.k[may])
        lam = np.minimum(lam, 0.97 * fit.capacity)
        if o.balancers > 1:
            curves = (o.balancers * CURVE_N + SHARED_C) / fit.capacity[:, None]
        else:
            curves = truthful(lam, fit.mu, fit.k)
        typical = float(np.median(fit.s[may])) if may.any() else 1.0
        curves = curves + (FAILURE_COST * typical * failing)[:, None]
        curves[:, 0] *= self._probing()
        shares = capacity / max(float(capacity[may].sum()), 1e-300) if may.any() else np.ones(o.n_servers)
        fitted = {
            "mu": fit.mu,
            "k": fit.k,
            "capacity": fit.capacity,
            "arrivals": lam,
            "samples": fit.samples,
            "failing": failing,
        }
        return Directive(rule="bids", weights=np.maximum(shares, 1e-9), curves=curves, fitted=fitted)

    def _probing(self) -> Floats:
        """Return the factor on a server's first bid that its rising uncertainty earns it."""
        unseen = np.minimum(self.learner["unseen_seconds"] / PROBE_SECONDS, self.learner["unseen_flows"] / PROBE_FLOWS)
        return np.asarray(np.exp(-np.minimum(unseen, 50.0)))
