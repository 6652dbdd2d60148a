"""What a flow weighs before it is served: the mean load of its route's and class's flows, learned from finished ones.

Unit      1 is the mean flow: the time a flow took on a server that did not make it wait, over that server's mean
Sample    flows that ended well and had found fewer than k in flight (they did not queue): (closed − dispatched)/s
History   sums by route and SLA class, which fade over FLOWS flows of the route, bounded to 1/20 … 20
Prior     a class is worth 1, a route what its classes' means say, and a class of a route both effects multiplied; each
          of these counts as PRIOR flows
A route whose load is configured keeps that, in all classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from controlplane.policy import Floats
from shm_layout.layout import OUTCOMES, ROUTES_MAX, SLA_CLASSES

# Flows of a route over which its history fades, and how many flows the prior is worth.
FLOWS, PRIOR = 1000.0, 20.0
LOAD_RANGE = (0.05, 20.0)
# A single flow counts for no more than so many mean flows: one that a server stalled says nothing of its route.
SAMPLE_MAX = 100.0
_OK = OUTCOMES.index("ok")


class FlowLoads:
    """Decayed history of one service's flows, by route and class."""

    def __init__(self) -> None:
        self._sum = np.zeros((ROUTES_MAX + 1, len(SLA_CLASSES)))
        self._number = np.zeros_like(self._sum)

    def learn(self, records: NDArray[np.void], ids: NDArray[np.uint64], s: Floats, k: Floats) -> None:
        """Take in flow records (dtype FLOW_RECORD); s, k (servers,) are the servers' mean time and worker count."""
        slot = records["server"].astype(np.int64)
        known = (slot < len(ids)) & (records["outcome"] == _OK) & (records["route"] <= ROUTES_MAX)
        known &= records["sla"] < len(SLA_CLASSES)
        known &= records["closed_ns"] > records["dispatched_ns"]
        slot = np.where(known, slot, 0)
        if len(ids) == 0 or not known.any():
            return
        known &= (records["server_id"] == ids[slot]) & (records["found"] < k[slot])
        r, slot = records[known], slot[known]
        if len(r) == 0:
            return
        took = (r["closed_ns"] - r["dispatched_ns"]).astype(np.float64) * 1e-9
        load = np.minimum(took / np.maximum(s[slot], 1e-9), SAMPLE_MAX)
        cell = r["route"].astype(np.intp) * len(SLA_CLASSES) + r["sla"]
        number = np.bincount(cell, minlength=self._sum.size).reshape(self._sum.shape)
        total = np.bincount(cell, weights=load, minlength=self._sum.size).reshape(self._sum.shape)
        keep = np.exp(-number.sum(axis=1) / FLOWS)[:, None]
        self._sum = self._sum * keep + total
        self._number = self._number * keep + number

    def loads(self, configured: Floats) -> Floats:
        """Return the estimated load of a flow, (routes + 1, classes); configured (routes + 1,): 0 is to be learned."""
        total, number = self._sum[: len(configured)], self._number[: len(configured)]
        by_class = (self._sum.sum(axis=0) + PRIOR) / (self._number.sum(axis=0) + PRIOR)
        flows = number.sum(axis=1)
        mix = np.where(flows > 0, number @ by_class / np.maximum(flows, 1e-300), 1.0)
        by_route = (total.sum(axis=1) + PRIOR * mix) / ((flows + PRIOR) * mix)
        prior = by_route[:, None] * by_class
        learned = np.clip((total + PRIOR * prior) / (number + PRIOR), *LOAD_RANGE)
        found: Floats = np.where(configured[:, None] > 0, configured[:, None], learned)
        return found

    def typical(self, loads: Floats) -> float:
        """Return the mean load of a flow, by the routes and classes that flows were of lately."""
        number = self._number[: len(loads)]
        return float((number * loads).sum() / number.sum()) if number.sum() > 0 else 1.0
