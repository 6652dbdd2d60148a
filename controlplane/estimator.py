"""What each server can do, read off its occupancy profile: s, the time that a flow takes there when it need not
wait, and k, how many flows it works on at once. Its departure rate is r(n) = min(n, k)/s.

Fit, for q = 1, 2, …   cap = Σ_{n≥q} C / Σ_{n≥q} T   throughput while at least q are in flight
                       s   = Σ_{n<q} F / Σ_{n<q} A   completion time of the flows that found fewer than q: they did
                           not queue
                       it is full at the smallest q with cap·s <= q·(1 + 1/√samples), and then k >= q
     k                 the likeliest from there on, of completions with rate min(n, k)/s, up to the q beyond which the
                       data say clearly that it is not: cap·s is below what k = q + 1 would make of it
Where s counts in that flows kept each other waiting, it makes too many workers of a server: where they share the cores,
so that each slows the others down from the first on, and where chance let the test pass over q = k, so that s is of
flows that queued. Both are known by two signs together: the completions are likelier with fewer, faster workers, and
those who found so many did take longer. Then k is the likeliest by the completions alone, which is exact for sharing
whatever the distribution (Kelly, Reversibility and Stochastic Networks, 1979), and s is k over what it ends while full.

The first test assumes nothing of the service distribution (the likelihood alone would take deterministic k = 1 for 2),
but stops early where samples are few; the likelihood then weighs what was seen at every n. Three things keep small
samples from misleading:

- "full at q" must also be told from "not full yet": cap·s has to lie clearly below the mean number in flight over
  n >= q, and those who found q or more must have waited. A server that was not seen full is taken for as many workers
  as the others have, or as it was clearly seen to bear.
- s counts the age of the flows still open, else the first answers of a slow server, which are its shortest, flatter it.
- log s and log k are shrunk to the mean of the servers as far as the servers are alike (empirical Bayes, with the
  between-server variance of DerSimonian and Laird, 1986): equal servers are treated as equal at once, unequal ones
  are told apart by some dozens of completions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.policy import CURVE_N, Bools, Floats, Profile

# Completions below and above q without which a limit at q is not judged.
FEW = 16.0

# Part of the expected wait that those who found a server full must have waited; deterministic service leaves half.
WAITED = 0.4

# Standard errors that tell a server of q workers from one of more.
CLEARLY = 2.0

# Shortest time that a flow is taken to last, seconds, and the longest.
TIME_FLOOR, TIME_CEILING = 1e-6, 1e6

# Fewer workers than fitted: by how many, log-likelihood ratio in dispersions (of a server that is hardly known), and
# times of those who found the server in use, over those of the others.
FEWER_BY, FEWER_LIKELIER, FEWER_LIKELIER_NEW, FEWER_LONGER = 0.25, 2.0, 8.0, 1.15

# Completions from which on a server is known. Before, and so after a change, one flow more than it seems to bear is
# what shows that it bears more: one that sped up still has the long times in s.
SETTLED = 64.0

# A configured weight counts as at least so much.
WEIGHT_LEAST = 1e-3

# Seconds in which nothing can be measured.
NO_TIME = 1e-9

# Workers that a server is taken to have at most.
WORKERS_MAX = 16384.0


@dataclass(frozen=True, slots=True)
class Fit:
    """The servers' parameters, (servers,) each."""

    s: Floats  # seconds
    k: Floats  # >= 1, need not be whole
    samples: Floats  # completions that s rests on; 0: a guess from the others
    full: Bools  # its limit was seen
    tried: Floats  # flows in flight beyond which too little was seen

    @property
    def mu(self) -> Floats:
        return 1.0 / self.s

    @property
    def capacity(self) -> Floats:
        return self.k / self.s


def variance_between(y: Floats, v: Floats, doubt: float = 0.0) -> float:
    """Return the variance of what y, measured with variances v > 0, measures (DerSimonian and Laird, 1986).

    doubt: standard deviations of Q, were there none, by which Q may have come out too small.
    """
    w = 1.0 / v
    mean = float((w * y).sum() / w.sum())
    freedom = len(y) - 1
    if freedom < 1:
        return 0.0
    scale = float(w.sum() - (w * w).sum() / w.sum())
    beyond = float((w * (y - mean) ** 2).sum()) - freedom + doubt * (2.0 * freedom) ** 0.5
    return max(beyond / scale, 0.0) if scale > 0.0 else 0.0


