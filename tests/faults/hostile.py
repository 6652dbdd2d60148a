"""Policies that do harm, for tests on a whole balancer: each is well behaved until its time comes.

A plug-in as third parties write one: `install` makes a folder with an entry point; on PYTHONPATH it is installed.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from controlplane.policy import CURVE_N, Directive, Observation

# Decisions in which it behaves: those in shadow, and some more.
GOOD = 8
BAD = {
    "nan": np.nan,
    "infinite": np.inf,
    "negative": -1.0,
}


class Hostile:
    """does: nan, infinite, negative, zero, shape, text, raise, slow, one (all flows to the first server) or swing (all
    flows to one of the first two servers, another in each cycle)."""

    name = "hostile"

    def __init__(self, does: str = "raise", seconds: float = 0.15) -> None:
        self.does, self.seconds = does, seconds
        self.decisions = 0

    def decide(self, observation: Observation) -> Directive:
        n = observation.n_servers
        self.decisions += 1
        good = Directive(rule="bids", curves=np.tile(CURVE_N, (n, 1)), weights=np.ones(n))
        if self.decisions <= GOOD:
            return good
        if self.does == "raise":
            raise RuntimeError("by design")
        if self.does == "slow":
            time.sleep(self.seconds)
            return good
        if self.does in ("one", "swing"):
            chosen = self.decisions % 2 if self.does == "swing" else 0
            return Directive(rule="alias", weights=np.eye(n)[chosen])
        if self.does == "zero":
            return Directive(rule="alias", weights=np.zeros(n))
        if self.does == "shape":
            return Directive(rule="bids", curves=np.tile(CURVE_N, (n + 1, 1)))
        if self.does == "text":
            return "all to the first"  # type: ignore[return-value]
        curves = np.tile(CURVE_N, (n, 1))
        curves[-1, 3:] = BAD[self.does]
        return Directive(rule="bids", curves=curves)


def install(folder: Path) -> Path:
    """Make the plug-in's folder below this one and return it."""
    about = folder / "plugins" / "vickrey_hostile-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vickrey-hostile\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vickrey.policies]\nhostile = tests.faults.hostile:Hostile\n")
    return about.parent
