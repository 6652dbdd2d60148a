"""Active WCMP: weighted random whose weights follow the load that is observed on each server.

MARLLB's baseline of this name probes servers for how busy they are and draws in proportion to what they have to
spare. Here nobody is asked: the load is the mean number of flows in flight since the last look, from the occupancy
profile.

Source    Yao, Ding, Clausen, "Multi-Agent Reinforcement Learning for Network Load Balancing in Data Center", CIKM 2022;
          weights after Aghdai et al., "Spotlight: Scalable Transport Layer Load Balancing", 2018
Draw      w_i ← w_i · ((1 + mean load) / (1 + load_i))^gain, smoothed, within 1 : 16 of the mean; starts from the
          configured weights
"""

from __future__ import annotations

import numpy as np

from controlplane.policies.wcmp import configured_shares
from controlplane.policy import CURVE_MIDDLE, Directive, Floats, Observation, PolicyError

SPAN = 16.0


class ActiveWeightedRandom:
    name = "awcmp"

    def __init__(self, gain: float = 0.3, smoothing: float = 2.0) -> None:
        if not 0 < gain <= 1 or not (np.isfinite(smoothing) and smoothing > 0):
            raise PolicyError(f"expected gain in (0, 1] and smoothing > 0 seconds, not {gain} and {smoothing}")
        self.gain, self.smoothing = gain, smoothing
        self._before: Observation | None = None
        self._load: Floats = np.zeros(0)
        self._factor: Floats = np.zeros(0)  # learned, on the configured weights

    def decide(self, observation: Observation) -> Directive:
        o, before = observation, self._before
        same = o.same_since(before)
        factor, load = np.ones(o.n_servers), o.in_flight.copy()
        if before is not None and o.now > before.now and same.any():
            rows = np.flatnonzero(same)
            passed = o.profile.time[rows] - before.profile.time[rows]
            mean = (passed * CURVE_MIDDLE).sum(axis=1) / max(o.now - before.now, 1e-9)
            keep = np.exp(-(o.now - before.now) / self.smoothing)
            load[rows] = self._load[rows] * keep + np.maximum(mean, 0.0) * (1.0 - keep)
            factor[rows] = self._factor[rows]
            usual = float(load[o.active].mean()) if o.active.any() else 0.0
            # As much correction a second whatever the interval.
            gain = self.gain * min(o.now - before.now, 1.0)
            factor *= ((1.0 + usual) / (1.0 + load)) ** gain
            factor /= np.exp(np.log(factor).mean())
            factor = np.clip(factor, 1.0 / SPAN, SPAN)
        self._before, self._load, self._factor = o, load, factor
        weights = configured_shares(o) * factor
        return Directive(rule="alias", weights=weights, fitted={"load": load})
