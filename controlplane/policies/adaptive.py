"""Truthful bids, learned: every server bids the marginal social cost of one more flow, told nothing, from a cold start.

Source    Krishnan, "Joining the right queue", IEEE TAC 35(1), 1990; docs/adaptive.md
Learns    s and k of every server (controlplane/estimator.py) from its occupancy profile, with decay and change
          detection
Splits    the arrivals over the servers so that one more flow a second costs the same on each (controlplane/bids.py:
          split)
Bids      Δ(n) for that share (bids.py: truthful), in the form that a rehearsal in the simulator finds best on this farm
          at this load (controlplane/rehearsal.py); a server that fails more flows than the others adds what that
          costs, and one that has not been seen for long bids less for its first flow, the more so the longer: it is
          probed, not starved
Holds     unless the service's reserve says otherwise: flows wait for a server that is worth it
          (controlplane/reserve.py)
Balancers that share the servers (K > 1) see a part of the flows: what they wait for the others' is learned from the own
          (controlplane/shared_view.py); where that cannot be told, two bid as if their own flows were all, and more
          than two (K·n + c)/ŵ
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controlplane.bids import split
from controlplane.estimator import Fit
from controlplane.learner import Learner
from controlplane.policy import CURVE_N, Bools, Directive, Floats, Observation
from controlplane.rehearsal import Rehearsal, bids
from controlplane.reserve import SLA_RESERVE, LateBinding
from controlplane.shared_view import SharedView

# A failed flow costs its client as much as this many flows cost that are the first on a server.
FAILURE_COST = 10.0
# The bid of a server for its first flow falls to 0 over so many seconds, or so many of its own completion times if that
# is longer, in which it ends none, once so many flows for each server went elsewhere.
PROBE_SECONDS, PROBE_TIMES, PROBE_FLOWS = 60.0, 50.0, 20.0
# objective: tail: how far the shares go towards equal utilisation: a longer mean, a shorter tail (docs/adaptive.md).
TAIL_EVEN = 0.7
# c of (K·n + c)/ŵ. Where servers work on several flows at once, the next one need not wait: then c falls from the
# second value to the first as the load grows, in which own arrivals are measured by what servers seem to bear to one
# balancer.
SHARED_C, SHARED_C_PARALLEL, PARALLEL_LINE = 0.5, (1.0, 3.0), (5.0, 7.0)
# Where cores are shared, and so many that most flows have one for themselves, c lies further above its least, by so
# many times: from and to these parts of the own flows that are overtaken, and workers that a server seems to have.
OVERTAKEN, CORES, CORES_C = (0.35, 0.39), (2.0, 3.0), 3.0


class Adaptive:
    name = "adaptive"

    def __init__(self) -> None:
        self.learner = Learner()
        self.late = LateBinding()
        self.shared = SharedView()
        self.rehearsal = Rehearsal()

    def decide(self, observation: Observation) -> Directive:
        o = observation
        fit = self.learner.update(o)
        failing = self.learner.failing()
        may = o.active
        lam = self._shares(fit, may, failing, o.objective)
        view = self.shared.decide(o, self.learner) if o.balancers > 1 else None
        holds = o.reserve in ("auto", "learned") and o.balancers == 1
        late = self.late.decide(o, self.learner, fit, failing) if holds else None
        if late is not None:
            curves = late.curves
        elif view is not None:
            curves = view.curves
        elif o.balancers > 2:
            curves = (o.balancers * CURVE_N + self._constant(fit, may)) / fit.capacity[:, None]
        else:
            # To one of two balancers a server of some workers looks much like one of half of them.
            form = self.rehearsal.form(o, lam[may], fit.mu[may], fit.k[may])
            curves = bids(form, lam, fit.mu, fit.k)
        # Under load bids are many times the service times, and failing at once must not look cheap beside them.
        typical = float(np.median(np.maximum(fit.s[may], curves[may, 0]))) if may.any() else 1.0
        curves = curves + (FAILURE_COST * typical * failing)[:, None]
        curves[:, 0] *= self._probing(fit, failing)
        # Capacity that fails its flows is none.
        capacity = np.maximum(fit.capacity * (1.0 - failing), 1e-12)
        fitted = {
            "mu": fit.mu,
            "k": fit.k,
            "capacity": fit.capacity,
            "arrivals": lam,
            "samples": fit.samples,
            "failing": failing,
        }
        if late is not None:
            fitted |= {"hold_from": late.limit, "wait_for": late.wanted}
        if view is not None:
            fitted |= {"service": view.service, "delay": view.delay}
        directive = Directive(rule="bids", weights=capacity, curves=curves, fitted=fitted)
        if late is None:
            return directive
        aging = late.aging if late.aging[:, 1].any() else None
        return replace(directive, reserve=late.reserve, sla_reserve=SLA_RESERVE, aging=aging)

    def _shares(self, fit: Fit, may: Bools, failing: Floats, objective: str) -> Floats:
        """Return the arrivals a second that each server's bid assumes, (servers,)."""
        lam = np.zeros(len(may))
        if not may.any():
            return lam
        mu, k = fit.mu[may] * (1.0 - 0.99 * failing[may]), fit.k[may]
        best = split(self.learner.arrival_rate, mu, k)
        if objective == "tail":
            # Between the split that is best on the mean and equal utilisation.
            even = mu * k * (float(best.sum()) / float((mu * k).sum()))
            best = (1.0 - TAIL_EVEN) * best + TAIL_EVEN * even
        lam[may] = best
        return lam

    def _constant(self, fit: Fit, may: Bools) -> float:
        """Return c of (K·n + c)/ŵ (docs/adaptive.md: the line was found by trying)."""
        if not (self.shared.parallel and may.any()):
            return SHARED_C
        load = self.learner.arrival_rate / max(float(fit.capacity[may].sum()), 1e-12)
        c = np.clip(PARALLEL_LINE[0] - PARALLEL_LINE[1] * load, *SHARED_C_PARALLEL)
        shared = np.interp(self.shared.disorder, OVERTAKEN, (0.0, 1.0))
        shared *= np.interp(np.median(fit.k[may]), CORES, (0.0, 1.0))
        return float(c + CORES_C * shared * (c - SHARED_C_PARALLEL[0]))

    def _probing(self, fit: Fit, failing: Floats) -> Floats:
        """Return the factor on a server's first bid that its rising uncertainty earns it, 1 … 0."""
        unseen = self.learner["unseen_seconds"] / np.maximum(PROBE_SECONDS, PROBE_TIMES * fit.s)
        enough = self.learner["unseen_flows"] > PROBE_FLOWS * len(unseen)
        return np.where(enough & (failing == 0.0), np.maximum(1.0 - unseen, 0.0), 1.0)
