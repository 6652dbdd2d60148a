"""Records completions for predictors: what a balancer knew of the server at each dispatch, and how long the flow took.

A simulated run, with the controller's own estimator beside the policy: rates and workers are those fitted at the last
control interval, a flow's load is what FlowLoads has learned of its route, counts in flight are those of its arrival.
Only the server that a flow went to is seen, as in any log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.auction.live_loads import FlowLoads
from controlplane.auction.predictors import FEATURES, Floats
from controlplane.learner import Learner
from controlplane.policy import Directive, Observation, Policy
from dataplane.simulator import Simulation, Works, World

OK = 0
_SEEN = np.dtype(
    [
        ("server", np.int64), ("server_id", np.uint64), ("outcome", np.int64), ("route", np.int64), ("sla", np.int64),
        ("found", np.int64), ("dispatched_ns", np.uint64), ("closed_ns", np.uint64),
    ]
)  # fmt: skip
# Weight of the last interval's completions in the mean FCT of late.
RECENT = 0.3


class _Watched:
    """A policy, and what the estimator says beside it at every decision."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, policy.name
        self.learner = Learner()
        self.mu: list[Floats] = []
        self.k: list[Floats] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _Watched:
        return self  # one balancer, one copy: what it notes is read after the run

    def decide(self, observation: Observation) -> Directive:
        fit = self.learner.update(observation)
        self.mu.append(fit.mu.copy())
        self.k.append(fit.k.copy())
        return self.policy.decide(observation)


def record(
    world: World, policy: Policy, works: Floats, routes: NDArray[np.int64], interval: float = 0.2
) -> tuple[Floats, Floats]:
    """Run the policy in a world of one balancer; return features (rows, FEATURES) and seconds (rows,).

    works (flows,): seconds at speed 1 of each flow in the order of arrival; routes (flows,): the route of each, from 1.
    Rows are the flows that arrived after the warm-up and ended well. ValueError: more than one balancer, or the
    lengths differ.
    """
    if world.balancers != 1 or len(works) != len(routes):
        raise ValueError("expected a world of one balancer, and a route for each work")
    watched = _Watched(policy)
    world = replace(world, demand=Works(works), flows=len(works))
    r = Simulation(world).run(watched, interval=interval).records
    server = r["server"].astype(np.int64)
    n_servers = len(world.servers)
    good = (r["outcome"] == OK) & (server < n_servers)
    server = np.where(good, server, 0)
    arrived, closed = r["arrival_ns"].astype(np.int64), r["closed_ns"].astype(np.int64)
    step_ns = round(interval * 1e9)
    seen = np.zeros(len(r), dtype=_SEEN)
    seen["server"], seen["server_id"], seen["outcome"] = np.where(good, server, n_servers), server + 1, r["outcome"]
    seen["route"], seen["dispatched_ns"], seen["closed_ns"] = routes[: len(r)], r["arrival_ns"], r["closed_ns"]
    for i in range(n_servers):
        rows = np.flatnonzero(good & (server == i))
        seen["found"][rows] = np.arange(len(rows)) - np.searchsorted(np.sort(closed[rows]), arrived[rows], "right")
    load, mean = _history(seen, watched, step_ns, int(routes.max(initial=0)))
    at = np.minimum(arrived // step_ns, len(watched.mu) - 1)
    x = load[at, routes[: len(r)]]
    features = np.zeros((len(r), len(FEATURES)))
    features[:, 0] = seen["found"]
    for i in range(n_servers):
        rows = np.flatnonzero(good & (server == i))
        by_close = rows[np.argsort(closed[rows], kind="stable")]
        gone = np.concatenate(([0.0], np.cumsum(x[by_close])))
        left = np.searchsorted(closed[by_close], arrived[rows], "right")
        features[rows, 1] = np.maximum(np.concatenate(([0.0], np.cumsum(x[rows])[:-1])) - gone[left], 0.0)
    features[:, 2], features[:, 3] = np.array(watched.mu)[at, server], np.array(watched.k)[at, server]
    features[:, 4], features[:, 5] = x, mean[at, server]
    keep = good & (arrived >= world.warmup * 1e9) & (closed > arrived)
    return features[keep], (closed - arrived)[keep] * 1e-9


def _history(seen: NDArray[np.void], watched: _Watched, step_ns: int, n_routes: int) -> tuple[Floats, Floats]:
    """Return loads by interval and route, (intervals, routes + 1), and servers' mean FCT of late, (intervals, servers).

    Row i is what was known at the start of interval i: of flows that had closed by then.
    """
    n_servers, n = len(watched.mu[0]), len(watched.mu)
    ids = np.arange(1, n_servers + 1, dtype=np.uint64)
    order = np.argsort(seen["closed_ns"], kind="stable")
    ends = np.searchsorted(seen["closed_ns"][order], np.arange(n, dtype=np.uint64) * np.uint64(step_ns), "right")
    flow_loads = FlowLoads()
    load, mean = np.ones((n, n_routes + 1)), np.zeros((n, n_servers))
    for i in range(1, n):
        rows = seen[order[ends[i - 1] : ends[i]]]
        flow_loads.learn(rows, ids, 1.0 / watched.mu[i], watched.k[i])
        load[i] = flow_loads.loads(np.zeros(n_routes + 1))[:, 0]  # all are of one class
        ok = rows[rows["server"] < n_servers]
        took = (ok["closed_ns"] - ok["dispatched_ns"]) * 1e-9
        number = np.bincount(ok["server"], minlength=n_servers)
        now = np.bincount(ok["server"], weights=took, minlength=n_servers) / np.maximum(number, 1)
        keep = np.where(mean[i - 1] > 0, 1.0 - RECENT, 0.0)
        mean[i] = np.where(number > 0, keep * mean[i - 1] + (1.0 - keep) * now, mean[i - 1])
    return load, mean
