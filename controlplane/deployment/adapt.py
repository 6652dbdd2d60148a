"""Online fine-tuning, without gradients: a few parameters of the policy in force are varied within their bounds, one
at a time, and a step is kept only when a switchback on the live traffic finds it better.

A policy says what may be tuned by an attribute `tunable`, name: (least, most); each name is an attribute that may be
set at any time, and an option of its constructor, so that a new controller begins with what was found.

    propose   parameter j of θ in turn: θ' = θ ± step_j, projected to the bounds; the sign of the last success first
    measure   switchback of θ' against θ, both by the policy in force (switchback.py), at most PAIRS pairs of blocks
    keep      only what is surely better (5 % over all looks); then step_j grows. Else θ stays, the sign turns, and
              after both signs step_j shrinks
    anchor    after every ANCHOR steps kept, the θ that it began with is measured against the present one, and taken
              again when it is better: steps kept by luck do not add up
    rest      when no step larger than the least helped, nothing is varied for a while

Until a step is kept the traffic of half of the blocks pays for the search: at most STEP_MOST of a parameter's range
away from what is best known, and a clear regression ends a measurement within the block (the harm rule of switchbacks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.deployment.chosen import Chosen
from controlplane.deployment.options import SwitchbackOptions
from controlplane.deployment.switchback import Switchback
from controlplane.guard import Totals

PAIRS, ANCHOR, REST = 12, 4, 600.0
# Parts of a parameter's range.
STEP, STEP_LEAST, STEP_MOST = 0.2, 0.05, 0.3
GROW, SHRINK = 1.5, 0.5

Values = dict[str, float]


@dataclass
class Parameter:
    """One that is tuned: its bounds, the next step as a part of their distance, and its sign."""

    low: float
    high: float
    step: float = STEP
    sign: float = 1.0
    failures: int = 0  # in a row, of this step


class Tuner:
    """The search for one policy. Call `step` every control cycle in which nothing else is measured."""

    def __init__(self, policy: Any, tunable: Mapping[str, tuple[float, float]], seconds: float, rng: Any) -> None:
        self.policy = policy
        self.parameters = {name: Parameter(float(low), float(high)) for name, (low, high) in tunable.items()}
        self.values: Values = {name: float(getattr(policy, name)) for name in tunable}
        self.began = dict(self.values)
        self.kept = self.dropped = 0
        self.trial: Switchback | None = None
        self._options = SwitchbackOptions(seconds, PAIRS, 0.0)
        self._rng = rng
        self._proposed: Values = {}
        self._name = ""  # of the parameter that is varied; empty: the anchor is measured
        self._next = 0
        self._since_anchor = 0
        self._rest_until = -np.inf

    @staticmethod
    def of(chosen: Chosen, rng: np.random.Generator) -> Tuner | None:
        """Return the tuner of a policy that is to adapt; None: it is not. ValueError: it has nothing to tune."""
        if chosen.adapt is None:
            return None
        tunable = getattr(chosen.policy, "tunable", None)
        if not isinstance(tunable, Mapping) or not tunable:
            raise ValueError(f"adapt: policy {chosen.name} has no parameters that could be tuned")
        return Tuner(chosen.policy, tunable, chosen.adapt, rng)

    def step(self, now: float, read: Callable[[], Totals]) -> dict[str, Any] | None:
        """Set the policy's parameters for this cycle; returns what came of a measurement that has just ended."""
        if now < self._rest_until:
            return None
        if self.trial is None:
            self._propose()
            self.trial = Switchback(self._options, self._rng)
        self._set(self._proposed if self.trial.turn(now, read) else self.values)
        return self._conclude(now, self.trial) if self.trial.verdict else None

    def stop(self) -> None:
        """Give the measurement under way up; the best known values are in force."""
        self.trial = None
        self._set(self.values)

    def _propose(self) -> None:
        if self._since_anchor >= ANCHOR and self.began != self.values:
            self._name, self._proposed = "", dict(self.began)
            return
        names = list(self.parameters)
        self._name = names[self._next % len(names)]
        p, value = self.parameters[self._name], self.values[self._name]
        if self._moved(p, value) == value:  # at this bound already: the other way
            p.sign = -p.sign
        self._proposed = self.values | {self._name: self._moved(p, value)}

    @staticmethod
    def _moved(p: Parameter, value: float) -> float:
        return float(np.clip(value + p.sign * p.step * (p.high - p.low), p.low, p.high))

    def _conclude(self, now: float, trial: Switchback) -> dict[str, Any]:
        kept, anchor = trial.verdict == "better", not self._name
        before = dict(self.values)
        if kept:
            self.values = dict(self._proposed)
            self.kept += 1
        else:
            self.dropped += 1
        if anchor:
            self._since_anchor = 0
            self.began = dict(self.values)
        else:
            self._since_anchor += kept
            self._learn(self.parameters[self._name], kept, now)
        self.stop()
        return {
            "kept": kept,
            "what_varied": self._name or "anchor",
            "values": dict(self.values),
            "tried": dict(self._proposed),
            "before": before,
            "why": f"{self._name or 'anchor'}: {trial.verdict}, {trial.why}",
            "result": trial.show(),
        }

    def _learn(self, p: Parameter, kept: bool, now: float) -> None:
        if kept:
            p.failures, p.step = 0, min(p.step * GROW, STEP_MOST)
            return
        p.failures += 1
        p.sign = -p.sign
        if p.failures % 2:
            return  # the other way first
        self._next += 1
        if p.step <= STEP_LEAST and all(q.step <= STEP_LEAST for q in self.parameters.values()):
            self._rest_until = now + REST
            for q in self.parameters.values():
                q.step = STEP
        p.step = max(p.step * SHRINK, STEP_LEAST) if p.step > STEP_LEAST else p.step

    def _set(self, values: Values) -> None:
        for name, value in values.items():
            setattr(self.policy, name, value)

    def show(self) -> dict[str, Any]:
        """Return its state, as JSON takes it."""
        return {
            "values": {name: round(value, 6) for name, value in self.values.items()},
            "began_with": {name: round(value, 6) for name, value in self.began.items()},
            "kept": self.kept,
            "dropped": self.dropped,
            "trying": {k: round(v, 6) for k, v in self._proposed.items()} if self.trial is not None else None,
            "pairs": len(self.trial.pairs) if self.trial is not None else 0,
        }
