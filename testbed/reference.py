"""What no balancer can beat by much, simulated on the arrivals of a real run.

central_queue     one queue, served by the fastest free worker: no flow is bound to a server before a worker is free;
                  kept at a balancer (over_path), a worker also waits for the way of its answer and of the next flow
least_work_left   knows every demand: each flow goes, at its arrival, where it will be finished first

Nothing else is lost. To compare like with like all are given what the real run had: the arrivals and demands,
what the backends' services took above demand / speed, the path's measured overhead, and when which server changed its
speed.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence

import numpy as np

from testbed.demand import Floats

Change = tuple[float, int, float]
"""From this time on, this server has this speed; 0: it serves nobody, but finishes what it has."""


class _Speeds:
    """The speed of each server at any time."""

    def __init__(self, speeds: Sequence[float], changes: Sequence[Change]) -> None:
        self._times = [[-math.inf] for _ in speeds]
        self._speeds = [[speed] for speed in speeds]
        for time, server, speed in sorted(changes):
            self._times[server].append(time)
            self._speeds[server].append(speed)
        self.change_times = sorted({time for time, _, _ in changes})

    def at(self, server: int, time: float) -> float:
        if len(self._times[server]) == 1:
            return self._speeds[server][0]
        return self._speeds[server][bisect.bisect_right(self._times[server], time) - 1]

    def first_up(self, server: int, time: float) -> float:
        """The first time from this on at which the server serves; infinity: never again."""
        if self.at(server, time) > 0:
            return time
        pairs = zip(self._times[server], self._speeds[server], strict=True)
        return next((when for when, speed in pairs if when > time and speed > 0), math.inf)

    def next_change(self, time: float) -> float:
        i = bisect.bisect_right(self.change_times, time)
        return self.change_times[i] if i < len(self.change_times) else math.inf


def _counts(speeds: Sequence[float], workers: int | Sequence[int]) -> list[int]:
    return [workers] * len(speeds) if isinstance(workers, int) else list(workers)


def central_queue(
    arrival_s: Floats,
    demand_s: Floats,
    speeds: Sequence[float],
    workers: int | Sequence[int],
    *,
    late_s: Sequence[float] | None = None,
    path_s: float | Floats = 0.0,
    changes: Sequence[Change] = (),
    over_path: bool = False,
) -> Floats:
    """Flow completion times. late_s: what a service takes above demand / speed, by server; path_s: added to each, and
    with over_path a worker is taken for as long.

    A flow that no server will ever serve has infinity.
    """
    free = _counts(speeds, workers)
    late = late_s if late_s is not None else [0.0] * len(speeds)
    speed_of = _Speeds(speeds, changes)
    busy: list[tuple[float, int]] = []  # (when free, server)
    path = np.broadcast_to(path_s, len(arrival_s))
    way = path.tolist() if over_path else [0.0] * len(arrival_s)
    done = np.empty(len(arrival_s))
    now = -math.inf
    for i, (arrival, demand) in enumerate(zip(arrival_s.tolist(), demand_s.tolist(), strict=True)):
        now = max(now, arrival)  # first come, first served: nobody starts before the one that came before
        while True:
            while busy and busy[0][0] <= now:
                free[heapq.heappop(busy)[1]] += 1
            server, fastest = -1, 0.0
            for j, count in enumerate(free):
                if count and (speed := speed_of.at(j, now)) > fastest:
                    server, fastest = j, speed
            if server >= 0:
                break
            now = min(busy[0][0] if busy else math.inf, speed_of.next_change(now))
            if now == math.inf:
                done[i:] = math.inf
                return done - arrival_s + path_s
        done[i] = now + demand / fastest + late[server]
        free[server] -= 1
        heapq.heappush(busy, (done[i] + way[i], server))
    fct: Floats = done - arrival_s + path_s
    return fct


def least_work_left(
    arrival_s: Floats,
    demand_s: Floats,
    speeds: Sequence[float],
    workers: int | Sequence[int],
    *,
    late_s: Sequence[float] | None = None,
    path_s: float | Floats = 0.0,
    changes: Sequence[Change] = (),
) -> Floats:
    """Flow completion times; arguments as for central_queue."""
    late = late_s if late_s is not None else [0.0] * len(speeds)
    speed_of = _Speeds(speeds, changes)
    free_at = [[-math.inf] * count for count in _counts(speeds, workers)]  # of each worker, as a heap
    done = np.empty(len(arrival_s))
    for i, (arrival, demand) in enumerate(zip(arrival_s.tolist(), demand_s.tolist(), strict=True)):
        best, server = math.inf, 0
        for j, heap in enumerate(free_at):
            start = speed_of.first_up(j, max(arrival, heap[0]))
            if start < best:
                end = start + demand / speed_of.at(j, start) + late[j]
                if end < best:
                    best, server = end, j
        done[i] = best
        if best < math.inf:
            heapq.heapreplace(free_at[server], best)
    fct: Floats = done - arrival_s + path_s
    return fct


def mmk_mean_s(k: int, rho: float, mean_s: float) -> float:
    """Mean completion time of M/M/k at load rho < 1 with services of mean_s seconds: Erlang's C formula.

    Erlang, "Solution of some problems in the theory of probabilities", 1917; the recursion is that of Erlang's B.
    """
    blocking = 1.0
    for n in range(1, k + 1):
        blocking = rho * k * blocking / (n + rho * k * blocking)
    waiting = blocking / (1 - rho * (1 - blocking))
    return mean_s * (1 + waiting / (k * (1 - rho)))
