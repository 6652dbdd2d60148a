"""The control cycle: read the segment, fit, bid, check, write. Aim: under 5 ms for 64 servers, under 100 ms for 4,096.

    python benchmarks/control_cycle.py [--quick] [--json] [--servers 16 64 256 1024 4096] [--workers 1]

A real segment, filled by a real balancer: flows are opened and closed in servers of unequal speed between two
cycles, so that every cycle has news of every server. One core, wall and CPU time; figures are medians and maxima
over the cycles after the first ten.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import json
import os
import pstats
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.control_loop import ControlLoop
from dataplane.core import Balancer
from shm_layout.payload import ServerData, SettingsData
from shm_layout.segment import Limits, Segment


class Load:
    """Flows through a balancer at the clock of this benchmark, one in service at a time on each of four workers."""

    def __init__(self, segment: Segment, servers: int) -> None:
        self.balancer = Balancer(segment, 0, 1, 1, repair=True)
        self.mean_ns = (0.01 / 2.0 ** (np.arange(servers) % 3)) * 1e9
        self.rng = np.random.default_rng(1)
        self.now_ns = 1_000_000_000
        self.gap_ns = 1e9 / (0.7 * 4 * float((1e9 / self.mean_ns).sum()))
        self.open: list[tuple[int, int, object]] = []

    def run(self, flows: int) -> None:
        self.balancer.refresh(self.now_ns)
        for _ in range(flows):
            self.now_ns += int(self.rng.exponential(self.gap_ns))
            while self.open and self.open[0][0] <= self.now_ns:
                at, _, flow = heapq.heappop(self.open)
                self.balancer.close(flow, at)
            server = self.balancer.dispatch(self.now_ns).server
            ends = self.now_ns + int(self.rng.exponential(self.mean_ns[server])) + 1
            heapq.heappush(self.open, (ends, id(ends), self.balancer.open(server, self.now_ns)))


def measure(servers: int, cycles: int, policy: str, profile: bool) -> dict[str, float]:
    name = f"/vickrey.bench{os.getpid()}.s{servers}"
    with Segment.create(name, Limits(max_servers=servers, max_workers=1), "bench") as segment:
        try:
            segment.publish_settings(SettingsData(servers=[ServerData(id=i + 1, name=f"s{i}") for i in range(servers)]))
            loop = ControlLoop(segment, "bench", policy)
            loop.begin()
            load = Load(segment, servers)
            wall, cpu = [], []
            profiler = cProfile.Profile()
            for cycle in range(cycles + 10):
                load.run(4 * servers)
                if profile and cycle >= 10:
                    profiler.enable()
                wall_before, cpu_before = time.perf_counter(), time.process_time()
                loop.cycle(load.now_ns)
                wall.append(time.perf_counter() - wall_before)
                cpu.append(time.process_time() - cpu_before)
                profiler.disable()
            if profile:
                pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
            assert loop.counts.failed == 0, "a decision was refused"
            ms = np.array([wall, cpu])[:, 10:] * 1e3
            return {
                "servers": servers,
                "wall_ms": round(float(np.median(ms[0])), 2),
                "wall_ms_max": round(float(ms[0].max()), 2),
                "cpu_ms": round(float(np.median(ms[1])), 2),
            }
        finally:
            segment.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 and 4,096 servers, few cycles")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--servers", type=int, nargs="+", default=[16, 64, 256, 1024, 4096])
    parser.add_argument("--cycles", type=int, default=0)
    parser.add_argument("--policy", default="adaptive")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    servers = [64, 4096] if args.quick else args.servers
    found = [measure(n, args.cycles or (10 if args.quick else 40), args.policy, args.profile) for n in servers]
    if args.json:
        print(json.dumps(found))
        return
    print(f"{'servers':>8}{'wall ms':>10}{'max':>8}{'CPU ms':>10}")
    for row in found:
        print(f"{row['servers']:8}{row['wall_ms']:10.2f}{row['wall_ms_max']:8.1f}{row['cpu_ms']:10.2f}")


if __name__ == "__main__":
    main()
