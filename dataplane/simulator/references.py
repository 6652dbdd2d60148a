"""What no proxy can reach, to measure policies by: clairvoyant queues on given arrivals, bounds, and the exact optimum.

central_queue       one queue in front of all workers; a free worker of the fastest server takes its head
least_work_left     knows every size: each flow goes where it will be finished first
pooled_srpt         floor for any discipline: one machine of all speed together, least work left first, preemptive
birth_death_bound   floor for exponential demand and FIFO, closed form: all flows are always on the fastest workers
optimum             two or three FIFO servers, exponential demand: value iteration over all states

Source    Puterman, "Markov Decision Processes", Wiley 1994, section 8.5 (relative value iteration, uniformised);
          Winston, "Optimality of the shortest line discipline", J. Appl. Prob. 14, 1977 (equal servers: JSQ is optimal)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataplane._dataplane import ffi, lib
from dataplane.simulator.world import Server

Floats = NDArray[np.float64]


def _flows(arrivals_ns: NDArray[Any], works: NDArray[Any]) -> tuple[NDArray[np.uint64], Floats, Floats]:
    times = np.ascontiguousarray(arrivals_ns, dtype=np.uint64)
    works_ns = np.ascontiguousarray(np.asarray(works, dtype=np.float64) * 1e9)
    if times.shape != works_ns.shape or times.ndim != 1:
        raise ValueError(f"one work to each arrival: {times.shape} arrivals, {works_ns.shape} works")
    return times, works_ns, np.zeros(len(times))


def _check(code: int) -> None:
    # The only other thing that can go wrong is memory.
    if code < 0:
        text = ffi.string(lib.segment_strerror(code)).decode()
        raise ValueError(f"reference: {text} (arrivals never fall, works are not negative)")


def _u64(array: NDArray[np.uint64]) -> Any:
    return ffi.cast("const uint64_t *", ffi.from_buffer(array))


def _f64(array: Floats) -> Any:
    return ffi.cast("double *", ffi.from_buffer(array))


def _on_servers(
    function: Any, arrivals_ns: NDArray[Any], works: NDArray[Any], speeds: Sequence[float], workers: Sequence[int]
) -> Floats:
    times, works_ns, fct_ns = _flows(arrivals_ns, works)
    if len(speeds) != len(workers):
        raise ValueError("one number of workers to each speed")
    speeds_c, workers_c = ffi.new("double[]", list(speeds)), ffi.new("uint32_t[]", list(workers))
    _check(function(_u64(times), _f64(works_ns), len(times), speeds_c, workers_c, len(speeds), _f64(fct_ns)))
    return fct_ns * 1e-9


def central_queue(
    arrivals_ns: NDArray[Any], works: NDArray[Any], speeds: Sequence[float], workers: Sequence[int]
) -> Floats:
    """Return each flow's completion time, seconds; works: seconds at speed 1, arrivals: nanoseconds, never falling."""
    return _on_servers(lib.sim_central_queue, arrivals_ns, works, speeds, workers)


def least_work_left(
    arrivals_ns: NDArray[Any], works: NDArray[Any], speeds: Sequence[float], workers: Sequence[int]
) -> Floats:
    """Return each flow's completion time, seconds."""
    return _on_servers(lib.sim_least_work_left, arrivals_ns, works, speeds, workers)


def pooled_srpt(
    arrivals_ns: NDArray[Any], works: NDArray[Any], speeds: Sequence[float], workers: Sequence[int]
) -> Floats:
    """Return each flow's completion time, seconds. Only their mean is a floor; so is the mean work at highest speed."""
    times, works_ns, fct_ns = _flows(arrivals_ns, works)
    _check(lib.sim_pooled_srpt(_u64(times), _f64(works_ns), len(times), float(np.dot(speeds, workers)), _f64(fct_ns)))
    return fct_ns * 1e-9


