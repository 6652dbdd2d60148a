"""Servers that misbehave, behind a real balancer with the control loop's own observe, decide, publish; simulated time.

The simulator covers speeds, crashes and tails; this one fails, hangs and refuses, which it does not.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controlplane.control_loop import ControlLoop
from dataplane.core import Balancer
from shm_layout.segment import Limits, Segment, ServerData, SettingsData

OK, SERVER_5XX = 0, 1


@dataclass
class Backend:
    """One worker queue of k workers; times in seconds."""

    mean: float = 0.02
    workers: int = 4
    fails: float = 0.0  # share of the flows that are answered 5xx, at once
    hangs: bool = False  # ends no flow
    free_at: list[float] = field(default_factory=list)


class Farm:
    """A service in simulated time; call run()."""

    def __init__(self, backends: list[Backend], rate: float, policy: Any = "adaptive", **loop: Any) -> None:
        self.backends, self.rate = backends, rate
        self.segment = Segment.create(f"/vickrey.test{os.getpid()}.farm", Limits(max_servers=len(backends)), "farm")
        self.servers = [ServerData(id=i + 1, name=f"s{i}") for i in range(len(backends))]
        self.version = 0
        self.publish()
        self.loop = ControlLoop(self.segment, "farm", policy, **loop)
        self.loop.begin()
        self.rng = np.random.default_rng(1)
        self.now = 1.0
        self.balancer = Balancer(self.segment, 0, 1, self._ns(), repair=True)
        self.ends: list[tuple[float, int, Any, int, int]] = []
        self.next_cycle, self.flow = self.now, 0
        for backend in backends:
            backend.free_at = [0.0] * backend.workers

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *_: object) -> None:
        self.segment.unlink()
        self.segment.close()

    def publish(self) -> None:
        self.version += 1
        self.segment.publish_settings(SettingsData(version=self.version, servers=self.servers))

    def _ns(self) -> int:
        return int(self.now * 1e9)

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> np.ndarray:
        """Run on; return the share of the flows that each server got."""
        end, got = self.now + seconds, np.zeros(len(self.backends))
        while self.now < end:
            self.now += self.rng.exponential(1.0 / self.rate)
            self._finish()
            while self.now >= self.next_cycle:
                self.loop.cycle(self._ns())
                self.next_cycle += self.loop.interval
                self.balancer.refresh(self._ns())
                if each is not None:
                    each()
            server = self.balancer.dispatch(self._ns()).server
            if server < len(self.backends):
                got[server] += 1
                self._serve(server)
        return got / max(got.sum(), 1)

    def _finish(self) -> None:
        while self.ends and self.ends[0][0] <= self.now:
            at, _, flow, outcome, _ = heapq.heappop(self.ends)
            self.balancer.close(flow, int(at * 1e9), outcome)

    def _serve(self, server: int) -> None:
        backend, flow = self.backends[server], self.balancer.open(server, self._ns())
        self.flow += 1
        if self.rng.random() < backend.fails:
            heapq.heappush(self.ends, (self.now + 0.001, self.flow, flow, SERVER_5XX, server))
            return
        begin = max(heapq.heappop(backend.free_at), self.now)
        end = begin + self.rng.exponential(backend.mean)
        heapq.heappush(backend.free_at, end)
        heapq.heappush(self.ends, (np.inf if backend.hangs else end, self.flow, flow, OK, server))
