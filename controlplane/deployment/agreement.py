"""How much two policies agree: where they would send the next flows, from what both see now.

The shares of a directive: of rules with bids, what each server gets of the next flows if none of them ended, one flow a
server; of lotteries, their weights. Agreement is the part of the flows that both send to the same servers,
1 − ½ Σ |a − b|: 1 is the same, 0 is altogether different.
"""

from __future__ import annotations

import numpy as np

from controlplane.auction import mechanism
from controlplane.policy import CURVE_N, Directive, Floats, Observation

# Flows that one server is thought to get at most of the next ones; flows looked at, at least.
DEPTH, FLOWS_LEAST = 8, 8
# Of a running mean, the part that the newest value has.
FORGET = 0.02


def shares(directive: Directive, o: Observation) -> Floats:
    """Return each server's part of the next flows, (servers,), summing to 1; all 0 where no server may take one."""
    usable = o.active & (o.in_flight < o.maxconn)
    got = np.zeros(o.n_servers)
    if not usable.any():
        return got
    if directive.rule not in ("bids", "classic") and directive.weights is not None:
        weights = np.where(usable, directive.weights, 0.0)
        return weights / weights.sum() if weights.sum() > 0 else got
    rows = np.flatnonzero(usable)
    bids = _next_bids(directive, o, rows)
    flows = min(max(len(rows), FLOWS_LEAST), bids.size)
    # Curves never fall, so the lowest of all marginal bids are the ones that win, in whatever order.
    won = np.argsort(bids, axis=None, kind="stable")[:flows]
    got[rows] = np.bincount(won // DEPTH, minlength=len(rows)) / flows
    return got


def agreement(a: Directive, b: Directive, o: Observation) -> float:
    """Return the part of the next flows that both directives send to the same servers, 0 … 1."""
    return float(1.0 - 0.5 * np.abs(shares(a, o) - shares(b, o)).sum())


def _next_bids(directive: Directive, o: Observation, rows: np.ndarray) -> Floats:
    """Return what the servers of these rows bid for their next flows, (rows, DEPTH)."""
    more = np.arange(DEPTH)
    if directive.rule == "bids" and directive.curves is not None:
        at = np.searchsorted(CURVE_N, o.in_flight[rows, None] + more, side="right") - 1
        return np.asarray(directive.curves[rows[:, None], np.maximum(at, 0)])
    c = directive.classic
    assert c is not None
    load = o.load_in_flight if o.load_in_flight is not None else o.in_flight
    sensitivity, risk, target, neural, capacity = (
        getattr(c, name)[rows, None]
        for name in ("sensitivity", "risk_aversion", "target_load_ratio", "neural", "capacity")
    )
    return mechanism.bids(load[rows, None] + more, capacity, sensitivity, risk, target, 1.0, neural)


class Agreement:
    """A running mean of the agreement, and its least, over the decisions seen."""

    def __init__(self) -> None:
        self.decisions = 0
        self.mean = 1.0
        self.least = 1.0

    def add(self, value: float) -> None:
        """Take one decision in; early ones count alike, later ones replace the oldest."""
        self.decisions += 1
        self.mean += (value - self.mean) * max(1.0 / self.decisions, FORGET)
        self.least = min(self.least, value)
