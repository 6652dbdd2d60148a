"""Peak EWMA: latency times flows in flight, the latency an average that jumps to every peak and decays from it.

Finagle and linkerd draw two servers and compare; here all bid. They see every answer; a policy sees an interval's
histogram, so its peak is the greatest bucket that filled since the last look.

Source    Finagle, PeakEwma.scala, Twitter, 2015
Bid       cost · (n + 1); cost = peak if it is greater, else cost·e^(−dt/τ) + mean·(1 − e^(−dt/τ)); without answers
          it decays
Unknown   a server without a sample costs what the others do on average: a newcomer is neither flooded nor starved
"""

from __future__ import annotations

import numpy as np

from controlplane.policy import CURVE_N, Directive, Floats, Observation, PolicyError
from shm_layout.layout import HISTOGRAM_LOW

COST_FLOOR = 1e-6


class PeakEwma:
    name = "peak_ewma"

    def __init__(self, decay: float = 10.0) -> None:
        if not (np.isfinite(decay) and decay > 0):
            raise PolicyError(f"expected decay > 0 seconds, not {decay}")
        self.decay = decay
        self._before: Observation | None = None
        self._cost: Floats = np.zeros(0)  # 0: unknown

    def decide(self, observation: Observation) -> Directive:
        o, before = observation, self._before
        same = o.same_since(before)
        cost = np.zeros(o.n_servers)
        m = min(len(self._cost), o.n_servers)
        kept = o.ids[:m] == before.ids[:m] if before is not None else np.zeros(m, dtype=bool)
        cost[:m] = np.where(kept, self._cost[:m], 0.0)
        counts = o.histogram.copy()
        if before is not None and counts.size and before.histogram.size:
            counts[same] -= before.histogram[: len(same)][same[: before.n_servers]]
        samples = counts.sum(axis=1)
        if counts.size:
            # Middle of the greatest bucket that filled, and the mean over the buckets' middles.
            middle = HISTOGRAM_LOW * 1.045
            peak = np.where(samples > 0, middle[counts.shape[1] - 1 - (counts[:, ::-1] > 0).argmax(axis=1)], 0.0)
            mean = (counts @ middle) / np.maximum(samples, 1.0)
            elapsed = o.now - before.now if before is not None else o.interval
            keep = np.exp(-max(elapsed, 0.0) / self.decay)
            cost = np.where(cost > 0, np.maximum(peak, cost * keep + mean * (1.0 - keep)), peak)
        self._before, self._cost = o, cost
        known = cost > 0
        usual = float(cost[known].mean()) if known.any() else 1.0
        cost = np.maximum(np.where(known, cost, usual), COST_FLOOR)
        return Directive(rule="bids", curves=cost[:, None] * (CURVE_N + 1.0), weights=1.0 / cost, fitted={"cost": cost})
