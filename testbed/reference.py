"""What no balancer can beat by much: one central queue, served by the fastest free worker, on the same arrivals.

No flow is bound to a server before a worker is free for it, and nothing is lost on the way. To compare like with like
it is given what the real run had: the arrivals and demands, the backends' measured lateness, and the path's measured
overhead.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from testbed.demand import Floats


def central_queue(
    arrival_s: Floats,
    demand_s: Floats,
    speeds: Sequence[float],
    workers: int | Sequence[int],
    *,
    late_s: Sequence[float] | None = None,
    path_s: float | Floats = 0.0,
) -> Floats:
    """Flow completion times. late_s: what a service takes above demand / speed, by server; path_s: added to each."""
    counts = [workers] * len(speeds) if isinstance(workers, int) else workers
    late = late_s if late_s is not None else [0.0] * len(speeds)
    free = [
        (-speed, server) for server, (speed, count) in enumerate(zip(speeds, counts, strict=True)) for _ in range(count)
    ]
    heapq.heapify(free)
    busy: list[tuple[float, int]] = []  # (when free, server)
    done = np.empty(len(arrival_s))
    for i, (arrival, demand) in enumerate(zip(arrival_s.tolist(), demand_s.tolist(), strict=True)):
        while busy and (not free or busy[0][0] <= arrival):
            finished, server = heapq.heappop(busy)
            heapq.heappush(free, (-speeds[server], server))
            arrival = max(arrival, finished)  # first come, first served: the next worker to be free is this flow's
        _, server = heapq.heappop(free)
        done[i] = arrival + demand / speeds[server] + late[server]
        heapq.heappush(busy, (done[i], server))
    fct: Floats = done - arrival_s + path_s
    return fct
