"""The guard: after a swap it compares completion times and errors with those under the policy before, and says so
when they are clearly worse.

Tails compare badly by their p99 when flows are few, so the test is a count: which part of the new flows took longer
than the old p99 did? It should be 1 %. Worse is five times that, beyond six standard errors of a binomial count,
for five looks in a row: flows that queue together are not independent, and a burst must not be blamed on a policy.
Arrivals must be about what they were (a flash crowd is nobody's fault). Errors: 2 percentage points and six
standard errors more than before.

What is compared with is the last half minute, and where that has few flows as much more as holds BASELINE_FLOWS, back
to the last change of policy or for ten minutes. It takes LEAST_FLOWS to compare with and to judge by. A service with
fewer in half a minute, that is below 17 a second, is watched in slow motion: the time to settle, the looks and the
watch count flows instead of seconds, so that to one watch belong as many looks, at as many flows, as at 17 a second.
Few flows tell their p99 badly when they queue together: there a fifth of the new ones must exceed it. Below
LEAST_FLOWS in ten minutes there is no guard.

What is gross is found sooner, and only what would be found anyway: when so many flows were slow, or failed, that the
test would come out the same at the last of its looks although every flow until then did well; at two looks in a row.

A policy that was rolled back, demoted or found worse is not set again for a minute (CoolDown), neither by a controller
that was started since: whoever sets it in a loop would make the traffic swing between the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from controlplane.policy import Bools, Floats, Observation
from shm_layout.layout import HISTOGRAM_LOW

# Seconds: of the policy before that are compared with, that a new policy has to settle, and that it is watched.
REFERENCE, SETTLE, WATCH = 30.0, 3.0, 60.0
# Seconds and flows that both windows hold at least.
LEAST_SECONDS, LEAST_FLOWS = 5.0, 500
# Where traffic is low: flows that these take at least, and that lie between two looks; as at 17 flows a second.
SETTLE_FLOWS, WATCH_FLOWS, LOOK_FLOWS = 50, 1000, 16
# Seconds, however few the flows: the time compared with reaches back, and the watch lasts, no longer.
BASELINE_MOST, WATCH_MOST = 600.0, 600.0
# Flows for which the time compared with reaches back; and the part of the flows beyond the old p99 from which on it is
# worse, where the last REFERENCE has fewer than LEAST_FLOWS.
BASELINE_FLOWS, FEW_TAIL = 2000, 0.2
TAIL, TAIL_TIMES, ERRORS_MORE, STANDARD_ERRORS, LOOKS = 0.01, 5.0, 0.02, 6.0, 5
SURE_LOOKS = 2
RATE_TIMES = 1.2
# Between snapshots, seconds: of the last REFERENCE, and of the time before that.
SNAPSHOT_SECONDS, SLICE_SECONDS = 1.0, 10.0
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
    def of(cls, o: Observation, rows: Bools | slice = slice(None)) -> Totals:
        """Return the totals of an observation, or of these rows of it."""
        outcomes = o.outcomes[rows].sum(axis=0)
        return cls(
            now=o.now,
            histogram=o.histogram[rows].sum(axis=0),
            opened=float(o.flows[rows].sum()),
            closed=float(outcomes[:5].sum()),
            failed=float(outcomes[1:5].sum()),
            completed=float(outcomes[:2].sum()),
            fct_sum=float(o.fct_sum[rows].sum()),
        )

    def __add__(self, other: Totals) -> Totals:
        """Return the counts of both, at the time of this one."""
        parts = (f.name for f in fields(self) if f.name != "now")
        return Totals(self.now, *(getattr(self, name) + getattr(other, name) for name in parts))


def percentile(histogram: Floats, q: float) -> float:
    """Return a percentile of completion times, 0 < q < 1, interpolated within its bucket; nan of none. Seconds."""
    total = histogram.sum()
    if not total > 0:
        return float("nan")
    upto = np.cumsum(histogram)
    bucket = min(int(np.searchsorted(upto, q * total)), len(histogram) - 2)
    share = (q * total - (upto[bucket] - histogram[bucket])) / max(histogram[bucket], 1.0)
    return float(HISTOGRAM_LOW[bucket] + min(share, 1.0) * (HISTOGRAM_LOW[bucket + 1] - HISTOGRAM_LOW[bucket]))


def flows_between(first: Totals, last: Totals) -> float:
    """Return the flows that ended between two totals and whose times are known; failed ones may have none."""
    return min(last.closed - first.closed, float((last.histogram - first.histogram).sum()))


class Windows:
    """Cumulative totals of the service: a snapshot a second over the last half minute, and one every ten seconds over
    ten minutes. That is some 90 of 2 kB at most. Servers may come and go; a restart of the data plane begins anew."""

    def __init__(self) -> None:
        self.snapshots: deque[Totals] = deque()
        self.older: deque[Totals] = deque()
        self.restarts = 0  # times that the counters began anew
        self._changed = -np.inf
        self._before: Observation | None = None
        self._gone: Totals | None = None  # what servers had that are not in the table any more

    def add(self, o: Observation) -> None:
        """Take a snapshot if the last is a second old."""
        if self.snapshots and o.now - self.snapshots[-1].now < SNAPSHOT_SECONDS:
            return
        self._keep_gone(o)
        totals = Totals.of(o) if self._gone is None else Totals.of(o) + self._gone
        self.snapshots.append(totals)
        while totals.now - self.snapshots[0].now > REFERENCE:
            aged = self.snapshots.popleft()
            if aged.now >= self._changed and (not self.older or aged.now - self.older[-1].now >= SLICE_SECONDS):
                self.older.append(aged)
        while self.older and totals.now - self.older[0].now > BASELINE_MOST:
            self.older.popleft()

    def _keep_gone(self, o: Observation) -> None:
        """Keep what servers had that were taken out since, or began anew; where all did, forget everything."""
        before, self._before = self._before, o
        if before is None or not before.n_servers:
            return
        _, here, there = np.intersect1d(o.ids, before.ids, return_indices=True)
        gone = np.ones(before.n_servers, dtype=bool)
        fell = o.outcomes[here].sum(axis=1) < before.outcomes[there].sum(axis=1)
        gone[there] = fell | (o.flows[here] < before.flows[there])
        if gone.all():
            self.snapshots.clear()
            self.older.clear()
            self.restarts += 1
            self._gone = None
        elif gone.any():
            lost = Totals.of(before, gone)
            self._gone = lost if self._gone is None else self._gone + lost

    def changed(self) -> None:
        """Another policy decides from now on: the next is compared with it, and with no older ones beyond the last half
        minute."""
        self.older.clear()
        self._changed = self.snapshots[-1].now if self.snapshots else -np.inf

    def baseline(self) -> tuple[Totals, Totals] | None:
        """Return begin and end of what a new policy is compared with: the last half minute, or as much more as has
        BASELINE_FLOWS, or all there is. None: there is nothing yet."""
        if not self.snapshots:
            return None
        last = self.snapshots[-1]
        first = self.snapshots[0]
        for earlier in reversed(self.older):
            if flows_between(first, last) >= BASELINE_FLOWS:
                break
            first = earlier
        return first, last

    def guard(self) -> Guard | str:
        """Return a guard that compares with the time up to now; in words why not, when that is too little."""
        found = self.baseline()
        took, flows = 0.0, 0.0
        if found is not None:
            first, last = found
            took, flows = last.now - first.now, flows_between(first, last)
            if took >= LEAST_SECONDS and flows >= LEAST_FLOWS:
                few = flows_between(self.snapshots[0], last) < LEAST_FLOWS
                return Guard(first, last, self.restarts, few=few)
        if took < LEAST_SECONDS:
            return f"too little time to compare with: {took:.0f} s; at least {LEAST_SECONDS:.0f} s needed"
        return f"too little traffic to guard: {flows:.0f} flows in {took:.0f} s; at least {LEAST_FLOWS} needed"


class Guard:
    """Watches one policy for a minute, or for as long as its flows need."""

    def __init__(self, before: Totals, since: Totals, restarts: int = 0, *, few: bool = False) -> None:
        """Compare with the time from before to since. few: there is little traffic."""
        self.before, self.since, self.restarts, self.few = before, since, restarts, few
        self.worse = 0  # looks in a row at which it was
        self.sure = 0  # looks in a row at which that could not change any more
        self.seen = since
        self.looked = since
        self.start: Totals | None = None  # of the window that is judged
        self.broken = False  # the counters began anew

    @property
    def lacking(self) -> str:
        """In words what it lacks to have judged the policy; empty: nothing."""
        if self.broken:
            return "the data plane started anew, or all servers are others, before it was judged"
        flows = 0.0 if self.start is None else flows_between(self.start, self.seen)
        if flows >= LEAST_FLOWS:
            return ""
        took = self.seen.now - self.since.now
        return f"too little traffic to judge it: {flows:.0f} flows in {took:.0f} s; at least {LEAST_FLOWS} needed"

    def judge(self, windows: Windows) -> str | None:
        """Return what is worse, "" when the watch is over without a finding, None to go on watching."""
        if not windows.snapshots or windows.snapshots[-1].now <= self.seen.now:
            return None
        now = windows.snapshots[-1]
        if windows.restarts != self.restarts:
            self.broken = True
            return ""
        took, flows = now.now - self.since.now, now.closed - self.since.closed
        if took > WATCH_MOST or (took > WATCH and flows >= WATCH_FLOWS):
            return ""
        self.seen = now
        if took < SETTLE or flows < SETTLE_FLOWS:
            return None
        if self.start is None:
            self.start = self.looked = now
            return None
        if now.closed - self.looked.closed < LOOK_FLOWS:
            return None
        self.looked = now
        tail = FEW_TAIL if self.few else TAIL_TIMES * TAIL
        finding = regression(self.before, self.since, self.start, now, tail=tail)
        self.worse = self.worse + 1 if finding else 0
        if self.worse >= LOOKS:
            return finding
        fine = self._still_to_come(now)
        gross = regression(self.before, self.since, self.start, now, seconds=0.0, tail=tail, fine=fine)
        self.sure = self.sure + 1 if gross else 0
        return gross if self.sure >= SURE_LOOKS else None

    def _still_to_come(self, now: Totals) -> float:
        """Return how many flows may end, at most, until the last of the looks that the test needs."""
        assert self.start is not None
        took = now.now - self.start.now
        old = (self.since.opened - self.before.opened) / (self.since.now - self.before.now)
        rate = RATE_TIMES * max(old, (now.opened - self.start.opened) / took)
        until_first = max((LEAST_SECONDS - took) * rate, LEAST_FLOWS - flows_between(self.start, now), 0.0)
        return until_first + LOOKS * (LOOK_FLOWS + rate * SNAPSHOT_SECONDS)


def regression(
    before: Totals,
    since: Totals,
    start: Totals,
    now: Totals,
    *,
    seconds: float = LEAST_SECONDS,
    flows: int = LEAST_FLOWS,
    tail: float = TAIL_TIMES * TAIL,
    fine: float = 0.0,
) -> str:
    """Return how the time from start to now is clearly worse than that from before to since; empty: it is not.

    seconds, flows: that the new time has at least to be judged. tail: the part of the flows beyond the old p99 from
    which on it is worse. fine: so many more flows are taken to have ended since, all of them well.
    """
    took, closed = now.now - start.now, now.closed - start.closed + fine
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
        return f"{failed * closed / (closed - fine):.1%} of the flows fail, {old_failed:.1%} before"
    old, new = since.histogram - before.histogram, now.histogram - start.histogram
    n, old_n = float(new.sum()) + fine, float(old.sum())
    if old_n < flows or n < flows:
        return ""
    # First bucket above the old p99, and what part of either lies there or beyond.
    above = int(np.searchsorted(np.cumsum(old), (1.0 - TAIL) * old_n)) + 1
    slow = float(new[above:].sum())
    p, p_old = slow / n, max(float(old[above:].sum()) / old_n, TAIL / 2)
    error = np.sqrt(p_old * (1 - p_old) * (1 / n + 1 / old_n))
    if p > tail and p - p_old > STANDARD_ERRORS * error:
        return f"{slow / (n - fine):.0%} of the flows take longer than the p99 before"
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
