"""The demo: unequal backends, the balancer and open-loop load on loopback, and one policy after the other under the
same load.

It goes from round robin to least connections to `adaptive`. Every phase gets the same arrivals with the same demands
and starts from an empty system; the policy is swapped through the admin API while a thin stream of requests goes on.
All that it starts are child processes, which end with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from testbed import clock
from testbed.demand import Demand
from testbed.farm import Farm
from testbed.load.generator import Finished, Generator, Target
from testbed.load.report import Summary, summarize
from testbed.load.schedule import Schedule, poisson
from testbed.peers import vickrey
from testbed.peers.peer import Server
from testbed.processes import StartError

PHASES = (("wrr", "round robin"), ("lsq", "least connections"), ("adaptive", "truthful bids, learned"))
DEMAND = Demand("exponential", 40.0)  # mean service 40 ms at speed 1
PRELUDE_S = 1.0  # thin load before each phase, under which the policy is swapped
PRELUDE_SHARE = 0.1
DRAIN_S = 1.5  # after a phase; who has no answer by then is counted with the age it reached
OUTSIDE_PHASES_S = 3.0  # start and end
WINDOW_S = 5.0
REFRESH_S = 0.25
SWITCH_S = 0.0005  # the thread that draws gives way to the load after so long


@dataclass
class Phase:
    """One policy under the load; what is shown of it while it runs, and what remains."""

    policy: str
    title: str
    seconds: float
    elapsed_s: float = 0.0
    in_flight: int = 0
    recent: deque[Finished] = field(default_factory=deque)
    shown: list[Finished] = field(default_factory=list)  # what was answered in the last WINDOW_S
    servers: list[dict[str, Any]] = field(default_factory=list)  # as the admin API says
    summary: Summary | None = None

    def look(self, generator: Generator) -> None:
        """Take what is to be shown."""
        self.elapsed_s, self.in_flight = generator.now_s, generator.in_flight
        while self.recent and self.recent[0].at_s < self.elapsed_s - WINDOW_S:
            self.recent.popleft()
        self.shown = list(self.recent)

    def as_dict(self) -> dict[str, Any]:
        summary = self.summary.as_dict() if self.summary else None
        return {"policy": self.policy, "title": self.title, "fct_ms": summary}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--duration", type=_seconds, default=60.0, metavar="TIME", help="of all of it (default 60s)")
    parser.add_argument("--no-load", action="store_true", help="no load: stay up, and print the URL to try by hand")
    parser.add_argument(
        "--servers", type=_speeds, default=(1, 1, 1, 1, 2, 2, 4, 4), metavar="SPEEDS", help="default 1,1,1,1,2,2,4,4"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="requests a server serves at once (default 1)"
    )
    parser.add_argument("--load", type=float, default=0.8, metavar="SHARE", help="share of the capacity (default 0.8)")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and demands (default 1)")


def _seconds(text: str) -> float:
    units = {"s": 1.0, "m": 60.0}
    value = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    if not 10 <= value <= 3600:
        raise argparse.ArgumentTypeError("between 10 s and an hour")
    return value


def _speeds(text: str) -> tuple[float, ...]:
    speeds = tuple(float(speed) for speed in text.split(","))
    if not 1 <= len(speeds) <= 64 or not all(0.01 <= speed <= 100 for speed in speeds):
        raise argparse.ArgumentTypeError("1 to 64 speeds between 0.01 and 100")
    return speeds


class Demo:
    """The running whole: farm, balancer, and the phases."""

    def __init__(self, args: argparse.Namespace, farm: Farm, balancer: vickrey.Vickrey) -> None:
        self.args = args
        self.farm = farm
        self.balancer = balancer
        self.rate = args.load * farm.capacity_s / (DEMAND.mean_ms / 1e3)
        self.phases: list[Phase] = []
        per_phase = (args.duration - OUTSIDE_PHASES_S) / len(PHASES) - PRELUDE_S - DRAIN_S
        self.phase_s = max(per_phase, 1.0)
        self.schedule = with_prelude(poisson(self.rate, self.phase_s, args.seed, DEMAND), self.rate, args.seed)

    async def run(self, show: Callable[[Demo], None]) -> None:
        """Run all phases; show(self) is called a few times a second, in a thread."""
        sys.setswitchinterval(SWITCH_S)
        for policy, title in PHASES:
            phase = Phase(policy, title, self.phase_s)
            self.phases.append(phase)
            await self._run_phase(phase, show)
            await asyncio.to_thread(self._empty)

    async def _run_phase(self, phase: Phase, show: Callable[[Demo], None]) -> None:
        target = Target("127.0.0.1", self.balancer.port)
        generator = Generator(target, self.schedule, watch=phase.recent.append)
        run = asyncio.create_task(generator.run())
        helpers = [asyncio.create_task(self._swap(phase.policy)), asyncio.create_task(self._poll(phase))]
        try:
            while not run.done():
                await asyncio.wait([run], timeout=REFRESH_S)
                if generator.now_s > self.schedule.duration_s + DRAIN_S:
                    generator.abort()
                phase.look(generator)
                await asyncio.to_thread(show, self)  # drawing takes milliseconds; requests leave meanwhile
            await helpers[0]
            phase.summary = summarize(run.result(), after_s=PRELUDE_S, counts_waiting=True)
        finally:
            generator.abort()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(run, *helpers, return_exceptions=True)

    async def _swap(self, policy: str) -> None:
        await asyncio.sleep(PRELUDE_S / 3)
        await asyncio.to_thread(self.balancer.set_policy, policy)

    async def _poll(self, phase: Phase) -> None:
        while True:
            with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError):
                phase.servers = (await asyncio.to_thread(self.balancer.status))["servers"]
            await asyncio.sleep(2 * REFRESH_S)

    def _empty(self) -> None:
        """Nothing of a phase is left for the next: no queue at the backends, no work in progress."""
        self.farm.reset()
        self.farm.await_idle(5.0)


def with_prelude(schedule: Schedule, rate: float, seed: int) -> Schedule:
    """The schedule after PRELUDE_S of thin load."""
    prelude = poisson(rate * PRELUDE_SHARE, PRELUDE_S, seed + 1, DEMAND)
    return Schedule(
        np.concatenate([prelude.arrival_s, schedule.arrival_s + PRELUDE_S]),
        np.concatenate([prelude.demand_ms, schedule.demand_ms]),
    )


async def _stay() -> None:
    await asyncio.Event().wait()


def main(args: argparse.Namespace) -> int:
    """Run the demo; Ctrl-C or TERM ends it and all that it started."""
    from testbed import demo_view

    wants_json = getattr(args, "json", False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    view = demo_view.View(sys.stderr if wants_json else sys.stdout)
    demo: Demo | None = None
    interrupted = False
    try:
        with contextlib.ExitStack() as stack:
            farm = stack.enter_context(
                Farm.of_speeds(args.servers, workers=args.workers, demand=str(DEMAND), processes=2)
            )
            servers = [Server(address) for address in farm.addresses]
            policy = PHASES[-1][0] if args.no_load else PHASES[0][0]
            balancer = stack.enter_context(vickrey.start(servers, policy=policy, health={"path": "/health"}, maxconn=0))
            stack.callback(_ignore_signals)  # a second Ctrl-C must not interrupt the clearing up
            demo = Demo(args, farm, balancer)
            view.start(demo)
            if args.no_load:
                clock.run(_stay())
            else:
                clock.run(demo.run(view.show))
    except KeyboardInterrupt:
        interrupted = True
    except (StartError, OSError, RuntimeError) as error:
        view.stop()
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        view.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    if demo is not None and not args.no_load:
        view.summary(demo.phases, interrupted)
    if wants_json:
        print(json.dumps(document(args, demo, interrupted), indent=2))
    return 0


def document(args: argparse.Namespace, demo: Demo | None, interrupted: bool) -> dict[str, Any]:
    """The summary for programs."""
    return {
        "servers": list(args.servers),
        "workers": args.workers,
        "load": args.load,
        "seed": args.seed,
        "rate": demo.rate if demo else None,
        "interrupted": interrupted,
        "phases": [phase.as_dict() for phase in demo.phases if phase.summary] if demo else [],
    }


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m testbed.demo", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return main(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(_main())