def birth_death_bound(rate: float, mean_work: float, servers: Sequence[Server]) -> float:
    """Return a floor of the mean FCT, seconds: with n flows in the system the n fastest workers are the busy ones.

    Stationary distribution of the birth–death chain with birth rate λ and death rate R(n), the sum of the n highest
    worker rates; beyond all workers it is geometric. E[N]/λ by Little.
    """
    rates = np.sort(np.repeat([s.speed for s in servers], [s.workers for s in servers]))[::-1] / mean_work
    total = float(rates.sum())
    rho = rate / total
    if rho >= 1:
        return math.inf
    # π(n) / π(0) for n = 0 … K in logarithms, then the geometric tail.
    log_pi = np.concatenate([[0.0], np.cumsum(np.log(rate / np.cumsum(rates)))])
    pi = np.exp(log_pi - log_pi.max())
    n = np.arange(len(pi))
    tail = pi[-1] * rho / (1 - rho)
    tail_n = pi[-1] * (n[-1] * rho / (1 - rho) + rho / (1 - rho) ** 2)
    return float((pi @ n + tail_n) / (pi.sum() + tail) / rate)


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """The best that a dispatcher can do who sees the numbers in flight. State is the tuple of these."""

    mean_fct: float
    value: Floats  # relative value of each state, in flow-seconds
    choice: NDArray[np.int64]  # server that takes the next flow in each state

    def bids(self, state: tuple[int, ...]) -> list[float]:
        """Return the marginal cost of one more flow on each server: lowest wins."""
        here = self.value[state]
        return [float(self.value[(*state[:i], n + 1, *state[i + 1 :])] - here) for i, n in enumerate(state)]


def optimum(
    rate: float, mean_work: float, servers: Sequence[Server], *, most: int = 60, tolerance: float = 1e-7
) -> Optimum:
    """Return the optimum for FIFO servers and exponential demand, each holding at most `most` flows.

    Solves h = c/Λ − g/Λ + (λ min_i h(n + e_i) + Σ r_i(n_i) h(n − e_i) + rest · h)/Λ; c is the
    number in the system, g its mean.
    """
    m, shape = len(servers), (most + 1,) * len(servers)
    n = np.arange(most + 1)
    departures = [np.minimum(n, s.workers) * s.speed / mean_work for s in servers]
    uniform = rate + sum(float(d[-1]) for d in departures)
    grid = np.meshgrid(*([n] * m), indexing="ij")
    cost = np.sum(grid, axis=0).astype(np.float64)
    leave = [np.reshape(d / uniform, [-1 if j == i else 1 for j in range(m)]) for i, d in enumerate(departures)]
    stay = 1.0 - rate / uniform - sum(np.broadcast_to(p, shape) for p in leave)

    def joined(h: Floats) -> Floats:
        """Return h(n + e_i), (servers, …): infinite where server i is full."""
        after = np.full((m, *shape), np.inf)
        for i in range(m):
            into = tuple(slice(None, -1) if j == i else slice(None) for j in range(m))
            out = tuple(slice(1, None) if j == i else slice(None) for j in range(m))
            after[(i, *into)] = h[out]
        return after

    h = cost / (sum(s.capacity for s in servers) / mean_work - rate)
    full = (most,) * m
    for _ in range(1_000_000):
        best = joined(h).min(axis=0)
        best[full] = h[full]  # all full: lost, which is rare when `most` is large enough
        update = cost / uniform + rate / uniform * best + stay * h
        for i in range(m):
            back = tuple(slice(None, -1) if j == i else slice(None) for j in range(m))
            into = tuple(slice(1, None) if j == i else slice(None) for j in range(m))
            update[into] += np.broadcast_to(leave[i], shape)[into] * h[back]
        # At n_i = 0 the rate is zero: nothing to add.
        step = update - h
        low, high = float(step.min()), float(step.max())
        h = update - update[(0,) * m]
        if high - low <= tolerance * abs(high):
            break
    mean_in_flight = uniform * (low + high) / 2
    return Optimum(mean_in_flight / rate, h, joined(h).argmin(axis=0))