def shrink(x: Floats, variance: Floats, known: Bools) -> Floats:
    """Return x drawn to its mean, each as far as its variance is large beside the spread between the known ones.

    Rows not known get the mean, or 0 when none is known.
    """
    out = np.zeros_like(x)
    if not known.any():
        return out
    y, v = x[known], variance[known]
    between = variance_between(y, v)
    w = 1.0 / (v + between)
    mean = float((w * y).sum() / w.sum())
    out[:] = mean
    out[known] += (y - mean) * (between / (between + v))
    return out


def fit(profile: Profile, open_age: Floats, weight: Floats, dispersion: float = 1.0, regularity: float = 1.0) -> Fit:
    """Fit s and k of every server.

    open_age: summed ages of its open flows, seconds. weight: the configured ratio of capacities, the prior of 1/s.
    dispersion: variance of completion counts over that of a Poisson process: so many completions tell as much as one.
    regularity: the same where it is below 1; it counts for the number of workers that the data exclude.
    """
    n = len(weight)
    if n == 0:
        return Fit(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0))
    used = np.flatnonzero(profile.time.any(axis=0) | profile.completions.any(axis=0))
    top = min(int(used.max(initial=0)) + 2, len(CURVE_N))
    q = CURVE_N[:top]
    completions_from = _suffix_sums(profile.completions[:, :top])
    time_from = _suffix_sums(profile.time[:, :top])
    flow_time_from = _suffix_sums(profile.time[:, :top] * q)
    arrivals, found = profile.arrivals[:, :top], profile.found_fct[:, :top]
    arrivals_from, arrivals_below, fct_below = _suffix_sums(arrivals), _prefix_sums(arrivals), _prefix_sums(found)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        s_q = fct_below / arrivals_below + (open_age / np.maximum(arrivals_from[:, 0], 1.0))[:, None]
        k_q = np.where(time_from > NO_TIME, completions_from / np.maximum(time_from, NO_TIME) * s_q, 0.0)
        k_q = np.clip(np.nan_to_num(k_q, nan=0.0), 0.0, WORKERS_MAX)
        slack = np.sqrt(dispersion * (1.0 / completions_from + 1.0 / arrivals_below))
        few = completions_from < FEW
        # Time that those who found it full spent beyond s, and flows that were ahead of them, both summed.
        waited = _suffix_sums(found) - arrivals_from * s_q
        ahead_from = _suffix_sums(arrivals * q) - arrivals_from * (q - 1.0)
        full_q = (
            (arrivals_below >= FEW)
            & ~few
            & (k_q <= q * (1.0 + slack))
            & (k_q * time_from * (1.0 + slack) < flow_time_from)
            & (waited > WAITED * ahead_from * s_q / np.maximum(k_q, 1.0))
        )
    stop = full_q | few
    stop[:, 0] = False
    stop[:, -1] = True
    rows, at = np.arange(n), stop.argmax(axis=1)
    full, samples = full_q[rows, at], arrivals_below[rows, at]

    weight = np.maximum(weight, WEIGHT_LEAST)
    prior = np.log(weight / weight.mean())
    k_at = _likeliest(profile, completions_from, time_from, s_q[rows, at], at, samples, dispersion * regularity)
    # Fewer than one at work while it is full: its times were better once. What it ends counts.
    s_raw = np.where(samples > 0, s_q[rows, at] / np.where(full, np.clip(k_at, 1e-6, 1.0), 1.0), 1.0)
    fewer, k_fewer, s_fewer = _fewer(profile, completions_from, time_from, k_at, s_raw, dispersion)
    k_at = np.where(full & fewer, k_fewer, k_at)
    s_raw = np.where(full & fewer, s_fewer, s_raw)
    log_s = np.log(np.clip(s_raw, TIME_FLOOR, TIME_CEILING)) + prior
    log_s = shrink(log_s, dispersion / np.maximum(samples, 1e-3), samples > 0) - prior
    k_raw = np.where(full, k_at, 1.0)
    variance = np.where(full, slack[rows, at] ** 2, 1.0)
    k = np.exp(shrink(np.log(np.clip(k_raw, 1.0, WORKERS_MAX)), variance, full))
    if full.any():
        # Not seen full: as many as the others, unless it was clearly seen to bear more.
        bears = np.where(few | (q > q[at][:, None]), 0.0, k_q / (1.0 + 2.0 * slack)).max(axis=1)
        k = np.where(full, k, np.maximum(k, bears))
    else:
        # Room for one more than was tried: how far it goes is found out flow by flow.
        k = q[at] + 1.0
    return Fit(np.clip(np.exp(log_s), TIME_FLOOR, TIME_CEILING), np.clip(k, 1.0, WORKERS_MAX), samples, full, q[at])


