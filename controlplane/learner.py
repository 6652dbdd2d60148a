"""What the controller remembers of each server: decayed occupancy profiles, failures, the arrival rate; and when to
forget.

Window    a server's past counts less by a factor e every WINDOW of its completions
CUSUM     completions against what r(n) made expect (Page, 1954): log-likelihood ratio of half and of double the
          rate; where it passes ALARM, the server has changed, and its past is cut to a few completions' worth.
          Services whose completions come in lumps (heavy tails) have the ratio divided by their dispersion, so that
          they raise no false alarm. Its configured weight then says nothing of it any more, until it is
          told anew or turns out to be right.
Old news  a number in flight that a server has seldom had lately keeps what was seen there before. Where that is far too
          slow to be the server of today, it is dropped: else a few seconds of a slow past, when flows piled up, pass
          for the limit of a server that has recovered.
Keyed by the server's id: a slot with another server starts anew, a data plane that starts again costs nothing.
"""

from __future__ import annotations

import numpy as np

from controlplane.estimator import SETTLED, TIME_CEILING, WEIGHT_LEAST, Fit, fit
from controlplane.policy import CURVE_MIDDLE, CURVE_N, Bools, Floats, Observation, Profile

# Completions of a server over which its past fades.
WINDOW = 2000.0
# Log-likelihood ratio at which a change is believed; and the completions that are kept of the past of a server that
# slowed down. Of one that sped up nothing is kept: its old times are the longer ones and would outweigh the new.
ALARM, KEPT_SLOWED = 12.0, 8.0
# Mean age in seconds, or in completion times of the server if that is longer, from which on what was seen is old.
OLD_SECONDS, OLD_TIMES = 10.0, 50.0
# Below this log-likelihood ratio nothing is suspected.
CALM = 2.0
# Difference of log s from what a server's weight says, up to which that is right.
RIGHT = 0.4
# Completions from which on there is a rate to depart from.
JUDGED = 3.0
# Rates that CUSUM tests against the present one: half of it, and these multiples.
SPED = {"sped_2": 2.0, "sped_8": 8.0, "sped_32": 32.0}
# More completions than so many times the expected ones are a surprise: the server is looked at again at once.
SURPRISE = 4.0
# Least and greatest dispersion that is believed.
DISPERSION_MIN, DISPERSION_MAX = 0.1, 16.0
# Expected completions over which the dispersion of one block is taken.
BLOCK = 32.0
# Seconds and flows over which failures fade.
FAILURE_SECONDS, FAILURE_FLOWS = 30.0, 200.0
# Flows over which the arrival rate is averaged, and the bounds of that in seconds.
RATE_FLOWS, RATE_SECONDS_MIN, RATE_SECONDS_MAX = 500.0, 2.0, 30.0

# Most that a counter, or seconds, may grow between two looks.
CHANGE_MAX = 1e9
# What is left of a past that faded is nothing.
NEGLIGIBLE = 1e-9

FAILED = slice(1, 5)  # outcomes that count against the server: 5xx, connect failed, abort, timeout


