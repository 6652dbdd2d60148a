"""The auction in every learning mode before eight real servers of unequal speed, beside adaptive, gsed and HAProxy.

    python benchmarks/auction_live.py --rounds 3 --seconds 8 --warmup 4    # the table of docs/auction.md, 11 minutes
    python benchmarks/auction_live.py --seconds 5 --only continuous,adaptive
    python benchmarks/auction_live.py --load 85 --rounds 3 --json

Servers have speeds 1, 1, 1, 1, 2, 2, 4, 4 and four workers each; a request brings 160 ms of work at speed 1,
exponential. Load is open loop; everybody, freshly started, gets the same arrivals and demands, and the warm-up counts
for nobody. The auctions and adaptive are told nothing; `gsed (told)` and `haproxy leastconn (told)` know weights, the
latter worker counts too. Exploring modes are measured as they are by default (off) and with epsilon 0.1; ucb1 and
thompson that try nothing are bandit. With two rounds or more the last column is the mean over the first entry's, round
by round, with its 95 % interval. Exit status 1 when a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.simulation.intervals import estimate
from testbed import clock
from testbed.demand import Demand
from testbed.farm import Farm
from testbed.load.generator import Generator, Result, Target
from testbed.load.report import Summary, summarize
from testbed.load.schedule import Schedule, poisson
from testbed.peers import haproxy, vickrey
from testbed.peers.peer import Peer, Server
from testbed.processes import StartError

SPEEDS = (1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
WORKERS = 4
MEAN_MS = 160.0
DRAIN_S = 5.0
FIGURES = ("mean", "p50", "p99")
Start = Callable[[list[str]], Peer]


def servers(addresses: list[str], *, told: bool = False, queue: bool = False) -> list[Server]:
    return [
        Server(address, weight=round(10 * speed) if told else 0, maxconn=WORKERS if queue else 0)
        for address, speed in zip(addresses, SPEEDS, strict=True)
    ]


def ours(policy: Any, *, told: bool = False, **service: Any) -> Start:
    return lambda addresses: vickrey.start(servers(addresses, told=told), policy=policy, name=str(policy), **service)


def auction(mode: str, epsilon: float = 0.0, **options: Any) -> Start:
    reserve = options.pop("reserve", "off")
    return ours({"name": "auction", "learning": mode, "epsilon": epsilon, **options}, reserve=reserve)


RUNS: dict[str, Start] = {
    "auction off": auction("off"),
    "auction continuous": auction("continuous"),
    "auction qlearning": auction("qlearning"),
    "auction qlearning, epsilon": auction("qlearning", 0.1),
    "auction bandit": auction("bandit"),
    "auction bandit, epsilon": auction("bandit", 0.1),
    "auction ucb1, epsilon": auction("ucb1", 0.1),
    "auction thompson, epsilon": auction("thompson", 0.1),
    "auction dqn": auction("dqn"),
    "auction dqn, epsilon": auction("dqn", 0.1),
    "auction, reserve learned": auction("continuous", reserve="learned"),
    "adaptive": ours("adaptive"),
    "least connections": ours("lsq"),
    "gsed (told)": ours("gsed", told=True),
    "haproxy leastconn": lambda a: haproxy.start(servers(a), balance="leastconn"),
    "haproxy leastconn (told)": lambda a: haproxy.start(servers(a, told=True, queue=True), balance="leastconn"),
}


@dataclass
class Entry:
    summaries: list[Summary] = field(default_factory=list)
    why_not: str = ""

    def figure(self, name: str) -> float:
        return float(statistics.median(getattr(summary, name) for summary in self.summaries))

    def over(self, base: Entry) -> str:
        """Ratio of means to another entry, paired by round, and its interval; empty with fewer than two rounds."""
        if len(self.summaries) != len(base.summaries) or len(self.summaries) < 2:
            return ""
        logs = [math.log(a.mean / b.mean) for a, b in zip(self.summaries, base.summaries, strict=True)]
        found = estimate(logs)
        low, high = math.exp(found.mean - found.half), math.exp(found.mean + found.half)
        return f"{math.exp(found.mean):8.2f} [{low:.2f}, {high:.2f}]"

    @property
    def failed(self) -> int:
        return sum(sum(summary.errors.values()) + summary.unanswered for summary in self.summaries)

    def as_dict(self) -> dict[str, Any]:
        if self.why_not:
            return {"not_measured": self.why_not}
        found = {f"{name}_ms": round(self.figure(name), 2) for name in FIGURES}
        late = max(summary.late_p99 for summary in self.summaries)
        requests = sum(summary.requests for summary in self.summaries)
        return {**found, "failed": self.failed, "requests": requests, "generator_late_p99_ms": round(late, 2)}


def send(farm: Farm, peer: Peer, schedule: Schedule) -> Result:
    """Send a schedule, end it DRAIN_S after its last arrival, leave the farm empty."""

    async def body() -> Result:
        generator = Generator(Target("127.0.0.1", peer.port), schedule, timeout_s=600.0)
        run = asyncio.create_task(generator.run())
        await asyncio.wait([run], timeout=schedule.duration_s + DRAIN_S)
        generator.abort()
        return await run

    result = clock.run(body())
    farm.reset()
    farm.await_idle(10.0)
    return result


def measure(farm: Farm, name: str, entry: Entry, schedule: Schedule, args: argparse.Namespace) -> None:
    """Run one entry, and again while the generator was late: then it is the machine that was measured."""
    for left in reversed(range(1 + args.retries)):
        try:
            peer = RUNS[name](farm.addresses)
        except (StartError, OSError) as error:
            entry.why_not = " ".join(str(error).split())[:200]
            print(f"not measured: {name}: {entry.why_not}", file=sys.stderr, flush=True)
            return
        with peer:
            result = send(farm, peer, schedule)
        summary = summarize(result, after_s=args.warmup, counts_waiting=True)
        late = "" if summary.is_valid else f"  generator late by {summary.late_p99:.0f} ms (p99)"
        figures = f"mean {summary.mean:7.1f}  p50 {summary.p50:7.1f}  p99 {summary.p99:7.1f} ms"
        print(f"{name:<28} {figures}{late}", file=sys.stderr, flush=True)
        if summary.is_valid or summary.errors or left == 0:
            entry.summaries.append(summary)
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="that count, of one run (default 20)")
    parser.add_argument("--warmup", type=float, default=6.0)
    parser.add_argument("--load", type=float, default=70.0, help="percent of what the servers can do (default 70)")
    parser.add_argument("--rounds", type=int, default=1, help="each of other arrivals; figures are medians")
    parser.add_argument("--retries", type=int, default=2, help="of a run whose generator was late (default 2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="entries whose name contains one of these, by commas")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    wanted = [name for name in RUNS if not args.only or any(part in name for part in args.only.split(","))]
    if not wanted or args.seconds <= 0 or args.rounds < 1 or not 0 < args.load < 100:
        parser.error("expected --only to fit an entry, --seconds > 0, --rounds >= 1, --load between 0 and 100")
    found = {name: Entry() for name in wanted}
    with Farm.of_speeds(SPEEDS, workers=WORKERS, processes=2) as farm:
        rate = args.load / 100 * farm.capacity_s / (MEAN_MS / 1e3)
        for number in range(args.rounds):
            schedule = poisson(rate, args.warmup + args.seconds, args.seed + number, Demand("exponential", MEAN_MS))
            for name in wanted[number % len(wanted) :] + wanted[: number % len(wanted)]:
                entry = found[name]
                if entry.why_not:
                    continue
                measure(farm, name, entry, schedule, args)
    if args.json:
        settings = {"load": args.load / 100, "seconds": args.seconds, "rounds": args.rounds, "rate": rate}
        print(json.dumps(settings | {"entries": {name: entry.as_dict() for name, entry in found.items()}}, indent=2))
    else:
        print(f"{args.load:g} % load, {rate:.0f}/s, {args.rounds} × {args.seconds:g} s; FCT ms")
        print(f"{'':<28}" + "".join(f"{figure:>9}" for figure in FIGURES) + f"{'failed':>9}{'of':>9}")
        for name, entry in found.items():
            if entry.why_not:
                print(f"{name:<28} not measured: {entry.why_not}")
                continue
            cells = "".join(f"{entry.figure(figure):9.1f}" for figure in FIGURES)
            late = "" if all(s.is_valid for s in entry.summaries) else "  generator late: too little CPU"
            counts = f"{entry.failed:9d}{sum(s.requests for s in entry.summaries):9d}"
            print(f"{name:<28}{cells}{counts}{entry.over(found[wanted[0]])}{late}")
    return 1 if any(entry.failed for entry in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
