"""(K·n + c) / ŵ with rates that are estimated from completions: what SED becomes when nobody tells it the speeds.

The yardstick for learning: one number a server, two options. It is `gsed` where the configured weights are wrong, and
what recovers after a change of speeds as fast as its memory is short.

Estimate  ŵ = decayed completions over decayed busy time (some flow in flight); each completion multiplies the past by
          `decay`, so that the memory is 1 / (1 − decay) completions. For one worker a server that is its rate; with
          several it is the rate at the usual load
Bid       (K·n + c) / ŵ
Unknown   a server without completions has its configured weight times what the others do for theirs
"""

from __future__ import annotations

import numpy as np

from controlplane.policies.gsed import WEIGHT_FLOOR, speed_curves
from controlplane.policy import Directive, Floats, Observation, PolicyError

BUSY_FLOOR = 1e-6  # seconds


class GeneralisedShortestExpectedDelayEstimated:
    name = "gsed_estimated"

    def __init__(self, decay: float = 0.98, c: float = 0.5, k: float | None = None) -> None:
        if not (np.isfinite(decay) and 0 < decay < 1):
            raise PolicyError(f"expected decay between 0 and 1, not {decay}")
        if not (np.isfinite(c) and c >= 0) or not (k is None or (np.isfinite(k) and k > 0)):
            raise PolicyError(f"expected c >= 0 and k > 0, not c = {c}, k = {k}")
        self.decay, self.c, self.k = decay, c, k
        self._before: Observation | None = None
        self._completions: Floats = np.zeros(0)
        self._busy: Floats = np.zeros(0)  # seconds

    def decide(self, observation: Observation) -> Directive:
        o, before = observation, self._before
        rows = np.flatnonzero(o.same_since(before))
        completions, busy = np.zeros(o.n_servers), np.zeros(o.n_servers)
        if before is not None and len(rows):
            change = np.maximum(o.profile.completions[rows] - before.profile.completions[rows], 0.0).sum(axis=1)
            passed = np.maximum(o.profile.time[rows, 1:] - before.profile.time[rows, 1:], 0.0).sum(axis=1)
            keep = self.decay**change
            # The interval's completions came one after the other: each has aged by those after it.
            fresh = np.where(change > 0, (1.0 - keep) / (1.0 - self.decay) / np.maximum(change, 1.0), 1.0)
            completions[rows] = self._completions[rows] * keep + change * fresh
            busy[rows] = self._busy[rows] * keep + passed * fresh
        self._before, self._completions, self._busy = o, completions, busy
        weight = np.maximum(o.weight, WEIGHT_FLOOR)
        known = completions > 0
        rate = completions / np.maximum(busy, BUSY_FLOOR)
        per_weight = float(rate[known].sum() / weight[known].sum()) if known.any() else 1.0
        rate = np.where(known, rate, per_weight * weight)
        k = o.balancers if self.k is None else self.k
        return Directive(rule="bids", curves=speed_curves(rate, k, self.c), weights=rate + 1e-9, fitted={"rate": rate})