class Learner:
    """Learned state of one service; call `update` with every observation, in order."""

    def __init__(self) -> None:
        self.before: Observation | None = None
        self.window = WINDOW  # what acts on top of the policy may change it
        self.arrival_rate = 0.0  # flows a second, the whole service
        self.changes = 0  # alarms so far
        self._rate_flows = self._rate_seconds = 0.0
        self._allocate(0)
        self.fit: Fit | None = None

    def _allocate(self, n: int) -> None:
        points = len(CURVE_N)
        self._profile = Profile(*(np.zeros((n, points)) for _ in range(4)))
        self._age = np.zeros((n, points))  # mean age of the time at each number in flight, seconds
        # One row of scalars a server.
        self._scalars = {
            name: np.zeros(n)
            for name in (
                *("open_age", "slowed", *SPED, "block_expected", "block_seen", "dispersion", "calm", "blocks"),
                *("failed", "closed", "unseen_seconds", "unseen_flows", "changed"),
            )
        }
        self._ids = np.zeros(n, dtype=np.uint64)

    def __getitem__(self, name: str) -> Floats:
        return self._scalars[name]

    def _match_rows(self, o: Observation) -> None:
        """Keep the rows whose server is still there, clear the others."""
        n = o.n_servers
        if n != len(self._ids):
            old_profile, old_scalars, old_ids, old_age = self._profile, self._scalars, self._ids, self._age
            self._allocate(n)
            m = min(n, len(old_ids))
            for name in Profile.__slots__:
                getattr(self._profile, name)[:m] = getattr(old_profile, name)[:m]
            self._age[:m] = old_age[:m]
            for name, values in old_scalars.items():
                self._scalars[name][:m] = values[:m]
            self._ids[:m] = old_ids[:m]
            self.fit = None
        other = self._ids != o.ids
        if other.any():
            for name in Profile.__slots__:
                getattr(self._profile, name)[other] = 0.0
            for values in self._scalars.values():
                values[other] = 0.0
            self._ids = o.ids.copy()

    def update(self, o: Observation) -> Fit:
        """Take in what happened since the observation before and return the new fit."""
        self._match_rows(o)
        same = o.same_since(self.before)
        elapsed = o.now - self.before.now if self.before is not None else o.interval
        elapsed = min(max(elapsed, 1e-6), 3600.0)
        if self.before is not None:
            rows = np.flatnonzero(same)
            self["changed"][rows[o.weight[rows] != self.before.weight[rows]]] = 0.0  # it was told anew
        change = self._change(o, same)
        ended = change.completions.sum(axis=1)
        keep = np.exp(-ended / self.window)
        expected = self._expected(change)
        kept = self._kept(ended, expected)
        keep = np.minimum(keep, kept / np.maximum(self._weight(), np.maximum(kept, 1.0)))
        for name in Profile.__slots__:
            past = getattr(self._profile, name)
            past *= np.where(keep > NEGLIGIBLE, keep, 0.0)[:, None]
            past += getattr(change, name)
        # The first look may be at hours: no more of it counts than a window.
        weight = self._weight()
        if (weight > 1.5 * self.window).any():
            scale = np.minimum(1.0, self.window / np.maximum(weight, 1.0))[:, None]
            for name in Profile.__slots__:
                getattr(self._profile, name)[:] *= scale
        opened = self._difference(o.flows, self.before.flows if self.before else None, same)
        outcomes = self._difference(o.outcomes, self.before.outcomes if self.before else None, same)
        self._update_ages(o, change, outcomes)
        self._update_failures(outcomes, elapsed, self._came_back(o, same))
        self._update_rate(float(opened.sum()), elapsed, same)
        seen = (ended > 0) & ~(ended > SURPRISE * expected)
        self["unseen_seconds"][:] = np.where(seen, 0.0, self["unseen_seconds"] + elapsed)
        self["unseen_flows"][:] = np.where(seen, 0.0, self["unseen_flows"] + opened.sum())
        self.fit = self._fit(o)
        self._age = (self._age + elapsed) * (1.0 - change.time / np.maximum(self._profile.time, NEGLIGIBLE))
        if self._drop_old_news(self.fit):
            self.fit = self._fit(o)
        self._believe(o, self.fit)
        self.before = o
        return self.fit

    def _fit(self, o: Observation) -> Fit:
        return fit(self._profile, self["open_age"], self.weights(o), self._dispersion(), self._regularity())

    def weights(self, o: Observation) -> Floats:
        """Return the configured ratios of capacity, (servers,); a server that has changed since has the usual one."""
        weight = np.maximum(o.weight, WEIGHT_LEAST)
        return np.where(self["changed"] > 0.0, weight.mean(), weight) if len(weight) else weight

    def _believe(self, o: Observation, now: Fit) -> None:
        """Trust the configured weights of changed servers again where they turn out to be right."""
        changed = self["changed"] > 0.0
        told = o.active & ~changed & (now.samples >= SETTLED)
        if changed.any() and told.any():
            off = np.log(now.s * np.maximum(o.weight, WEIGHT_LEAST))
            self["changed"][(now.samples >= SETTLED) & (abs(off - off[told].mean()) < RIGHT)] = 0.0

    def _drop_old_news(self, now: Fit) -> bool:
        """Forget what was seen long ago at numbers in flight where it is too slow for r(n); return whether any was."""
        old = self._age > np.maximum(OLD_SECONDS, OLD_TIMES * now.s)[:, None]
        old[:, 0] = False
        rate = np.minimum(CURVE_N, now.k[:, None]) / now.s[:, None]
        expected = (self._profile.time * rate * old).sum(axis=1)
        ended = (self._profile.completions * old).sum(axis=1)
        slower = (0.5 * expected - np.log(2.0) * ended) / self._dispersion() > ALARM
        if not slower.any():
            return False
        stale = old & slower[:, None]
        for name in Profile.__slots__:
            getattr(self._profile, name)[stale] = 0.0
        return True

    @property
    def profile(self) -> Profile:
        """The servers' decayed profiles."""
        return self._profile

    def _dispersion(self) -> float:
        """Return the servers' usual dispersion of completion counts, at least 1."""
        blocks = self["blocks"]
        pooled = float((self["calm"] * blocks).sum() / (blocks.sum() + 4.0))
        return min(max(pooled, 1.0), DISPERSION_MAX)

    def _regularity(self) -> float:
        """Return the dispersion where it is below 1, as with demands that are much alike; 1 while little was seen."""
        blocks = self["blocks"]
        pooled = float(((self["calm"] * blocks).sum() + 4.0) / (blocks.sum() + 4.0))
        return min(max(pooled, DISPERSION_MIN), 1.0)

    def _weight(self) -> Floats:
        """Completions that each server's profile stands for."""
        return np.asarray(self._profile.completions.sum(axis=1))

    @staticmethod
    def _difference(new: Floats, old: Floats | None, same: Bools) -> Floats:
        """Return what was added since; all of new where the row is another server's or began anew."""
        if old is None:
            change = new.copy()
        elif same.all() and len(old) == len(new):
            change = new - old
        else:
            change = new.copy()
            rows = np.flatnonzero(same)
            change[rows] -= old[rows]
        # Counters of a damaged segment may say anything.
        return np.asarray(np.clip(change, 0.0, CHANGE_MAX, out=change))

    def _change(self, o: Observation, same: Bools) -> Profile:
        before = self.before.profile if self.before is not None else None
        return Profile(
            *(
                self._difference(getattr(o.profile, name), None if before is None else getattr(before, name), same)
                for name in Profile.__slots__
            )
        )

    def _expected(self, change: Profile) -> Floats:
        """Return the completions that r(n) made expect; infinite where nothing is known yet."""
        if self.fit is None or self.before is None:
            return np.full(len(self._ids), np.inf)
        rate = np.minimum(CURVE_N, self.fit.k[:, None]) / self.fit.s[:, None]
        expected: Floats = np.einsum("ij,ij->i", rate, change.time)
        return np.where(self.fit.samples >= JUDGED, expected, np.inf)

    def _kept(self, ended: Floats, expected: Floats) -> Floats:
        """Return how many completions of each server's past to keep: infinite where it ended flows as expected."""
        judged = np.isfinite(expected)
        expected, ended = np.where(judged, expected, 0.0), np.where(judged, ended, 0.0)
        self._update_dispersion(ended, expected)
        # A change must not pass for dispersion: what counts is what it was before the suspicion.
        slowed, calm = self["slowed"], self["calm"]
        calm[:] = np.where(np.maximum(slowed, self["sped_2"]) < CALM, self["dispersion"], calm)
        # One server alone takes long to show how heavy its tail is: the others' tell.
        phi = np.clip(np.maximum(calm, self._dispersion()), 1.0, DISPERSION_MAX)
        slowed[:] = np.maximum(slowed + (0.5 * expected - np.log(2.0) * ended) / phi, 0.0)
        kept = np.where(slowed > ALARM, KEPT_SLOWED * phi, np.inf)
        for name, times in SPED.items():
            sped = self[name]
            sped[:] = np.maximum(sped + (np.log(times) * ended - (times - 1.0) * expected) / phi, 0.0)
            kept = np.where(sped > ALARM, 0.0, kept)
        alarm = np.isfinite(kept)
        for name in ("slowed", *SPED):
            self[name][alarm | ~judged] = 0.0
        self["dispersion"][alarm] = calm[alarm]
        self.changes += int(alarm.sum())
        self["changed"][alarm] = 1.0
        return np.where(alarm, kept, CHANGE_MAX)

    def _update_dispersion(self, ended: Floats, expected: Floats) -> None:
        """Follow the mean of (seen − expected)²/expected over blocks, the last 16 or so; a Poisson process has 1."""
        seen, want, phi, blocks = (self[n] for n in ("block_seen", "block_expected", "dispersion", "blocks"))
        seen += ended
        want += expected
        done = want >= BLOCK
        if done.any():
            blocks[done] = np.minimum(blocks[done] + 1.0, 16.0)
            surprise = (seen[done] - want[done]) ** 2 / want[done]
            phi[done] += (np.minimum(surprise, 64.0) - phi[done]) / (blocks[done] + 2.0)
            seen[done] = want[done] = 0.0

    def _update_ages(self, o: Observation, change: Profile, outcomes: Floats) -> None:
        """Follow Σ ages of the open flows: flow-seconds that passed less those of the flows that ended."""
        age = self["open_age"]
        age += (change.time * CURVE_MIDDLE).sum(axis=1) - change.found_fct.sum(axis=1)
        # Flows that ended without a sample took the mean age with them.
        lost = outcomes.sum(axis=1) - change.arrivals.sum(axis=1)
        age *= np.where(o.in_flight > 0, o.in_flight / (o.in_flight + np.maximum(lost, 0.0) + 1e-9), 0.0)
        np.clip(age, 0.0, TIME_CEILING, out=age)

    def _came_back(self, o: Observation, same: Bools) -> Bools:
        """Return which servers may take flows again: the health checks vouch for them, not the past."""
        back = np.zeros(len(self._ids), dtype=bool)
        if self.before is not None:
            rows = np.flatnonzero(same)
            back[rows] = o.active[rows] & ~self.before.active[rows]
        return back

    def _update_failures(self, outcomes: Floats, elapsed: float, came_back: Bools) -> None:
        failed, closed = outcomes[:, FAILED].sum(axis=1), outcomes[:, :5].sum(axis=1)
        keep = np.exp(-elapsed / FAILURE_SECONDS - closed / FAILURE_FLOWS)
        keep[came_back] = 0.0
        failed[came_back] = closed[came_back] = 0.0
        self["failed"][:] = self["failed"] * keep + failed
        self["closed"][:] = self["closed"] * keep + closed

    def failing(self) -> Floats:
        """Return the fraction of its flows that each server fails beyond the others' fraction and beyond chance."""
        failed, closed = self["failed"], self["closed"]
        others = np.maximum(closed.sum() - closed, 1e-9)
        usual = np.clip((failed.sum() - failed) / others, 0.0, 1.0)
        own = failed / (closed + 4.0)
        chance = 2.0 * np.sqrt(np.maximum(usual * (1.0 - usual), 0.0) / (closed + 4.0))
        return np.asarray(np.clip(own - usual - chance, 0.0, 1.0))

    def _update_rate(self, opened: float, elapsed: float, same: Bools) -> None:
        if not same.any():
            return  # nothing to take a difference from: how long the counters ran is not known
        seconds = RATE_FLOWS / max(self.arrival_rate, 1e-9)
        keep = np.exp(-elapsed / min(max(seconds, RATE_SECONDS_MIN), RATE_SECONDS_MAX))
        self._rate_flows = self._rate_flows * keep + opened
        self._rate_seconds = self._rate_seconds * keep + elapsed
        self.arrival_rate = self._rate_flows / self._rate_seconds
