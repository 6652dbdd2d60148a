"""Late binding: which flow waits at the balancer rather than go to the server that bids lowest.

Source    Naor, "The regulation of queue size by levying tolls", Econometrica 37(1), 1969 (who should balk, for all);
          Lin & Kumar, "Optimal control of a queueing system with two heterogeneous servers", IEEE TAC 29(8), 1984, and
          Rykov & Efrosinin, "On the slow server problem", Automation and Remote Control 70, 2009 (thresholds)
Model     servers of k workers of rate μ; classes of equal μ, the fastest first. Flows wait in one queue; class j takes
          one only when all faster workers are busy and at least t_j wait before it
Symbols   J, C  workers of the classes before j, and their rate; λ arrivals; q flows that wait

What a flow should do that finds the faster classes busy is what Naor asked: wait, and make those after it wait too, or
balk at the price of 1/μ_j, which is its time on class j. The faster classes are a birth-death chain; with at most
t_j waiting the mean cost is

    g(t) = (Σ_{m<=J+t} m w(m) + λ w(J+t)/μ_j) / Σ_{m<=J+t} w(m),   w(m) = w(m−1)·λ/R(m)

and t_j is the t of least g. The selfish answer, 1/μ_j > (q + J + 1)/C − …, waits longer: it leaves the others out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.autocorrelation import Autocorrelation
from controlplane.estimator import SETTLED, Fit
from controlplane.learner import FAILED, Learner
from controlplane.overtaking import SHARING_FROM, SHARING_UNTIL, Overtaking
from controlplane.policy import CURVE_N, Bools, Floats, Ids, Observation, Profile
from controlplane.rows import kept
from controlplane.speeds import Speeds
from shm_layout.layout import CURVE_EXACT

# Rates that are closer than this are one class, as long as there are no more classes than this.
CLASS_RATIO, CLASSES_MAX = 1.03, 40
# States of the chain below and above "all faster workers busy".
STATES_BELOW, STATES_ABOVE = 1024, 4096

# Of k, what may be an error, or the way to the server and back: workers are whole. The last: of a server hardly known.
LIMIT_SLACK, LIMIT_PART, LIMIT_PART_NEW = 0.02, 0.5, 0.25
# A server gets a flow beyond its limit when so many times the flows that will leave the queue until it ends one wait.
# Where times vary more than exponential ones, with c² > 1, it is ((1 + c²)/2)^1.5 times as many, with at most this c²;
# but not where its limit was not seen yet: it may bear more.
PREFETCH, VARIATION_POWER, VARIATION_MOST = 0.5, 1.5, 4.0
# A flow that has taken t takes s + κt more, κ = (c² − 1)/(c² + 1), where times are generalised Pareto of mean s. So
# many times κ, since of tails that end somewhere c² tells too little; less than the second is taken for noise.
AGING, AGING_LEAST = 2.0, 0.1
# A worker so many times as fast as the usual one gets one more beyond the limit: what waits there is over too soon.
FAST = 1.5
# Factors on the reserve for gold, silver, bronze, below 1 for who is to wait longer for a fast server: gold, since it
# is the next that gets one, and bronze, since it leaves the dearer ones to the others (docs/auction.md).
SLA_RESERVE = (0.5, 1.0, 0.5)
# Beyond as many more as the root of its limit a flow goes there at so many times the queue: where that is so long,
# the limit may be wrong, or there is more to do than the servers can, and holding gains nothing. Times what it is more
# with times that vary, once more: behind long flows nobody should wait.
DEEPER = 2.0
# Flows of a server over which it is forgotten that it refused some, with so many in flight: its backlog was full.
REFUSED_FLOWS = 20_000.0
# Bid of a server that is to have none, in times of the reserve's greatest value.
TOO_DEAR = 1e4
# Part of a flow's time at a server that the way there and back may take: with more, a held flow comes too late. Of one
# worker; by the root of k less of k workers, of which one is free the sooner.
WAY_MOST = 0.08
# Part of it that is taken to be service, at least.
SERVICE_PART = 0.5
# Completions on either side that make a ratio of rates.
CLEAR = 32.0
# Squared coefficient of variation of times at the servers below which demands are much alike: shared cores then keep
# the order of their flows too. Flows over which its moments are taken, a server.
ALIKE, ALIKE_FLOWS = 0.5, 500.0


def classes_of(mu: Floats) -> NDArray[np.intp]:
    """Return the class of each server, (servers,), 0 the fastest: rates within a few per cent are the same."""
    order = np.argsort(-mu, kind="stable")
    x = np.log(mu[order])
    ratio = max(np.log(CLASS_RATIO), float(x[0] - x[-1]) / CLASSES_MAX) if len(x) else 1.0
    label = np.zeros(len(mu), dtype=np.intp)
    at, top = -1, np.inf
    for i, value in enumerate(x):
        if top - value > ratio:
            at, top = at + 1, value
        label[order[i]] = at
    return label


def thresholds(lam: float, mu: Floats, slots: Floats) -> Floats:
    """Return t_j, the flows that must wait before class j (mu falling, slots workers each) takes one, (classes,)."""
    t = np.zeros(len(mu))
    below_j = np.concatenate([[0.0], np.cumsum(slots)])
    rate_j = np.concatenate([[0.0], np.cumsum(slots * mu)])
    for j in range(1, len(mu)):
        workers, rate = below_j[j], rate_j[j]
        low = max(int(np.ceil(workers)) - STATES_BELOW, 0)
        # No flow waits for longer than it would take on class j: 1/μ_j is worth C/μ_j waiting ones.
        above = int(min(rate / mu[j] + 2.0, STATES_ABOVE))
        top = int(np.ceil(workers)) + above
        m = np.arange(low, top + 1.0)
        # R(m): the classes before j fill in their order, each from its own threshold on.
        knots_m, knots_r = [0.0], [0.0]
        for c in range(j):
            begin = max(below_j[c] + t[c], knots_m[-1])
            knots_m += [begin, max(below_j[c + 1] + t[c], begin + 1e-9)]
            knots_r += [rate_j[c], rate_j[c + 1]]
        departures = np.maximum(np.interp(m, knots_m, knots_r), 1e-12)
        log_w = np.concatenate([[0.0], np.cumsum(np.log(max(lam, 1e-12) / departures[1:]))])
        w = np.exp(log_w - log_w.max())
        mass = np.cumsum(w)
        g = (np.cumsum(m * w) + lam * w / mu[j]) / np.maximum(mass, 1e-300)
        first = int(np.ceil(workers)) - low
        t[j] = max(float(np.argmin(g[first:])), t[j - 1])
    return t


@dataclass(frozen=True, slots=True)
class Binding:
    """Bids and the reserve that they are held against."""

    curves: Floats  # (servers, CURVE_POINTS) seconds
    reserve: Floats  # (CURVE_POINTS,) seconds, by flows that wait
    wanted: Floats  # (servers,) flows that must wait before it takes one
    limit: Floats  # (servers,) flows in flight from which on it takes one only for a long queue
    aging: Floats  # (servers, 2): limit, and by how many times itself a bid beyond it grows a second without a move


def limits(k: Floats, samples: Floats) -> Floats:
    """Return the flows in flight that keep k workers busy: the nearest whole numbers >= 1, less the way there."""
    part = np.where(samples > SETTLED, LIMIT_PART, LIMIT_PART_NEW)
    return np.maximum(np.ceil(k * (1.0 - LIMIT_SLACK) - part), 1.0)


def bind_late(
    lam: float,
    mu: Floats,
    limit: Floats,
    tried: Floats | None = None,
    variation: float = 1.0,
    refused: Floats | None = None,
) -> Binding:
    """Return bids that are t/C up to each server's limit, and above it so that its pipe does not run dry.

    limit: workers of each server. They are whole: k as it was fitted, 1.1 or 0.9, would make equal servers unequal.
    tried: flows in flight up to which a server is to be tried whose limit was not seen yet; 0 where it was.
    variation: squared coefficient of variation of the times that flows take.
    refused: flows in flight from which on a server refuses more; inf: not known.

    The reserve is R(q) = (q + 1)/C, the time in which q others and the flow itself leave the queue: a bid of (t + f)/C
    with 0 < f < 1 is accepted from t waiting flows on, and f says which of several such servers is taken first.
    """
    n = len(mu)
    label = classes_of(mu)
    count = int(label.max(initial=-1)) + 1
    slots: Floats = np.bincount(label, weights=limit, minlength=count).astype(np.float64)
    rates: Floats = np.bincount(label, weights=limit * mu, minlength=count).astype(np.float64)
    capacity = float(rates.sum())
    wanted = np.asarray(thresholds(lam, rates / slots, slots)[label])
    reserve = (CURVE_N + 1.0) / capacity
    # Flows beyond the limit, 0 below it. Where the curve's points are apart, up to the point after the limit.
    before = np.concatenate([[-1.0], CURVE_N[:-1]])
    beyond = np.where(CURVE_N < CURVE_EXACT, CURVE_N, before + 1.0) - (limit - 1.0)[:, None]
    first = 0.1 + 0.6 * label / max(count, 1)
    full = np.minimum(CURVE_N / limit[:, None], 1.0)
    level = wanted[:, None] + first[:, None] + 0.1 * full
    # In the time in which it ends prefetch·e flows the queue would not empty, so it would take this one anyway.
    tried = np.zeros(n) if tried is None else tried
    c2 = min(max(variation, 1.0), VARIATION_MOST)
    prefetch = np.where(tried > limit, PREFETCH, PREFETCH * (0.5 + 0.5 * c2) ** VARIATION_POWER)
    aging = AGING * (c2 - 1.0) / (c2 + 1.0)
    growth = np.where(tried > limit, 0.0, aging * mu) if aging >= AGING_LEAST else np.zeros(n)
    ahead = np.ceil(np.maximum(beyond, 0.0) * (prefetch * capacity / (limit * mu))[:, None])
    ahead_most = np.ceil(np.sqrt(limit)) + (mu >= FAST * capacity / limit.sum())
    deep = beyond > np.maximum(ahead_most, tried - limit)[:, None]
    ahead = np.where(deep, np.ceil(DEEPER * prefetch[:, None] / PREFETCH * ahead), ahead)
    level = np.where(beyond > 0.0, np.maximum(wanted[:, None], ahead) + 0.95, level)
    if refused is not None:
        level = np.where(refused[:, None] <= CURVE_N, TOO_DEAR * (CURVE_N[-1] + 1.0), level)
    curves = np.maximum.accumulate(level / capacity, axis=1).reshape(n, -1)
    return Binding(curves, reserve, wanted, limit, np.stack([limit, growth], axis=1))


def at_work(profile: Profile, k: Floats) -> Floats:
    """Return k, less where a server with k in flight ends flows no faster than with fewer: cores shared by alike flows.

    There s, and with it k, is too large, since flows that found few were slowed by those that came after. With FIFO
    the ratio of the rates is k or, with demands alike, more.
    """
    limit = limits(k, profile.completions.sum(axis=1))[:, None]
    below = (CURVE_N >= 1.0) & (limit > CURVE_N)
    above = limit <= CURVE_N
    each = (profile.completions * below).sum(axis=1), (profile.time * below * CURVE_N).sum(axis=1)
    full = (profile.completions * above).sum(axis=1), (profile.time * above).sum(axis=1)
    told = (each[0] >= CLEAR) & (full[0] >= CLEAR) & (each[1] > 0.0) & (full[1] > 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (full[0] / full[1]) / (each[0] / each[1]) * (1.0 + np.sqrt(1.0 / each[0] + 1.0 / full[0]))
    return np.where(told, np.clip(ratio, 1.0, k), k)


class LateBinding:
    """The learned reserve of one service that has one balancer: call `decide` with every fit."""

    def __init__(self) -> None:
        self.overtaking, self.speeds, self.autocorrelation = Overtaking(), Speeds(), Autocorrelation()
        self._closed: float | None = None
        self._limit: Floats = np.zeros(0)
        self.sharing = False
        self._ids: Ids = np.zeros(0, dtype=np.uint64)
        self._way: Floats = np.zeros(0)  # seconds there and back, the shortest connect seen; inf: none
        self._moments: Floats = np.zeros((0, 3))  # of times at the servers: count, sum, sum of squares
        self._refused: Floats = np.zeros(0)  # flows in flight from which on it refuses more; inf: not known
        self._seen = self._known = False  # there are records to judge by, and there were enough of them once

    def decide(self, o: Observation, learner: Learner, fit: Fit, failing: Floats) -> Binding | None:
        """Return bids and reserve, or None: nobody is held, bid as if there were no queue."""
        self._watch(o)
        may = o.active & (failing < 1.0)
        k = np.minimum(fit.k, np.maximum(o.maxconn, 1.0))
        s, full = fit.s, fit.full
        if self._variation() < ALIKE:
            k = at_work(learner.profile, k)
        elif len(self.overtaking.proven) == len(k):
            k, full = self._at_least(k, full, fit.samples)
            # What a server ends while it is full was seen: if its workers are fewer, they are faster. One that is far
            # off needs more in flight than it has workers.
            near = ~np.isfinite(self._way) | (self._way <= WAY_MOST * fit.s)
            fewer = np.where(near, np.minimum(self.overtaking.most / k, 1.0), 1.0)
            k = k * fewer
            s = np.where(full, s * fewer, s)
        most = np.maximum(o.maxconn, 1.0)
        limit = np.minimum(limits(k, fit.samples), most)
        # What a server refuses it ends at once, as if it bore more.
        refused = np.floor(self._refused) if len(self._refused) == len(limit) else np.full(len(limit), np.inf)
        limit = np.minimum(limit, np.maximum(refused, 1.0))
        # Not seen full: one flow more than was tried, so that a limit that was set too low is found out.
        tried = np.where(full, 0.0, np.minimum(np.maximum(fit.tried, limit), most))
        self._limit = limit
        unknown = self._seen and not self._known
        if not may.any() or not (fit.full & may).any() or unknown:
            return None
        if self.sharing or self.autocorrelation.together:
            return None
        if self._way_share(may, fit) * np.sqrt(limit[may].mean()) > WAY_MOST:
            return None
        # While flows wait at the server the way costs it nothing: what it ends is a matter of the service alone. The
        # usual way, from all: a server that is further off is the slower for it.
        s = self.speeds.refine(s, fit.samples)
        ways = self._way[np.isfinite(self._way)]
        way = float(np.median(ways)) if len(ways) else 0.0
        mu = np.maximum(1.0 - failing, 1e-3) / np.maximum(s - way, SERVICE_PART * s)
        found = bind_late(learner.arrival_rate, mu[may], limit[may], tried[may], self.speeds.variation(), refused[may])
        n = o.n_servers
        curves = np.full((n, len(CURVE_N)), TOO_DEAR * float(found.reserve[-1]))
        wanted, aging = np.zeros(n), np.zeros((n, 2))
        curves[may], wanted[may], aging[may] = found.curves, found.wanted, found.aging
        return Binding(curves, found.reserve, wanted, limit, aging)

    def _at_least(self, k: Floats, full: Bools, samples: Floats) -> tuple[Floats, Bools]:
        """Return k, no less than was proven, and whose limit was seen; a server not seen full has as many more."""
        proven = self.overtaking.proven
        raised = np.maximum(k, proven)
        told = full | (proven > 0.0)
        if told.any():
            raised = np.where(told, raised, k * np.exp(np.log(raised[told] / k[told]).mean()))
        return raised, full & (limits(raised, samples) <= limits(k, samples))

    def _variation(self) -> float:
        """Return the servers' mean squared coefficient of variation of a flow's time there; 1 where little was seen."""
        n, first, second = self._moments[self._moments[:, 0] >= CLEAR].T
        if n.sum() < 4.0 * CLEAR:
            return 1.0
        return float((n * np.maximum(second * n / np.maximum(first, 1e-300) ** 2 - 1.0, 0.0)).sum() / n.sum())

    def _measure(self, o: Observation, records: NDArray[np.void]) -> None:
        """Follow the moments of times at each server, and the shortest connect: one that was pooled tells nothing."""
        same = np.zeros(o.n_servers, dtype=bool)
        m = min(o.n_servers, len(self._ids))
        same[:m] = self._ids[:m] == o.ids[:m]
        self._ids = o.ids
        self._way = way = kept(self._way, same, np.inf)
        self._moments = moments = kept(self._moments, same)
        records = records[records["server"] < o.n_servers]
        records = records[records["server_id"] == o.ids[records["server"]]]
        self._refuse(o, same, records)
        records = records[records["outcome"] == 0]
        rows, took = records["server"].astype(np.intp), (records["closed_ns"] - records["dispatched_ns"]) * 1e-9
        new = np.stack([np.bincount(rows, took**power, o.n_servers) for power in range(3)], axis=1)
        moments *= np.exp(-new[:, :1] / ALIKE_FLOWS)
        moments += new
        self.speeds.match(same)
        self.autocorrelation.match(same)
        alone = records["found"] < (self._limit[rows] if len(self._limit) == o.n_servers else 1.0)
        self.speeds.update(rows[alone], took[alone])
        self._compare(o.now, rows[alone], records[alone], took[alone])
        fresh = records[records["connected_ns"] > records["dispatched_ns"]]
        if len(fresh):
            seconds = (fresh["connected_ns"] - fresh["dispatched_ns"]) * 1e-9
            np.minimum.at(way, fresh["server"].astype(np.intp), seconds)

    def _refuse(self, o: Observation, same: Bools, records: NDArray[np.void]) -> None:
        """Follow from how many in flight on a server refuses flows: where some failed beyond its limit, and none ended.

        It is forgotten when the server comes back, and as it ends flows.
        """
        self._refused = refused = kept(self._refused, same & o.active, np.inf)
        if len(self._limit) != o.n_servers:
            return
        rows, found = records["server"].astype(np.intp), records["found"].astype(np.float64)
        outcome = records["outcome"]
        failed = (outcome >= FAILED.start) & (outcome < FAILED.stop) & (found >= self._limit[rows])
        refused *= np.exp(np.bincount(rows, minlength=o.n_servers) / REFUSED_FLOWS)
        np.minimum.at(refused, rows[failed], found[failed])
        ended = (outcome == 0) & np.isfinite(refused[rows])
        np.maximum.at(refused, rows[ended], found[ended] + 1.0)

    def _compare(self, now: float, rows: NDArray[np.intp], records: NDArray[np.void], took: Floats) -> None:
        """See whether flows that did not wait took alike."""
        if self._moments[:, 0].sum() < ALIKE_FLOWS:
            return
        alike = self._variation() < ALIKE
        if alike:
            # Where cores are shared times have the number in flight in common, unless flows are held: try that.
            self.autocorrelation.retry(now)
        elif len(self.overtaking.proven) == len(self._ids):
            # Limits that are too high at first let flows wait, everywhere at once: what counts is what was seen to be
            # worked on at once.
            sure = records["found"] < np.maximum(np.round(self.overtaking.proven[rows]), 1.0)
            rows, records, took = rows[sure], records[sure], took[sure]
        self.autocorrelation.update(rows, records["closed_ns"], took, self.speeds.usual(), now, alike)

    def _way_share(self, may: Bools, fit: Fit) -> float:
        """Return the part of a flow's time that is the way, weighted by capacity; 0 where no connect was seen."""
        way = np.where(np.isfinite(self._way), self._way, 0.0) if len(self._way) == len(may) else np.zeros(len(may))
        capacity = fit.capacity[may]
        return float((np.minimum(way[may] / fit.s[may], 1.0) * capacity).sum() / capacity.sum())

    def _watch(self, o: Observation) -> None:
        """Follow whether the servers keep the order of their flows."""
        closed = float(o.outcomes.sum())
        before, self._closed = self._closed, closed
        if o.read_records is None:
            return
        records = o.read_records()
        self._seen = True
        self._measure(o, records)
        if before is None or len(self._limit) != o.n_servers:
            return
        self.overtaking.update(records, max(closed - before, 0.0), o.ids, self._limit)
        share = self.overtaking.share
        if not self.overtaking.judged:
            return
        self._known = True
        if share > SHARING_FROM:
            self.sharing = True
        elif share < SHARING_UNTIL:
            self.sharing = False
