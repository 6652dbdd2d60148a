"""How long a flow takes at each server, where demands have heavy tails: means helped by means of logarithms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.estimator import TIME_FLOOR, shrink
from controlplane.policy import Bools, Floats
from controlplane.rows import kept

# Flows of a server over which the moments of its times and their logarithms are taken, and the flows of all from which
# on they tell; the part of the deviation that must be explained for them to be used.
LOG_FLOWS, LOG_LEAST, LOG_PART = 1000.0, 256.0, 0.1

# Shortest time whose logarithm is taken, seconds.
LOG_FLOOR = 1e-9


class Speeds:
    """A flow's time at each server where means alone are slow to tell: demands with heavy tails.

    The mean of n times of squared coefficient of variation c² has a relative error of c/√n: with c² = 10, a third after
    a hundred flows. The mean of their logarithms, g, has σ/√n, and σ is below 1 for a Pareto law. Where the servers
    differ in speed alone, d = log s − g is the same for all of them, so d_i − d is noise, and takes the noise
    of s_i with it (a control variate):

        log s_i ← log s_i − β (d_i − d̂_i),   β = cov(log s, d)/var d, from the pooled moments

    d̂ is d drawn to the servers' mean as far as they are alike in it (estimator.py: shrink), so where flows of other
    shape go to some server its own mean stands. Exponential demand has β = 0: there the mean is the best there is.
    """

    def __init__(self) -> None:
        self._sums: Floats = np.zeros((0, 6))  # of flows that did not wait: 1, x, x², log x, log² x, x·log x

    def match(self, same: Bools) -> None:
        """Keep the rows whose server is still there."""
        self._sums = kept(self._sums, same)

    def update(self, rows: NDArray[np.intp], took: Floats) -> None:
        """Take in the times, seconds, of flows that did not wait, by server."""
        n = len(self._sums)
        x, log = took, np.log(np.maximum(took, LOG_FLOOR))
        terms = (np.ones_like(x), x, x * x, log, log * log, x * log)
        new = np.stack([np.bincount(rows, term, n) for term in terms], axis=1)
        self._sums *= np.exp(-new[:, :1] / LOG_FLOWS)
        self._sums += new

    def variation(self) -> float:
        """Return the squared coefficient of variation of a flow's time at a server; 1 where little was seen."""
        n, first, second = self._sums[self._sums[:, 0] >= 2.0, :3].T
        if n.sum() < LOG_LEAST:
            return 1.0
        return max(float((second / np.maximum(first / n, TIME_FLOOR) ** 2 - n).sum() / (n - 1.0).sum()), 0.0)

    def usual(self) -> Floats:
        """Return the mean of the logarithm of a flow's seconds at each server, (servers,); 0 where none was seen."""
        return np.asarray(self._sums[:, 3] / np.maximum(self._sums[:, 0], 1e-9))

    def refine(self, s: Floats, samples: Floats) -> Floats:
        """Return s, seconds, without the part of its error that the logarithms show."""
        sums = self._sums
        seen = (sums[:, 0] >= 2.0) & (samples > 0.0) if len(sums) == len(s) else np.zeros(len(s), dtype=bool)
        if sums[seen, 0].sum() < LOG_LEAST:
            return s
        n, x, x2, y, y2, xy = sums[seen].T
        mean, g = x / n, y / n
        freedom = float((n - 1.0).clip(1e-9).sum())
        v_s = float((x2 / mean**2 - n).sum()) / freedom
        v_g = float((y2 - n * g**2).sum()) / freedom
        both = float((xy / mean - n * g).sum()) / freedom
        v_d = v_s + v_g - 2.0 * both
        beta = min(max((v_s - both) / v_d, 0.0), 1.0) if v_d > 1e-6 else 0.0
        if beta < LOG_PART:
            return s
        log_s = np.log(s[seen])
        d = log_s - g
        everyone = np.ones(len(d), dtype=bool)
        found = log_s - beta * (d - shrink(d, v_d / np.minimum(n, samples[seen]), everyone))
        left = max(v_s - 2.0 * beta * (v_s - both) + beta**2 * v_d, 1e-6)
        refined = s.copy()
        refined[seen] = np.exp(shrink(found, left / n, everyone))
        return refined
