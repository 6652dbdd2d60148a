"""The guard: after a swap it compares completion times and errors with those under the policy before, and says so
when they are clearly worse.

Tails compare badly by their p99 when flows are few, so the test is a count: which part of the new flows took longer
than the old p99 did? It should be 1 %. Worse is five times that, beyond six standard errors of a binomial count,
for five looks in a row: flows that queue together are not independent, and a burst must not be blamed on a policy.
Arrivals must be about what they were (a flash crowd is nobody's fault). Errors: 2 percentage points and six
standard errors more than before.

A policy that was rolled back, demoted or found worse is not set again for a minute (CoolDown), neither by a controller
that was started since: whoever sets it in a loop would make the traffic swing between the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from controlplane.policy import Floats, Observation
from shm_layout.layout import HISTOGRAM_LOW

# Seconds: of the policy before that are compared with, that a new policy has to settle, and that it is watched.
REFERENCE, SETTLE, WATCH = 30.0, 3.0, 60.0
# Seconds and flows that both windows hold at least.
LEAST_SECONDS, LEAST_FLOWS = 5.0, 500
TAIL, TAIL_TIMES, ERRORS_MORE, STANDARD_ERRORS, LOOKS = 0.01, 5.0, 0.02, 6.0, 5
RATE_TIMES = 1.2
SNAPSHOT_SECONDS = 1.0
COOL_DOWN = 60.0


@dataclass(frozen=True, slots=True)
class Totals:
    """Cumulative counts of a service at a time."""

    now: float
    histogram: Floats  # (buckets,) all servers
    opened: float
    closed: float
    failed: float
    completed: float = 0.0  # answered, well or with 5xx
    fct_sum: float = 0.0  # seconds, of these

    @classmethod
    def of(cls, o: Observation) -> Totals:
        """Return the totals of an observation."""
        outcomes = o.outcomes.sum(axis=0)
        return cls(
            now=o.now,
            histogram=o.histogram.sum(axis=0),
            opened=float(o.flows.sum()),
            closed=float(outcomes[:5].sum()),
            failed=float(outcomes[1:5].sum()),
            completed=float(outcomes[:2].sum()),
            fct_sum=float(o.fct_sum.sum()),
        )


def percentile(histogram: Floats, q: float) -> float:
    """Return a percentile of completion times, 0 < q < 1, interpolated within its bucket; nan of none. Seconds."""
    total = histogram.sum()
    if not total > 0:
        return float("nan")
    upto = np.cumsum(histogram)
    bucket = min(int(np.searchsorted(upto, q * total)), len(histogram) - 2)
    share = (q * total - (upto[bucket] - histogram[bucket])) / max(histogram[bucket], 1.0)
    return float(HISTOGRAM_LOW[bucket] + min(share, 1.0) * (HISTOGRAM_LOW[bucket + 1] - HISTOGRAM_LOW[bucket]))


class Windows:
    """Cumulative totals of the service, a snapshot a second over the last minute; survives restarts of the data
    plane."""

    def __init__(self) -> None:
        self.snapshots: deque[Totals] = deque(maxlen=int((REFERENCE + WATCH) / SNAPSHOT_SECONDS) + 8)

    def add(self, o: Observation) -> None:
        """Take a snapshot if the last is a second old."""
        if self.snapshots and o.now - self.snapshots[-1].now < SNAPSHOT_SECONDS:
            return
        totals = Totals.of(o)
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
        finding = regression(self.before, self.since, self.start, now)
        self.worse = self.worse + 1 if finding else 0
        return finding if self.worse >= LOOKS else None


def regression(
    before: Totals,
    since: Totals,
    start: Totals,
    now: Totals,
    *,
    seconds: float = LEAST_SECONDS,
    flows: int = LEAST_FLOWS,
    tail: float = TAIL_TIMES * TAIL,
) -> str:
    """Return how the time from start to now is clearly worse than that from before to since; empty: it is not.

    seconds, flows: that the new time has at least to be judged. tail: the part of the flows beyond the old p99 from
    which on it is worse.
    """
    took, closed = now.now - start.now, now.closed - start.closed
    old_took, old_closed = since.now - before.now, since.closed - before.closed
    if took < max(seconds, 1e-9) or closed < flows or old_closed < flows or old_took <= 0:
        return ""
    rate, old_rate = (now.opened - start.opened) / took, (since.opened - before.opened) / old_took
    if rate > RATE_TIMES * old_rate:
        return ""
    failed, old_failed = (now.failed - start.failed) / closed, (since.failed - before.failed) / old_closed
    pooled = (failed * closed + old_failed * old_closed) / (closed + old_closed)
    error = np.sqrt(pooled * (1 - pooled) * (1 / closed + 1 / old_closed)) + 1e-12
    if failed - old_failed > max(ERRORS_MORE, STANDARD_ERRORS * error):
        return f"{failed:.1%} of the flows fail, {old_failed:.1%} before"
    old, new = since.histogram - before.histogram, now.histogram - start.histogram
    if old.sum() < flows or new.sum() < flows:
        return ""
    # First bucket above the old p99, and what part of either lies there or beyond.
    above = int(np.searchsorted(np.cumsum(old), (1.0 - TAIL) * old.sum())) + 1
    p, p_old = float(new[above:].sum() / new.sum()), float(old[above:].sum() / old.sum())
    p_old = max(p_old, TAIL / 2)
    error = np.sqrt(p_old * (1 - p_old) * (1 / new.sum() + 1 / old.sum()))
    if p > tail and p - p_old > STANDARD_ERRORS * error:
        return f"{p:.0%} of the flows take longer than the p99 before"
    return ""


class CoolDown:
    """Policies that were taken out of force lately, by their key, until when, and why."""

    def __init__(self, known: Iterable[tuple[str, float, str]] = ()) -> None:
        self._until: dict[str, tuple[float, str]] = {key: (float(until), why) for key, until, why in known}

    def __iter__(self) -> Iterator[tuple[str, float, str]]:
        """Yield key, until when and why of each, as the next controller takes them."""
        return ((key, until, why) for key, (until, why) in self._until.items())

    def begin(self, key: str, now: float, why: str) -> None:
        """Keep a policy out for a while; now is the controller's clock in seconds."""
        self._until = {k: v for k, v in self._until.items() if v[0] > now}
        self._until[key] = (now + COOL_DOWN, why)

    def left(self, key: str, now: float) -> tuple[float, str]:
        """Return for how many seconds it is kept out still, 0: it is not, and why."""
        until, why = self._until.get(key, (0.0, ""))
        return min(max(until - now, 0.0), COOL_DOWN), why
