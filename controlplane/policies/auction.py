"""The classic auction: bids that rise with the load ratio, with sensitivities learned from completion times.

The rule is kept exactly as it was published (DESIGN, "the classic rule"); it runs in the data plane for every flow.
What is learned here are its inputs. A round is one control interval.

Capacity       flows in flight at which a server counts as full: its share of the observed rates, times twice what
               is in flight
Sensitivity    s ← s · e^(η (fct / mean fct − 1)): a server slower than the rest becomes more sensitive to load,
               within 1 : 10
Reserve        1.5 times the mean winning bid of the last round; winners above it are flagged, not refused
"""

from __future__ import annotations

import numpy as np

from controlplane.policy import ClassicParameters, Directive, Floats, Observation, PolicyError

SPAN = 10.0
RESERVE = 1.5
SECONDS = 10.0  # over which rates and completion times are averaged


class Auction:
    name = "auction"

    def __init__(
        self, risk_aversion: float = 0.5, target_load_ratio: float = 0.5, noise: float = 0.0, learning_rate: float = 0.1
    ) -> None:
        if not (risk_aversion >= 0 and 0 <= target_load_ratio <= 1 and noise >= 0 and 0 <= learning_rate <= 1):
            raise PolicyError("expected risk_aversion, noise >= 0, target_load_ratio and learning_rate in 0 … 1")
        self.risk_aversion, self.target_load_ratio, self.noise = risk_aversion, target_load_ratio, noise
        self.learning_rate = learning_rate
        self._before: Observation | None = None
        self._state: dict[str, Floats] = {}

    def decide(self, observation: Observation) -> Directive:
        o = observation
        state = self._learn(o)
        busy, ended, flow_time = state["busy"], state["ended"], state["flow_time"]
        prior = np.maximum(o.weight, 1e-3) / max(float(o.weight.mean()), 1e-3) if o.n_servers else o.weight
        known = ended >= 1.0
        rate = np.where(known, ended / np.maximum(busy, 1e-9), 0.0)
        usual = float(rate[known].mean()) if known.any() else 1.0
        rate = np.clip(np.where(known, rate, usual * prior), 1e-9, 1e12)
        room = max(2.0 * float(o.in_flight.sum()), float(o.n_servers))
        capacity = np.maximum(rate / max(float(rate.sum()), 1e-300) * room, 1.0)
        # Learn: slower than the others, more sensitive.
        if known.any():
            fct = np.where(known, flow_time / np.maximum(ended, 1e-9), 0.0)
            mean = float(fct[known].mean())
            step = np.where(known & (mean > 0), fct / max(mean, 1e-12) - 1.0, 0.0)
            state["sensitivity"] = np.clip(
                state["sensitivity"] * np.exp(self.learning_rate * o.interval * np.clip(step, -2.0, 2.0)),
                1 / SPAN,
                SPAN,
            )
        ones = np.ones(o.n_servers)
        classic = ClassicParameters(
            capacity=capacity,
            sensitivity=state["sensitivity"],
            risk_aversion=ones * self.risk_aversion,
            target_load_ratio=ones * self.target_load_ratio,
            neural=ones,
            coalition=np.zeros(o.n_servers),
            noise=self.noise,
            reserve=RESERVE * float(state["bids"][0] / state["bids"][1]) if state["bids"][1] > 0 else 0.0,
        )
        fitted = {"capacity": capacity, "sensitivity": state["sensitivity"]}
        return Directive(rule="classic", weights=np.maximum(rate, 1e-9), classic=classic, fitted=fitted)

    def _learn(self, o: Observation) -> dict[str, Floats]:
        """Return each server's decayed busy time, completions and flow time, and sum and number of the last bids."""
        before, same, n = self._before, o.same_since(self._before), o.n_servers
        state = {name: np.zeros(n) for name in ("busy", "ended", "flow_time")} | {
            "sensitivity": np.ones(n),
            "bids": np.zeros(2),
        }
        if before is not None and same.any():
            rows = np.flatnonzero(same)
            keep = np.exp(-max(o.now - before.now, 0.0) / SECONDS)
            passed = np.maximum(o.profile.time[rows, 1:] - before.profile.time[rows, 1:], 0.0).sum(axis=1)
            ended = np.maximum(o.profile.completions[rows] - before.profile.completions[rows], 0.0).sum(axis=1)
            spent = np.maximum(o.fct_sum[rows] - before.fct_sum[rows], 0.0)
            for name, change in (("busy", passed), ("ended", ended), ("flow_time", spent)):
                state[name][rows] = self._state[name][rows] * keep + change
            state["sensitivity"][rows] = self._state["sensitivity"][rows]
            won = float((o.auctions_won[rows] - before.auctions_won[rows]).sum())
            bids = float((o.bid_sum[rows] - before.bid_sum[rows]).sum())
            state["bids"] = np.array([max(bids, 0.0), won]) if won > 0 else self._state["bids"]
        self._before, self._state = o, state
        return state
