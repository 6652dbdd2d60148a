"""The guard: after a swap it compares completion times and errors with those under the policy before, and says so
when they are clearly worse.

Tails compare badly by their p99 when flows are few, so the test is a count: which part of the new flows took longer
than the old p99 did? It should be 1 %. Worse is five times that, beyond six standard errors of a binomial count,
for five looks in a row: flows that queue together are not independent, and a burst must not be blamed on a policy.
Arrivals must be about what they were (a flash crowd is nobody's fault). Errors: 2 percentage points and six
standard errors more than before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from controlplane.policy import Floats, Observation

# Seconds: of the policy before that are compared with, that a new policy has to settle, and that it is watched.
REFERENCE, SETTLE, WATCH = 30.0, 3.0, 60.0
# Seconds and flows that both windows hold at least.
LEAST_SECONDS, LEAST_FLOWS = 5.0, 500
TAIL, TAIL_TIMES, ERRORS_MORE, STANDARD_ERRORS, LOOKS = 0.01, 5.0, 0.02, 6.0, 5
RATE_TIMES = 1.2
SNAPSHOT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Totals:
    """Cumulative counts of a service at a time."""

    now: float
    histogram: Floats  # (buckets,) all servers
    opened: float
    closed: float
    failed: float


class Windows:
    """Cumulative totals of the service, a snapshot a second over the last minute; survives restarts of the data
    plane."""

    def __init__(self) -> None:
        self.snapshots: deque[Totals] = deque(maxlen=int((REFERENCE + WATCH) / SNAPSHOT_SECONDS) + 8)

    def add(self, o: Observation) -> None:
        """Take a snapshot if the last is a second old."""
        if self.snapshots and o.now - self.snapshots[-1].now < SNAPSHOT_SECONDS:
            return
        closed = o.outcomes[:, :5].sum()
        totals = Totals(
            o.now, o.histogram.sum(axis=0), float(o.flows.sum()), float(closed), float(o.outcomes[:, 1:5].sum())
        )
        if self.snapshots and totals.opened < self.snapshots[-1].opened:
            self.snapshots.clear()  # counters began anew
        self.snapshots.append(totals)

    def guard(self) -> Guard | None:
        """Return a guard that compares with the time up to now; None when there is too little to compare with."""
        if len(self.snapshots) < 2:
            return None
        last = self.snapshots[-1]
        first = next(s for s in self.snapshots if last.now - s.now <= REFERENCE)
        if last.now - first.now < LEAST_SECONDS or last.closed - first.closed < LEAST_FLOWS:
            return None
        return Guard(first, last)


class Guard:
    """Watches one policy for a minute."""

    def __init__(self, first: Totals, last: Totals) -> None:
        self.before, self.since = first, last
        self.worse = 0
        self.looked = last.now
        self.start: Totals | None = None  # of the window that is judged

    @staticmethod
    def new_windows() -> Windows:
        return Windows()

    def judge(self, windows: Windows) -> str | None:
        """Return what is worse, "" when the watch is over without a finding, None to go on watching."""
        if not windows.snapshots or windows.snapshots[-1].now <= self.looked:
            return None
        now = windows.snapshots[-1]
        self.looked = now.now
        if now.now - self.since.now > WATCH or now.opened < self.since.opened:
            return ""
        if now.now - self.since.now < SETTLE:
            return None
        if self.start is None:
            self.start = now
            return None
        finding = self._compare(self.start, now)
        self.worse = self.worse + 1 if finding else 0
        return finding if self.worse >= LOOKS else None

    def _compare(self, start: Totals, now: Totals) -> str:
        seconds, flows = now.now - start.now, now.closed - start.closed
        old_seconds, old_flows = self.since.now - self.before.now, self.since.closed - self.before.closed
        if seconds < LEAST_SECONDS or flows < LEAST_FLOWS:
            return ""
        rate, old_rate = (now.opened - start.opened) / seconds, (self.since.opened - self.before.opened) / old_seconds
        if rate > RATE_TIMES * old_rate:
            return ""
        failed, old_failed = (now.failed - start.failed) / flows, (self.since.failed - self.before.failed) / old_flows
        pooled = (failed * flows + old_failed * old_flows) / (flows + old_flows)
        error = np.sqrt(pooled * (1 - pooled) * (1 / flows + 1 / old_flows)) + 1e-12
        if failed - old_failed > max(ERRORS_MORE, STANDARD_ERRORS * error):
            return f"{failed:.1%} of the flows fail, {old_failed:.1%} before"
        old, new = self.since.histogram - self.before.histogram, now.histogram - start.histogram
        if old.sum() < LEAST_FLOWS or new.sum() < LEAST_FLOWS:
            return ""
        # First bucket above the old p99, and what part of either lies there or beyond.
        above = int(np.searchsorted(np.cumsum(old), (1.0 - TAIL) * old.sum())) + 1
        p, p_old = float(new[above:].sum() / new.sum()), float(old[above:].sum() / old.sum())
        p_old = max(p_old, TAIL / 2)
        error = np.sqrt(p_old * (1 - p_old) * (1 / new.sum() + 1 / old.sum()))
        if p > TAIL_TIMES * TAIL and p - p_old > STANDARD_ERRORS * error:
            return f"{p:.0%} of the flows take longer than the p99 before"
        return ""
