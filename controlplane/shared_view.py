"""Bids of a balancer that shares its servers with others and sees its own flows alone: what a flow waits for the flows
that cannot be seen is learned from the flows that can.

Model     servers of one worker each that keep the order of their flows; K balancers, told only K
Symbols   D(n)  mean completion time of one's own flows that found n of one's own in flight there
          s     mean time of service there, which nobody tells
          λ, ρ  the server's arrivals, of all balancers; the utilisation of all servers
Bid       (D(n) − ρ·s) / √(1 − λ·s)

*Why.* D(n) − s is the wait that n own flows announce, the others' flows included as they are when n is seen, and n is
all that is seen. Bidding it makes balancers part company: where one of them has most of the flows it knows best what is
there, D(0) is short for it and long for the rest, so it comes back and they stay away. Nobody is told which servers are
"its own", and when a balancer goes away its servers' D falls for the others. At low load a flow's own service counts
too, hence ρ. The root is half of the way (in logarithms) to 1/(1 − λ·s), what a flow costs those after it in M/M/1.

*Telling s from the wait.* D(n) alone cannot: to one's own flows, an M/M/1 server with others' arrivals λ' is an M/M/1
server of rate 1/s − λ'. But of two own flows, B dispatched g after A, B cannot be kept waiting beyond A's end by more
than what came in between: R = closed(B) − max(closed(A), dispatched(B)) has the mean s + (others' part)·g while A is
there, and grows less than that after. So s is the intercept of R on g, by a regression that looks at short gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.bids import split
from controlplane.estimator import shrink, variance_between
from controlplane.learner import Learner
from controlplane.policy import CURVE_N, Bools, Floats, Ids, Observation

# Points of D(n) that are measured; beyond, it goes on as it ends.
POINTS = 8
# Flows to a server, and weights of gaps, over which what was seen fades.
DELAY_WINDOW, GAP_WINDOW = 200.0, 1000.0
# D(n) before it is seen: D(n − 1) and so many s more, counted as so many flows.
STEP, PRIOR = 2.0, 8.0
# A gap of g counts e^(−g/h), h so many times D(0), which is taken for at most so many times the mean of all.
NEAR, FAR = 0.4, 1.5
# Slope of R on g before it is seen, and the gaps, in weights, that it counts as.
OTHERS, STIFF = 0.5, 3.0
# A server of whose log s the variance may be greater is sent its flows in pairs, one of so many looks, once its D(n)
# rests on so many flows: pairs cost most while least is known. May be: by so many standard deviations of what the
# spread of the servers rests on.
UNSURE, TURNS, PAIRS_FROM, DOUBT = 0.06, 3, 25.0, 2.0
# Variance of log s, times the weight of the gaps.
SPREAD = 2.0
# Flows that one balancer must have seen end, for each server, before it bids so.
ENOUGH = 4.0
# Part of the flows that end before one that was sent there before, above which servers do not keep the order.
DISORDER, DISORDER_FLOWS = 0.04, 200.0
# D(1)/D(0) that says that a flow waits for the one before it, and correlation of g and R from which on it does not;
# flows and gaps of a server that say so.
STEEP, CORRELATED, CLEAR = 1.33, 0.7, 8.0
# Flow records that are looked at in one interval.
RECORDS_MOST = 16_384
# Part of the closed flows that must have a record for pairs of them to tell something.
RECORDS_WHOLE = 0.97


@dataclass(frozen=True, slots=True)
class View:
    """What a balancer makes of its own flows, (servers,) where nothing else is said."""

    curves: Floats  # (servers, CURVE_POINTS) seconds
    service: Floats  # s, seconds
    delay: Floats  # D(0), seconds
    utilisation: float  # ρ of all servers together


class SharedView:
    """The learned state of one service with several balancers; call `decide` with every observation."""

    def __init__(self) -> None:
        self._ids: Ids = np.zeros(0, dtype=np.uint64)
        self._held: Floats = np.zeros(0)  # completions that the learner's profile of a server stands for
        self._allocate(0)
        self.seen = 0.0  # own flows that ended well, in all
        self._ordered = self._disordered = 0.0
        self._closed = 0.0  # flows, by the counters

    def _allocate(self, n: int) -> None:
        self._found = np.zeros((n, POINTS))  # flows that found n
        self._delay = np.zeros((n, POINTS))  # seconds, their completion times
        self._gaps = np.zeros((n, 6))  # sums of w, w·g, w·R, w·g², w·g·R, w·R²
        self._weight = np.zeros(n)  # logarithm of the configured ratio of capacities
        self._last = np.zeros((n, 2))  # seconds: when the flow sent last was dispatched and closed
        self._since = np.zeros(n)  # seconds: when it changed, while flows from before are there; else 0

    def decide(self, o: Observation, learner: Learner) -> View | None:
        """Return bids, or None while there is nothing to bid on: no records, few flows, or servers without order."""
        self._match(o, learner)
        weight = learner.weights(o)
        self._weight = np.log(weight / weight.mean())
        if o.read_records is not None:
            records = o.read_records()
            self._take(o, records, whole=len(records) >= RECORDS_WHOLE * self._newly_closed(o) - 4.0)
        if self.seen < ENOUGH * o.n_servers or self.parallel:
            return None
        return self._view(o, learner.arrival_rate)

    @property
    def disorder(self) -> float:
        """Return the part of the flows that were overtaken."""
        return self._disordered / (self._ordered + self._disordered + DISORDER_FLOWS / 4.0)

    def _match(self, o: Observation, learner: Learner) -> None:
        """Keep the rows whose server is still there and, as far as the learner saw, what it was."""
        n, m = o.n_servers, min(o.n_servers, len(self._ids))
        old = self._rows()
        if n != len(self._ids):
            self._allocate(n)
            for new, past in zip(self._rows(), old, strict=True):
                new[:m] = past[:m]
        other = np.ones(n, dtype=bool)
        other[:m] = self._ids[:m] != o.ids[:m]
        held = learner.profile.completions.sum(axis=1)
        forgotten = other.copy()
        forgotten[:m] |= held[:m] < 0.5 * self._held[:m]
        self._held = held
        for rows in (self._found, self._delay, self._gaps):
            rows[forgotten] = 0.0
        self._since[forgotten] = o.now
        self._last[other] = self._since[other] = 0.0
        self._ids = o.ids.copy()

    def _rows(self) -> tuple[Floats, ...]:
        """Return all that is remembered of servers, a row each."""
        return self._found, self._delay, self._gaps, self._last, self._since

    def _newly_closed(self, o: Observation) -> float:
        """Return how many flows were closed since the last look."""
        closed = float(o.outcomes.sum())
        new, self._closed = closed - self._closed, closed
        return max(new, 0.0)

    def _take(self, o: Observation, records: NDArray[np.void], whole: bool) -> None:
        """Take in the flows that ended since the last look; whole: of all there is a record."""
        whole = whole and len(records) <= RECORDS_MOST
        records = records[-RECORDS_MOST:]
        if not whole:
            self._last[:] = 0.0  # which flow was sent there before cannot be told
        n = o.n_servers
        good = (records["server"] < n) & (records["outcome"] == 0)
        records = records[good]
        records = records[records["server_id"] == o.ids[records["server"]]]
        if len(records) == 0:
            return
        records = records[np.lexsort((records["dispatched_ns"], records["server"]))]
        row = records["server"].astype(np.intp)
        begin, end = records["dispatched_ns"] * 1e-9, records["closed_ns"] * 1e-9
        self.seen += len(records)
        # The flow that was sent there before.
        first = np.concatenate([[True], row[1:] != row[:-1]])
        last = np.concatenate([first[1:], [True]])
        begin_before = np.where(first, self._last[row, 0], np.concatenate([[0.0], begin[:-1]]))
        end_before = np.where(first, self._last[row, 1], np.concatenate([[0.0], end[:-1]]))
        later = last & (begin >= begin_before)
        self._last[row[later], 0], self._last[row[later], 1] = begin[later], end[later]
        if not whole:
            self._last[:] = 0.0
        known = (begin_before > 0.0) & whole
        late = known & (begin < begin_before)
        known &= ~late
        self._judge_order(known & (end_before > begin), end < end_before, late)

        at = np.minimum(records["found"], POINTS).astype(np.intp)
        inside = (at < POINTS) & self._counts(row, begin)
        cells = row * POINTS + np.minimum(at, POINTS - 1)
        found = np.bincount(cells[inside], minlength=n * POINTS).reshape(n, POINTS)
        delay = np.bincount(cells[inside], (end - begin)[inside], n * POINTS).reshape(n, POINTS)
        keep = np.exp(-found.sum(axis=1) / DELAY_WINDOW)[:, None]
        self._found = self._found * keep + found
        self._delay = self._delay * keep + delay

        # Gaps are short or long beside D(0).
        near = NEAR * self._first_delay()
        gap = begin - begin_before
        rest = np.maximum(end - np.maximum(end_before, begin), 0.0)
        w = np.where(known, np.exp(-np.maximum(gap, 0.0) / near[row]), 0.0)
        gap = np.where(known, gap, 0.0)
        sums = [np.bincount(row, w * x, n) for x in (np.ones(len(w)), gap, rest, gap * gap, gap * rest, rest * rest)]
        keep = np.exp(-sums[0] / GAP_WINDOW)[:, None]
        self._gaps = self._gaps * keep + np.stack(sums, axis=1)

    def _counts(self, row: NDArray[np.intp], begin: Floats) -> Bools:
        """Return which flows tell D(n).

        Those that were there when their server changed tell how long the queue is that it has, until one ends that came
        after; then they are forgotten.
        """
        changed = self._since > 0.0
        gone = np.zeros(len(self._since), dtype=bool)
        gone[row[changed[row] & (begin >= self._since[row])]] = True
        before = gone[row] & (begin < self._since[row])
        self._found[gone] = self._delay[gone] = 0.0
        self._since[gone] = 0.0
        return ~before

    def _judge_order(self, pair: Bools, overtook: Bools, late: Bools) -> None:
        """Count pairs of flows that were there at once: those that left in order, and those that did not."""
        wrong = float((pair & overtook).sum() + late.sum())
        right = float((pair & ~overtook).sum())
        keep = np.exp(-(wrong + right) / DISORDER_FLOWS)
        self._ordered = self._ordered * keep + right
        self._disordered = self._disordered * keep + wrong

    @property
    def parallel(self) -> bool:
        """Return whether servers work on flows side by side."""
        return self.disorder > DISORDER or self._alike()

    def _alike(self) -> bool:
        """Return whether servers seem to work on flows side by side, though they keep their order: demands much alike.

        A flow that comes when another of one's own is there then does not wait for it, or it ends as much later as it
        came later.
        """
        rows = (self._gaps[:, 0] > CLEAR) & (self._found[:, :2] > CLEAR).all(axis=1)
        if rows.sum() < max(0.1 * len(rows), 2.0):
            return False
        delay = self._delay[rows, :2] / self._found[rows, :2]
        sums = self._gaps[rows]
        w = sums[:, 0]
        g, r = sums[:, 1] / w, np.maximum(sums[:, 2] / w, 1e-12)
        joint = float(((sums[:, 4] / w - g * r) / (g * r)).sum())
        spread = float((sums[:, 3] / (w * g * g) - 1.0).sum()) * float((sums[:, 5] / (w * r * r) - 1.0).sum())
        return bool(np.median(delay[:, 1] / delay[:, 0]) < STEEP or joint > CORRELATED * np.sqrt(max(spread, 1e-12)))

    def _typical(self) -> float:
        """Return the mean of D(0) over the flows that found none, seconds; 0 when there was none."""
        flows = float(self._found[:, 0].sum())
        return float(self._delay[:, 0].sum()) / flows if flows > 0.0 else 0.0

    def _first_delay(self) -> Floats:
        """Return D(0), (servers,), at most FAR times what is typical."""
        typical = max(self._typical(), 1e-9)
        return np.asarray(np.minimum((self._delay[:, 0] + 2.0 * typical) / (self._found[:, 0] + 2.0), FAR * typical))

    def service(self) -> tuple[Floats, Floats]:
        """Return s, (servers,) seconds, and the variance that log s may have.

        s is the intercept of R on g, drawn to the mean of all where few gaps were short.
        """
        typical = max(self._typical(), 1e-9)
        most = (self._delay[:, 0] + 2.0 * typical) / (self._found[:, 0] + 2.0)
        weight = np.maximum(self._gaps[:, 0], 1e-9)
        g, r = self._gaps[:, 1] / weight, self._gaps[:, 2] / weight
        spread = np.maximum(self._gaps[:, 3] - weight * g * g, 0.0)
        joint = self._gaps[:, 4] - weight * g * r
        stiff = STIFF * np.maximum(g, 1e-12) ** 2
        slope = np.clip((joint + stiff * OTHERS) / (spread + stiff), 0.0, 1.0)
        s = np.maximum(r - slope * g, 0.1 * r)
        known = (self._gaps[:, 0] > 1.0) & (s > 0.0)
        if not known.any():
            return np.minimum(most, typical), np.full(len(most), np.inf)
        # Configured weights that tell the speeds leave less to differ, and so more is drawn to the mean.
        log_s = np.log(np.maximum(s, 1e-9)) + self._weight
        variance = SPREAD / weight
        between = variance_between(log_s[known], variance[known], DOUBT) if known.sum() > 1 else np.inf
        unsure = np.where(known, 1.0 / (1.0 / variance + 1.0 / max(between, 1e-9)), between)
        log_s = shrink(log_s, variance, known) - self._weight
        return np.minimum(most, np.exp(log_s)), unsure

    def _view(self, o: Observation, arrival_rate: float) -> View:
        s, unsure = self.service()
        s = np.maximum(s, 1e-9)
        n = o.n_servers
        delay = np.empty((n, POINTS))
        before = s
        for m in range(POINTS):
            delay[:, m] = (self._delay[:, m] + PRIOR * before) / (self._found[:, m] + PRIOR)
            if m > 0:
                delay[:, m] = np.maximum(delay[:, m], delay[:, m - 1])
            before = delay[:, m] + STEP * s
        step = np.maximum(delay[:, -1] - delay[:, -2], s)
        curves = np.empty((n, len(CURVE_N)))
        curves[:, :POINTS] = delay
        curves[:, POINTS:] = delay[:, -1:] + (CURVE_N[POINTS:] - (POINTS - 1)) * step[:, None]

        may = o.active
        total = o.balancers * arrival_rate
        capacity = float((1.0 / s[may]).sum())
        utilisation = min(total / capacity, 1.0) if capacity > 0.0 else 0.0
        lam = np.zeros(n)
        lam[may] = split(total, 1.0 / s[may], np.ones(int(may.sum())))
        curves = self.bids(curves, s, np.minimum(lam, 0.99 / s), utilisation)
        # Flows that come in pairs tell s. The turn differs from balancer to balancer.
        turn = (np.arange(n) + int(self.seen)) % TURNS == 0
        pairs = turn & (unsure > UNSURE) & (self._found.sum(axis=1) > PAIRS_FROM)
        curves[pairs, 1] = curves[pairs, 0]
        return View(np.maximum.accumulate(curves, axis=1), s, delay[:, 0], utilisation)

    def bids(self, delay: Floats, s: Floats, lam: Floats, utilisation: float) -> Floats:
        """Return the bids for completion times (servers, CURVE_POINTS), s and λ (servers,) and ρ."""
        price = 1.0 / np.sqrt(1.0 - lam * s)
        return np.maximum(delay - utilisation * s[:, None], 0.0) * price[:, None]
