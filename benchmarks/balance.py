"""How well flows are spread: Vickrey, HAProxy and nginx before eight real servers of unequal speed, on the same
arrivals.

    python benchmarks/balance.py [--quick] [--json] [--workers 1 4] [--loads 50 70 85 95] [--demand exponential pareto]
                                 [--seconds S] [--rounds N] [--balancers NAME …]

Servers have speeds 1, 1, 1, 1, 2, 2, 4, 4 and one or four workers; a request brings 40 ms of work at speed 1,
exponential or bounded Pareto (shape 1.5, largest 100 times the smallest). Load is open loop. Each round gives every
balancer, freshly started and told nothing (but `haproxy leastconn+W+Q`: weights and worker counts), the same arrivals
and demands; the warm-up counts for nobody. The yardstick is a simulated central queue on the same arrivals, which is
given the servers' measured service times and, added to every flow, the overhead measured on the direct path at the
same rate. Figures are medians over rounds; ratios are medians of the ratios of one round each. A request that is
still waiting when its run ends counts with its age.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from testbed import clock
from testbed.demand import SHAPES, Demand, Floats
from testbed.farm import Farm
from testbed.load.generator import Generator, Result, Target
from testbed.load.report import Summary, summarize
from testbed.load.schedule import Schedule, poisson
from testbed.peers import haproxy, nginx, vickrey
from testbed.peers.peer import Peer, Server
from testbed.processes import StartError
from testbed.reference import central_queue

SPEEDS = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
MEAN_MS = 40.0
DRAIN_S = 3.0
BUSY_LIMIT = 0.9  # share of the machine's CPU above which queues of the CPU are measured, not those of the servers
FIGURES = ("mean", "p50", "p90", "p99")
CENTRAL = "central queue (simulated)"
OURS = "vickrey adaptive"


def told(addresses: list[str], workers: int) -> list[Server]:
    """Servers with their true weights and worker counts."""
    return [
        Server(address, weight=round(10 * speed), maxconn=workers)
        for address, speed in zip(addresses, SPEEDS, strict=True)
    ]


def balancer(name: str) -> Callable[[list[str], int], Peer]:
    """How to start the balancer of this name; +hold: `reserve: learned`, +W, +Q: told weights, worker counts.

    `vickrey POLICY[+hold]`, `haproxy BALANCE[+W][+Q]` or `nginx DIRECTIVE`.
    """
    program, _, rule = name.partition(" ")
    rule, *knows = rule.split("+")

    def servers(addresses: list[str], workers: int) -> list[Server]:
        return [
            Server(s.address, s.weight if "W" in knows else 0, s.maxconn if "Q" in knows else 0)
            for s in told(addresses, workers)
        ]

    start: dict[str, Callable[[list[str], int], Peer]] = {
        "vickrey": lambda a, w: vickrey.start(
            servers(a, w), policy=rule, name=name, reserve="learned" if "hold" in knows else "off"
        ),
        "haproxy": lambda a, w: haproxy.start(servers(a, w), balance=rule, name=name),
        "nginx": lambda a, w: nginx.start(servers(a, w), balance=rule, name=name),
    }
    if program not in start or not rule:
        raise argparse.ArgumentTypeError(
            f"{name!r}: not 'vickrey POLICY[+hold]', 'haproxy BALANCE[+W][+Q]' or 'nginx RULE'"
        )
    return start[program]


DEFAULT = (
    OURS,
    "haproxy leastconn",
    "haproxy random",
    "haproxy roundrobin",
    "haproxy leastconn+W+Q",
    "nginx least_conn",
)


def check_name(name: str) -> str:
    balancer(name)
    return name


@dataclass
class Point:
    """One setting, and what each balancer made of it, a summary a round."""

    workers: int
    shape: str
    load: float
    runs: dict[str, list[Summary]] = field(default_factory=dict)
    overhead_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)

    def figure(self, name: str, figure: str) -> float:
        return float(statistics.median(getattr(run, figure) for run in self.runs[name]))

    def ratio(self, name: str, figure: str, to: str = CENTRAL) -> float:
        pairs = zip(self.runs[name], self.runs[to], strict=False)
        return float(statistics.median(getattr(a, figure) / getattr(b, figure) for a, b in pairs))

    def as_dict(self) -> dict[str, Any]:
        return {
            "workers": self.workers,
            "demand": self.shape,
            "load": self.load,
            "direct_overhead_ms": statistics.median(self.overhead_ms),
            "service_late_ms": statistics.median(self.late_ms),
            "balancers": {
                name: {
                    **{f"{figure}_ms": self.figure(name, figure) for figure in FIGURES},
                    **{f"{figure}_ratio": self.ratio(name, figure) for figure in FIGURES},
                    "unanswered": sum(run.unanswered for run in runs),
                    "errors": sum(sum(run.errors.values()) for run in runs),
                    "generator_late_p99_ms": max(run.late_p99 for run in runs),
                    "rounds": len(runs),
                }
                for name, runs in self.runs.items()
            },
            "invalid": self.invalid,
        }


class Machine:
    """How busy the CPUs were since the last call."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    def busy(self) -> float:
        now, before = self._read(), self._before
        self._before = now
        return 1 - (now[1] - before[1]) / max(now[0] - before[0], 1)