def _likeliest(
    profile: Profile,
    completions_from: Floats,
    time_from: Floats,
    s: Floats,
    least: NDArray[np.intp],
    samples: Floats,
    dispersion: float,
) -> Floats:
    """Return the k above least − 1 that makes the completions likeliest, (servers,), for servers full at `least`.

    Between two neighbours of CURVE_N the likelihood is greatest at k = cap·s, or at the end that is nearer to it.
    """
    top = completions_from.shape[1]
    q = CURVE_N[:top]
    completions, time = profile.completions[:, :top], profile.time[:, :top]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        capable = completions_from / np.maximum(time_from, NO_TIME) * s[:, None]
        k = np.clip(np.nan_to_num(capable), np.maximum(np.append(0.0, q[:-1]), 1e-6), np.maximum(q, 1e-6))
        below = _prefix_sums(completions * np.log(np.maximum(q, 1.0)) - time * q / s[:, None])
        likelihood = below + completions_from * np.log(k) - k * time_from / s[:, None]
        slack = np.sqrt(dispersion * (1.0 / completions_from + (1.0 / samples)[:, None]))
        more = np.zeros_like(time_from)
        more[:, :-1] = time_from[:, 1:] * np.diff(q) / np.maximum(time_from[:, :-1], NO_TIME)
        enough = capable * (1.0 + CLEARLY * slack) < q + more
    rank = np.arange(top)
    enough &= rank >= least[:, None]
    enough[:, -1] = True
    most = enough.argmax(axis=1)
    judged = (rank >= least[:, None]) & (rank <= most[:, None])
    best = np.where(judged, np.nan_to_num(likelihood, nan=-np.inf), -np.inf).argmax(axis=1)
    return np.asarray(k[np.arange(len(s)), best])


def _fewer(
    profile: Profile, completions_from: Floats, time_from: Floats, k: Floats, s: Floats, dispersion: float
) -> tuple[Bools, Floats, Floats]:
    """Return who has fewer workers than k, the k that makes its completions likeliest, and s, (servers,) each."""
    top = completions_from.shape[1]
    n = CURVE_N[:top]
    completions, time = profile.completions[:, :top], profile.time[:, :top]
    arrivals, found = profile.arrivals[:, :top], profile.found_fct[:, :top]
    rows = np.arange(len(k))
    ended = completions_from[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_n = np.log(np.maximum(n, 1.0))
        # With k = n: completions · log min(m, k), and the flows at work, summed over m; the likeliest rate of a worker.
        worth = _prefix_sums(completions * log_n) + completions_from * log_n
        work = _prefix_sums(time * n) + time_from * n
        rate = ended[:, None] / np.maximum(work, NO_TIME)
        likelihood = np.where(n >= 1.0, worth + ended[:, None] * (np.log(np.maximum(rate, 1e-12)) - 1.0), -np.inf)
        best = likelihood.argmax(axis=1)
        at_work = np.minimum(n, k[:, None]) / s[:, None]
        fitted = (completions * np.log(np.maximum(at_work, 1e-12)) - time * at_work).sum(axis=1)
        free, used = n < n[best][:, None], (n >= n[best][:, None]) & (n < k[:, None])
        longer = _mean(found, arrivals, used) > FEWER_LONGER * _mean(found, arrivals, free)
    fewer = (best > 0) & (k > n[best] + FEWER_BY)
    least = np.where(ended > SETTLED, FEWER_LIKELIER, FEWER_LIKELIER_NEW)
    likelier = likelihood[rows, best] - fitted > least * dispersion
    # What it ends while full is seen; the likeliest rate, which is also of times when it was not, stands in for it.
    ended_full, time_full = completions_from[rows, best], time_from[rows, best]
    s_likeliest = 1.0 / np.maximum(rate[rows, best], 1e-12)
    s_full = np.where(ended_full > FEW, n[best] * time_full / np.maximum(ended_full, 1.0), s_likeliest)
    return fewer & likelier & longer, n[best], s_full


def _mean(total: Floats, count: Floats, at: Bools) -> Floats:
    """Return Σ total / Σ count over the points at, (servers,); nan where nothing was counted."""
    return np.asarray((total * at).sum(axis=1) / (count * at).sum(axis=1))


def _suffix_sums(x: Floats) -> Floats:
    """Return Σ_{m≥n} x[m] for each n."""
    return np.asarray(np.cumsum(x[:, ::-1], axis=1)[:, ::-1])


def _prefix_sums(x: Floats) -> Floats:
    """Return Σ_{m<n} x[m] for each n."""
    total = np.zeros_like(x)
    np.cumsum(x[:, :-1], axis=1, out=total[:, 1:])
    return total
