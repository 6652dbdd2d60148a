"""A policy on trial beside its incumbent: both decide every cycle, and one of them is published.

By share, the policy on trial has that part of the control cycles, spread evenly; the incumbent has the others. The
split is in time, not by flow: a directive holds one rule, and whoever is not its follower follows the data plane's own
fallback rule, which knows nothing of the incumbent. In shadow the share is 0. By switchback, blocks take turns and are
compared (switchback.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from controlplane.deployment.agreement import Agreement, agreement
from controlplane.deployment.chosen import Chosen, Decider
from controlplane.deployment.switchback import INTERVALS_LEAST, Switchback
from controlplane.guard import Totals
from controlplane.policy import Directive, Observation


class Trial:
    """The incumbent of a policy, and whose turn it is."""

    def __init__(self, chosen: Chosen, incumbent: Decider, interval: float, rng: np.random.Generator) -> None:
        self.incumbent = incumbent
        self.percent = chosen.enforcing_percent
        self.switchback: Switchback | None = None
        if chosen.switchback is not None:
            least = INTERVALS_LEAST * interval
            if chosen.switchback.seconds < least:
                what = f"blocks of {chosen.switchback.seconds:g} s are too short for an interval of {interval:g} s"
                raise ValueError(f"switchback: {what}: expected at least {least:g} s")
            self.switchback = Switchback(chosen.switchback, rng)
        self.agreement = Agreement()
        self.in_turn = False  # the policy on trial was published last
        self._owed = float(rng.uniform(0.0, 100.0))

    def turn(self, o: Observation) -> bool:
        """Return whether the policy on trial has this cycle."""
        if self.switchback is not None:
            self.in_turn = self.switchback.turn(o.now, lambda: Totals.of(o))
        else:
            self._owed += self.percent
            self.in_turn = self._owed >= 100.0
            self._owed -= 100.0 * self.in_turn
        return self.in_turn

    def compare(self, trial: Directive | None, incumbent: Directive | None, o: Observation) -> None:
        """Take in what both decided of one observation."""
        if trial is not None and incumbent is not None:
            self.agreement.add(agreement(trial, incumbent, o))

    def show(self) -> dict[str, Any]:
        """Return its state, as JSON takes it."""
        return {
            "incumbent": self.incumbent.chosen.plain,
            "agreement_mean": round(self.agreement.mean, 4) if self.agreement.decisions else None,
            "agreement_least": round(self.agreement.least, 4) if self.agreement.decisions else None,
        }