class Balance:
    """The comparison over all points."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.points: list[Point] = []
        self.missing: dict[str, str] = {}

    def run(self) -> None:
        for workers in self.args.workers:
            with Farm.of_speeds(SPEEDS, workers=workers, processes=2) as farm:
                for shape in self.args.demand:
                    for load in self.args.loads:
                        self.point(farm, Point(workers, shape, load / 100))

    def point(self, farm: Farm, point: Point) -> None:
        self.points.append(point)
        rate = point.load * farm.capacity_s / (MEAN_MS / 1e3)
        for number in range(self.args.rounds):
            schedule = poisson(
                rate, self.args.warmup + self.args.seconds, self.args.seed + number, Demand(point.shape, MEAN_MS)
            )
            self.reference(farm, point, schedule, number)
            order = self.args.balancers
            for name in order[number % len(order) :] + order[: number % len(order)]:
                if name not in self.missing:
                    self.measure(farm, point, name, schedule)
        self.progress(table(point))

    def reference(self, farm: Farm, point: Point, schedule: Schedule, number: int) -> None:
        """The central queue, with the servers' lateness and the path's overhead as measured without a balancer."""
        speeds = np.array(SPEEDS)
        keep = schedule.arrival_s < self.args.direct
        short = Schedule(schedule.arrival_s[keep], schedule.demand_ms[keep])
        rng = np.random.default_rng(self.args.seed + number)
        choice = rng.choice(len(speeds), len(short), p=speeds / speeds.sum())
        targets = [Target(spec.host, spec.port) for spec in farm.specs]
        result = self.send(farm, targets, short, point, "direct path", choice)
        good = result.records["status"] == 200
        records, choice = result.records[good], choice[good]
        path_ms = (records["done_s"] - records["scheduled_s"]) * 1e3 - records["wait_ms"] - records["service_ms"]
        late_ms = records["service_ms"] - records["demand_ms"] / speeds[choice]
        late_s = [float(late_ms[choice == i].mean()) / 1e3 if np.any(choice == i) else 0.0 for i in range(len(speeds))]
        point.overhead_ms.append(float(path_ms.mean()))
        point.late_ms.append(float(late_ms.mean()))
        fct_s = central_queue(
            schedule.arrival_s,
            schedule.demand_ms / 1e3,
            SPEEDS,
            point.workers,
            late_s=late_s,
            path_s=rng.choice(path_ms, len(schedule)) / 1e3,
        )
        point.runs.setdefault(CENTRAL, []).append(summary_of(schedule, fct_s, self.args.warmup))

    def measure(self, farm: Farm, point: Point, name: str, schedule: Schedule) -> None:
        try:
            peer = balancer(name)(farm.addresses, point.workers)
        except (StartError, OSError) as error:
            self.missing[name] = str(error)
            self.progress(f"not measured: {name}: {error}")
            return
        with peer:
            result = self.send(farm, [Target("127.0.0.1", peer.port)], schedule, point, name)
        summary = summarize(result, after_s=self.args.warmup, counts_waiting=True)
        point.runs.setdefault(name, []).append(summary)
        self.progress(
            f"{point.workers} workers, {point.shape}, {point.load:.0%}: {name:<24}"
            f" mean {summary.mean:8.1f}  p99 {summary.p99:8.1f} ms"
        )

    def send(
        self, farm: Farm, targets: list[Target], schedule: Schedule, point: Point, name: str, choice: Any = None
    ) -> Result:
        """Send a schedule to an empty farm; end it DRAIN_S after its last arrival; leave the farm empty."""
        machine = Machine()

        async def body() -> Result:
            generator = Generator(targets, schedule, choice=choice, timeout_s=600.0)
            run = asyncio.create_task(generator.run())
            await asyncio.wait([run], timeout=schedule.duration_s + DRAIN_S)
            generator.abort()
            return await run

        result = clock.run(body())
        busy = machine.busy()
        summary = summarize(result)
        if not summary.is_valid:
            point.invalid.append(f"{name}: generator late by {summary.late_p99:.1f} ms (p99)")
        if busy > BUSY_LIMIT:
            point.invalid.append(f"{name}: CPU {busy:.0%} busy")
        farm.reset()
        if not farm.await_idle(10.0):
            point.invalid.append(f"{name}: the servers did not become idle")
        return result

    def progress(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def summary_of(schedule: Schedule, fct_s: Floats, after_s: float) -> Summary:
    """The summary of a simulated run."""
    fct = fct_s[schedule.arrival_s >= after_s] * 1e3
    p50, p90, p99, p999, largest = np.percentile(fct, (50, 90, 99, 99.9, 100)).tolist()
    return Summary(
        requests=len(fct),
        answered=len(fct),
        seconds=schedule.duration_s - after_s,
        mean=float(fct.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        p999=p999,
        max=largest,
        late_p50=0.0,
        late_p99=0.0,
        late_max=0.0,
        unanswered=0,
        errors={},
    )


def table(point: Point) -> str:
    lines = [
        "",
        f"{point.workers} worker{'s' * (point.workers > 1)} a server, {point.shape} demand, {point.load:.0%} of"
        f" capacity; FCT ms (ratio to the central queue); direct path {statistics.median(point.overhead_ms):.2f} ms",
        f"{'':<26}" + "".join(f"{figure:>17}" for figure in FIGURES) + f"{'unanswered':>12}{'errors':>8}",
    ]
    for name, runs in point.runs.items():
        cells = (f"{point.figure(name, f):.1f} ({point.ratio(name, f):.2f})" for f in FIGURES)
        errors = sum(sum(run.errors.values()) for run in runs)
        waiting = sum(run.unanswered for run in runs)
        lines.append(f"{name:<26}" + "".join(f"{cell:>17}" for cell in cells) + f"{waiting:>12}{errors:>8}")
    lines += [f"INVALID  {what}" for what in point.invalid]
    return "\n".join(lines)


def verdict(points: list[Point]) -> list[str]:
    """Against the aims: below every other balancer that was told as little, and within 10 % of the central queue."""
    if not any(OURS in point.runs for point in points):
        return [f"{OURS} was not measured: no verdict"]
    missed, told_ones = [], []
    for point in points:
        if OURS not in point.runs:
            continue
        where = f"{point.workers} workers, {point.shape}, {point.load:.0%}"
        for name in point.runs:
            if name == CENTRAL or name.startswith("vickrey"):
                continue
            for figure in ("mean", "p99"):
                ratio = point.ratio(OURS, figure, name)
                if "+" in name:
                    told_ones.append(f"{where}: {figure} {ratio:.2f} of {name}'s, which was told")
                elif ratio >= 1:
                    missed.append(f"missed: {where}: {figure} {ratio:.2f} of {name}'s")
        if point.ratio(OURS, "mean") > 1.10:
            missed.append(f"missed: {where}: mean {point.ratio(OURS, 'mean'):.2f} of the central queue's, aim 1.10")
    met = (
        "all aims met: mean and p99 below every balancer's that was told nothing, mean within 10 % of the central queue"
    )
    return [*(missed or [met]), *told_ones]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="workers a server (default 1 4)")
    parser.add_argument("--loads", type=float, nargs="+", default=[50, 70, 85, 95], help="percent of capacity")
    parser.add_argument("--demand", nargs="+", choices=list(SHAPES), default=["exponential", "pareto"])
    parser.add_argument("--balancers", nargs="+", type=check_name, default=list(DEFAULT), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=30.0, help="counted part of a run (default 30)")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds before it (default 5)")
    parser.add_argument("--direct", type=float, default=6.0, help="length of the direct measurement (default 6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="one round of 8 s at 70 and 85 %%, one worker, exponential"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.workers, args.loads, args.demand = [1], [70, 85], ["exponential"]
        args.seconds, args.warmup, args.direct, args.rounds = 8.0, 3.0, 3.0, 1
    for name, program in (("haproxy", haproxy.program()), ("nginx", nginx.program())):
        if program is None and any(wanted.startswith(name) for wanted in args.balancers):
            print(f"balance: {name} is not installed and will be left out", file=sys.stderr)
            args.balancers = [wanted for wanted in args.balancers if not wanted.startswith(name)]
    run_s = args.seconds + args.warmup + 3
    points = len(args.workers) * len(args.loads) * len(args.demand)
    takes_s = points * args.rounds * (len(args.balancers) * run_s + args.direct + 2)
    print(f"this takes about {takes_s / 60:.0f} minutes", file=sys.stderr)
    balance = Balance(args)
    begun = time.time()
    balance.run()
    if args.json:
        document = {
            "points": [point.as_dict() for point in balance.points],
            "verdict": verdict(balance.points),
            "not_measured": balance.missing,
            "seconds": args.seconds,
            "rounds": args.rounds,
            "seed": args.seed,
            "took_s": time.time() - begun,
            "load_average": os.getloadavg()[0],
        }
        print(json.dumps(document))
    else:
        print("\n".join(table(point) for point in balance.points))
        print("\n" + "\n".join(verdict(balance.points)))
        for name, why in balance.missing.items():
            print(f"not measured: {name}: {why}")
    return 1 if any(point.invalid for point in balance.points) else 0


if __name__ == "__main__":
    sys.exit(main())
